"""Boxes relative to others: the formula of Faster R-CNN against plain arithmetic, and there and back."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relook.ops.box_coder import LEAST, decode, encode

number = st.floats(-3, 3, allow_nan=False, width=32)
sides = st.tuples(st.floats(0, 50), st.floats(0, 50), st.floats(0.5, 80), st.floats(0.5, 80))


def plain(roi: tuple[float, ...], delta: tuple[float, ...], limit: float, both: bool) -> list[float]:
    """One box, by hand: centre_std 0.1, size_std 0.2."""
    x, y, w, h = roi
    found: list[float] = []
    for corner, side, move, grow in ((x, w, delta[0], delta[2]), (y, h, delta[1], delta[3])):
        ratio = min(grow * 0.2, limit)
        if both:
            ratio = max(ratio, -limit)
        middle = corner + side / 2 + move * 0.1 * side
        half = side * math.exp(ratio) / 2
        found += [middle - half, middle + half]
    return [found[0], found[2], found[1], found[3]]


@settings(deadline=None, max_examples=100)
@given(sides, st.tuples(number, number, number, number), st.sampled_from([0.1, 0.3, 9.0]), st.booleans())
def test_decoding_is_plain_arithmetic(roi: Any, delta: Any, limit: float, both: bool) -> None:
    """With a limit on growing alone, and on both ways."""
    x, y, w, h = roi
    rois = torch.tensor([[x, y, x + w, y + h]], dtype=torch.float64)
    deltas = torch.tensor([delta], dtype=torch.float64)
    found = decode(rois, deltas, center_std=0.1, size_std=0.2, limit=limit, limit_both=both)
    assert found[0].tolist() == pytest.approx(plain(roi, delta, limit, both), abs=1e-9)


def test_both_ways_are_limited_unless_somebody_says_otherwise() -> None:
    """As mmdetection has it; detectron2 limits growing alone."""
    rois, deltas = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, -50, -50]])
    limited = decode(rois, deltas, center_std=1, size_std=1)
    free = decode(rois, deltas, center_std=1, size_std=1, limit_both=False)
    assert (limited[0, 2] - limited[0, 0]).item() == pytest.approx(10 * 16 / 1000, rel=1e-4)
    assert (free[0, 2] - free[0, 0]).item() < 1e-6


@settings(deadline=None, max_examples=60)
@given(sides, sides)
def test_what_is_encoded_is_decoded(roi: Any, box: Any) -> None:
    """There and back, whatever the units."""
    rois, boxes = (torch.tensor([[x, y, x + w, y + h]], dtype=torch.float64) for x, y, w, h in (roi, box))
    for center_std, size_std in ((1.0, 1.0), (0.1, 0.2)):
        deltas = encode(rois, boxes, center_std=center_std, size_std=size_std)
        back = decode(rois, deltas, center_std=center_std, size_std=size_std, limit=99.0)
        assert torch.allclose(back, boxes, atol=1e-8)
    x, y, w, h = roi
    bx, by, bw, bh = box
    wanted = [
        (bx + bw / 2 - x - w / 2) / w,
        (by + bh / 2 - y - h / 2) / h,
        math.log(bw / w),
        math.log(bh / h),
    ]
    assert encode(rois, boxes, center_std=1, size_std=1)[0].tolist() == pytest.approx(wanted, abs=1e-9)
    thin = encode(rois, rois[:, [0, 1, 0, 1]], center_std=1, size_std=1, extra=0.5)
    assert thin[0, 2:].tolist() == pytest.approx([math.log(0.5)] * 2)
    assert encode(rois, rois[:, [0, 1, 0, 1]], center_std=1, size_std=1)[0, 2].item() == pytest.approx(
        math.log(LEAST / w)
    )
