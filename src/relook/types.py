"""The values that travel through relook: ground truth in, detections out.

Letters used for shapes everywhere in the library:
    B images in a batch      M ground-truth boxes per image (padded)
    P points of all levels   K detections per image (padded)
    C classes                H, W pixels of the network input
Boxes are x1, y1, x2, y2 in pixels; (0, 0) is the outer corner of the first pixel. Labels are contiguous
from 0; there is no background class.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self, TypeVar, cast, dataclass_transform

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """A frozen dataclass with slots that torch can take apart and put together again.

    torch.compile, torch.export, `torch.utils._pytree` and DDP see it as a tree of its tensors.
    """
    made = dataclass(frozen=True, slots=True, eq=False)(cls)
    torch.export.register_dataclass(made, serialized_type_name=f"{cls.__module__}.{cls.__qualname__}")
    return made


@record
class Targets:
    """Ground truth of a batch, padded to the image with the most boxes."""

    boxes: Tensor  # [B, M, 4] float, network-input pixels
    labels: Tensor  # [B, M] int64, 0 .. C-1; padding holds 0
    valid: Tensor  # [B, M] bool, False for padding
    sizes: Tensor  # [B, 2] int64, valid (height, width) of each image before padding
    masks: Tensor | None = None  # [B, M, H, W] bool, only made for detectors that learn masks

    def to(self, device: torch.device | str) -> Self:
        """The same targets on another device, copied without waiting."""
        moved: list[Any] = []
        for f in fields(self):
            value = getattr(self, f.name)
            moved.append(value.to(device, non_blocking=True) if isinstance(value, Tensor) else value)
        return type(self)(*moved)

    def pin_memory(self) -> Self:
        """The same targets in page-locked memory, so that `to` need not wait (called by DataLoader)."""
        pinned: list[Any] = []
        for f in fields(self):
            value = getattr(self, f.name)
            pinned.append(value.pin_memory() if isinstance(value, Tensor) else value)
        return type(self)(*pinned)

    @classmethod
    def pad(
        cls,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> Self:
        """One ragged list per image -> one padded record.

        Args:
            boxes: per image [n, 4] in network-input pixels.
            labels: per image [n] int64.
            sizes: per image (height, width) before padding.

        Raises:
            ValueError: when an image has not as many labels as boxes.
        """
        for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            if len(box) != len(label):
                raise ValueError(f"image {i} of the batch has {len(box)} boxes but {len(label)} labels")
        most = max([1, *map(len, boxes)])
        like = boxes[0]
        valid = torch.arange(most, device=like.device) < torch.tensor(
            [len(b) for b in boxes], device=like.device
        ).unsqueeze(1)
        return cls(
            boxes=_stack(boxes, most),
            labels=_stack(labels, most),
            valid=valid,
            sizes=torch.tensor(sizes, dtype=torch.int64, device=like.device),
        )


def _stack(rows: Sequence[Tensor], most: int) -> Tensor:
    """Ragged [n, ...] -> [B, most, ...], filled up with zeros."""
    padded = rows[0].new_zeros(len(rows), most, *rows[0].shape[1:])
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


@record
class Detections:
    """What was found in a batch, best score first, padded to K per image."""

    boxes: Tensor  # [B, K, 4] float, network-input pixels
    scores: Tensor  # [B, K] float in 0 .. 1; padding holds 0
    labels: Tensor  # [B, K] int64, 0 .. C-1
    count: Tensor  # [B] int64, how many of the K are real
    masks: Tensor | None = None  # [B, K, 28, 28] probabilities in the box frame
    origin: Tensor | None = None  # [B, K] int64, the row of the detector's Outputs behind each detection
    truncated: Tensor | None = None  # [B] bool, a compiled graph left candidates out: the answer may be short

    def unpad(self) -> "list[ImageDetections]":
        """Leaves the batch: one ragged record per image (the one place that waits for the device)."""
        counts = cast("list[int]", self.count.tolist())
        return [
            ImageDetections(
                self.boxes[i, :n],
                self.scores[i, :n],
                self.labels[i, :n],
                None if self.masks is None else self.masks[i, :n],
                None if self.origin is None else self.origin[i, :n],
            )
            for i, n in enumerate(counts)
        ]


@record
class ImageDetections:
    """What was found in one image, best score first."""

    boxes: Tensor  # [N, 4]
    scores: Tensor  # [N]
    labels: Tensor  # [N]
    masks: Tensor | None = None  # [N, 28, 28]
    origin: Tensor | None = None  # [N] int64

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> "ImageDetections":
        """Only those whose score is larger than `score`."""
        return self.pick(self.scores > score)

    def pick(self, rows: Tensor) -> "ImageDetections":
        """Those that `rows` names: [M] int64 in the order wanted, or [N] bool."""
        return ImageDetections(
            self.boxes[rows],
            self.scores[rows],
            self.labels[rows],
            None if self.masks is None else self.masks[rows],
            None if self.origin is None else self.origin[rows],
        )


@record
class HeatMap:
    """How sure a detector was of something, place by place, over the whole padded network input.

    Cell (i, j) is the point (first + j * stride, first + i * stride) of the input, in pixels.
    """

    values: Tensor  # [B, n, h, w] in 0 .. 1
    stride: int  # pixels from cell to cell
    first: float  # pixels from the border to cell 0
    names: tuple[str, ...]  # n, what each channel says


@record
class Look:
    """One step of what a detector saw; a row of its tensors belongs to the detection of the same row.

    `Detector.explain` makes them on request. Coordinates are pixels of the network input.
    """

    title: str  # a word or two, such as "first look"
    caption: str  # a sentence for people
    boxes: Tensor | None = None  # [B, K, 4]
    points: Tensor | None = None  # [B, K, N, 2] x, y
    scores: Tensor | None = None  # [B, K]
    maps: tuple[HeatMap, ...] = ()
    patches: Tensor | None = None  # [B, N, 4] boxes that belong to the image, not to its detections
    joined: bool = False  # the points are those of the look before, moved: drawings join each pair
    on_answer: bool = False  # the boxes are those before their last move: drawn dashed around the answer


Losses = dict[str, Tensor]
"""Scalar terms by name, already weighted: their plain sum is what is minimised."""


def to_float32(x: Tensor) -> Tensor:
    """At least float32, float64 as it is: geometry and losses are not computed in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
