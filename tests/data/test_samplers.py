"""Which image goes where: complete, disjoint, repeatable, whatever the number of processes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relook.data.sample import Sample
from relook.data.samplers import EachOnce, FilledGroups, StreamedGroups, orientation_groups

COUNT, BATCH, WORLD = st.integers(0, 60), st.integers(1, 9), st.integers(1, 7)


def _samples(sizes: list[tuple[int, int]]) -> list[Sample]:
    """Samples of (width, height)."""
    return [Sample(id=n, path=Path(f"{n}.png"), height=h, width=w) for n, (w, h) in enumerate(sizes)]


def _groups(lying: int, standing: int) -> list[np.ndarray]:
    groups = [np.arange(lying), np.arange(lying, lying + standing)]
    return [group for group in groups if len(group)]


@given(COUNT, BATCH, WORLD)
def test_tests_see_every_image_exactly_once(count: int, batch: int, world: int) -> None:
    """The union of all shares is the data set, without repetition, also with more processes than images."""
    samples = _samples([(100 + 7 * n % 50, 100) for n in range(count)])
    seen: list[int] = []
    for rank in range(world):
        share = EachOnce(samples, batch=batch, rank=rank, world=world)
        batches = list(share)
        assert len(batches) == len(share)
        assert all(0 < len(b) <= batch for b in batches)
        assert all(len(b) == batch for b in batches[:-1])
        seen += [pick.sample for b in batches for pick in b]
    assert sorted(seen) == list(range(count))


def test_shares_differ_by_at_most_one_image() -> None:
    samples = _samples([(100, 100)] * 11)
    sizes = [sum(map(len, EachOnce(samples, batch=2, rank=r, world=4))) for r in range(4)]
    assert max(sizes) - min(sizes) <= 1


def test_test_batches_hold_images_of_alike_shape() -> None:
    samples = _samples([(200, 100), (100, 200)] * 4)
    for batch in EachOnce(samples, batch=4):
        assert len({samples[p.sample].width for p in batch}) == 1


@given(COUNT, COUNT, BATCH, WORLD, st.integers(0, 3))
def test_line_a_fills_groups_up_and_deals_full_pure_batches(
    lying: int, standing: int, batch: int, world: int, epoch: int
) -> None:
    """Full batches of one orientation, equally many per process, every image in, repeats as few as can be."""
    groups = _groups(lying, standing)
    seen: list[tuple[int, int]] = []
    lengths: set[int] = set()
    for rank in range(world):
        sampler = FilledGroups(groups, batch=batch, seed=4, rank=rank, world=world)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        lengths.add(len(batches))
        assert len(batches) == len(sampler)
        for b in batches:
            assert len(b) == batch
            assert len({p.sample < lying for p in b}) == 1
            assert all(p.epoch == epoch for p in b)
        seen += [(p.sample, p.turn) for b in batches for p in b]
    assert len(lengths) == 1
    assert len(seen) == len(set(seen))
    times = Counter(sample for sample, _ in seen)
    assert sorted(times) == list(range(lying + standing))
    total = batch * world
    assert len(seen) == sum(-(-len(g) // total) * total for g in groups)
    for group in groups:
        counts = [times[i] for i in group.tolist()]
        assert max(counts) - min(counts) <= 1


@given(COUNT, COUNT, BATCH, WORLD)
def test_line_b_mixes_leftovers_only(lying: int, standing: int, batch: int, world: int) -> None:
    """All images in, processes have equally many batches, only batches of the end may be mixed or small."""
    groups = _groups(lying, standing)
    seen: list[tuple[int, int]] = []
    lengths: set[int] = set()
    for rank in range(world):
        sampler = StreamedGroups(groups, batch=batch, seed=1, rank=rank, world=world)
        batches = list(sampler)
        lengths.add(len(batches))
        assert len(batches) == len(sampler)
        assert all(len(b) == batch for b in batches[:-1])
        mixed = [n for n, b in enumerate(batches) if len({p.sample < lying for p in b}) == 2]
        assert all(n >= len(batches) - 2 for n in mixed)
        seen += [(p.sample, p.turn) for b in batches for p in b]
    assert len(lengths) == 1
    assert len(seen) == len(set(seen))
    assert {sample for sample, _ in seen} == set(range(lying + standing))
    assert len(seen) == -(-(lying + standing) // world) * world


@pytest.mark.parametrize("kind", [FilledGroups, StreamedGroups])
def test_epochs_differ_and_repeat(kind: type[FilledGroups] | type[StreamedGroups]) -> None:
    """The order depends on seed and epoch only, not on what was iterated before."""

    def order(seed: int, epoch: int) -> list[int]:
        sampler = kind(_groups(30, 9), batch=4, seed=seed)
        sampler.set_epoch(epoch)
        return [p.sample for b in sampler for p in b]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    sampler = kind(_groups(30, 9), batch=4, seed=0)
    assert [p.sample for b in sampler for p in b] == [p.sample for b in sampler for p in b]


@pytest.mark.parametrize("world", [1, 2])
def test_an_epoch_can_go_on_after_some_batches(world: int) -> None:
    """With `skip` the batches are those of the whole epoch from there on; the length stays the epoch's."""
    makers = (
        lambda: FilledGroups(_groups(30, 9), batch=4, seed=0, rank=world - 1, world=world),
        lambda: StreamedGroups(_groups(30, 9), batch=4, seed=0, rank=world - 1, world=world),
        lambda: EachOnce(_samples([(9, 9)] * 31), batch=4, rank=world - 1, world=world),
    )
    for make in makers:
        whole, rest = make(), make()
        whole.set_epoch(3)
        rest.set_epoch(3, skip=2)
        assert list(rest) == list(whole)[2:]
        assert len(rest) == len(whole)
        rest.set_epoch(3)
        assert list(rest) == list(whole)


def test_fewer_images_than_a_batch_repeat_with_new_turns() -> None:
    """Three images fill batches of eight; each repetition counts on, so that it is augmented anew."""
    (batch,) = FilledGroups([np.arange(3)], batch=8, seed=0)
    assert Counter(p.sample for p in batch).keys() == {0, 1, 2}
    assert sorted({p.turn for p in batch}) == [0, 1, 2]
    assert len(set(batch)) == 8


def test_square_images_belong_to_either_group_by_line() -> None:
    samples = _samples([(10, 5), (5, 5), (5, 10)])
    a = orientation_groups(samples, [0, 1, 2], "w>h")
    b = orientation_groups(samples, [0, 1, 2], "w>=h")
    none = orientation_groups(samples, [0, 2], "none")
    assert [g.tolist() for g in a] == [[0], [1, 2]]
    assert [g.tolist() for g in b] == [[0, 1], [2]]
    assert [g.tolist() for g in none] == [[0, 2]]


def test_impossible_processes_and_batches() -> None:
    with pytest.raises(ValueError, match="rank 2 does not exist among 2"):
        EachOnce([], batch=1, rank=2, world=2)
    with pytest.raises(ValueError, match="at least one image"):
        FilledGroups([np.arange(3)], batch=0, seed=0)
