"""RoIAlign by products is torchvision's, wherever regions lie and however large they are."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from relook.ops.roi_align import CELLS, FAR, by_products, roi_align, roi_features

STRIDES = (8, 16)


@st.composite
def regions(draw: st.DrawFn) -> Tensor:
    """[2, n, 4] in cells: beyond borders, empty, on whole cells, long."""
    place = st.floats(-20, 30, allow_nan=False, width=32) | st.integers(-5, 20).map(float)
    extent = st.floats(0, 40, allow_nan=False, width=32) | st.integers(0, 28).map(float)
    count = draw(st.integers(1, 5))
    rows = [draw(st.tuples(place, place, extent, extent)) for _ in range(2 * count)]
    boxes = torch.tensor(rows, dtype=torch.float64)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1).reshape(2, count, 4)


def some_map(h: int, w: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, h, w, generator=random, dtype=torch.float64)


def torchvisions(x: Tensor, rois: Tensor) -> Tensor:
    image = torch.arange(2, dtype=rois.dtype).repeat_interleave(rois.shape[1])
    numbered = torch.cat([image[:, None], rois.flatten(0, 1)], 1)
    return torchvision.ops.roi_align(x, numbered, 7, aligned=True)


@settings(deadline=None, max_examples=80)
@given(regions(), st.integers(1, 12), st.integers(1, 12))
def test_products_are_torchvisions(rois: Tensor, h: int, w: int) -> None:
    """Values and gradients, with and without a gradient asked for."""
    weight = torch.arange(49, dtype=torch.float64).reshape(7, 7)
    seen: list[tuple[Tensor, Tensor]] = []
    for read in (torchvisions, lambda x, rois: roi_align(x, rois, 7)):
        x = some_map(h, w).requires_grad_()
        answer = read(x, rois)
        seen.append((answer, torch.autograd.grad((answer * weight).sum(), x)[0]))
    for mine, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(by_products(some_map(h, w), rois, 7), seen[0][0], rtol=1e-9, atol=1e-9)


def test_large_maps_and_predictions_go_to_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are taken for small maps that learn, and for no other."""
    asked: list[str] = []
    monkeypatch.setattr("relook.ops.roi_align.by_products", lambda *_: asked.append("products"))
    rois = torch.rand(2, 3, 4, dtype=torch.float64)
    large = some_map(1, CELLS + 1)
    for x in (some_map(4, 4), large.requires_grad_()):
        assert roi_align(x, rois, 7).shape == (6, 3, 7, 7)
    assert asked == []
    roi_align(some_map(4, 4).requires_grad_(), rois, 7)
    assert asked == ["products"]


def test_each_region_is_read_from_its_level() -> None:
    """Small ones from the first map, large ones from the last, in every image."""
    pyramid = [torch.ones(2, 1, 16, 16), torch.full((2, 1, 8, 8), 2.0)]
    rois = torch.tensor([[[0.0, 0, 40, 40], [0, 0, 128, 128]]]).expand(2, -1, -1)
    found = roi_features(pyramid, rois, strides=STRIDES, size=56, side=3)
    assert found.shape == (4, 1, 3, 3)
    assert found.mean((1, 2, 3)).tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize("learns", [True, False])
def test_regions_that_are_none_read_nothing(learns: bool) -> None:
    """Empty, inverted, NaN: zeros. Infinite ones are cut, so that they take no minutes."""
    x = torch.ones(1, 1, 16, 16, requires_grad=learns)
    nan, inf = torch.nan, torch.inf
    odd = torch.tensor(
        [[[5.0, 5, 5, 9], [9, 9, 5, 5], [nan, 0, 5, 5], [0, 0, 5, nan], [-inf, -inf, inf, inf]]]
    )
    found = roi_features([x, x[..., :8, :8]], odd, strides=STRIDES, size=56, side=7).flatten(1)
    assert not found[:4].any()
    assert found[4].isfinite().all()
    assert FAR > 8000


def test_half_precision_is_read_in_single() -> None:
    """Eight bits cannot say where in a map a region lies."""
    x = torch.randn(1, 2, 16, 16)
    rois = torch.tensor([[[3.0, 4, 50, 60]]])
    found = roi_features([x.bfloat16()], rois, strides=(8,), size=56, side=7)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found, roi_features([x], rois, strides=(8,), size=56, side=7), rtol=0.02, atol=0.02
    )
