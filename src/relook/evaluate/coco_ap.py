"""The 12 COCO numbers of a list of detections, and the AP of each class."""

import contextlib
import importlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import hotcoco
import numpy as np
from numpy.typing import NDArray

from relook.data.sample import Sample, Source

Backend = Literal["hotcoco", "pycocotools"]

Tables = dict[str, NDArray[np.float64]]
"""What both tools compute: "precision" [T, R, C, area, maxDets] and "recall" [T, C, area, maxDets]."""

MISSING = -1.0
"""COCO's own mark for a number that does not exist, because there is no object to be found of that kind."""

_AREAS = ("all", "small", "medium", "large")  # order of both tools' area axis
_NUMBERS = {  # name -> precision or recall, IoU threshold (None: mean of .50 .. .95), area, place of maxDets
    "AP": ("precision", None, "all", 2),
    "AP50": ("precision", 0, "all", 2),
    "AP75": ("precision", 5, "all", 2),
    "APs": ("precision", None, "small", 2),
    "APm": ("precision", None, "medium", 2),
    "APl": ("precision", None, "large", 2),
    "AR1": ("recall", None, "all", 0),
    "AR10": ("recall", None, "all", 1),
    "AR100": ("recall", None, "all", 2),
    "ARs": ("recall", None, "small", 2),
    "ARm": ("recall", None, "medium", 2),
    "ARl": ("recall", None, "large", 2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ApReport:
    """What COCO says about a list of detections.

    Numbers lie in 0 .. 1; -1 says, as in COCO's own tools, that there is nothing to be found of that kind
    (no small object, no object of that class) and so no number.
    """

    numbers: dict[str, float]  # AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl, in COCO's order
    per_class: dict[str, float]  # AP by class name
    images: int
    objects: int  # ground-truth boxes, crowds left out
    detections: int
    backend: Backend

    @property
    def ap(self) -> float:
        """AP over IoU 0.50 .. 0.95, all sizes; the number models are ranked by."""
        return self.numbers["AP"]

    def to_json(self) -> dict[str, Any]:
        """The same as plain values that `json.dumps` takes."""
        return asdict(self)

    def table(self) -> list[tuple[str, str]]:
        """Rows of (name, value): the 12 numbers, then the AP of each class; "-" where there is no number."""
        rows = [*self.numbers.items(), *((f"AP {name}", value) for name, value in self.per_class.items())]
        return [(name, "-" if value == MISSING else f"{value:.4f}") for name, value in rows]


def coco_ap(
    source: Source, detections: Sequence[dict[str, Any]], *, backend: Backend = "hotcoco"
) -> ApReport:
    """Compares detections with the ground truth of `source`.

    Args:
        source: the images; every one counts, those without any box too.
        detections: COCO results: image_id, category_id (the dataset's own ids), bbox (x, y, width, height in
            original pixels), score.
        backend: who computes. Both give the same numbers; hotcoco is many times faster.

    Raises:
        ValueError: when a detection names an image or a category that `source` does not have.
    """
    truth = ground_truth(source)
    _check(source, truth, detections)
    run = {"hotcoco": _hotcoco, "pycocotools": _pycocotools}[backend]
    tables = run(truth, [dict(row) for row in detections])
    precision = tables["precision"]  # [T, R, C, area, maxDets]
    # the tools sort the categories by id; rows of `source.classes` need not be sorted so
    rows = np.argsort(np.argsort(np.asarray(source.category_ids, dtype=np.int64)))
    return ApReport(
        numbers={name: _mean(tables, *what) for name, what in _NUMBERS.items()},
        per_class={
            name: _average(precision[:, :, row, 0, 2]) for name, row in zip(source.classes, rows, strict=True)
        },
        images=len(source.samples),
        objects=sum(1 for a in truth["annotations"] if not a["iscrowd"]),
        detections=len(detections),
        backend=backend,
    )


def ground_truth(source: Source) -> dict[str, Any]:
    """The content of a COCO annotation file that holds `source`: original pixels, the dataset's own ids."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sample in source.samples:
        images.append(
            {"id": sample.id, "width": sample.width, "height": sample.height, "file_name": sample.path.name}
        )
        for row in _annotations(sample, source.category_ids):
            annotations.append(
                {"id": len(annotations) + 1, **row}
            )  # from 1: pycocotools takes 0 for "no match"
    categories = [{"id": i, "name": n} for i, n in zip(source.category_ids, source.classes, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotations(sample: Sample, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    low, high = sample.boxes[:, :2], sample.boxes[:, 2:]
    boxes: list[list[float]] = np.concatenate([low, high - low], axis=1).tolist()
    columns = zip(boxes, sample.labels.tolist(), sample.crowd.tolist(), sample.area.tolist(), strict=True)
    return [
        {
            "image_id": sample.id,
            "category_id": category_ids[label],
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
        }
        for box, label, crowd, area in columns
    ]


def _check(source: Source, truth: dict[str, Any], detections: Sequence[dict[str, Any]]) -> None:
    for key, known in (
        ("image_id", {image["id"] for image in truth["images"]}),
        ("category_id", set(source.category_ids)),
    ):
        strange = {row[key] for row in detections} - known
        if strange:
            raise ValueError(
                f"{len(strange)} {key} of the detections are not in {source.file or source.name}, "
                f"the first is {min(strange)}; evaluate them against the dataset they were made on"
            )


def _hotcoco(truth: dict[str, Any], detections: list[dict[str, Any]]) -> Tables:
    truth_index = hotcoco.COCO(truth)
    run = hotcoco.COCOeval(truth_index, truth_index.load_res(detections), "bbox")
    run.evaluate()
    run.accumulate()
    return cast("Tables", run.eval)


def _pycocotools(truth: dict[str, Any], detections: list[dict[str, Any]]) -> Tables:
    try:
        coco: Any = importlib.import_module("pycocotools.coco")
        cocoeval: Any = importlib.import_module("pycocotools.cocoeval")
    except ImportError as error:
        raise ImportError("--backend pycocotools needs that package; pip install pycocotools") from error
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth_index = coco.COCO()
        truth_index.dataset = truth
        truth_index.createIndex()
        found_index = coco.COCO()
        found_index.dataset = {**truth, "annotations": []}
        found_index.createIndex()
        if detections:  # loadRes fails on an empty list
            found_index = truth_index.loadRes(detections)
        run = cocoeval.COCOeval(truth_index, found_index, "bbox")
        run.evaluate()
        run.accumulate()
    return cast("Tables", run.eval)


def _mean(tables: Tables, kind: str, threshold: int | None, area: str, most: int) -> float:
    values = tables[kind][..., _AREAS.index(area), most]
    return _average(values if threshold is None else values[threshold])


def _average(values: NDArray[np.float64]) -> float:
    """Mean of the numbers that exist; `MISSING` if none does."""
    there = values[values > MISSING]
    return float(there.mean()) if there.size else MISSING
