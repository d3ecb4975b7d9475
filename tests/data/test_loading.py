"""Batches: the same for any number of workers, right in every field, and not ended by a broken image."""

import dataclasses
import logging
import multiprocessing
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from relook.data.decode import BrokenImage
from relook.data.learnt import trained_boxes
from relook.data.loading.batches import Batch
from relook.data.loading.loader import Loader, _hear_parent, _unheard, eval_loader, train_loader, trainable
from relook.data.sample import DataError, Sample, Source
from relook.data.shapes import shapes
from relook.recipe import Flip, Jitter, KeepRatio, Pixels, Recipe, Resize, Selection

SMALL = Recipe(
    train_size=KeepRatio(short=(64, 96), between=True, long=160),
    test_size=KeepRatio(short=(64,), long=160),
    augment=(Jitter(strength=0.3), Resize(), Flip()),
)


def _source(samples: Sequence[Sample]) -> Source:
    return Source(name="made", samples=tuple(samples), classes=("a", "b"), category_ids=(3, 7), file=None)


def _sample(n: int, folder: Path, *, width: int = 60, height: int = 40, **fields: object) -> Sample:
    """A file of one colour with one box."""
    path = folder / f"{n}.png"
    Image.new("RGB", (width, height), (n % 256, 50, 100)).save(path)
    values: dict[str, object] = {
        "boxes": np.array([[10.0, 5, 30, 25]]),
        "labels": np.array([1]),
        "crowd": np.array([False]),
        "ignore": np.array([False]),
        "area": np.array([400.0]),
    }
    return Sample(id=n, path=path, height=height, width=width, **{**values, **fields})


def _break(sample: Sample, content: bytes = b"") -> None:
    sample.path.write_bytes(content)


def _epoch(loader: Loader, epoch: int) -> list[Batch]:
    loader.sampler.set_epoch(epoch)
    return list(loader)


def _equal(a: Batch, b: Batch) -> bool:
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.targets.boxes, b.targets.boxes)
        and torch.equal(a.targets.labels, b.targets.labels)
        and a.paths == b.paths
    )


# -- the same every time -------------------------------------------------------------------------------


def test_any_number_of_workers_gives_the_same_batches() -> None:
    """Two epochs with 0, 1 and 2 workers are equal bit for bit, and the epochs differ."""
    source = shapes(13, seed=0, side=64)
    runs = []
    for workers in (0, 1, 2):
        loader = train_loader(source, SMALL, batch=4, workers=workers, seed=3, stride=32)
        runs.append([_epoch(loader, 0), _epoch(loader, 1)])
    for run in runs[1:]:
        for epoch, expected in zip(run, runs[0], strict=True):
            assert len(epoch) == 4
            assert all(map(_equal, epoch, expected))
    assert not _equal(runs[0][0][0], runs[0][1][0])


def test_a_later_epoch_does_not_depend_on_the_ones_before() -> None:
    """A resumed run sees in epoch 5 what the first run saw, and the global random numbers play no part."""
    source = shapes(6, seed=0, side=64)
    first = train_loader(source, SMALL, batch=2, workers=0, seed=3, stride=32)
    for epoch in range(5):
        _epoch(first, epoch)
    torch.manual_seed(99)
    resumed = train_loader(source, SMALL, batch=2, workers=0, seed=3, stride=32)
    state = torch.get_rng_state()
    assert all(map(_equal, _epoch(first, 5), _epoch(resumed, 5)))
    assert torch.equal(state, torch.get_rng_state())


def test_an_image_looks_the_same_in_whatever_batch_it_is() -> None:
    """With other batch sizes and processes the draws of an image in an epoch stay."""
    source = shapes(8, seed=0, side=64)

    def looks(batch: int, world: int) -> dict[int, float]:
        found: dict[int, float] = {}
        for rank in range(world):
            loader = train_loader(
                source, SMALL, batch=batch, workers=0, seed=3, stride=32, rank=rank, world=world
            )
            for b in _epoch(loader, 2):
                for n, key in enumerate(b.ids.tolist()):
                    height, width = b.targets.sizes[n].tolist()
                    found.setdefault(key, b.images[n, :, :height, :width].sum().item())
        return found

    assert looks(4, 1) == pytest.approx(looks(2, 2), rel=1e-5)


