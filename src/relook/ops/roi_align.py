"""Features of regions: RoIAlign (Mask R-CNN, arXiv:1703.06870, section 3) from the level that fits each."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torchvision.ops import roi_align  # pyright: ignore[reportUnknownVariableType]

from relook.ops import boxes as B
from relook.ops.levels import whole_log2

RULES: Final = {56: (0, 1e-6), 224: (1, 1e-8)}  # size: its level, and what keeps the logarithm finite


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

    Every level is asked for all regions, those of other levels collapsed to nothing, which costs nothing and
    adds exactly zero: no shape depends on values. All images go through in one call. Bins are sampled as
    often as they have cells, and regions are read where they are, without rounding ("aligned").

    Args:
        pyramid: maps [B, C, h, w], finest first.
        rois: [B, S, 4] pixels; they get no gradient.
        strides: of the maps.
        size: the rule of `roi_levels`.
        side: of the answer, in bins.

    Returns:
        [B * S, C, side, side]; zeros for regions without area.
    """
    images, count = rois.shape[:2]
    rois = rois.detach().to(pyramid[0].dtype)
    level = roi_levels(rois, size=size, levels=len(pyramid)).flatten()
    image = torch.arange(images, device=rois.device, dtype=rois.dtype).repeat_interleave(count)
    boxes = rois.flatten(0, 1)
    features = rois.new_zeros(())
    for i, (x, stride) in enumerate(zip(pyramid, strides, strict=True)):
        mine = torch.cat([image[:, None], torch.where((level == i)[:, None], boxes, 0)], dim=1)
        features = features + roi_align(x, mine, side, spatial_scale=1 / stride, aligned=True)
    return features
