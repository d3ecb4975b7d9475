"""Boxes relative to other boxes, as two-stage detectors tell them (Faster R-CNN, arXiv:1506.01497, eq. 2)."""

import math
from typing import Final

import torch
from torch import Tensor

from relook.ops import boxes as B

LIMIT: Final = math.log(1000 / 16)  # of the logarithm of a ratio of sides, so that no exponential overflows
LEAST: Final = 1e-6  # pixels that a side counts at least, so that an empty box is encoded without infinities


def encode(rois: Tensor, boxes: Tensor, *, center_std: float, size_std: float, extra: float = 0.0) -> Tensor:
    """How `rois` [..., 4] must change to become `boxes` [..., 4]: [..., 4] dx, dy, dw, dh.

    Args:
        rois: pixels; gradients flow into them.
        boxes: pixels.
        center_std: changes of the centre, in sides of the RoI, are divided by this.
        size_std: likewise changes of width and height, as logarithms of their ratios.
        extra: added to these ratios (SSD's code); then no box is too thin.
    """
    from_size, to_size = B.size(rois).clamp(min=LEAST), B.size(boxes).clamp(min=0 if extra else LEAST)
    away = (B.center(boxes) - B.center(rois)) / from_size
    return torch.cat([away / center_std, (to_size / from_size + extra).log() / size_std], dim=-1)


def decode(
    rois: Tensor,
    deltas: Tensor,
    *,
    center_std: float,
    size_std: float,
    limit: float = LIMIT,
    limit_both: bool = True,
) -> Tensor:
    """The boxes [..., 4] that `rois` [..., 4] become by `deltas` [..., 4] dx, dy, dw, dh; not clipped.

    Args:
        rois: pixels.
        deltas: as `encode` makes them.
        center_std: as in `encode`.
        size_std: likewise.
        limit: of the logarithm of a ratio of sides; 1000 / 16 in mmdetection and detectron2.
        limit_both: sides neither grow nor shrink beyond it (mmdetection); otherwise only growing is limited
            (detectron2).
    """
    ratio = (deltas[..., 2:] * size_std).clamp(min=-limit if limit_both else None, max=limit)
    size = B.size(rois)
    middle = B.center(rois) + deltas[..., :2] * center_std * size
    half = size * ratio.exp() / 2
    return torch.cat([middle - half, middle + half], dim=-1)