# -- what a batch holds --------------------------------------------------------------------------------


def test_every_field_of_a_test_batch(tmp_path: Path) -> None:
    samples = [_sample(5, tmp_path), _sample(9, tmp_path, width=90, height=40)]
    (batch,) = eval_loader(_source(samples), SMALL, batch=4, workers=0, stride=32)
    assert batch.images.shape == (2, 3, 64, 160)
    assert batch.images.is_contiguous()
    assert batch.ids.tolist() == [5, 9]
    assert batch.originals.tolist() == [[40, 60], [40, 90]]
    assert batch.targets.sizes.tolist() == [[64, 96], [64, 144]]
    assert batch.scales.dtype == torch.float64
    assert batch.scales.tolist() == [[1.6, 1.6], [1.6, 1.6]]
    assert batch.targets.boxes[0].tolist() == [[16, 8, 48, 40]]
    assert batch.targets.labels.tolist() == [[1], [1]]
    assert batch.paths == tuple(str(s.path) for s in samples)
    assert batch.images[0, :, :, 96:].abs().sum() == 0
    pixels = Pixels()
    expected = (np.array([5, 50, 100]) - pixels.mean) / pixels.std
    np.testing.assert_allclose(batch.images[0, :, 3, 3].numpy(), expected, rtol=1e-5)


def test_boxes_go_back_to_the_file_by_the_scales(tmp_path: Path) -> None:
    sample = _sample(1, tmp_path, width=61, height=47)
    (batch,) = eval_loader(_source([sample]), SMALL, batch=1, workers=0, stride=32)
    back = batch.targets.boxes[0, 0] / batch.scales[0].repeat(2)
    np.testing.assert_allclose(back.numpy(), sample.boxes[0], atol=1e-4)


def test_crowds_are_not_learnt_and_boxes_are_mirrored_with_the_image(tmp_path: Path) -> None:
    """Of an object and a crowd, one is learnt; a flip that always happens mirrors it."""
    sample = _sample(
        1,
        tmp_path,
        boxes=np.array([[0.0, 0, 20, 20], [30, 10, 60, 40]]),
        labels=np.array([0, 1]),
        crowd=np.array([False, True]),
        ignore=np.array([False, False]),
        area=np.array([400.0, 900.0]),
    )
    recipe = dataclasses.replace(
        SMALL, train_size=KeepRatio(short=(40,), long=60), augment=(Resize(), Flip(probability=1.0))
    )
    (batch,) = train_loader(_source([sample]), recipe, batch=1, workers=0, seed=0, stride=32)
    assert batch.targets.boxes[batch.targets.valid].tolist() == [[40, 0, 60, 20]]
    assert batch.files == ()


def test_decoded_files_come_along_where_they_are_asked_for(tmp_path: Path) -> None:
    """For further views; each as it was decoded, and no file is read again for them."""
    samples = [_sample(5, tmp_path), _sample(9, tmp_path, width=90, height=40)]
    for workers in (0, 1):
        loader = eval_loader(_source(samples), SMALL, batch=2, workers=workers, stride=32, files=True)
        (batch,) = loader
        assert [tuple(file.shape) for file in batch.files] == [(40, 60, 3), (40, 90, 3)]
        assert torch.equal(batch.files[1], torch.from_numpy(samples[1].image()))
        assert len(batch.to("cpu").files) == 2


def test_the_published_rules_of_what_is_learnt(tmp_path: Path) -> None:
    """Left out: crowds, `ignore`, no area, thinner than 1 pixel, outside; exactly 1 pixel stays."""
    boxes = [
        [10.1, 10, 11.1, 20],
        [10, 10, 10.5, 20],
        [10, 10, 20, 10.9],
        [60, 0, 70, 10],
        [-10, 0, 0, 10],
        [-10, 0, 0.5, 10],
        [1, 1, 9, 9],
        [1, 1, 9, 9],
        [1, 1, 9, 9],
    ]
    flags = np.arange(9)
    sample = _sample(
        1,
        tmp_path,
        boxes=np.array(boxes, np.float64),
        labels=np.zeros(9, np.int64),
        crowd=flags == 6,
        ignore=flags == 7,
        area=np.where(flags == 8, 0.0, 5.0),
    )
    assert trained_boxes(sample).tolist() == [True, False, False, False, False, True, False, False, False]


