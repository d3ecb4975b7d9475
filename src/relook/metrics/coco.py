"""The 12 COCO numbers of a list of detections, and AP and AP50 of each class."""

import contextlib
import importlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import hotcoco
import numpy as np
from numpy.typing import NDArray

from relook.data.sample import Sample, Source
from relook.metrics.metric import MISSING, Report, Rows
from relook.ops.masks import mask_runs
from relook.rle import bitmap, runs
from relook.types import ImageDetections

SEGM = "segm "  # before the name of each number of masks
Kind = Literal["bbox", "segm"]
Backend = Literal["hotcoco", "pycocotools"]

Tables = dict[str, NDArray[np.float64]]
"""What both tools compute: "precision" [T, R, C, area, maxDets] and "recall" [T, C, area, maxDets]."""

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
class CocoBoxes:
    """COCO's box metric; its headline is AP over IoU 0.50 .. 0.95, all sizes."""

    backend: Backend = "hotcoco"
    name: str = field(default="coco", init=False)
    headline: str = field(default="AP", init=False)

    def keep(self, image: int, found: ImageDetections, size: tuple[int, int]) -> Rows:  # noqa: ARG002
        """Its boxes, scores and labels."""
        return Rows.of(image, found)

    def report(self, source: Source, rows: Rows) -> Report:
        """The 12 numbers, AP and AP50 of each class."""
        return coco_ap(source, rows.to_coco(source.category_ids), backend=self.backend)


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoMasks:
    """COCO's metrics of boxes and of masks, whose numbers begin with "segm"; its headline is masks' AP."""

    backend: Backend = "hotcoco"
    boxes: bool = True  # both; False: masks alone
    name: str = field(default="coco_segm", init=False)
    headline: str = field(default=f"{SEGM}AP", init=False)

    def keep(self, image: int, found: ImageDetections, size: tuple[int, int]) -> Rows:
        """Its boxes, scores and labels, and its masks as run lengths.

        Raises:
            ValueError: when the detector finds no masks.
        """
        if found.masks is None:
            raise ValueError("this model finds boxes, no masks: measure it with `--metrics bbox`")
        return Rows.of(image, found, mask_runs(found.masks, found.boxes, size))

    def report(self, source: Source, rows: Rows) -> Report:
        """The 12 numbers of masks behind those of boxes; AP and AP50 of each class are those of masks."""
        found = rows.to_coco(source.category_ids)
        masks = coco_ap(source, found, backend=self.backend, kind="segm")
        boxes = coco_ap(source, found, backend=self.backend).numbers if self.boxes else {}
        numbers = {**boxes, **{f"{SEGM}{name}": value for name, value in masks.numbers.items()}}
        return replace(masks, metric=self.name, headline=self.headline, numbers=numbers)


def coco_ap(
    source: Source,
    detections: Sequence[dict[str, Any]],
    *,
    backend: Backend = "hotcoco",
    kind: Kind = "bbox",
) -> Report:
    """Compares detections with the ground truth of `source`.

    Args:
        source: the images; every one counts, those without any box too.
        detections: COCO results: image_id, category_id (the dataset's own ids), bbox (x, y, width, height in
            original pixels), score.
        backend: who computes. Both give the same numbers; hotcoco is many times faster.
        kind: what is compared: boxes, or masks (segmentation, as run lengths).

    Raises:
        ValueError: when a detection names an image or a category that `source` does not have.
    """
    truth = ground_truth(source, masks=kind == "segm")
    _check(source, truth, detections)
    run = {"hotcoco": _hotcoco, "pycocotools": _pycocotools}[backend]
    left_out = "bbox" if kind == "segm" else "segmentation"  # the tools take sizes from what they see first
    told = [{key: value for key, value in row.items() if key != left_out} for row in detections]
    tables = run(truth, told, kind)
    precision = tables["precision"]  # [T, R, C, area, maxDets]
    rows = class_rows(source)
    return Report(
        metric="coco",
        headline="AP",
        numbers={name: _mean(tables, *what) for name, what in _NUMBERS.items()},
        per_class={
            name: _average(precision[:, :, row, 0, 2]) for name, row in zip(source.classes, rows, strict=True)
        },
        per_class_ap50={
            name: _average(precision[0, :, row, 0, 2]) for name, row in zip(source.classes, rows, strict=True)
        },
        images=len(source.samples),
        objects=sum(1 for a in truth["annotations"] if not a["iscrowd"]),
        detections=len(detections),
        backend=backend,
    )


def class_rows(source: Source) -> NDArray[np.int64]:
    """Where each class of `source` stands in tables, whose tools sort the categories by id."""
    return np.argsort(np.argsort(np.asarray(source.category_ids, dtype=np.int64)))


def ground_truth(source: Source, *, masks: bool = False) -> dict[str, Any]:
    """The content of a COCO annotation file that holds `source`: original pixels, the dataset's own ids.

    Raises:
        ValueError: when masks are wanted and the data have none.
    """
    if masks and not any(part for sample in source.samples for part in sample.segmentation):
        raise ValueError(
            f"{source.file or source.name} has no masks to compare with; measure boxes: `--metrics bbox`"
        )
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sample in source.samples:
        images.append(
            {"id": sample.id, "width": sample.width, "height": sample.height, "file_name": sample.path.name}
        )
        for row in _annotations(sample, source.category_ids, masks=masks):
            annotations.append(
                {"id": len(annotations) + 1, **row}
            )  # from 1: pycocotools takes 0 for "no match"
    categories = [{"id": i, "name": n} for i, n in zip(source.category_ids, source.classes, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotations(sample: Sample, category_ids: Sequence[int], *, masks: bool) -> list[dict[str, Any]]:
    low, high = sample.boxes[:, :2], sample.boxes[:, 2:]
    boxes: list[list[float]] = np.concatenate([low, high - low], axis=1).tolist()
    columns = zip(boxes, sample.labels.tolist(), sample.crowd.tolist(), sample.area.tolist(), strict=True)
    rows: list[dict[str, Any]] = [
        {
            "image_id": sample.id,
            "category_id": category_ids[label],
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
        }
        for box, label, crowd, area in columns
    ]
    if masks:
        for i, row in enumerate(rows):
            drawn = bitmap(
                sample.segmentation[i] if sample.segmentation else None, sample.height, sample.width
            )
            # an object that has no mask is none to be found
            row["segmentation"] = runs(
                np.zeros((sample.height, sample.width), np.bool_) if drawn is None else drawn
            )
            row["iscrowd"] = int(row["iscrowd"] or drawn is None)
    return rows


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


def matched(truth: dict[str, Any], detections: list[dict[str, Any]], kind: Kind) -> Any:
    """hotcoco's evaluation, done: tables in `eval`, matches of each image in `eval_imgs`."""
    truth_index = hotcoco.COCO(truth)
    run = hotcoco.COCOeval(truth_index, truth_index.load_res(detections), kind)
    run.evaluate()
    run.accumulate()
    return run


def _hotcoco(truth: dict[str, Any], detections: list[dict[str, Any]], kind: Kind) -> Tables:
    return cast("Tables", matched(truth, detections, kind).eval)


def _pycocotools(truth: dict[str, Any], detections: list[dict[str, Any]], kind: Kind) -> Tables:
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
        run = cocoeval.COCOeval(truth_index, found_index, kind)
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
