import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from relook.data.sample import Sample, Source
from relook.metrics.coco import MISSING, coco_ap, ground_truth

CATEGORIES = (7, 90, 1, 44)  # with holes and out of order


def a_source(seed: int, images: int = 12, classes: int = 4) -> Source:
    """Random boxes from tiny to large, some crowds, some images empty, the last class sometimes absent."""
    random = np.random.default_rng(seed)
    samples = []
    for i in range(images):
        n = int(random.integers(0, 8))
        low = random.uniform(0, 300, (n, 2))
        sides = np.exp(random.uniform(np.log(4), np.log(250), (n, 2)))
        samples.append(
            Sample(
                id=1000 - 7 * i,
                path=Path(f"{i}.jpg"),
                height=480,
                width=640,
                boxes=np.concatenate([low, low + sides], 1),
                labels=random.integers(0, max(1, classes - seed % 2), n),
                crowd=random.random(n) < 0.15,
                ignore=np.zeros(n, bool),
                area=sides.prod(1) * random.uniform(0.5, 1, n),
            )
        )
    names = tuple("abcd"[:classes])
    return Source(name="random", samples=samples, classes=names, category_ids=CATEGORIES[:classes], file=None)


def some_detections(source: Source, seed: int) -> list[dict[str, Any]]:
    """Moved copies of the boxes, doubles, wrong classes and false alarms; many scores are equal."""
    random = np.random.default_rng(seed + 1)
    rows = []
    for sample in source.samples:
        for box, label in zip(sample.boxes, sample.labels, strict=True):
            for _ in range(int(random.integers(0, 4))):
                x1, y1, x2, y2 = box + random.normal(0, 0.08, 4) * np.tile(box[2:] - box[:2], 2)
                wrong = random.random() < 0.1
                rows.append(
                    (sample.id, int(label) if not wrong else 0, [x1, y1, max(x2 - x1, 1), max(y2 - y1, 1)])
                )
        for _ in range(int(random.integers(0, 3))):
            box = [*random.uniform(0, 300, 2), *random.uniform(2, 200, 2)]
            rows.append((sample.id, int(random.integers(len(source.classes))), box))
    return [
        {
            "image_id": image,
            "category_id": source.category_ids[label],
            "bbox": [float(v) for v in box],
            "score": float(random.integers(1, 20) / 20),
        }
        for image, label, box in rows
    ]


def oracle(source: Source, detections: list[dict[str, Any]]) -> COCOeval:
    """pycocotools as its own example uses it."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = ground_truth(source)
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes([dict(d) for d in detections]), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_equal_to_pycocotools(seed: int) -> None:
    """The 12 numbers and each class's AP, to 1e-12, with crowds, empty images, equal scores, id holes."""
    source = a_source(seed)
    detections = some_detections(source, seed)
    if not detections:
        return
    run = oracle(source, detections)
    for backend in ("hotcoco", "pycocotools"):
        report = coco_ap(source, detections, backend=backend)
        np.testing.assert_allclose(list(report.numbers.values()), run.stats, rtol=0, atol=1e-12)
        for name, category in zip(source.classes, source.category_ids, strict=True):
            row = run.eval["precision"][:, :, run.params.catIds.index(category), 0, 2]
            expected = row[row > -1].mean() if (row > -1).any() else MISSING
            assert report.per_class[name] == pytest.approx(expected, abs=1e-12)


def test_perfect_detections_score_one() -> None:
    """The ground truth itself, without its crowds, has AP 1 where there is something to find."""
    source = a_source(4)
    found = [{**a, "score": 1.0} for a in ground_truth(source)["annotations"] if not a["iscrowd"]]
    report = coco_ap(source, found)
    assert report.value == pytest.approx(1, abs=1e-12)
    assert {round(v, 9) for v in report.per_class.values()} == {1.0}


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_no_detections(backend: Any) -> None:
    """AP 0, and -1 for a class that has no object."""
    report = coco_ap(a_source(1), [], backend=backend)
    assert report.value == 0
    assert report.per_class == {"a": 0, "b": 0, "c": 0, "d": MISSING}
    assert ("d", "-", "-") in report.classes()


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_no_objects(backend: Any) -> None:
    """Nothing to be found: no number exists."""
    source = a_source(0)
    empty = Source(
        name="empty",
        samples=[Sample(id=s.id, path=s.path, height=0, width=0) for s in source.samples],
        classes=source.classes,
        category_ids=source.category_ids,
        file=None,
    )
    report = coco_ap(empty, some_detections(source, 0), backend=backend)
    assert set(report.numbers.values()) == set(report.per_class.values()) == {MISSING}
    assert report.objects == 0


def test_foreign_detections_are_refused() -> None:
    """An image or a category that the dataset does not have is named."""
    row = {"image_id": 1000, "category_id": 7, "bbox": [0, 0, 5, 5], "score": 0.5}
    with pytest.raises(ValueError, match=r"image_id.*the first is 3"):
        coco_ap(a_source(2), [row, {**row, "image_id": 3}])
    with pytest.raises(ValueError, match=r"category_id.*the first is 2"):
        coco_ap(a_source(2), [row, {**row, "category_id": 2}])


def test_report_is_json_and_a_table() -> None:
    """Twelve numbers, then the classes, both ways."""
    source = a_source(8)
    report = coco_ap(source, some_detections(source, 8))
    assert json.loads(json.dumps(report.to_json()))["numbers"]["AP"] == report.value
    assert [name for name, _ in report.table()][:3] == ["AP", "AP50", "AP75"]
    assert len(report.table()) == 12
    assert len(report.classes()) == 4
    assert report.classes()[0] == ("a", f"{report.per_class['a']:.4f}", f"{report.per_class_ap50['a']:.4f}")
