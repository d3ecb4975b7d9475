"""Every assigner against its slow twin, on ordinary and on nasty boxes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import twins
from relook.assign.assignment import Assignment
from relook.assign.atss import atss
from relook.assign.max_iou import max_iou
from relook.assign.nearest_point import nearest_point
from relook.ops import levels as L
from relook.types import Targets
from strategies import box_lists

STRIDES = [8, 16, 32]
SHAPES = [(8, 8), (4, 4), (2, 2)]
GRID = L.grid([torch.zeros(1, 1, *s, dtype=torch.float64) for s in SHAPES], STRIDES, offset=0.0)
sizes = st.sampled_from([(64, 64), (32, 64), (20, 40)])


def targets(boxes: Tensor, size: tuple[int, int]) -> Targets:
    """One image, with padding rows behind its boxes."""
    longer = boxes.new_zeros(len(boxes) + 2, 4)
    labels = [torch.zeros(len(b), dtype=torch.int64) for b in (boxes, longer)]
    made = Targets.pad([boxes, longer], labels, [size, size])
    return Targets(made.boxes[:1], made.labels[:1], made.valid[:1], made.sizes[:1])


def owners(assigned: Assignment) -> list[int]:
    """-2 ignored, -1 negative, else the index of the ground truth."""
    out = torch.where(assigned.positive, assigned.index, -1)
    return torch.where(assigned.ignored, -2, out)[0].tolist()


@settings(deadline=None, max_examples=80)
@given(box_lists(), sizes)
def test_nearest_point_is_the_twin(boxes: Tensor, size: tuple[int, int]) -> None:
    """One point per box on the level of its size, the nearer box wins, the earlier on ties."""
    valid = L.inside(GRID.points, torch.tensor([size]), multiple=32)
    assigned = nearest_point(GRID, valid, targets(boxes, size), scale=4.0)
    expected = twins.nearest_point(
        [(x, y) for x, y in GRID.points.tolist()],
        GRID.level.tolist(),
        STRIDES,
        valid[0].tolist(),
        boxes.tolist(),
        4.0,
    )
    mine = owners(assigned)
    usable = valid[0].tolist()
    # which of two equally near points a box takes is undefined: compare how many, and who owns them
    assert sorted(m for m, v in zip(mine, usable, strict=True) if v) == sorted(
        e for e, v in zip(expected, usable, strict=True) if v
    )
    assert all(m == -2 for m, v in zip(mine, usable, strict=True) if not v)


@settings(deadline=None, max_examples=60)
@given(box_lists(), st.integers(0, 10_000), sizes)
def test_max_iou_is_the_twin(boxes: Tensor, seed: int, size: tuple[int, int]) -> None:
    """Thresholds, then every best box of every ground truth, whatever its overlap (rp_14)."""
    random = torch.Generator().manual_seed(seed)
    corners = 64 * torch.rand(len(GRID.points), 4, generator=random, dtype=torch.float64)
    corners[::3] = boxes[0] if len(boxes) else corners[::3]
    valid = L.inside(GRID.points, torch.tensor([size]), multiple=32)
    assigned = max_iou(corners[None], valid, targets(boxes, size), positive=0.5, negative=0.4)
    assert owners(assigned) == twins.max_iou(corners.tolist(), valid[0].tolist(), boxes.tolist(), 0.5, 0.4)


def test_rp_14_a_box_that_overlaps_nothing_takes_everything() -> None:
    """A ground truth without any overlap makes every valid point positive for itself."""
    boxes = torch.tensor([[60.0, 60, 62, 62]], dtype=torch.float64)
    predicted = torch.tensor([[0.0, 0, 8, 8]], dtype=torch.float64).expand(1, len(GRID.points), 4)
    valid = L.inside(GRID.points, torch.tensor([[32, 64]]), multiple=32)
    assigned = max_iou(predicted, valid, targets(boxes, (32, 64)), positive=0.5, negative=0.4)
    assert torch.equal(assigned.positive, valid)


@settings(deadline=None, max_examples=60)
@given(box_lists(), st.integers(0, 10_000), sizes)
def test_atss_is_the_twin(boxes: Tensor, seed: int, size: tuple[int, int]) -> None:
    """Candidates per level, threshold of mean plus deviation, the highest overlap wins."""
    random = torch.Generator().manual_seed(seed)
    spread = 10 * torch.rand(len(GRID.points), 4, generator=random, dtype=torch.float64)
    predicted = GRID.points.repeat(1, 2) + spread * torch.tensor([-1.0, -1, 1, 1])
    valid = L.inside(GRID.points, torch.tensor([size]), multiple=32)
    assigned = atss(predicted[None], GRID, valid, targets(boxes, size), candidates=3)
    expected = twins.atss(predicted.tolist(), GRID.lengths, valid[0].tolist(), boxes.tolist(), 3)
    usable = valid[0].tolist()
    mine = owners(assigned)
    assert [m for m, v in zip(mine, usable, strict=True) if v] == [
        e for e, v in zip(expected, usable, strict=True) if v
    ]


def test_rp_04_a_level_with_fewer_candidates_gives_all_it_has() -> None:
    """Nine candidates are asked for, the coarsest level has two valid points: no error, no padding picked."""
    boxes = torch.tensor([[4.0, 4, 40, 28]], dtype=torch.float64)
    predicted = GRID.points.repeat(1, 2) + torch.tensor([-12.0, -12, 12, 12], dtype=torch.float64)
    valid = L.inside(GRID.points, torch.tensor([[32, 64]]), multiple=32)
    assigned = atss(predicted[None], GRID, valid, targets(boxes, (32, 64)), candidates=9)
    assert assigned.positive.any()
    assert not (assigned.positive & ~valid).any()
    assert owners(assigned).count(0) == twins.atss(
        predicted.tolist(), GRID.lengths, valid[0].tolist(), boxes.tolist(), 9
    ).count(0)


def test_nothing_is_assigned_without_ground_truth() -> None:
    """An image without objects: every valid point is negative."""
    valid = L.inside(GRID.points, torch.tensor([[64, 64]]), multiple=32)
    none = targets(torch.zeros(0, 4, dtype=torch.float64), (64, 64))
    predicted = GRID.points.repeat(1, 2)[None]
    for assigned in (
        nearest_point(GRID, valid, none, scale=4.0),
        max_iou(predicted, valid, none, positive=0.5, negative=0.4),
        atss(predicted, GRID, valid, none, candidates=9),
    ):
        assert set(owners(assigned)) == {-1}


@settings(deadline=None, max_examples=60)
@given(box_lists(), st.integers(0, 10_000), sizes)
def test_max_iou_without_force_is_thresholds_alone(boxes: Tensor, seed: int, size: tuple[int, int]) -> None:
    """Nobody takes a box that overlaps it less than is asked for."""
    random = torch.Generator().manual_seed(seed)
    corners = 64 * torch.rand(len(GRID.points), 4, generator=random, dtype=torch.float64)
    corners[::3] = boxes[0] if len(boxes) else corners[::3]
    valid = L.inside(GRID.points, torch.tensor([size]), multiple=32)
    assigned = max_iou(corners[None], valid, targets(boxes, size), positive=0.5, negative=0.4, forced=None)
    wanted: list[int] = []
    for corner, usable in zip(corners.tolist(), valid[0].tolist(), strict=True):
        overlaps = [twins.iou(tuple(box), tuple(corner)) for box in boxes.tolist()]
        best = max(overlaps, default=-1.0)
        hit = overlaps.index(best) if best >= 0.5 else -2 if best >= 0.4 else -1
        wanted.append(hit if usable else -2)
    assert owners(assigned) == wanted


def test_an_overlap_of_exactly_a_threshold_reaches_it() -> None:
    """Half of a box is positive at 0.5, a quarter is ignored at 0.25; with force and without."""
    boxes = torch.tensor([[0.0, 0, 8, 8]], dtype=torch.float64)
    found = torch.tensor([[[0.0, 0, 4, 8], [0, 0, 4, 4], [0, 0, 2, 4], [0, 0, 8, 8]]], dtype=torch.float64)
    valid = torch.ones(1, 4, dtype=torch.bool)
    for forced in (None, 0.0):
        assigned = max_iou(found, valid, targets(boxes, (64, 64)), positive=0.5, negative=0.25, forced=forced)
        assert owners(assigned) == [0, -2, -1, 0]
