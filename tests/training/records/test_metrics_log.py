import csv
import json
from pathlib import Path

import pytest

from relook.training.records.metrics_log import MetricsLog


def test_new_columns_and_a_cut_off_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The table gets a column when it is first needed; a line that was cut off by a crash is left out."""
    metrics = MetricsLog(tmp_path, after=0, tensorboard=False)
    metrics.write("train", {"step": 1, "loss": 2.0})
    metrics.write("validation", {"step": 1, "AP": 0.5})
    metrics.write("train", {"step": 2, "loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    metrics = MetricsLog(tmp_path, after=1, tensorboard=False)
    assert "cut off" in caplog.text
    metrics.write("train", {"step": 2, "loss": 1.5})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [("train", 1), ("validation", 1), ("train", 2)]
    with (tmp_path / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["loss"] for row in table] == ["2.0", "", "1.5"]
    assert [row["AP"] for row in table] == ["", "0.5", ""]


def test_resuming_an_empty_folder_makes_the_files(tmp_path: Path) -> None:
    """A run may go on in a new folder."""
    MetricsLog(tmp_path, after=7, tensorboard=False)
    assert not (tmp_path / "metrics.jsonl").read_text()
