"""The last way to the network: normalise, pad with zeros right and below, stack."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relook.data.transforms.picture import picture
from relook.data.transforms.steps import flip, resize
from relook.recipe import Pixels, Size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """An image ready for the network, not yet padded."""

    image: Tensor  # [3, h, w] float32, normalised
    size: tuple[int, int]  # (h, w)
    scale: tuple[float, float]  # (x, y) true ratios new / old, for boxes


def prepare(image: NDArray[np.uint8], *, size: Size, pixels: Pixels, mirrored: bool = False) -> Prepared:
    """Resizes and normalises one upright RGB image [H, W, 3] as at test time.

    Args:
        image: uint8, from `read_image`.
        size: the rule, without a choice of shorter sides.
        pixels: how the network wants them.
        mirrored: left and right change places.
    """
    given = picture(image, np.zeros((0, 4)))
    small = resize(given, size)
    small = flip(small) if mirrored else small
    height, width = small.size
    ready = torch.empty(3, height, width)
    normalise_into(ready, small.image, pixels)
    scale = (width / given.size[1], height / given.size[0])
    return Prepared(image=ready, size=small.size, scale=scale)


def normalise_into(place: Tensor, image: Tensor, pixels: Pixels) -> None:
    """Writes (image - mean) / std into the upper left corner of `place`.

    Args:
        place: [3, H, W] float32; what lies outside the image is left as it is.
        image: [3, h, w] RGB, uint8 or float in 0 .. 255.
        pixels: mean and std belong to the channels in the order of the network (`pixels.order`).
    """
    if pixels.order == "bgr":
        image = image.flip(0)
    mean = torch.tensor(pixels.mean)[:, None, None]
    std = torch.tensor(pixels.std)[:, None, None]
    place[:, : image.shape[1], : image.shape[2]].copy_(image).sub_(mean).div_(std)


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
