"""Geometry of boxes and pyramids against slow twins."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import twins
from relook.ops import boxes as B
from relook.ops import levels as L
from strategies import box_lists


@settings(deadline=None, max_examples=60)
@given(box_lists(sorted_corners=False), box_lists(sorted_corners=False))
def test_pairwise_iou_is_the_twin(a: Tensor, b: Tensor) -> None:
    """Every pair, one at a time; empty and inverted boxes overlap nothing."""
    mine = B.pairwise_iou(a, b)
    assert mine.shape == (len(a), len(b))
    for i, one in enumerate(a.tolist()):
        for j, other in enumerate(b.tolist()):
            assert mine[i, j].item() == pytest.approx(twins.iou(one, other), abs=1e-12)
            if one[2] <= one[0] or other[3] <= other[1]:
                assert mine[i, j] == 0


@settings(deadline=None, max_examples=40)
@given(box_lists(least=1), st.integers(1, 90), st.integers(1, 90))
def test_clipped_boxes_lie_inside(boxes: Tensor, height: int, width: int) -> None:
    """No coordinate outside the image, and nothing that was inside moves."""
    clipped = B.clip(boxes[None], torch.tensor([[height, width]]))[0]
    limit = torch.tensor([width, height, width, height])
    assert ((clipped >= 0) & (clipped <= limit)).all()
    fits = (boxes >= 0) & (boxes <= limit)
    assert torch.equal(clipped[fits], boxes[fits])


def test_grid_is_level_after_level_row_after_row() -> None:
    """Point k of a level lies at (column, row) * stride; offset moves it by that part of a stride."""
    maps = [torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 2)]
    grid = L.grid(maps, (8, 16), offset=0.5)
    assert grid.points.tolist() == [
        [4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [8, 8], [24, 8],
    ]  # fmt: skip
    assert grid.stride.tolist() == [8] * 6 + [16] * 2
    assert grid.level.tolist() == [0] * 6 + [1] * 2
    assert grid.lengths == (6, 2)


def test_grid_keeps_count_in_half_precision() -> None:
    """bfloat16 has no number between 1024 and 1032; points are float32 whatever the features are."""
    grid = L.grid([torch.zeros(1, 1, 1, 200, dtype=torch.bfloat16)], (8,), offset=0.0)
    assert grid.points[:, 0].tolist() == [8 * i for i in range(200)]


def test_join_and_grid_agree() -> None:
    """Row p of a joined map is the map's value at grid point p."""
    maps = [torch.arange(6.0).reshape(1, 1, 2, 3), torch.arange(10.0, 12).reshape(1, 1, 1, 2)]
    assert L.join(maps)[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 10, 11]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 100), st.integers(1, 100))
def test_inside_counts_cells_of_the_padded_image(height: int, width: int) -> None:
    """Location (i, j) of stride s counts when i < ceil(H' / s) and j < ceil(W' / s), H' rounded up to 32."""
    shapes = [(16, 16), (8, 8), (2, 2), (1, 1)]
    strides = (8, 16, 64, 128)
    grid = L.grid([torch.zeros(1, 1, *s) for s in shapes], strides, offset=0.0)
    mine = L.inside(grid.points, torch.tensor([[height, width]]), multiple=32)[0].tolist()
    padded = [-(-side // 32) * 32 for side in (height, width)]
    expected = [
        i < -(-padded[0] // s) and j < -(-padded[1] // s)
        for s, (h, w) in zip(strides, shapes, strict=True)
        for i in range(h)
        for j in range(w)
    ]
    assert mine == expected


def test_top_per_level_keeps_small_levels_whole() -> None:
    """The k best of each level, best first; a level of fewer keeps them all."""
    score = torch.tensor([[0.1, 0.9, 0.5, 0.2, 0.7]])
    assert L.top_per_level(score, [3, 2], 2).tolist() == [[1, 2, 4, 3]]
    assert L.top_per_level(score, [3, 2], 9).tolist() == [[1, 2, 0, 4, 3]]


def test_levels_are_whole_however_the_device_rounds_a_logarithm() -> None:
    """log2(8) one unit in the last place off is still 3; a number really below a border stays below."""
    for dtype in (torch.float32, torch.float64):
        whole = torch.tensor([3.0, 5.0, 0.0, -2.0], dtype=dtype)
        off = torch.nextafter(whole, torch.full_like(whole, -torch.inf))
        assert torch.equal(L.snap(off).trunc(), whole)
        assert torch.equal(L.snap(torch.nextafter(whole, torch.full_like(whole, torch.inf))), whole)
        below = whole - 1e-5
        assert torch.equal(L.snap(below), below)
    powers = 2.0 ** torch.arange(-10, 20, dtype=torch.float64)
    assert torch.equal(L.whole_log2(powers), torch.arange(-10, 20, dtype=torch.float64))
