"""What may be wrong with boxes and polygons though training can go on: shared by the readers."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from relook.data.formats.problems import Problems
from relook.data.sample import Sample

Array = NDArray[np.float64]

LARGEST = 1e9
"""Coordinates and areas beyond are no pixels."""

_OUTSIDE = 1.0  # pixels that a box may pass its image's border by before it is worth a word
_MOST = 0.5  # of all boxes must look wrong, and
_NEARLY_ALL = 0.98  # of all be right when they are read otherwise, before a cause is named
_LEAST = 3  # boxes, before anything is said of all


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


def upright(box: Sequence[float]) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 with the smaller corner first: a box whose corners are swapped can be found again."""
    x1, y1, x2, y2 = box
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def swapped(box: Sequence[float]) -> Issue | None:
    """The issue of a box whose corners x1, y1, x2, y2 are exchanged; None when they are not."""
    x1, y1, x2, y2 = box
    if x2 >= x1 and y2 >= y1:
        return None
    what = f"corners {_shown(box)} are swapped; they are put right"
    return Issue(what, "write the left upper corner first")


def segmentation_problems(segmentation: object, size: tuple[int, int]) -> Iterator[Issue]:
    """Issues of the mask of an object in an image of `size` (height, width; 0 when unknown)."""
    if segmentation is None:
        return
    if isinstance(segmentation, dict):
        yield from _run_length_problems(cast("dict[str, Any]", segmentation), size)
        return
    if not isinstance(segmentation, list):
        yield Issue(
            "segmentation is neither a list of polygons nor run lengths", "draw it again or remove it"
        )
        return
    yield from _polygon_problems(cast("list[Any]", segmentation))


def _polygon_problems(parts: list[Any]) -> Iterator[Issue]:
    if not parts:
        yield Issue("segmentation is an empty list", "remove the key, or draw the outline")
    for n, part in enumerate(parts):
        if not isinstance(part, list):
            yield Issue(f"polygon {n} is no list of numbers", "write [x1, y1, x2, y2, ...]")
            return
        numbers = cast("list[Any]", part)
        if not all(map(is_number, numbers)):
            yield Issue(f"polygon {n} holds something that is no finite number", "draw it again")
        elif len(numbers) < 6 or len(numbers) % 2:
            yield Issue(f"polygon {n} has {len(numbers)} numbers", "write x and y of at least three corners")


def _run_length_problems(runs: dict[str, Any], size: tuple[int, int]) -> Iterator[Issue]:
    said, counts = runs.get("size"), runs.get("counts")
    if numbers(said, 2) is None:
        yield Issue("the run lengths of segmentation have no size", "write [height, width] of the image")
    elif all(size) and list(cast("list[float]", said)) != list(size):
        what = (
            f"the run lengths of segmentation are of size {said}, the image of {list(size)} (height, width)"
        )
        yield Issue(what, "draw it again for this image")
    listed = cast("list[Any]", counts) if isinstance(counts, list) else None
    if not isinstance(counts, str) and (listed is None or not all(map(is_number, listed))):
        yield Issue("the counts of segmentation are neither text nor numbers", "draw it again or remove it")


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a number that can be of pixels."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= LARGEST  # False for NaN, and no matter how many digits a whole number has


# -- all boxes of a split ------------------------------------------------------------------------------


def shares_instead_of_pixels(samples: Sequence[Sample], place: str, fix: str, problems: Problems) -> bool:
    """Tells when all boxes lie within one pixel: they are shares of their image."""
    boxes = [sample.boxes for sample in samples if len(sample.boxes)]
    if not boxes:
        return False
    corners = np.concatenate(boxes)
    if len(corners) < _LEAST or not (np.abs(corners).max() <= 1.5 and corners.any()):
        return False
    first = next(sample for sample in samples if len(sample.boxes))
    what = f"all {len(corners):,} boxes lie within one pixel, the first being {_shown(first.boxes[0])} of "
    what += f"{first.path.name}: they look like shares of the image's width and height"
    problems.fatal(place, "boxes", what, fix)
    return True


def likely_cause(written: Array, sizes: Array, kind: str, place: str, problems: Problems) -> None:
    """Names the cause when nearly all boxes pass the border or are inverted, but fit when read otherwise.

    Args:
        written: [N, 4] numbers in pixels, as they stand in the file.
        sizes: [N, 2] height and width of each box's image; rows of zeros are not looked at.
        kind: how they were read, a key of `_READINGS`.
        place: the file, for the message.
        problems: where it is told.
    """
    known = (sizes > 0).all(1)
    written, sizes = written[known], sizes[known]
    if len(written) < _LEAST:
        return
    share = 1 - _fits(_READINGS[kind](written), sizes, least=1e-9)
    if share < _MOST:
        return
    read_so = _READINGS[kind](written)
    inverted = (read_so[:, 2:] < read_so[:, :2]).any(1)
    if inverted.all():  # sizes instead of corners would leave some upright, near the left upper corner
        what = f"all {len(written):,} boxes have their corners swapped; they are put right"
        problems.tolerable(place, "boxes", what, f"see that each is {kind}, not a corner and a size")
        return
    causes = {name: _fits(read(written), sizes) for name, read in _READINGS.items() if name != kind}
    causes["y before x"] = _fits(read_so[:, [1, 0, 3, 2]], sizes)
    best = max(causes, key=lambda name: causes[name])
    if causes[best] < _NEARLY_ALL:
        return
    what = f"{share:.0%} of {len(written):,} boxes pass the border of their image or are inverted; "
    what += f"read as {best}, {causes[best]:.0%} fit"
    problems.fatal(place, "boxes", what, f"write each box as {kind}")


def _fits(boxes: Array, sizes: Array, least: float = 0.0) -> float:
    """The share of boxes x1, y1, x2, y2 that have sides of at least `least` and lie inside of their image."""
    inside = (boxes[:, :2] >= -_OUTSIDE).all(1) & (boxes[:, 2:] <= sizes[:, ::-1] + _OUTSIDE).all(1)
    return float((inside & (boxes[:, 2:] - boxes[:, :2] >= least).all(1)).mean())


def _from_corners(boxes: Array) -> Array:
    return boxes


def _from_corner_and_size(boxes: Array) -> Array:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def _from_centre_and_size(boxes: Array) -> Array:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)


CORNERS = "left, upper, right and lower border"
CORNER_AND_SIZE = "left and upper border, width and height"
CENTRE_AND_SIZE = "centre, width and height"

_READINGS = {
    CORNERS: _from_corners,
    CORNER_AND_SIZE: _from_corner_and_size,
    CENTRE_AND_SIZE: _from_centre_and_size,
}


def numbers(value: object, count: int) -> list[float] | None:
    """A list of that many finite numbers of pixels, else None."""
    row = cast("list[Any]", value) if isinstance(value, list) else []
    return [float(one) for one in row] if len(row) == count and all(map(is_number, row)) else None


def hull(points: Sequence[float]) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 around points x, y, x, y ..."""
    return min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])


def finite(values: Sequence[float]) -> bool:
    """Whether all are finite and can be pixels."""
    return all(math.isfinite(value) and abs(value) <= LARGEST for value in values)
