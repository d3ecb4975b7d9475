"""What the writers of all formats share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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
    if not isinstance(found, (list, tuple)):
        return None
    parts = [[float(v) for v in part] for part in cast("Sequence[Any]", found) if len(part) >= 6]
    return parts or None


def has_run_lengths(sample: Sample, row: int) -> bool:
    """Whether the mask of an object is written as run lengths."""
    return bool(sample.segmentation) and isinstance(sample.segmentation[row], dict)


def counted(count: int, what: str) -> list[str]:
    """One sentence for so many objects, or none."""
    return [f"{count:,} {'object' if count == 1 else 'objects'} {what}"] if count else []
