"""Precision over recall: the numbers are COCO's, mistakes are real ones, the page works in a browser."""

import csv
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from relook.data.shapes import shapes
from relook.metrics.coco import coco_ap
from relook.metrics.curves import OVERLAPS, Curves, curves
from relook.metrics.metric import Rows
from relook.report.curves import write_curves

SOURCE = shapes(12, seed=5, split="val", side=96, most=4)


def rows() -> Rows:
    """Every object moved a little, each third one missed, and one detection of nothing an image."""
    random = np.random.default_rng(0)
    parts = []
    for sample in SOURCE.samples:
        kept = np.arange(len(sample.boxes)) % 3 < 2
        boxes = sample.boxes[kept] + random.normal(0, 2, (int(kept.sum()), 4))
        boxes = np.concatenate([boxes, [[0, 0, 9, 9]]])
        labels = np.append(sample.labels[kept], 0)
        score = random.uniform(0.3, 0.9, len(boxes))
        parts.append(Rows(np.full(len(boxes), sample.id), labels, score, boxes))
    return Rows.join(parts)


@pytest.fixture(scope="module")
def found() -> Curves:
    return curves(SOURCE, rows())


def test_the_mean_of_a_curve_is_coco_s_average_precision(found: Curves) -> None:
    report = coco_ap(SOURCE, rows().to_coco(SOURCE.category_ids))
    for label, name in enumerate(found.classes):
        mine = found.precision[:, :, label]
        assert mine[mine >= 0].mean() == pytest.approx(report.per_class[name])
        assert mine[0].mean() == pytest.approx(report.per_class_ap50[name])


def test_mistakes_are_counted_and_sorted(found: Curves) -> None:
    objects = sum(len(sample.boxes) for sample in SOURCE.samples)
    missed = sum(len(sample.boxes) // 3 for sample in SOURCE.samples)
    assert len(found.objects) == objects
    assert sum(one.score == 0 for one in found.objects) >= missed
    assert len(found.wrong) >= len(SOURCE.samples)
    assert [one.score for one in found.wrong] == sorted((one.score for one in found.wrong), reverse=True)
    assert [one.score for one in found.objects] == sorted(one.score for one in found.objects)


def test_files(found: Curves, tmp_path: Path) -> None:
    """A row for each class, overlap and recall; a picture for each class; odd names are escaped."""
    names = ("<script>alert(1)</script>", "a/b", *found.classes[2:])
    samples = {sample.id: sample for sample in SOURCE.samples}
    page = write_curves(tmp_path, replace(found, classes=names), lambda key: samples[key].image())
    with (tmp_path / "curves.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(names) * len(OVERLAPS) * 101
    assert float(table[0]["precision"]) == pytest.approx(found.precision[0, 0, 0], abs=1e-6)
    assert len(list((tmp_path / "curves").glob("*.svg"))) == len(names)
    text = page.read_text()
    assert "<script>alert" not in text
    assert text.count("data:image/webp") == min(24, len(found.wrong)) + min(24, len(found.objects))


@pytest.mark.browser
def test_a_browser_draws_the_curve(found: Curves, tmp_path: Path) -> None:
    """The script runs: the line has its points, and the sentence says precision and recall."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium or Chrome on this machine")
    samples = {sample.id: sample for sample in SOURCE.samples}
    page = write_curves(tmp_path, found, lambda key: samples[key].image())
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/p", "--dump-dom")
    command = [browser, *options, page.as_uri()]
    text = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120).stdout
    assert "From a score of 0.30 on: precision at least" in text
    line = re.search(r'id="line"[^>]*points="([^"]*)"', text)
    assert line is not None
    assert len(line[1].split()) == 101
