"""Augmentation: one function for each step of a recipe, which moves pixels, boxes and masks together."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from relook.data.transforms.picture import Picture
from relook.data.transforms.sizes import drawn_size, new_size, resize_boxes, resize_masks, resize_pixels
from relook.data.transforms.ssd import crop, expand, photometric
from relook.recipe import Crop, Expand, Flip, Jitter, Photometric, Resize, Size, Step, Stretch


def augment(start: Picture, steps: Sequence[Step], size: Size, key: Sequence[int]) -> Picture:
    """All steps in their order; the resize comes where the recipe says, or last.

    The same `key` of whole numbers (seed, epoch, image, ...) always draws the same. So nothing depends on how
    many workers load, on the order of images, or on a run having been resumed.

    Args:
        start: from `picture`.
        steps: of the recipe.
        size: the recipe's `train_size`.
        key: what chance depends on.
    """
    random = np.random.default_rng([number & 0xFFFFFFFFFFFFFFFF for number in key])
    if not any(isinstance(step, Resize) for step in steps):
        steps = [*steps, Resize()]
    now = start
    for step in steps:
        now = _after(now, step, size, random)
    return now


def _after(now: Picture, step: Step, size: Size, random: np.random.Generator) -> Picture:
    """One step later."""
    match step:
        case Resize():
            return resize(now, drawn_size(size, random))
        case Flip():
            return flip(now) if random.random() < step.probability else now
        case Jitter():
            least, most = max(0.0, 1 - step.strength), 1 + step.strength
            return jitter(now, *random.uniform(least, most, 3).tolist())
        case Photometric():
            return photometric(now, step, random)
        case Expand():
            return expand(now, step, random)
        case Crop():
            return crop(now, step, random)


def resize(start: Picture, rule: Size) -> Picture:
    """To the size of a rule that leaves no choice; boxes are clipped to the image and become float32."""
    old, new = start.size, new_size(*start.size, rule)
    # published: who stretches does not round between the pixels of the file and the network
    image = start.image.float() if isinstance(rule, Stretch) else start.image
    return replace(
        start,
        image=resize_pixels(image, new, antialias=rule.antialias),
        boxes=resize_boxes(start.boxes, old=old, new=new),
        masks=None if start.masks is None else resize_masks(start.masks, new),
    )


def flip(start: Picture) -> Picture:
    """Left and right change places."""
    return replace(
        start,
        image=start.image.flip(-1),
        boxes=mirror_boxes(start.boxes, start.size[1]),
        masks=None if start.masks is None else start.masks.flip(-1),
    )


def mirror_boxes(boxes: Tensor, width: int) -> Tensor:
    """Boxes [N, 4] after a horizontal mirror of an image of `width` pixels: x -> width - x."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], -1)


def jitter(start: Picture, brightness: float, contrast: float, saturation: float) -> Picture:
    """Colours alone, by factors."""
    if (brightness, contrast, saturation) == (1.0, 1.0, 1.0):
        return start
    # torchvision holds floating point within 0 .. 1
    whole = start.image.dtype == torch.uint8
    image = F.adjust_brightness(start.image if whole else start.image / 255, brightness)
    image = F.adjust_contrast(image, contrast)
    image = F.adjust_saturation(image, saturation)
    return replace(start, image=image if whole else image * 255)
