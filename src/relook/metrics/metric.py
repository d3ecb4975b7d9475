"""What every metric is: detections row by row and ground truth in, a report with a headline number out."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from relook.data.sample import Source
from relook.rle import Runs
from relook.types import ImageDetections

MISSING = -1.0
"""COCO's own mark for a number that does not exist, because there is no object to be found of that kind."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Detections of many images, row by row, small enough to travel between processes."""

    image: NDArray[np.int64]  # [N] image id
    label: NDArray[np.int64]  # [N] contiguous label
    score: NDArray[np.float64]  # [N]
    box: NDArray[np.float64]  # [N, 4] x1, y1, x2, y2 in original pixels
    masks: tuple[Runs, ...] = ()  # [N] run lengths in original pixels, or empty where there are none

    @classmethod
    def of(cls, image: int, found: ImageDetections, masks: tuple[Runs, ...] = ()) -> "Rows":
        """Of one image; nothing of the tensors stays alive."""
        boxes, scores = found.boxes.double().numpy().copy(), found.scores.double().numpy().copy()
        return cls(np.full(len(found), image, np.int64), found.labels.numpy().copy(), scores, boxes, masks)

    @classmethod
    def join(cls, parts: Sequence["Rows"]) -> "Rows":
        """All parts, one after the other."""
        return cls(
            np.concatenate([np.zeros(0, np.int64), *(p.image for p in parts)]),
            np.concatenate([np.zeros(0, np.int64), *(p.label for p in parts)]),
            np.concatenate([np.zeros(0), *(p.score for p in parts)]),
            np.concatenate([np.zeros((0, 4)), *(p.box for p in parts)]),
            tuple(mask for p in parts for mask in p.masks),
        )

    def sorted(self) -> "Rows":
        """In the order of image ids; within an image nothing changes its place."""
        order = np.argsort(self.image, kind="stable")
        places = cast("list[int]", order.tolist()) if self.masks else []
        masks = tuple(self.masks[i] for i in places)
        return Rows(self.image[order], self.label[order], self.score[order], self.box[order], masks)

    def __len__(self) -> int:
        return len(self.image)

    def to_coco(self, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """COCO results: image_id, category_id, bbox (x, y, width, height), score; segmentation, if any."""
        low, high = self.box[:, :2], self.box[:, 2:]
        boxes: list[list[float]] = np.concatenate([low, high - low], axis=1).tolist()
        columns = zip(self.image.tolist(), self.label.tolist(), boxes, self.score.tolist(), strict=True)
        rows: list[dict[str, Any]] = [
            {"image_id": image, "category_id": category_ids[label], "bbox": box, "score": score}
            for image, label, box, score in columns
        ]
        for row, mask in zip(rows, self.masks, strict=False):
            row["segmentation"] = mask
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a metric says about the detections of a data set.

    Numbers lie in 0 .. 1; -1 says, as in COCO's own tools, that there is nothing to be found of that kind
    (no small object, no object of that class) and so no number.
    """

    metric: str  # its name
    headline: str  # which of `numbers` models are ranked by
    numbers: dict[str, float]  # by name, in the metric's order
    per_class: dict[str, float]  # the headline's kind of number by class name
    per_class_ap50: dict[str, float] = field(default_factory=dict[str, float])  # by class name, at IoU 0.50
    images: int
    objects: int  # ground-truth boxes that are to be found
    detections: int
    backend: str = ""  # who computed

    @property
    def value(self) -> float:
        """The headline number."""
        return self.numbers[self.headline]

    def to_json(self) -> dict[str, Any]:
        """The same as plain values that `json.dumps` takes."""
        return asdict(self)

    def table(self) -> list[tuple[str, str]]:
        """Rows of (name, value) for people; "-" where there is no number."""
        return [(name, _shown(value)) for name, value in self.numbers.items()]

    def classes(self) -> list[tuple[str, ...]]:
        """Rows of (class, its number, its AP50 where the metric has one) for people."""
        return [
            (name, _shown(value), *([_shown(self.per_class_ap50[name])] if self.per_class_ap50 else []))
            for name, value in self.per_class.items()
        ]


def _shown(value: float) -> str:
    return "-" if value == MISSING else f"{value:.4f}"


class Metric(Protocol):
    """Compares detections with ground truth."""

    @property
    def name(self) -> str:
        """What a recipe calls it."""
        ...

    @property
    def headline(self) -> str:
        """Which of its numbers chooses the best weights."""
        ...

    def keep(self, image: int, found: ImageDetections, size: tuple[int, int]) -> Rows:
        """What is needed of an image of that id and size (h, w) once it is done; nothing else of it stays."""
        ...

    def report(self, source: Source, rows: Rows) -> Report:
        """Every image of `source` counts, those without any box too."""
        ...
