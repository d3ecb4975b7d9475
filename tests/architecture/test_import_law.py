"""The house's law: imports run downwards. import-linter holds it; here it is run, and tried on breaches."""

import shutil
import subprocess
import sys
from pathlib import Path

import house
import pytest

LARGEST = 1200  # lines of a room: a folder's own files


def lint(root: Path) -> tuple[bool, str]:
    """Whether the package at `root`/src keeps the law of its pyproject.toml, and what import-linter says."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {"PYTHONPATH": str(root / "src"), "PATH": "", "COLUMNS": "200"}
    ran = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    return ran.returncode == 0, ran.stdout + ran.stderr


def test_the_house_keeps_the_law():
    """No file of src/relook breaks a contract of pyproject.toml."""
    kept, said = lint(house.ROOT)
    assert kept, said


BREACHES = [
    ("types.py", "import relook.ops.boxes", "A room imports only rooms on lower floors"),
    ("ops/boxes.py", "def f():\n    from relook.zoo import catalog", "A room imports only rooms on lower"),
    ("attic.py", "import torch", "attic"),
    ("detectors/reppoints.py", "from relook.recipe import Recipe", "Science knows no machine"),
    ("training/step.py", "from relook.backbones.resnet import ResNet", "Machines hold a Detector"),
    (
        "detectors/reppoints.py",
        "from relook.detectors.reppoints_v2 import RepPointsV2",
        "Detectors do not know",
    ),
    ("backbones/resnet.py", "import relook.backbones.timm_maps", "Backbones do not know"),
    ("assign/atss.py", "from relook.assign.max_iou import max_iou", "Assigners do not know"),
    ("assign/atss.py", "from relook.detector import Detector", "An assigner needs only ops and types"),
    ("cli/printing.py", "def f():\n    import pytorch_lightning.callbacks", "The training loop's framework"),
    ("data/sample.py", "from relook.data.formats import coco", "formats and checks stand on samples"),
    ("data/decode.py", "import cv2", "The common currency"),
]


@pytest.mark.parametrize(("name", "text", "said"), BREACHES)
def test_a_breach_is_found(tmp_path: Path, name: str, text: str, said: str):
    """Each contract answers to code that breaks it, lazily or not."""
    shutil.copy(house.ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(house.SOURCE, tmp_path / "src" / "relook", ignore=shutil.ignore_patterns("*.gz", "*.pyc"))
    file = tmp_path / "src" / "relook" / name
    file.write_text((file.read_text() if file.exists() else "") + f"\n{text}\n")
    kept, words = lint(tmp_path)
    assert not kept
    assert said in words.replace("\n", " ")


def test_no_room_is_too_large():
    """None above 1200 lines: a folder's own files, whatever lies in folders below it.

    Detectors do not know each other, and nobody need read two: each of their files has a limit of its own.
    """
    free = {house.SOURCE, house.SOURCE / "detectors"}
    folders = {file.parent for file in house.SOURCE.rglob("*.py")}
    large = {f"{folder.relative_to(house.SOURCE)}: {house.size(folder)}" for folder in folders
             if folder not in free and house.size(folder) > LARGEST}  # fmt: skip
    assert not large
    single = [file for file in house.SOURCE.glob("*.py") if len(file.read_text().splitlines()) > LARGEST]
    assert not single


def test_the_drawing_shows_every_room():
    """The figure of docs/house.md has a box for each room and only lines that lead down."""
    rooms = house.graph()
    assert {"ops", "types", "detectors", "training", "zoo"} <= rooms.keys()
    assert rooms.keys() <= {name for floor in house.FLOORS for name in floor}
    drawn = house.draw(rooms)
    assert all(f">{house.label(name)}</text>" in drawn for name in rooms)
    assert drawn.count("<path") == sum(map(len, house.reduced(rooms).values()))
