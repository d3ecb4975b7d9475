"""Small detectors learn generated shapes from nothing, in a time that a person waits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "epochs", "least"),
    [
        ("centernet2_nano", 2, {"AP50": 0.80}),
        ("mask_rcnn_nano", 2, {"AP50": 0.75, "segm AP50": 0.70}),
        ("retinanet_dpt_nano", 6, {"AP50": 0.75}),
        ("refinedet_nano", 3, {"AP50": 0.75}),
        ("refinedetpp_nano", 3, {"AP50": 0.75}),
    ],
)
def test_a_small_detector_learns_shapes(
    model: str, epochs: int, least: dict[str, float], tmp_path: Path
) -> None:
    """The command as a user types it, on the pictures of `make demo`, of which it takes 1.6 times at most."""
    given = ["--model", model, "--data", "shapes:train=2000,val=200", "--epochs", str(epochs)]
    options = ["--workers", "0", "--validate-every", str(epochs), "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "relook", "train", *given, *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    numbers = next(row for row in reversed(rows) if row["kind"] == "validation")
    for name, value in least.items():
        assert numbers[name] >= value
