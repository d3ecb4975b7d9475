"""Targets of verification against their slow twins, on ordinary and on nasty boxes."""

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import twins
from relook.assign.verification import corners, gaussian_radius, semantic
from relook.ops import boxes as B
from relook.ops import levels as L
from relook.types import Targets
from strategies import box_lists

STRIDES = [8, 16, 32]
SHAPES = [(8, 12), (4, 6), (2, 3)]
GRID = L.grid([torch.zeros(1, 1, *s, dtype=torch.float64) for s in SHAPES], STRIDES, offset=0.0)
sizes = st.sampled_from([(64, 96), (32, 64), (20, 40)])


def inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes held inside the image, as the data's are."""
    return B.clip(boxes[None], torch.tensor([size]))[0]


def targets(boxes: Tensor, labels: Tensor, size: tuple[int, int]) -> Targets:
    """The image behind a larger one with more boxes, so that there is padding of every kind."""
    more = boxes.new_zeros(len(boxes) + 2, 4)
    return Targets.pad([boxes, more], [labels, labels.new_zeros(len(more))], [size, (64, 96)])


@settings(deadline=None, max_examples=50)
@given(st.floats(1, 500), st.floats(1, 500), st.floats(0.1, 0.9))
def test_the_radius_keeps_the_overlap(w: float, h: float, overlap: float) -> None:
    """The closed form is where the least tolerant of three moves reaches the overlap."""
    radius = gaussian_radius(torch.tensor([w, h], dtype=torch.float64), overlap)
    expected = twins.gaussian_radius(w, h, overlap)
    torch.testing.assert_close(float(radius), expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(box_lists(), sizes)
def test_corners_are_the_twin(boxes: Tensor, size: tuple[int, int]) -> None:
    """Heat, nearest points and offsets; nothing beyond the image's own padding or from padding rows."""
    # two points equally near: which is taken is undefined, so no corner lies in the middle of two
    boxes = inside(boxes, size) * 0.97 + torch.tensor([0.11, 0.13, 0.17, 0.19], dtype=torch.float64)
    made = targets(boxes, torch.zeros(len(boxes), dtype=torch.int64), size)
    valid = L.inside(GRID.points, made.sizes, multiple=32)
    wanted = corners(GRID, valid, made, overlap=0.7)
    reach = gaussian_radius(B.size(boxes), 0.7).tolist()
    points = [(x, y) for x, y in GRID.points.tolist()]
    for kind in (0, 1):
        at = [(x, y) for x, y in boxes[:, 2 * kind : 2 * kind + 2].tolist()]
        heat, owner = twins.corners(points, GRID.level.tolist(), valid[0].tolist(), at, reach)
        torch.testing.assert_close(wanted.heat[0, :, kind], torch.tensor(heat, dtype=torch.float64))
        assert wanted.positive[0, :, kind].tolist() == [o >= 0 for o in owner]
        for p, o in enumerate(owner):
            if o >= 0:
                stride = STRIDES[int(GRID.level[p])]
                offset = [(a - b) / stride for a, b in zip(at[o], points[p], strict=True)]
                torch.testing.assert_close(wanted.offset[0, p, kind].tolist(), offset)


@settings(deadline=None, max_examples=60)
@given(box_lists(), st.integers(0, 1000), sizes)
def test_class_map_is_the_twin(boxes: Tensor, seed: int, size: tuple[int, int]) -> None:
    """Drawing boxes from the largest to the smallest, then resampling, is to look at the smallest."""
    boxes = inside(boxes, size)
    assume((B.area(boxes) > 1e-3).all())
    labels = torch.randint(0, 2, (len(boxes),), generator=torch.Generator().manual_seed(seed))
    weight = semantic(GRID, targets(boxes, labels, size), classes=2, multiple=32)[0]
    own = (-(-size[0] // 32) * 4, -(-size[1] // 32) * 4)
    expected = twins.semantic(SHAPES, own, boxes.tolist(), labels.tolist(), 2)
    torch.testing.assert_close(weight, torch.tensor(expected, dtype=torch.float64))


def test_a_box_that_ends_on_a_cell_is_drawn_into_the_next() -> None:
    """Both ends are drawn: a box to pixel 24 covers the cells 0 to 3, the last in the image's own padding."""
    boxes = torch.tensor([[0.0, 0, 24, 8]], dtype=torch.float64)
    weight = semantic(GRID, targets(boxes, torch.tensor([1]), (24, 24)), classes=2, multiple=32)
    drawn = weight[0, : 8 * 12, 1].reshape(8, 12) > 0
    assert drawn.nonzero().tolist() == [[i, j] for i in (0, 1) for j in range(4)]


def test_images_without_boxes_have_no_corners_and_no_classes() -> None:
    """Nothing is warm, nothing covered."""
    none = targets(torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.int64), (64, 96))
    wanted = corners(GRID, L.inside(GRID.points, none.sizes, multiple=32), none, overlap=0.7)
    assert not wanted.heat[0].any()
    assert not wanted.positive[0].any()
    assert not semantic(GRID, none, classes=3, multiple=32)[0].any()
