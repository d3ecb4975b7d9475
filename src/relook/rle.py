"""Masks as COCO writes them, run lengths and polygons, and as pixels; hotcoco rasterises and counts runs."""

from collections.abc import Sequence
from typing import Any, cast

import hotcoco
import numpy as np
from numpy.typing import NDArray

Runs = dict[str, Any]
"""{"size": [height, width], "counts": text}: compressed run lengths, as COCO's results have them."""

_MOST = 400_000_000  # pixels of a mask

_tool: Any = hotcoco.mask


def bitmap(segmentation: object, height: int, width: int) -> NDArray[np.bool_] | None:
    """A segmentation of a COCO annotation -> which pixels belong to the object [height, width].

    Polygons are rasterised and united as COCO's tools do it; run lengths may be compressed or not. Parts of
    fewer than three points have no pixels.

    Returns:
        None where there is nothing to draw: no segmentation, or no part of three points.

    Raises:
        ValueError: when the run lengths are of another size, or something in it cannot be read.
    """
    try:
        return _drawn(segmentation, height, width)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"its segmentation cannot be read ({error})") from None


def _drawn(segmentation: object, height: int, width: int) -> NDArray[np.bool_] | None:
    if height * width > _MOST:
        raise ValueError(f"{height} x {width} pixels are too many to draw")
    if isinstance(segmentation, dict):
        return _from_runs(cast("Runs", segmentation), height, width)
    parts = cast("Sequence[Any]", segmentation) if isinstance(segmentation, (list, tuple)) else ()
    drawn = [[float(v) for v in part[: len(part) // 2 * 2]] for part in parts if len(part) >= 6]
    if not drawn:
        return None
    whole = _tool.merge(_tool.frPyObjects(drawn, height, width))
    return np.asarray(_tool.decode(whole)).astype(np.bool_)


def _from_runs(runs: Runs, height: int, width: int) -> NDArray[np.bool_]:
    size = [int(v) for v in runs.get("size", ())]
    if size != [height, width]:
        raise ValueError(f"its run lengths are of {size} (height, width), the image has {[height, width]}")
    counts = runs.get("counts")
    if isinstance(counts, (list, tuple)):
        whole = cast("Sequence[int]", counts)
        total = sum(whole)  # before numpy, whose sums wrap around
        if len(whole) > height * width + 1 or total != height * width or min(whole) < 0:
            raise ValueError(f"its run lengths sum to {total}, not to {height} x {width}")
        lengths = np.array(whole, np.int64)
        values = np.arange(len(lengths)) % 2 == 1
        return np.repeat(values, lengths).reshape(width, height).T
    text = counts.encode() if isinstance(counts, str) else counts
    if not isinstance(text, bytes):
        raise ValueError(f"its counts are {counts!r:.40}, neither numbers nor text")  # noqa: TRY004 (bad data)
    return np.asarray(_tool.decode({"size": size, "counts": text})).astype(np.bool_)


def runs(mask: NDArray[np.bool_]) -> Runs:
    """Pixels [height, width] -> compressed run lengths."""
    found = _tool.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = found["counts"]
    return {
        "size": [int(v) for v in found["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


def area(segmentation: Runs) -> int:
    """Pixels of an object."""
    return int(_tool.area({**segmentation, "counts": segmentation["counts"].encode()}))


def box_of(segmentation: object, height: int, width: int) -> tuple[float, float, float, float] | None:
    """x, y, width, height around what a segmentation draws; None where it draws nothing.

    Raises:
        ValueError: as `bitmap`.
    """
    drawn = bitmap(segmentation, height, width) if height and width else None
    if drawn is None or not drawn.any():
        return None
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    x, y = int(columns[0]), int(rows[0])
    return float(x), float(y), float(columns[-1] + 1 - x), float(rows[-1] + 1 - y)
