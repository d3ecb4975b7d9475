"""Pascal VOC's average precision of boxes (Everingham et al., IJCV 2010), as RefineDet's authors compute it.

Everything is done for all images and classes at once: a "group" is one class in one image.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from relook.data.sample import Source
from relook.metrics.metric import MISSING, Report, Rows
from relook.types import ImageDetections

Numbers = NDArray[np.float64]
Whole = NDArray[np.int64]

RECALLS: Final = np.arange(0, 1.1, 0.1)  # the fourth is 0.30000000000000004, as published
OVERLAP: Final = 0.5  # a detection must overlap an object by more


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Recall and precision of a class after each of its detections, best first."""

    recall: Numbers  # [N]
    precision: Numbers  # [N]
    score: Numbers  # [N] rounded
    objects: int  # that are to be found


@dataclass(frozen=True, slots=True, kw_only=True)
class VocBoxes(ABC):
    """Average precision of each class at IoU 0.5, and its mean, which is the headline.

    What changes numbers (docs/quirks.md, rd-15): scores are rounded to three decimals and corners to one;
    objects are counted from 0 and detections from 1, so that perfect boxes lie one pixel apart.
    """

    silent: float = 0.0  # what a class counts that has objects and no detection; -1 in the authors' code
    name: str = field(default="", init=False)
    headline: str = field(default="mAP", init=False)

    @abstractmethod
    def average(self, curve: Curve) -> float:
        """Average precision of a class that has objects and detections."""

    def keep(self, image: int, found: ImageDetections, size: tuple[int, int]) -> Rows:  # noqa: ARG002
        """Its boxes, scores and labels."""
        return Rows.of(image, found)

    def report(self, source: Source, rows: Rows) -> Report:
        """The mean over classes that have objects; difficult objects and crowds count neither way."""
        curves = precision_curves(source, rows)
        values = [
            (self.average(one) if len(one.recall) else self.silent) if one.objects else MISSING
            for one in curves
        ]
        known = [value for value, one in zip(values, curves, strict=True) if one.objects]
        return Report(
            metric=self.name,
            headline=self.headline,
            numbers={self.headline: float(np.mean(known)) if known else MISSING},
            per_class=dict(zip(source.classes, values, strict=True)),
            images=len(source.samples),
            objects=sum(one.objects for one in curves),
            detections=len(rows),
            backend="relook",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Voc07(VocBoxes):
    """The metric of VOC2007: the mean of the best precision at eleven recalls."""

    name: str = field(default="voc07", init=False)

    def average(self, curve: Curve) -> float:
        """The mean of the best precision from each recall on."""
        from_here = curve.recall >= RECALLS[:, None]  # [11, N]
        return float(np.where(from_here, curve.precision, 0).max(1).mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Voc(VocBoxes):
    """The metric of VOC since 2010: the area under the curve of the best precision from each recall on."""

    name: str = field(default="voc", init=False)

    def average(self, curve: Curve) -> float:
        """The exact area."""
        best = np.maximum.accumulate(curve.precision[::-1])[::-1]
        return float((np.diff(curve.recall, prepend=0) * best).sum())


def precision_curves(source: Source, rows: Rows) -> list[Curve]:
    """The curve of each class of `source`; of one without objects it is empty."""
    rows = rows.sorted()
    classes = len(source.classes)
    strange = set(rows.image.tolist()) - {sample.id for sample in source.samples}
    if strange or (len(rows) and not 0 <= rows.label.min() <= rows.label.max() < classes):
        raise ValueError(
            f"{len(strange)} images of the detections, or classes, are not in {source.file or source.name}; "
            "evaluate them against the data set they were made on"
        )
    places = {sample.id: place for place, sample in enumerate(source.samples)}
    image = np.array([places[key] for key in cast("list[int]", rows.image.tolist())], np.int64)
    group, score = image * classes + rows.label, _rounded(rows.score, 3)
    # from edges of pixels to VOC's count, whose first pixel is 1
    box = _rounded(rows.box + np.array([1, 1, 0, 0]), 1)
    objects = _objects(source)
    best, overlap = _best_objects(group, box, objects)
    order = np.argsort(-score, kind="stable")
    hit, ignored = _hits(best[order], overlap[order], objects)
    label, score = rows.label[order], score[order]
    curves: list[Curve] = []
    for number in range(classes):
        mine = label == number
        count = int((~objects.difficult & (objects.group % classes == number)).sum())
        right, wrong = np.cumsum(hit[mine]), np.cumsum(~hit[mine] & ~ignored[mine])
        curve = Curve(
            recall=right / max(count, 1),
            precision=right / np.maximum(right + wrong, np.finfo(np.float64).eps),
            score=score[mine],
            objects=count,
        )
        curves.append(curve)
    return curves


def _rounded(values: Numbers, digits: int) -> Numbers:
    """As text with so many digits says them."""
    return np.char.mod(f"%.{digits}f", values).astype(np.float64) if values.size else values


@dataclass(frozen=True, slots=True, kw_only=True)
class _Objects:
    """Ground truth of all images, sorted by group."""

    box: Numbers  # [M, 4]
    group: Whole  # [M]
    difficult: NDArray[np.bool_]  # [M]


def _objects(source: Source) -> _Objects:
    classes = len(source.classes)
    groups = [place * classes + sample.labels for place, sample in enumerate(source.samples)]
    group = np.concatenate([np.zeros(0, np.int64), *groups])
    box = np.concatenate([np.zeros((0, 4)), *(sample.boxes for sample in source.samples)])
    difficult = np.concatenate([np.zeros(0, np.bool_), *(sample.crowd for sample in source.samples)])
    order = np.argsort(group, kind="stable")
    # published: 1 is taken from what the files say, whose last pixel belongs to the object
    box = box - np.array([0, 0, 1, 1])
    return _Objects(box=box[order], group=group[order], difficult=difficult[order])


def _best_objects(group: Whole, box: Numbers, objects: _Objects) -> tuple[Whole, Numbers]:
    """Of each detection the object of its group that it overlaps most, the first of equals, and by how much.

    Returns:
        Rows of `objects` [N], -1 where the group has none, and IoU [N].
    """
    first = np.searchsorted(objects.group, group)
    count = np.searchsorted(objects.group, group, side="right") - first
    has = np.flatnonzero(count)
    best, most = np.full(len(group), -1, np.int64), np.full(len(group), -np.inf)
    if not len(has):
        return best, most
    start = np.cumsum(count[has]) - count[has]  # of each detection's pairs
    mine = np.repeat(has, count[has])
    theirs = np.arange(len(mine)) - np.repeat(start, count[has]) + np.repeat(first[has], count[has])
    iou = _iou(box[mine], objects.box[theirs])
    most[has] = np.maximum.reduceat(iou, start)
    pairs = np.flatnonzero(iou == most[mine])[::-1]  # the first of equals is written last
    best[mine[pairs]] = theirs[pairs]
    return best, most


def _iou(a: Numbers, b: Numbers) -> Numbers:
    """Of pairs [P, 4], without counting the last pixel."""
    sides = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
    inter = sides.prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def _hits(best: Whole, overlap: Numbers, objects: _Objects) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections, best first, find an object that none before them found, and which do not count."""
    over = overlap > OVERLAP
    easy = np.append(~objects.difficult, False)[best]
    takes = np.flatnonzero(over & easy)
    _, firsts = np.unique(best[takes], return_index=True)
    hit = np.zeros(len(best), np.bool_)
    hit[takes[firsts]] = True
    return hit, over & ~easy
