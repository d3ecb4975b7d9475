"""Samples in a few large arrays: a hundred thousand images fill tens of megabytes, shared by all workers.

As Python objects they would fill hundreds, and each loading process would come to own a copy, because
counting references writes into them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from relook.data.sample import Sample, Source


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColumnarSamples(Sequence[Sample]):
    """Behaves as a tuple of samples; each is made when it is asked for."""

    ids: NDArray[np.int64]  # [S]
    sizes: NDArray[np.int64]  # [S, 2] height, width
    paths: bytes  # all paths, one after the other
    path_ends: NDArray[np.int64]  # [S + 1] where each path starts and the last one ends
    ends: NDArray[np.int64]  # [S + 1] the same for rows of what follows
    boxes: NDArray[np.float64]  # [R, 4]
    labels: NDArray[np.int64]  # [R]
    flags: NDArray[np.bool_]  # [R, 2] crowd, left out
    area: NDArray[np.float64]  # [R]
    segmentation: tuple[tuple[Any, ...], ...]  # [S], or empty when none is carried

    def __len__(self) -> int:
        return len(self.ids)

    def _path(self, n: int) -> str:
        start, end = int(self.path_ends[n]), int(self.path_ends[n + 1])
        return self.paths[start:end].decode("utf-8", "surrogatepass")

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, index: int | slice) -> Sample | tuple[Sample, ...]:
        if isinstance(index, slice):
            return tuple(self[n] for n in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} samples, none has the number {index}")
        n = index % len(self)
        rows = slice(int(self.ends[n]), int(self.ends[n + 1]))
        return Sample(
            id=int(self.ids[n]),
            path=Path(self._path(n)),
            height=int(self.sizes[n, 0]),
            width=int(self.sizes[n, 1]),
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            crowd=self.flags[rows, 0],
            ignore=self.flags[rows, 1],
            area=self.area[rows],
            segmentation=self.segmentation[n] if self.segmentation else (),
        )


def pack(samples: Iterable[Sample], *, numbered: bool = False) -> ColumnarSamples:
    """Packs samples of image files; generated ones, which have `pixels`, have no place here.

    With `numbered` their ids become 1, 2, 3 ...
    """
    kept = list(samples)
    paths = [str(sample.path).encode("utf-8", "surrogatepass") for sample in kept]
    flags = [np.stack([sample.crowd, sample.ignore], 1) for sample in kept]
    carried = any(sample.segmentation for sample in kept)
    return ColumnarSamples(
        ids=np.array([n if numbered else sample.id for n, sample in enumerate(kept, 1)], np.int64),
        sizes=np.array([(sample.height, sample.width) for sample in kept], np.int64).reshape(-1, 2),
        paths=b"".join(paths),
        path_ends=_ends(paths),
        ends=_ends([sample.labels for sample in kept]),
        boxes=np.concatenate([np.zeros((0, 4)), *(sample.boxes for sample in kept)]),
        labels=np.concatenate([np.zeros(0, np.int64), *(sample.labels for sample in kept)]),
        flags=np.concatenate([np.zeros((0, 2), np.bool_), *flags]),
        area=np.concatenate([np.zeros(0), *(sample.area for sample in kept)]),
        segmentation=tuple(sample.segmentation for sample in kept) if carried else (),
    )


def _ends(rows: Sequence[Any]) -> NDArray[np.int64]:
    """Where each row starts when all lie one after the other, and where the last one ends: [S + 1]."""
    return np.cumsum([0, *map(len, rows)], dtype=np.int64)


def with_classes(source: Source, classes: Sequence[str], category_ids: Sequence[int]) -> Source:
    """The same images and objects, whose labels count in other classes, found by name.

    Raises:
        KeyError: a class of the source is none of them.
    """
    table = {name: label for label, name in enumerate(classes)}
    return with_labels(source, [table[name] for name in source.classes], classes, category_ids)


def with_labels(
    source: Source, labels: Sequence[int], classes: Sequence[str], category_ids: Sequence[int]
) -> Source:
    """The same images and objects, whose label n becomes `labels[n]`."""
    places = np.array(labels, np.int64)
    if isinstance(source.samples, ColumnarSamples):
        kept: Sequence[Sample] = replace(source.samples, labels=places[source.samples.labels])
    else:  # generated
        kept = tuple(replace(sample, labels=places[sample.labels]) for sample in source.samples)
    return replace(source, samples=kept, classes=tuple(classes), category_ids=tuple(category_ids))
