"""Resizing by the published rules: how large an image becomes, and its pixels, boxes and masks there."""

from typing import cast

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from relook.recipe import KeepRatio, Size, Stretch


def drawn_size(rule: Size, random: np.random.Generator) -> Size:
    """The rule with the one shorter side that chance gives an image; a stretched one has no choice."""
    if isinstance(rule, Stretch):
        return rule
    if rule.between:
        low, high = rule.short
        short = int(random.integers(low, high + 1))
    else:
        short = int(random.choice(rule.short))
    return KeepRatio(short=(short,), long=rule.long, antialias=rule.antialias)


def only_short(rule: KeepRatio) -> int:
    """The one value of `short`.

    Raises:
        ValueError: when there are several, as in multi-scale training.
    """
    if len(rule.short) != 1:
        raise ValueError(
            f"the resize rule has several shorter sides {rule.short}; say which one, or use the test rule"
        )
    return rule.short[0]


def new_size(height: int, width: int, rule: Size) -> tuple[int, int]:
    """(height, width) in pixels after the rule.

    Raises:
        ValueError: when the rule leaves a choice of shorter sides.
    """
    if isinstance(rule, Stretch):
        return rule.height, rule.width
    return resized_size(height, width, short=only_short(rule), long=rule.long)


def resized_size(height: int, width: int, *, short: int, long: int) -> tuple[int, int]:
    """(height, width) after the published rule: int(side * factor + 0.5), at least 1 pixel.

    The shorter side becomes `short` unless the longer would pass `long`.
    """
    factor = min(long / max(height, width), short / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_pixels(image: Tensor, size: tuple[int, int], *, antialias: bool) -> Tensor:
    """[3, H, W] -> [3, height, width] of one type, bilinear; the same tensor where the size is already so."""
    if (image.shape[1], image.shape[2]) == size:
        return image
    return F.resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=antialias)


def resize_boxes(boxes: Tensor, *, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Boxes [N, 4] float64 in pixels of an image of size `old` -> float32 in one of size `new`, clipped.

    Sizes are (height, width). The factors are the true ratios of the rounded sizes, not the rule's factor.
    """
    x, y = new[1] / old[1], new[0] / old[0]
    scaled = (boxes * boxes.new_tensor([x, y, x, y])).float()
    return scaled.clamp_(min=0).minimum(scaled.new_tensor([new[1], new[0], new[1], new[0]]))


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [N, H, W] bool -> [N, height, width] bool, by OpenCV's nearest: no half-pixel shift.

    Row i of the result is row min(floor(i * old / new), old - 1) of the mask, rounded as OpenCV rounds the
    ratio; columns likewise.
    """
    rows, columns = (
        (torch.arange(new, dtype=torch.float64) * (1 / (new / old))).long().clamp(max=old - 1)
        for old, new in zip(cast("tuple[int, int]", tuple(masks.shape[1:])), size, strict=True)
    )
    return masks[:, rows][:, :, columns]