def test_which_images_train(tmp_path: Path) -> None:
    """At least 32 pixels and any annotation, be it a crowd only; tests take all."""
    none = {
        "boxes": np.zeros((0, 4)),
        "labels": np.zeros(0, np.int64),
        "crowd": np.zeros(0, bool),
        "ignore": np.zeros(0, bool),
        "area": np.zeros(0),
    }
    samples = [
        _sample(0, tmp_path),
        _sample(1, tmp_path, height=31),
        _sample(2, tmp_path, **none),
        _sample(3, tmp_path, crowd=np.array([True])),
    ]
    source = _source(samples)
    assert trainable(source, Selection()) == [0, 3]
    assert trainable(source, Selection(need="nothing", min_side=1)) == [0, 1, 2, 3]
    seen = [key for b in eval_loader(source, SMALL, batch=3, workers=0, stride=32) for key in b.ids.tolist()]
    assert sorted(seen) == [0, 1, 2, 3]
    with pytest.raises(DataError, match="none of 1 images can be trained on"):
        trainable(_source(samples[2:3]), Selection())


def test_batches_move_whole() -> None:
    """`to` and torch's pytrees keep every field."""
    (batch,) = eval_loader(shapes(2, seed=0, side=64), SMALL, batch=2, workers=0, stride=32)
    moved = batch.to("cpu")
    assert _equal(batch, moved)
    leaves, layout = torch.utils._pytree.tree_flatten(batch)
    again = torch.utils._pytree.tree_unflatten(leaves, layout)
    assert _equal(batch, again)
    assert len(again) == 2


def test_the_length_is_the_number_of_batches() -> None:
    source = shapes(10, seed=0, side=64)
    for loader in (
        train_loader(source, SMALL, batch=4, workers=0, seed=0, stride=32),
        eval_loader(source, SMALL, batch=3, workers=0, stride=32),
    ):
        assert len(list(loader)) == len(loader)


