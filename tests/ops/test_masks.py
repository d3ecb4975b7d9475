"""Masks in the frames of boxes: targets, pasting, run lengths."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golden import recipe
from published import Case
from relook.ops.masks import mask_runs, mask_targets, paste
from relook.rle import bitmap

CASE = Case("dpt", "components")


def test_mask_targets_are_the_published_ones() -> None:
    """Bitmaps read in the frames of boxes, some of them beyond the border."""
    facts = next(a for a in CASE.about["arrays"] if a["name"] == "mask_target/gt_masks")
    boxes, owner = CASE.tensor("mask_target/boxes"), CASE.tensor("mask_target/inds").long()
    stored = np.unpackbits(CASE.arrays["mask_target/bitmap"])[: len(boxes) * 28 * 28].reshape(-1, 28, 28)
    shape = [int(n) for n in facts["meaning"].split("[")[-1].split("]")[0].split(",") if n.strip().isdigit()]
    bits = np.unpackbits(CASE.arrays["mask_target/gt_masks"])
    masks = torch.from_numpy(bits[: np.prod(shape)].reshape(shape).astype(bool))
    found = mask_targets(masks[None], boxes[None], owner[None], 28)[0]
    assert (found.numpy() == stored.astype(bool)).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_pasting_touches_the_neighbourhood_of_the_box_alone(h: int, w: int, data: st.DataObject) -> None:
    """A full mask covers the pixels whose middles lie in its box, and its run lengths say the same."""
    numbers = [data.draw(st.floats(-10, 40, width=32)) for _ in range(4)]
    box = torch.tensor([min(numbers[0], numbers[2]), min(numbers[1], numbers[3]),
                        max(numbers[0], numbers[2]), max(numbers[1], numbers[3])]).double()  # fmt: skip
    full = torch.ones(1, 28, 28)
    found = paste(full, box[None], (h, w))[0]
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    margin = (box[2:] - box[:2]).max() / 56 + 1e-6  # a mask fades over half a cell at its border
    inside = (x > box[0] + margin) & (x < box[2] - margin) & (y > box[1] + margin) & (y < box[3] - margin)
    outside = (x < box[0] - margin) | (x > box[2] + margin) | (y < box[1] - margin) | (y > box[3] + margin)
    if (box[2:] - box[:2]).min() > 0:
        assert found[inside].all()
        assert not found[outside].any()
    assert (bitmap(mask_runs(full, box[None], (h, w))[0], h, w) == found.numpy()).all()


def test_boxes_that_are_none_paste_nothing() -> None:
    """NaN, infinite, far away."""
    odd = torch.tensor(
        [[torch.nan, 0, 5, 5], [0, 0, torch.inf, 5], [500, 500, 600, 600], [-50, -50, -9, -9.0]]
    )
    assert not paste(torch.ones(4, 28, 28), odd, (20, 20)).any()


def test_ellipses_survive_their_frames() -> None:
    """From pixels to a frame and back: nearly the same ellipse."""
    boxes = np.array([[10.0, 12, 90, 70], [30, 20, 60, 90]])
    masks = torch.from_numpy(recipe.ellipse_masks(boxes, 100, 100))
    frames = mask_targets(masks[None], torch.from_numpy(boxes)[None], torch.tensor([[0, 1]]), 28)[0]
    again = paste(frames.double(), torch.from_numpy(boxes), (100, 100))
    for a, b in zip(masks, again, strict=True):
        assert (a & b).sum() / (a | b).sum() > 0.95
