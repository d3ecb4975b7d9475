"""Masks of objects: what a region should have said of its object, and what a mask says of an image.

A mask is told in the frame of a box (Mask R-CNN, arXiv:1703.06870): 28 x 28 probabilities.
"""

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from relook.rle import Runs, runs

THRESHOLD = 0.5  # of probabilities, from which on a pixel belongs to the object


def mask_targets(masks: Tensor, boxes: Tensor, owner: Tensor, side: int) -> Tensor:
    """What the masks of regions should be: the object's bitmap, read in the frame of the region's box.

    One image after the other, since only one image's bitmaps are wanted as floats at a time.

    Args:
        masks: [B, M, H, W] bool.
        boxes: [B, S, 4] pixels of the same images; clipped to the bitmaps.
        owner: [B, S] int64, which of the M.
        side: of the answer, in cells.

    Returns:
        [B, S, side, side] bool.
    """
    height, width = masks.shape[2:]
    limit = torch.stack([torch.full_like(boxes[0, 0, 0], n) for n in (width, height, width, height)])
    boxes = torch.minimum(boxes.clamp(min=0), limit)
    found: list[Tensor] = []
    for bitmaps, places, mine in zip(masks, boxes, owner, strict=True):
        rois = torch.cat([mine[:, None].to(places.dtype), places], dim=1)
        values = torchvision.ops.roi_align(bitmaps[:, None].to(places.dtype), rois, side, aligned=True)
        found.append(values[:, 0] >= THRESHOLD)
    return torch.stack(found)


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities in the frames of boxes -> which pixels of an image belong to each object.

    One object after the other and only in the neighbourhood of its box, so that memory is that of the answer
    and a little more, however large the image is.

    Args:
        masks: [N, side, side] 0 .. 1.
        boxes: [N, 4] pixels of the image.
        size: (height, width) of the image.

    Returns:
        [N, height, width] bool.
    """
    answer = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    for one, mask, box in zip(answer, masks, boxes, strict=True):
        corner, part = paste_one(mask, box, size)
        one[corner[0] : corner[0] + part.shape[0], corner[1] : corner[1] + part.shape[1]] = part
    return answer


def mask_runs(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Runs, ...]:
    """Masks [N, side, side] in the frames of boxes [N, 4] -> run lengths in an image of that size (h, w).

    One at a time, so that no more than one mask of the image's size is in memory.
    """
    found: list[Runs] = []
    for mask, box in zip(masks.float(), boxes, strict=True):
        whole = np.zeros(size, np.bool_)
        (y, x), part = paste_one(mask, box, size)
        whole[y : y + part.shape[0], x : x + part.shape[1]] = part.numpy()
        found.append(runs(whole))
    return tuple(found)


def paste_one(mask: Tensor, box: Tensor, size: tuple[int, int]) -> tuple[tuple[int, int], Tensor]:
    """One mask [side, side] in the frame of its box [4] -> upper left corner (y, x), pixels [h, w] bool."""
    height, width = size
    x1, y1, x2, y2 = (float(v) for v in box)
    left, right = _span(x1, x2, width)
    top, bottom = _span(y1, y2, height)
    y = _frame(torch.arange(top, bottom, device=mask.device), box[1], box[3])
    x = _frame(torch.arange(left, right, device=mask.device), box[0], box[2])
    grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
    seen = F.grid_sample(mask[None, None].to(grid.dtype), grid[None], align_corners=False)[0, 0]
    return (top, left), seen >= THRESHOLD


def _span(low: float, high: float, side: int) -> tuple[int, int]:
    """First pixel and the one behind the last that a box may touch."""
    if not (low > -1e9 and high < 1e9):  # NaN and infinities touch nothing
        return 0, 0
    first = min(max(int(low) - 2, 0), side)
    return first, min(max(int(high) + 3, first), side)


def _frame(pixel: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Middles of pixels as -1 .. 1 of a box's side; 0 where the box has none."""
    at = (pixel.to(low.dtype) + 0.5 - low) / (high - low) * 2 - 1
    return torch.where(at.isfinite(), at, 0)
