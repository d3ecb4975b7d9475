import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from relook.data.sample import Sample, Source
from relook.evaluation import evaluate
from relook.metrics.coco import coco_ap
from relook.recipe import KeepRatio
from relook.types import Detections
from relook.views import parse
from tiny_detector import RECIPE, TinyDetector, tiny, tiny_data

VIEWS = ("100%", "100%+flip,50%", "25%,50%+flip")
TWO = """
import os
import sys
import time
from tiny_detector import RECIPE, tiny, tiny_data
from relook.evaluation import evaluate
from relook.views import parse
for i, text in enumerate(sys.argv[2:]):
    if os.environ["RANK"] == str(i % 2):
        time.sleep(1)  # the other process is at this evaluation long before
    data, views = tiny_data(7, "val"), parse(text, RECIPE.test_size)
    result = evaluate(tiny(), RECIPE, data, batch=2, workers=0, device="cpu", views=views)
    assert bool(result.detections) == (os.environ["RANK"] == "0")
    result.save(f"{sys.argv[1]}/{os.environ['RANK']}/{i}")
"""


class Known(TinyDetector):
    """Finds one fixed box of the network's input in every image."""

    def predict(self, outputs: Any, sizes: Tensor) -> Detections:
        boxes = torch.tensor([8.0, 4.0, 200.0, 20.0]).expand(len(sizes), 3, 4)
        scores = torch.tensor([0.75, 0.5, 0.0]).expand(len(sizes), 3)
        labels = torch.tensor([2, 1, 0]).expand(len(sizes), 3)
        return Detections(boxes, scores, labels, torch.full((len(sizes),), 2))


def a_photo(folder: Path, height: int = 41, width: int = 83) -> Source:
    path = folder / "one.png"
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
    sample = Sample(id=42, path=path, height=height, width=width)
    return Source(name="one", samples=[sample], classes=tuple("abcd"), category_ids=(9, 8, 70, 6), file=None)


def test_boxes_return_to_original_pixels(tmp_path: Path) -> None:
    """Each axis by its own true ratio, as x, y, width, height, unclipped, with the dataset's category ids."""
    recipe = replace(RECIPE, test_size=KeepRatio(short=(64,), long=100))
    # factor 100/83: 41 -> int(41 * 100/83 + 0.5) = 49, 83 -> 100
    found = evaluate(Known(), recipe, a_photo(tmp_path), workers=0, device="cpu", progress=False).detections
    assert [(d["image_id"], d["category_id"], d["score"]) for d in found] == [(42, 70, 0.75), (42, 8, 0.5)]
    expected = [8 * 83 / 100, 4 * 41 / 49, 192 * 83 / 100, 16 * 41 / 49]
    for row in found:
        np.testing.assert_allclose(row["bbox"], expected, rtol=1e-12)


def test_batches_and_workers_change_nothing() -> None:
    """The detections come by image id, whatever the order of work."""
    data = tiny_data(7, "val")
    runs = [
        evaluate(tiny(), RECIPE, data, batch=batch, workers=workers, device="cpu", progress=False)
        for batch, workers in ((1, 0), (3, 0), (7, 1))
    ]
    ids = [row["image_id"] for row in runs[0].detections]
    assert ids == sorted(ids)
    for other in runs[1:]:
        assert [r["image_id"] for r in other.detections] == ids
        np.testing.assert_allclose(
            [r["bbox"] for r in other.detections],
            [r["bbox"] for r in runs[0].detections],
            rtol=1e-4,
            atol=1e-3,
        )


def test_the_report_is_that_of_the_saved_detections(tmp_path: Path) -> None:
    """metrics.json is what pycocotools says about detections.json, to 1e-12."""
    data = tiny_data(9, "val")
    result = evaluate(tiny(), RECIPE, data, batch=2, workers=0, device="cpu", progress=False)
    metrics, detections = result.save(tmp_path / "eval")
    again = coco_ap(data, json.loads(detections.read_text()), backend="pycocotools")
    numbers = json.loads(metrics.read_text())["numbers"]
    assert list(numbers) == list(again.numbers)
    np.testing.assert_allclose(list(numbers.values()), list(again.numbers.values()), rtol=0, atol=1e-12)
    assert result.report.detections == len(result.detections) == 90


def test_the_mode_is_given_back() -> None:
    """A detector in training goes on in training; its batch statistics do not move."""
    detector = tiny().train()
    evaluate(detector, RECIPE, tiny_data(2, "val"), workers=0, device="cpu", progress=False)
    assert detector.training
    assert int(detector.body[1].num_batches_tracked) == 0


def test_broken_images_are_listed(tmp_path: Path) -> None:
    """They count as images in which nothing was found."""
    data = tiny_data(5, "val")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    samples = [*data.samples, Sample(id=99, path=broken, height=64, width=64)]
    result = evaluate(
        tiny(), RECIPE, replace(data, samples=samples), batch=2, workers=0, device="cpu", progress=False
    )
    assert len(result.broken) == 1
    assert "broken.png" in result.broken[0]
    assert result.report.images == 6
    assert len({row["image_id"] for row in result.detections}) == 5


def test_other_classes_are_refused() -> None:
    """The counts are compared before any work."""
    with pytest.raises(ValueError, match=r"knows 3 classes but .* has 4"):
        evaluate(TinyDetector(num_classes=3), RECIPE, tiny_data(2), workers=0)


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images done, images a second; gone when it is over. Nothing at all without a terminal."""
    shown = io.StringIO()
    monkeypatch.setattr(
        "relook.evaluation.Console", lambda stderr: Console(file=shown, force_terminal=stderr, width=100)
    )
    evaluate(tiny(), RECIPE, tiny_data(4, "val"), workers=0, device="cpu", progress=True)
    assert "4/4" in shown.getvalue()
    assert "images/s" in shown.getvalue()
    shown.truncate(0)
    evaluate(tiny(), RECIPE, tiny_data(4, "val"), workers=0, device="cpu", progress=False)
    assert not shown.getvalue().strip("\0")


def test_two_processes_give_the_same_numbers(tmp_path: Path) -> None:
    """The same report in both processes, equal to one process's, in several views too; the detections are in
    the first only. One evaluation after the other, whichever process comes to it first."""
    script = tmp_path / "two.py"
    script.write_text(TWO)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path), *VIEWS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for i, text in enumerate(VIEWS):
        data, views = tiny_data(7, "val"), parse(text, RECIPE.test_size)
        one = evaluate(tiny(), RECIPE, data, batch=2, workers=0, device="cpu", progress=False, views=views)
        for rank in "01":
            report = json.loads((tmp_path / rank / str(i) / "metrics.json").read_text())
            assert report["numbers"] == one.report.numbers
            assert report["per_class"] == one.report.per_class
        found = json.loads((tmp_path / "0" / str(i) / "detections.json").read_text())
        assert [(r["image_id"], r["category_id"]) for r in found] == [
            (r["image_id"], r["category_id"]) for r in one.detections
        ]