# -- broken images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_stay_full_and_broken_images_are_listed(
    workers: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two of twelve are broken: eight images per batch go on, both are named once in log and list."""
    samples = [_sample(n, tmp_path) for n in range(12)]
    _break(samples[3])
    _break(samples[7], b"not a picture")
    loader = train_loader(_source(samples), SMALL, batch=4, workers=workers, seed=0, stride=32)
    with caplog.at_level(logging.WARNING):
        batches = _epoch(loader, 0) + _epoch(loader, 1)
    assert [len(b) for b in batches] == [4] * 6
    assert not {3, 7} & {key for b in batches for key in b.ids.tolist()}
    assert set(loader.broken) == {str(samples[3].path), str(samples[7].path)}
    assert len(caplog.records) == 2
    assert "3.png: the file is empty" in caplog.text


def test_substitutes_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    samples = [_sample(n, tmp_path) for n in range(9)]
    _break(samples[2])
    runs = [
        _epoch(train_loader(_source(samples), SMALL, batch=3, workers=w, seed=1, stride=32), 0)
        for w in (0, 2)
    ]
    assert all(map(_equal, *runs))


def test_a_broken_image_is_missing_from_its_test_batch(tmp_path: Path) -> None:
    """Nothing takes its place; a batch of broken images only is not yielded."""
    samples = [_sample(n, tmp_path) for n in range(6)]
    _break(samples[0])
    _break(samples[1])
    loader = eval_loader(_source(samples), SMALL, batch=2, workers=0, stride=32)
    assert [b.ids.tolist() for b in loader] == [[2, 3], [4, 5]]
    assert len(loader.broken) == 2


def test_a_size_that_the_annotation_does_not_have_is_broken(tmp_path: Path) -> None:
    sample = dataclasses.replace(_sample(1, tmp_path), width=40, height=60)
    with pytest.raises(BrokenImage, match=r"is 60x40 pixels .* annotation says 40x60"):
        sample.image()


@pytest.mark.parametrize("training", [True, False])
def test_mostly_broken_data_stop_with_the_reasons(training: bool, tmp_path: Path) -> None:
    samples = [_sample(n, tmp_path) for n in range(10)]
    for sample in samples[:7]:
        _break(sample)
    source = _source(samples)
    loader = (
        train_loader(source, SMALL, batch=2, workers=0, seed=0, stride=32)
        if training
        else eval_loader(source, SMALL, batch=2, workers=0, stride=32)
    )
    with pytest.raises(DataError, match=r"images are broken.*relook doctor(.|\n)*the file is empty"):
        list(loader)


def test_a_wholly_broken_training_batch_stops_at_once(tmp_path: Path) -> None:
    """Other processes must not wait for a batch that never comes."""
    samples = [_sample(n, tmp_path) for n in range(2)]
    for sample in samples:
        _break(sample)
    loader = train_loader(_source(samples), SMALL, batch=1, workers=0, seed=0, stride=32)
    with pytest.raises(DataError, match="are broken"):
        next(iter(loader))


def test_a_fault_of_the_program_is_not_hidden() -> None:
    """Only broken images are skipped; other errors come through."""

    def fail() -> np.ndarray:
        raise ZeroDivisionError

    sample = dataclasses.replace(shapes(1, seed=0, side=64).samples[0], pixels=fail)
    with pytest.raises(ZeroDivisionError):
        list(eval_loader(_source([sample]), SMALL, batch=1, workers=0, stride=32))


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_pinned_and_move_to_the_gpu(workers: int) -> None:
    """With a GPU images and targets lie in page-locked memory, and `to` moves them whole."""
    batch = next(iter(eval_loader(shapes(2, seed=0, side=64), SMALL, batch=2, workers=workers, stride=32)))
    assert batch.images.is_pinned()
    assert batch.targets.boxes.is_pinned()
    moved = batch.to("cuda")
    assert moved.images.is_cuda
    assert moved.targets.sizes.is_cuda
    assert torch.equal(moved.images.cpu(), batch.images)


def test_corners_name_the_last_pixel_where_a_recipe_says_so(tmp_path: Path) -> None:
    """One pixel less on the right and below, in pixels of the file; a box of one pixel keeps its place."""
    sample = _sample(5, tmp_path)
    plain = dataclasses.replace(
        SMALL, augment=(Resize(),), train_size=SMALL.test_size, selection=Selection(need="nothing")
    )
    boxes = []
    for recipe in (plain, dataclasses.replace(plain, last_pixel=True)):
        loader = train_loader(_source([sample]), recipe, batch=1, workers=0, seed=0, stride=32)
        (batch,) = list(loader)
        boxes.append(batch.targets.boxes[0, 0])
    scale = float(batch.scales[0, 0])
    assert torch.allclose(boxes[0] - boxes[1], torch.tensor([0, 0, scale, scale]), atol=1e-4)
    assert sample.boxes.tolist() == _sample(5, tmp_path).boxes.tolist()  # the data set itself is not changed


@pytest.mark.parametrize("way", ["fork", "spawn", "forkserver"])
def test_a_reader_ends_when_its_parent_says_so_and_not_when_others_do(way: str):
    """However it was started: Ctrl-C, SIGHUP and another process's SIGTERM do not reach it."""
    context = multiprocessing.get_context(way)
    ready = context.Event()
    with _unheard():
        reader = context.Process(target=_reader, args=(ready,), daemon=True)
        reader.start()
    assert ready.wait(60)
    assert reader.pid is not None
    for number in ("INT", "HUP", "TERM"):
        subprocess.run(["kill", f"-{number}", str(reader.pid)], check=True)
    reader.join(0.5)
    assert reader.is_alive()
    reader.terminate()
    reader.join(20)
    assert not reader.is_alive()


def _reader(ready: Any) -> None:
    _hear_parent(0)
    ready.set()
    time.sleep(120)
