"""Augmentation: one function for each step of a recipe, which moves pixels, boxes and masks together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from relook.data.transforms.sizes import drawn_size, new_size, resize_boxes, resize_masks, resize_pixels
from relook.recipe import Flip, Jitter, Resize, Size, Step


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """An image and what is known of it, on its way through the steps."""

    image: Tensor  # [3, h, w] uint8
    boxes: Tensor  # [N, 4] x1 y1 x2 y2 in pixels of `image`; float64 before the resize, float32 after it
    labels: Tensor  # [N] int64, in step with the boxes: a step that drops a box drops its label and mask
    masks: Tensor | None = None  # [N, h, w] bool

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[1], self.image.shape[2]


def picture(
    image: NDArray[np.uint8],
    boxes: NDArray[np.float64],
    labels: NDArray[np.int64] | None = None,
    masks: Tensor | None = None,
) -> Picture:
    """An upright RGB image [H, W, 3] with boxes [N, 4], labels [N] and masks [N, H, W], before any step."""
    # a copy only of what torch cannot share: read-only arrays and channels turned by a negative stride
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
    named = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.from_numpy(labels)
    return Picture(image=pixels, boxes=torch.from_numpy(boxes), labels=named, masks=masks)


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
        match step:
            case Resize():
                now = resize(now, drawn_size(size, random))
            case Flip():
                now = flip(now) if random.random() < step.probability else now
            case Jitter():
                least, most = max(0.0, 1 - step.strength), 1 + step.strength
                now = jitter(now, *random.uniform(least, most, 3).tolist())
    return now


def resize(start: Picture, rule: Size) -> Picture:
    """To the size of a rule that leaves no choice; boxes are clipped to the image and become float32."""
    old, new = start.size, new_size(*start.size, rule)
    return replace(
        start,
        image=resize_pixels(start.image, new, antialias=rule.antialias),
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
    image = F.adjust_brightness(start.image, brightness)
    image = F.adjust_contrast(image, contrast)
    return replace(start, image=F.adjust_saturation(image, saturation))
