"""Precision over recall of each class and overlap, and what was wrong or missed, by COCO's matching."""

from dataclasses import dataclass, replace
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from relook.data.sample import Source
from relook.metrics.coco import class_rows, ground_truth, matched
from relook.metrics.metric import Rows

OVERLAPS: Final = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
RECALLS: Final = tuple(round(0.01 * i, 2) for i in range(101))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A detection of nothing, or an object; boxes are x1, y1, x2, y2 in pixels of the file."""

    image: int  # id
    label: int
    box: tuple[float, float, float, float]
    score: float  # of the detection; of an object, of the best that found it, 0 where none did


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curves:
    """COCO's curves, all sizes, at most 100 detections an image; -1 where a class has no object."""

    classes: tuple[str, ...]
    precision: NDArray[np.float64]  # [OVERLAPS, RECALLS, classes] the best from that recall on
    score: NDArray[np.float64]  # likewise, of the detection there; 0 where that recall is not reached
    wrong: tuple[Mistake, ...]  # detections of nothing at overlap 0.5, surest first
    objects: tuple[Mistake, ...]  # all that are to be found, those that nothing found first


def curves(source: Source, rows: Rows) -> Curves:
    """Curves and mistakes of boxes."""
    truth = ground_truth(source)
    boxes = replace(rows, masks=())
    found = [{"id": n, **row} for n, row in enumerate(boxes.to_coco(source.category_ids), start=1)]
    run = matched(truth, found, "bbox")
    order = class_rows(source)
    tables = {name: np.asarray(run.eval[name])[:, :, order, 0, 2] for name in ("precision", "scores")}
    labels = {category: label for label, category in enumerate(source.category_ids)}
    return Curves(
        classes=source.classes,
        precision=tables["precision"],
        score=tables["scores"],
        **_mistakes(run, {a["id"]: a for a in truth["annotations"]}, {r["id"]: r for r in found}, labels),
    )


def _mistakes(
    run: Any, truth: dict[int, dict[str, Any]], found: dict[int, dict[str, Any]], labels: dict[int, int]
) -> dict[str, tuple[Mistake, ...]]:
    """Of every image and class at the first overlap, over objects of all sizes."""
    wrong: list[Mistake] = []
    objects: list[Mistake] = []
    for one in cast("list[dict[str, Any] | None]", run.eval_imgs):
        if one is None or one["aRng"][0] > 0 or one["aRng"][1] < 1e9:
            continue
        label = labels[one["category_id"]]
        flags = zip(one["dtIds"], one["dtMatched"][0], one["dtIgnore"][0], strict=True)
        wrong += [_mistake(found[key], label) for key, hit, ignored in flags if not (hit or ignored)]
        scores = dict(zip(one["dtIds"], one["dtScores"], strict=True))
        finders = zip(one["gtIds"], one["gtMatches"][0], one["gtMatched"][0], one["gtIgnore"], strict=True)
        objects += [
            _mistake(truth[key], label, scores.get(finder, 0.0) if hit else 0.0)
            for key, finder, hit, ignored in finders
            if not ignored
        ]
    wrong.sort(key=lambda one: -one.score)
    objects.sort(key=lambda one: one.score)
    return {"wrong": tuple(wrong), "objects": tuple(objects)}


def _mistake(row: dict[str, Any], label: int, score: float | None = None) -> Mistake:
    x, y, w, h = row["bbox"]
    return Mistake(
        image=row["image_id"],
        label=label,
        box=(x, y, x + w, y + h),
        score=row["score"] if score is None else score,
    )
