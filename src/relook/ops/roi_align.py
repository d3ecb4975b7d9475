"""Features of regions: RoIAlign (Mask R-CNN, arXiv:1703.06870, section 3) from the level that fits each.

torchvision reads regions quickly, but on CPUs its backward pass takes one thread, and most of a small
detector's training step. RoIAlign is separable: a bin is a weighted mean of rows, and of columns. So where a
gradient is wanted of a small map on a CPU, two matrix products read it; the numbers are torchvision's but for
rounding.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Final

import torch
import torchvision
from torch import Tensor

from relook.ops import boxes as B
from relook.ops.levels import whole_log2
from relook.ops.lowering import exporting

FAR: Final = 2.0**13  # pixels: what a region has beyond is cut off, so that a diverged one costs no minutes
RULES: Final = {56: (0, 1e-6), 224: (1, 1e-8)}  # size: its level, and what keeps the logarithm finite
CELLS, WIDE = 1024, 64  # of a map, and of its width: above, torchvision is quicker; `benchmarks/regions.py`


def roi_levels(rois: Tensor, *, size: int, levels: int) -> Tensor:
    """The pyramid level of each region [..., 4] by its side, the root of its area (FPN, 1612.03144, eq. 1).

    Two rules are in use. 56 (mmdetection): sides below 112 pixels read the finest level, below 224 the next,
    and so on. 224 (the paper, from stride 8 on): below 224, below 448, ...

    Args:
        rois: pixels.
        size: 56 or 224.
        levels: of the pyramid; larger regions read the last.

    Returns:
        [...] int64, 0 for the finest.
    """
    first, least = RULES[size]
    side = B.area(rois).clamp(min=0).sqrt()
    return (first + whole_log2(side / size + least)).floor().long().clamp(0, levels - 1)


def roi_features(
    pyramid: Sequence[Tensor], rois: Tensor, *, strides: Sequence[int], size: int, side: int
) -> Tensor:
    """Features of regions, each read from the level of its size.

    Every level is asked for all regions, those of other levels collapsed to nothing, which costs little and
    adds exactly zero: no shape depends on values. All images go through in one call.

    Args:
        pyramid: maps [B, C, h, w], finest first.
        rois: [B, S, 4] pixels; they get no gradient.
        strides: of the maps.
        size: the rule of `roi_levels`.
        side: of the answer, in bins.

    Returns:
        [B * S, C, side, side], at least float32; zeros for regions without area, inverted ones, and those
        with a NaN.
    """
    rois = rois.detach().clamp(-FAR, FAR)
    rois = torch.where((B.size(rois) >= 0).all(-1, keepdim=True), rois, 0)  # inverted, or NaN: nothing there
    level = roi_levels(rois, size=size, levels=len(pyramid))[..., None]
    parts: list[Tensor] = []
    device = rois.device.type  # in half precision a place in a large map could not be told
    narrow = device != "meta" and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if narrow else nullcontext():
        for i, (x, stride) in enumerate(zip(pyramid, strides, strict=True)):
            mine = torch.where(level == i, rois, 0) / stride
            part = roi_align(x.to(rois.dtype), mine, side)
            parts = [parts[0] + part] if parts else [part]
    return parts[0]


def roi_align(x: Tensor, rois: Tensor, side: int) -> Tensor:
    """Maps [B, C, h, w], regions [B, S, 4] in cells -> [B * S, C, side, side], as torchvision's `roi_align`.

    Bins are sampled as often as they have cells, and regions are read where they are, without rounding
    ("aligned").
    """
    images, count = rois.shape[:2]
    h, w = x.shape[2:]
    learns = x.requires_grad and torch.is_grad_enabled()
    if learns and x.device.type == "cpu" and h * w <= CELLS and w <= WIDE and not exporting():
        return by_products(x, rois, side)
    image = torch.arange(images, device=rois.device, dtype=rois.dtype).repeat_interleave(count)
    numbered = torch.cat([image[:, None], rois.flatten(0, 1)], dim=1)
    return torchvision.ops.roi_align(x, numbered, side, aligned=True)


def by_products(x: Tensor, rois: Tensor, side: int) -> Tensor:
    """The same on any device, by matrix products whose cost grows with the map."""
    images, channels, h, w = x.shape
    down = _shares(rois[..., 1], rois[..., 3], side, h)  # [B, S, side, h]
    across = _shares(rois[..., 0], rois[..., 2], side, w)
    rows = down.flatten(1, 2) @ x.permute(0, 2, 3, 1).reshape(images, h, w * channels)
    rows = rows.reshape(-1, side, w, channels)  # [B * S, side, w, C]
    return (across.flatten(0, 1)[:, None] @ rows).permute(0, 3, 1, 2)


def _shares(low: Tensor, high: Tensor, side: int, cells: int) -> Tensor:
    """What each bin of regions from `low` to `high` [B, S] takes of each cell of an axis: [B, S, side, n].

    A bin has `often` equally spaced samples, one for each cell that it covers, and a sample shares itself
    among the two cells next to it. Samples are more than half a cell apart, so of those after `before`, the
    last one that a cell does not see, it sees at most four.
    """
    low, high = low - 0.5, high - 0.5  # before the difference: rounding must not change how often is sampled
    wide = (high - low)[..., None, None] / side  # of a bin, in cells
    often = wide.ceil()
    step = torch.where(often > 1, wide / often.clamp(min=1), 1)
    bins, cell = (torch.arange(n, device=low.device, dtype=low.dtype) for n in (side, cells))
    first = low[..., None, None] + bins[:, None] * wide + 0.5 * torch.where(often > 1, step, wide)
    before = ((cell - 1 - first) / step).floor()  # the last sample that the cell does not see
    shares = torch.zeros_like(before)
    for number in range(5):
        sample = before + number
        at = first + sample * step
        seen = (sample >= 0) & (sample < often) & (at >= -1) & (at <= cells)
        near = 1 - (at.clamp(0, cells - 1) - cell).abs()
        shares = shares + torch.where(seen, near.clamp(min=0), 0)
    return shares / often.clamp(min=1)
