"""The coins example: its data set is right, and (slow) a detector learns it."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from relook.data.formats.detect import read

SCRIPT = Path(__file__).parents[2] / "examples" / "coins.py"


@pytest.fixture(scope="module")
def coins() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coins", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_coin_has_one_tight_box(coins: ModuleType) -> None:
    """24 coins, as one counts by eye; no box touches another; twelve on each side of the border."""
    photograph, boxes = coins.coins()
    assert photograph.shape == (303, 384)
    assert len(boxes) == 24
    assert (boxes[:, 3] <= coins.BORDER).sum() == (boxes[:, 1] >= coins.BORDER).sum() == 12
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            apart = (a[2] <= b[0]) | (b[2] <= a[0]) | (a[3] <= b[1]) | (b[3] <= a[1])
            assert apart
    inside = np.mean([photograph[y1:y2, x1:x2].mean() for x1, y1, x2, y2 in boxes])
    assert inside > photograph.mean() + 20  # coins are brighter than what they lie on


def test_no_coin_is_in_both_splits(coins: ModuleType, tmp_path: Path) -> None:
    """The data set reads as COCO; coins that a crop mostly cuts off are crowds."""
    coins.write_dataset(tmp_path, train=12, val=6)
    train, val = read(tmp_path, "train"), read(tmp_path, "val")
    assert (len(train.samples), len(val.samples), train.classes) == (12, 6, ("coin",))
    assert all(len(s.boxes) for s in (*train.samples, *val.samples))
    assert any(s.crowd.any() for s in train.samples)
    photograph, _ = coins.coins()
    first = np.asarray(Image.open(val.samples[0].path))
    rows = [y for y in range(coins.BORDER, 303 - coins.SIDE + 1) for x in range(384 - coins.SIDE + 1)
            if np.array_equal(photograph[y : y + coins.SIDE, x : x + coins.SIDE], first)]  # fmt: skip
    assert rows, "a validation crop is not from below the border"


@pytest.mark.slow
def test_a_detector_learns_coins(tmp_path: Path) -> None:
    """The example as a user runs it: AP50 of at least 0.80 on coins it has never seen, and pictures."""
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    line = next(line for line in ran.stdout.splitlines() if line.startswith("AP50"))
    assert float(line.rsplit(" ", 1)[1]) >= 0.80
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 12
