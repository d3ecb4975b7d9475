"""How large objects are where a network sees them, and how large pictures must be for it to see them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from relook.data.learnt import trained_boxes
from relook.data.sample import Sample, Source
from relook.recipe import Size, Stretch, side_of

LEAST: Final = 8.0
"""Pixels of the network's input: the side below which objects are mostly lost."""

HARD: Final = 16.0
"""The side below which objects are hard to find: they cover one or two cells of the finest map."""

KEPT: Final = 0.95
"""The share of objects that a size is to keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSizes:
    """The objects of one class at a network's input."""

    name: str
    objects: int
    below: int  # whose side is less than `LEAST` pixels
    hard: int  # whose side is less than `HARD` pixels
    median: float  # side in pixels; the root of the box's area
    wanted: int  # the size at which 95 % of them have `LEAST` pixels; the present one if they have
    easy: int  # the same for `HARD` pixels


def class_sizes(sources: Iterable[Source], rule: Size) -> tuple[ClassSizes, ...]:
    """How large the objects of each class are after resizing by `rule`; classes without objects are left out.

    Args:
        sources: splits of one data set, of the same classes.
        rule: of a test: the shorter side is one number.
    """
    sides: dict[str, list[NDArray[np.float64]]] = {}
    label: int
    for source in sources:
        for sample in source.samples:
            learnt = trained_boxes(sample)
            root = np.sqrt((sample.boxes[learnt, 2:] - sample.boxes[learnt, :2]).prod(1)) * _factor(
                sample, rule
            )
            for label in np.unique(sample.labels[learnt]).tolist():
                sides.setdefault(source.classes[label], []).append(root[sample.labels[learnt] == label])
    return tuple(_of_class(name, np.concatenate(rows), side_of(rule)) for name, rows in sides.items())


def _factor(sample: Sample, rule: Size) -> float:
    """By how much an image grows."""
    height, width = max(sample.height, 1), max(sample.width, 1)
    if isinstance(rule, Stretch):
        return math.sqrt(rule.height * rule.width / (height * width))
    return min(rule.long / max(height, width), max(rule.short) / min(height, width))


def _of_class(name: str, side: NDArray[np.float64], size: int) -> ClassSizes:
    smallest = float(np.quantile(side, 1 - KEPT))

    def needed(least: float) -> int:
        return size if smallest >= least else math.ceil(size * least / smallest / 32) * 32

    return ClassSizes(
        name=name,
        objects=len(side),
        below=int((side < LEAST).sum()),
        hard=int((side < HARD).sum()),
        median=round(float(np.median(side)), 1),
        wanted=needed(LEAST),
        easy=needed(HARD),
    )
