"""From an upright uint8 image and its boxes to what the network sees: resize, mirror, normalise, pad.

The order is the published one: jitter and resize on uint8, mirror, normalise, pad with zeros right and below.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from relook.recipe import Augment, Pixels, Resize


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """An image ready for the network, not yet padded."""

    image: Tensor  # [3, h, w] float32, normalised
    size: tuple[int, int]  # (h, w)
    scale: tuple[float, float]  # (x, y) true ratios new / old, for boxes


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What chance decides for one image in one epoch."""

    short: int  # limit of the shorter side
    mirrored: bool = False
    brightness: float = 1.0  # factors
    contrast: float = 1.0
    saturation: float = 1.0

    @property
    def jittered(self) -> bool:
        """Whether the colours change at all."""
        return (self.brightness, self.contrast, self.saturation) != (1.0, 1.0, 1.0)


def draw(resize: Resize, augment: Augment, key: Sequence[int]) -> Draw:
    """The same `key` of whole numbers (seed, epoch, image, ...) always draws the same.

    So nothing depends on how many workers load, on the order of images, or on a run having been resumed.
    """
    random = np.random.default_rng([number & 0xFFFFFFFFFFFFFFFF for number in key])
    if resize.between:
        low, high = resize.short
        short = int(random.integers(low, high + 1))
    else:
        short = int(random.choice(resize.short))
    mirrored = bool(random.random() < augment.flip)
    least, most = max(0.0, 1 - augment.jitter), 1 + augment.jitter
    brightness, contrast, saturation = random.uniform(least, most, 3).tolist()
    return Draw(
        short=short, mirrored=mirrored, brightness=brightness, contrast=contrast, saturation=saturation
    )


def only_short(resize: Resize) -> int:
    """The one value of `resize.short`.

    Raises:
        ValueError: when there are several, as in multi-scale training.
    """
    if len(resize.short) != 1:
        raise ValueError(
            f"the resize rule has several shorter sides {resize.short}; say which one, or use the test rule"
        )
    return resize.short[0]


def resized_size(height: int, width: int, *, short: int, long: int) -> tuple[int, int]:
    """(height, width) after the published rule: int(side * factor + 0.5), at least 1 pixel.

    The shorter side becomes `short` unless the longer would pass `long`.
    """
    factor = min(long / max(height, width), short / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_boxes(boxes: NDArray[np.float64], *, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Boxes [N, 4] in pixels of an image of size `old` -> float32 in one of size `new`, clipped to it.

    Sizes are (height, width). The factors are the true ratios of the rounded sizes, not the rule's factor.
    """
    x, y = new[1] / old[1], new[0] / old[0]
    scaled = torch.from_numpy(boxes * np.array([x, y, x, y])).float()
    return scaled.clamp_(min=0).minimum(scaled.new_tensor([new[1], new[0], new[1], new[0]]))


def mirror_boxes(boxes: Tensor, width: int) -> Tensor:
    """Boxes [N, 4] after a horizontal mirror of an image of `width` pixels: x -> width - x."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], -1)


def reshape_image(image: NDArray[np.uint8], drawn: Draw, resize: Resize) -> Tensor:
    """Jitter, resize and mirror, all on uint8: [H, W, 3] -> [3, h, w]."""
    # a copy only of what torch cannot share: read-only arrays and channels turned by a negative stride
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
    if drawn.jittered:
        pixels = F.adjust_brightness(pixels, drawn.brightness)
        pixels = F.adjust_contrast(pixels, drawn.contrast)
        pixels = F.adjust_saturation(pixels, drawn.saturation)
    new = resized_size(image.shape[0], image.shape[1], short=drawn.short, long=resize.long)
    if new != (image.shape[0], image.shape[1]):
        pixels = F.resize(
            pixels, list(new), interpolation=InterpolationMode.BILINEAR, antialias=resize.antialias
        )
    return pixels.flip(-1) if drawn.mirrored else pixels


def normalise_into(place: Tensor, image: Tensor, pixels: Pixels) -> None:
    """Writes (image - mean) / std into the upper left corner of `place`.

    Args:
        place: [3, H, W] float32; what lies outside the image is left as it is.
        image: [3, h, w] uint8 RGB.
        pixels: mean and std belong to the channels in the order of the network (`pixels.order`).
    """
    if pixels.order == "bgr":
        image = image.flip(0)
    mean = torch.tensor(pixels.mean)[:, None, None]
    std = torch.tensor(pixels.std)[:, None, None]
    place[:, : image.shape[1], : image.shape[2]].copy_(image).sub_(mean).div_(std)


def prepare(
    image: NDArray[np.uint8],
    *,
    resize: Resize,
    pixels: Pixels,
    short: int | None = None,
    mirrored: bool = False,
) -> Prepared:
    """Resizes and normalises one upright RGB image [H, W, 3] as at test time.

    Args:
        image: uint8, from `read_image`.
        resize: the rule; when it has several shorter sides, `short` must say which.
        pixels: how the network wants them.
        short: another shorter side than the rule's.
        mirrored: left and right change places.
    """
    drawn = Draw(short=only_short(resize) if short is None else short, mirrored=mirrored)
    small = reshape_image(image, drawn, resize)
    height, width = small.shape[1:]
    ready = torch.empty(3, height, width)
    normalise_into(ready, small, pixels)
    return Prepared(
        image=ready, size=(height, width), scale=(width / image.shape[1], height / image.shape[0])
    )


def padded_sides(sizes: Sequence[tuple[int, int]], *, pad: int, stride: int) -> tuple[int, int]:
    """(H, W) of a batch of images of `sizes`: the largest sides, up to multiples of `pad` and `stride`."""
    step = math.lcm(pad, stride)
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    return -(-height // step) * step, -(-width // step) * step


def stack(images: Sequence[Tensor], *, pad: int, stride: int) -> Tensor:
    """Normalised images [3, h, w] -> one batch [B, 3, H, W], zeros on the right and below.

    H and W are multiples of `pad` and of `stride`.
    """
    height, width = padded_sides([(i.shape[1], i.shape[2]) for i in images], pad=pad, stride=stride)
    batch = images[0].new_zeros(len(images), 3, height, width)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch
