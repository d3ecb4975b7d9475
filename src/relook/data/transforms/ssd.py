"""The augmentation of SSD (arXiv:1512.02325, section 2.2), with the published numbers and quirks.

Colours are computed in floating point and never clipped: an image may leave 0 .. 255.
"""

from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from relook.data.transforms.picture import Picture
from relook.recipe import Crop, Expand, Photometric

TINY: Final = float(np.finfo(np.float32).eps)
Random = np.random.Generator


def photometric(start: Picture, step: Photometric, random: Random) -> Picture:
    """Brightness, contrast, saturation and hue, each with a coin; at last, likewise, channels in any order.

    Another coin says whether contrast comes before saturation and hue or after them.
    """

    def coin() -> bool:
        return bool(random.random() < 0.5)

    image = start.image.float()
    if coin():
        image = image + random.uniform(-step.brightness, step.brightness)
    first, contrast = coin(), coin()
    factor = random.uniform(1 - step.contrast, 1 + step.contrast)
    if contrast and first:
        image = image * factor
    saturation = random.uniform(1 - step.saturation, 1 + step.saturation) if coin() else 1.0
    hue = random.uniform(-step.hue, step.hue) if coin() else 0.0
    # published: there and back even where nothing changes, which dark pixels below zero feel
    image = recoloured(image, saturation=saturation, hue=hue)
    if contrast and not first:
        image = image * factor
    if coin():
        image = image[random.permutation(3).tolist()]
    return replace(start, image=image)


def recoloured(image: Tensor, *, saturation: float, hue: float) -> Tensor:
    """[3, H, W] RGB float with saturation times a factor, and hue turned by degrees."""
    h, s, v = to_hsv(image)
    h = h + hue
    h = torch.where(h > 360, h - 360, torch.where(h < 0, h + 360, h))
    return to_rgb(h, s * saturation, v)


def to_hsv(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[3, H, W] RGB float, of any range -> hue 0 .. 360, saturation and value [H, W], as OpenCV has them."""
    r, g, b = image.unbind(0)
    v = image.amax(0)
    delta = v - image.amin(0)
    s, unit = delta / (v.abs() + TINY), 60 / (delta + TINY)
    h = torch.where(
        v == r,
        (g - b) * unit,
        torch.where(v == g, 120 + (b - r) * unit, 240 + (r - g) * unit),
    )
    return torch.where(h < 0, h + 360, h), s, v


def to_rgb(h: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """Hue 0 .. 360, saturation and value [H, W] -> [3, H, W]."""
    sixth = h / 60
    sixth = torch.where(sixth >= 6, sixth - 6, sixth)
    whole = sixth.floor()
    part = sixth - whole
    p, q, t = v * (1 - s), v * (1 - s * part), v * (1 - s * (1 - part))
    table = torch.stack(
        [torch.stack(one) for one in ((v, t, p), (q, v, p), (p, v, t), (p, q, v), (t, p, v), (v, p, q))]
    )  # [6, 3, H, W]
    which = whole.long().clamp(0, 5)
    return table.gather(0, which.expand(1, 3, *which.shape)).squeeze(0)


def expand(start: Picture, step: Expand, random: Random) -> Picture:
    """With a coin, the image lies somewhere on a canvas up to four times as wide and high."""
    if random.random() >= step.probability:
        return start
    height, width = start.size
    ratio = random.uniform(1, step.most)
    left, top = random.uniform(0, width * ratio - width), random.uniform(0, height * ratio - height)
    return placed(start, ratio, left, top, step.fill)


def placed(
    start: Picture, ratio: float, left: float, top: float, fill: tuple[float, float, float]
) -> Picture:
    """The image with its corner at (left, top) of a canvas `ratio` times as large, filled with a colour."""
    height, width = start.size
    x, y = int(left), int(top)
    canvas = torch.tensor(fill)[:, None, None].repeat(1, int(height * ratio), int(width * ratio))
    canvas[:, y : y + height, x : x + width] = start.image
    right, below = canvas.shape[2] - width - x, canvas.shape[1] - height - y
    masks = None if start.masks is None else F.pad(start.masks, (x, right, y, below))
    boxes = start.boxes + torch.tensor([x, y, x, y], dtype=start.boxes.dtype)
    return replace(start, image=canvas, boxes=boxes, masks=masks)


def crop(start: Picture, step: Crop, random: Random) -> Picture:
    """A part of the image that holds the centre of an object; with a share of luck, all of it.

    Published: a least overlap is drawn for each part, but never rejects any, and corners are drawn between 1
    and what is left, not between 0 and that (docs/quirks.md, rd-14).
    """
    if not len(start.boxes):
        return start
    while random.random() >= step.unchanged:
        for _ in range(step.trials):
            part = _part(start.size, step, random)
            if part is None:
                continue
            cut = cut_out(start, part)
            if len(cut.boxes):
                return cut
    return start


def _part(size: tuple[int, int], step: Crop, random: Random) -> tuple[int, int, int, int] | None:
    """One draw: x1, y1, x2, y2, unless it is too flat or too tall."""
    height, width = size
    w, h = random.uniform(step.least * width, width), random.uniform(step.least * height, height)
    if not 0.5 <= h / w <= 2:
        return None
    left, top = (1 + (free - 1) * random.random() for free in (width - w, height - h))
    return int(left), int(top), int(left + w), int(top + h)


def cut_out(start: Picture, part: tuple[int, int, int, int]) -> Picture:
    """The part x1, y1, x2, y2 of an image, with those objects whose centre lies strictly inside."""
    x1, y1, x2, y2 = part
    low, high = torch.tensor([x1, y1]).to(start.boxes), torch.tensor([x2, y2]).to(start.boxes)
    center = (start.boxes[:, :2] + start.boxes[:, 2:]) / 2
    inside = ((center > low) & (center < high)).all(1)
    corners = start.boxes[inside].reshape(-1, 2, 2)
    boxes = (torch.minimum(torch.maximum(corners, low), high) - low).flatten(1)
    return Picture(
        image=start.image[:, y1:y2, x1:x2],
        boxes=boxes,
        labels=start.labels[inside],
        masks=None if start.masks is None else start.masks[inside][:, y1:y2, x1:x2],
    )
