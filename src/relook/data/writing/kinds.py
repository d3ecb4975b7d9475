"""What the writers of all formats share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from relook.data.formats.geometry import segmentation_problems
from relook.data.sample import Sample, Source


@dataclass(frozen=True, slots=True)
class Split:
    """One part of a data set on its way to files."""

    name: str  # train, val, test, or all
    source: Source
    names: Sequence[str]  # of the pictures, one for each sample; no two stems are equal

    def rows(self) -> Iterator[tuple[Sample, str]]:
        """Each sample and the name of its picture."""
        return zip(self.source.samples, self.names, strict=True)


@dataclass(frozen=True, slots=True)
class Writer:
    """A format."""

    images: Callable[[str], str]  # name of a split -> folder of its pictures
    write: Callable[[Path, Sequence[Split]], list[str]]  # all but the pictures; gives what could not be held


def polygons(sample: Sample, row: int) -> list[list[float]] | None:
    """The outlines of an object, x, y, x, y ... in pixels; None when it has none, or run lengths."""
    found = sample.segmentation[row] if sample.segmentation else None
    if not isinstance(found, list) or not is_sound(cast("object", found), sample):
        return None
    return [[float(v) for v in part] for part in cast("list[list[float]]", found)]


def is_sound(segmentation: object, sample: Sample) -> bool:
    """Whether a mask is one that can be read again."""
    return next(segmentation_problems(segmentation, (sample.height, sample.width)), None) is None


def unsound(split: "Split") -> int:
    """How many masks of a split are none, so that they are left out."""
    return sum(not is_sound(one, sample) for sample in split.source.samples for one in sample.segmentation)


def has_run_lengths(sample: Sample, row: int) -> bool:
    """Whether the mask of an object is written as run lengths."""
    if not sample.segmentation or not isinstance(sample.segmentation[row], dict):
        return False
    return is_sound(sample.segmentation[row], sample)


def counted(count: int, what: str) -> list[str]:
    """One sentence for so many objects, or none."""
    return [f"{count:,} {'object' if count == 1 else 'objects'} {what}"] if count else []
