"""What a data set is once it is read: samples, their source, and the error that lists what is wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from relook.data.decode import BrokenImage, check_image, read_image

Split = Literal["train", "val", "test"]
"""Which part of a data set."""


class DataError(ValueError):
    """A data set that cannot be used; the message lists the mistakes and how to fix them."""


class WrongSize(BrokenImage):
    """An image that is not as large as its annotation says, so that boxes would be in wrong places."""


def _no_boxes() -> NDArray[np.float64]:
    return np.zeros((0, 4))


def _no_labels() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


def _no_flags() -> NDArray[np.bool_]:
    return np.zeros(0, np.bool_)


def _no_numbers() -> NDArray[np.float64]:
    return np.zeros(0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One image and everything its annotation says. What training leaves out of it is decided later."""

    id: int
    path: Path  # where the image lies; a made-up name when `pixels` is given
    height: int  # after EXIF orientation; 0 when unknown until read
    width: int
    boxes: NDArray[np.float64] = field(default_factory=_no_boxes)  # [N, 4] x1 y1 x2 y2, original pixels
    labels: NDArray[np.int64] = field(default_factory=_no_labels)  # [N] contiguous from 0
    crowd: NDArray[np.bool_] = field(default_factory=_no_flags)  # [N] crowds and difficult objects
    ignore: NDArray[np.bool_] = field(default_factory=_no_flags)  # [N] COCO's `ignore`: never trained on
    area: NDArray[np.float64] = field(default_factory=_no_numbers)  # [N] pixels of the object, not of its box
    segmentation: tuple[Any, ...] = ()  # [N] as COCO writes them, or empty when not asked for
    pixels: Callable[[], NDArray[np.uint8]] | None = None  # makes the image when there is no file

    def image(self) -> NDArray[np.uint8]:
        """The image as uint8 RGB [H, W, 3].

        Raises:
            BrokenImage: when it cannot be read.
            WrongSize: when its size is not the one the annotation gives.
        """
        image = read_image(self.path) if self.pixels is None else self.pixels()
        self._compare(image.shape[0], image.shape[1])
        return image

    def check(self) -> None:
        """Decodes the image, in less memory than `image`.

        Raises:
            BrokenImage: as `image`.
            WrongSize: as `image`.
        """
        if self.pixels is None:
            self._compare(*check_image(self.path))

    def _compare(self, height: int, width: int) -> None:
        """Refuses a size that is not the annotation's."""
        if self.height and (height, width) != (self.height, self.width):
            exchanged = (height, width) == (self.width, self.height)
            why = ", as the file is before viewers turn it (EXIF)" if exchanged else ""
            raise WrongSize(
                f"{self.path}: is {width}x{height} pixels (width x height), "
                f"but its annotation says {self.width}x{self.height}{why}"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """One split of a data set."""

    name: str
    samples: Sequence[Sample]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]  # the data set's own id of each label, for writing results in COCO's format
    file: Path | None  # the annotation file or folder, for messages
    notes: tuple[str, ...] = ()  # what the reader skipped or chose, one sentence each
    classes_by: str = ""  # how its classes were brought together with a detector's: "name" or "order"

    def with_notes(self, notes: tuple[str, ...]) -> "Source":
        """The same with these notes."""
        return replace(self, notes=notes)
