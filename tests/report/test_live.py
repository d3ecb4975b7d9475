"""The page of a training: every curve, what it says, and that it stops loading itself."""

import json
import math
import re
from pathlib import Path

import pytest

from relook.report.live import MOST, write_live
from relook.training.records.metrics_log import MetricsLog


def rows(steps: int) -> list[dict[str, float | str]]:
    made: list[dict[str, float | str]] = []
    for step in range(50, 50 * steps + 1, 50):
        loss = {"loss": 3 / step, "loss_cls": 2 / step, "loss_bbox": 1 / step}
        made.append({"kind": "train", "step": step, "epoch": 1, "lr": 0.1, "images_per_second": 9.0, **loss})
    made.append({"kind": "validation", "step": 50 * steps, "epoch": 1, "AP": 0.25, "AP50": 0.5, "APs": 0.1})
    return made


def test_it_shows_all_curves_and_loads_itself_while_it_runs(tmp_path: Path) -> None:
    page = tmp_path / "live.html"
    write_live(page, rows(4), running=True)
    text = page.read_text()
    assert 'http-equiv="refresh"' in text
    for word in ("Losses", "Validation", "Learning rate", "Images a second", "cls", "bbox", "AP50 0.5000"):
        assert word in text
    assert "APs" not in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")  # nothing from elsewhere
    write_live(page, rows(4), running=False)
    assert "refresh" not in page.read_text()
    assert "Training has ended" in page.read_text()


def test_long_trainings_and_odd_numbers(tmp_path: Path) -> None:
    """A line has so many points at most, and its last one; a loss that is no number is left out."""
    many = rows(5000)
    many[7]["loss"] = math.nan
    write_live(tmp_path / "live.html", many, running=True)
    text = (tmp_path / "live.html").read_text()
    lines = re.findall(r'points="([^"]*)"', text)
    assert len(lines) > 5
    assert max(len(line.split()) for line in lines) <= MOST + 1
    assert "nan" not in text
    write_live(tmp_path / "live.html", [], running=True)  # before the first row


@pytest.mark.parametrize("tensorboard", [False])
def test_a_run_keeps_its_page(tmp_path: Path, tensorboard: bool) -> None:
    log = MetricsLog(tmp_path, after=0, tensorboard=tensorboard)
    for row in rows(2):
        kind = row.pop("kind")
        log.write(kind, row)
    assert "refresh" in (tmp_path / "live.html").read_text()
    log.close()
    text = (tmp_path / "live.html").read_text()
    assert "refresh" not in text
    assert "step 100" in text
    assert len([json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]) == 3
