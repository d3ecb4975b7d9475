"""What may be wrong with a box or a polygon though training can go on: shared by the readers."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

_OUTSIDE = 1.0  # pixels that a box may pass its image's border by before it is worth a word


class Issue(NamedTuple):
    """What is wrong and how to fix it."""

    what: str
    fix: str


def box_problems(box: Sequence[float], size: tuple[int, int]) -> Iterator[Issue]:
    """Issues of a box x, y, width, height in an image of `size` (height, width; 0 when unknown)."""
    x, y, width, height = box
    if width <= 0 or height <= 0:
        yield Issue(f"box {_shown(box)} has no area; training leaves it out", "remove it or draw it again")
    elif width < 1 or height < 1:
        yield Issue(f"box {_shown(box)} is thinner than a pixel; training leaves it out", "remove it")
    if not all(size):
        return
    inside_x, inside_y = min(x + width, size[1]) - max(x, 0), min(y + height, size[0]) - max(y, 0)
    if min(width, height) > 0 and (inside_x <= 0 or inside_y <= 0):
        what = f"box {_shown(box)} lies outside the image of {size[1]}x{size[0]} pixels"
        yield Issue(f"{what}; training leaves it out", "remove it or draw it again")
    elif max(-x, -y, x + width - size[1], y + height - size[0]) > _OUTSIDE:
        what = f"box {_shown(box)} passes the border of the image of {size[1]}x{size[0]} pixels"
        yield Issue(f"{what}; it is clipped", "clip it, and see whether it belongs to this image")


def _shown(box: Sequence[float]) -> str:
    return f"[{', '.join(f'{number:g}' for number in box)}]"


def polygon_problems(segmentation: object) -> Iterator[Issue]:
    """Issues of the outline of an object that is no crowd; run lengths and a missing outline have none."""
    if not isinstance(segmentation, list):
        return
    parts = cast("list[Any]", segmentation)
    if not parts:
        yield Issue("segmentation is an empty list", "remove the key, or draw the outline")
    for n, part in enumerate(parts):
        if not isinstance(part, list):
            yield Issue(f"polygon {n} is no list of numbers", "write [x1, y1, x2, y2, ...]")
            return
        numbers = cast("list[Any]", part)
        if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in numbers):
            yield Issue(f"polygon {n} holds something that is no finite number", "draw it again")
        elif len(numbers) < 6 or len(numbers) % 2:
            yield Issue(f"polygon {n} has {len(numbers)} numbers", "write x and y of at least three corners")
