"""Pascal VOC's metric against a slow twin that goes detection by detection, and beside other metrics."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relook.data.sample import Sample, Source
from relook.metrics.coco import CocoBoxes
from relook.metrics.metric import MISSING, Rows
from relook.metrics.named import METRICS, Several, metric_named
from relook.metrics.voc import Voc, Voc07


def a_source(seed: int, images: int = 6, classes: int = 3) -> Source:
    random = np.random.default_rng(seed)
    samples = []
    for i in range(images):
        n = int(random.integers(0, 6))
        low = random.integers(0, 60, (n, 2)).astype(float)
        boxes = np.concatenate([low, low + random.integers(1, 40, (n, 2))], 1)
        samples.append(
            Sample(
                id=50 - 7 * i,
                path=Path(f"{i}.jpg"),
                height=100,
                width=100,
                boxes=boxes,
                labels=random.integers(0, classes - seed % 2, n),
                crowd=random.random(n) < 0.25,
                ignore=np.zeros(n, bool),
                area=(boxes[:, 2:] - boxes[:, :2]).prod(1),
            )
        )
    names = tuple("abcdef"[:classes])
    return Source(
        name="r", samples=samples, classes=names, category_ids=tuple(range(1, classes + 1)), file=None
    )


def some_rows(source: Source, seed: int) -> Rows:
    """Moved copies of the boxes and doubles; all scores differ in their third decimal."""
    random = np.random.default_rng(seed + 1)
    parts = []
    scores = random.permutation(999) / 1000
    for sample in source.samples:
        copies = random.integers(0, 3, len(sample.boxes))
        boxes = np.repeat(sample.boxes, copies, 0)
        boxes = boxes + random.normal(0, 3, boxes.shape)
        own, scores = scores[: len(boxes)], scores[len(boxes) :]
        parts.append(Rows(np.full(len(boxes), sample.id), np.repeat(sample.labels, copies), own, boxes))
    return Rows.join(parts)


def slow_curve(source: Source, rows: Rows, label: int) -> tuple[list[float], list[float], int]:
    """Recall and precision after each detection, and the number of objects, in plain loops."""
    truth = {}
    for sample in source.samples:
        mine = sample.labels == label
        truth[sample.id] = [
            {"box": (x1, y1, x2 - 1, y2 - 1), "hard": bool(hard), "taken": False}
            for (x1, y1, x2, y2), hard in zip(sample.boxes[mine], sample.crowd[mine], strict=True)
        ]
    count = sum(not one["hard"] for objects in truth.values() for one in objects)
    order = sorted(
        (i for i in range(len(rows)) if rows.label[i] == label), key=lambda i: -float(f"{rows.score[i]:.3f}")
    )
    hits = misses = 0
    recall, precision = [], []
    for i in order:
        x1, y1, x2, y2 = rows.box[i]
        box = [float(f"{v:.1f}") for v in (x1 + 1, y1 + 1, x2, y2)]
        best, winner = 0.0, None
        for one in truth[int(rows.image[i])]:
            other = one["box"]
            wide = min(box[2], other[2]) - max(box[0], other[0])
            high = min(box[3], other[3]) - max(box[1], other[1])
            inter = max(wide, 0) * max(high, 0)
            sizes = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
            overlap = inter / (sum(sizes) - inter) if sum(sizes) > inter else 0.0
            if overlap > best:
                best, winner = overlap, one
        if best > 0.5 and winner is not None:
            if not winner["hard"]:
                hits, misses = (hits, misses + 1) if winner["taken"] else (hits + 1, misses)
                winner["taken"] = True
        else:
            misses += 1
        recall.append(hits / max(count, 1))
        precision.append(hits / max(hits + misses, 1e-16))
    return recall, precision, count


@given(st.integers(0, 500))
def test_it_is_what_it_says_detection_by_detection(seed: int) -> None:
    source = a_source(seed)
    rows = some_rows(source, seed)
    eleven, area = Voc07().report(source, rows), Voc().report(source, rows)
    known = []
    for label, name in enumerate(source.classes):
        recall, precision, count = slow_curve(source, rows, label)
        if not count:
            assert eleven.per_class[name] == area.per_class[name] == MISSING
            continue
        points = [
            max([p for r, p in zip(recall, precision, strict=True) if r >= t], default=0)
            for t in np.arange(0, 1.1, 0.1)
        ]
        known.append(sum(points) / 11)
        assert eleven.per_class[name] == pytest.approx(known[-1], abs=1e-9)
        under, before = 0.0, 0.0
        for i, r in enumerate(recall):
            under += (r - before) * max(precision[i:])
            before = r
        assert area.per_class[name] == pytest.approx(under, abs=1e-9)
    assert eleven.value == pytest.approx(np.mean(known) if known else MISSING)
    assert eleven.objects == sum(int((~one.crowd).sum()) for one in source.samples)


def test_nothing_found_and_nothing_to_find() -> None:
    source, none = a_source(4), Rows.join([])
    assert Voc07().report(source, none).value == 0
    assert Voc07(silent=-1).report(source, none).value == -1
    empty = Source(name="e", samples=[], classes=("a",), category_ids=(1,), file=None)
    assert Voc07().report(empty, none).value == MISSING


def test_several_metrics_together() -> None:
    """Numbers of all, the first one's headline, and a prefix where two have a number of one name."""
    source = a_source(4)
    rows = some_rows(source, 4)
    both = Several([Voc07(), CocoBoxes(), Voc()])
    report = both.report(source, rows)
    assert (both.name, both.headline) == ("voc07+coco+voc", "mAP")
    assert report.value == Voc07().report(source, rows).value
    assert report.numbers["AP"] == CocoBoxes().report(source, rows).value
    assert report.numbers["voc mAP"] == Voc().report(source, rows).value
    assert all(metric_named(name).name == name for name in METRICS)
