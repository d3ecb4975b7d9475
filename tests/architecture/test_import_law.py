"""The house's law: imports run downwards. The code is read, not run; each law is also tried on a breach."""

from collections.abc import Callable
from pathlib import Path

import house
import pytest

LAWS = (house.upward, house.mixed, house.entangled, house.strayed, house.circles)


@pytest.fixture(scope="module")
def imports() -> list[house.Import]:
    return house.read()


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_house_keeps_the_law(law: Callable[[list[house.Import]], list[str]], imports: list[house.Import]):
    """No file of src/relook breaks the law."""
    breaches = law(imports)
    assert not breaches, f"{law.__doc__}\n" + "\n".join(breaches)


def test_all_files_are_read(imports: list[house.Import]):
    """The law sees the rooms that everything stands on, so an empty reading cannot pass."""
    assert {"ops", "types", "detectors", "train", "zoo"} <= house.graph(imports).keys()
    assert any(one.target == "torch" for one in imports)


def test_every_room_has_a_floor():
    """A new folder or file of the package is given a floor before it is used."""
    rooms = {house.room(house.dotted(file, house.SOURCE)) for file in house.SOURCE.rglob("*.py")}
    assert rooms <= house.FLOOR_OF.keys(), f"rooms without a floor: {rooms - house.FLOOR_OF.keys()}"


BREACHES = [
    ("types.py", "import relook.ops.boxes", house.upward, "looks up"),
    ("ops/boxes.py", "from relook.data import coco", house.upward, "sideways"),
    ("ops/boxes.py", "def f():\n    from relook.zoo import catalog", house.upward, "looks up"),
    ("attic/old.py", "import torch", house.upward, "no floor"),
    ("types.py", "import relook", house.upward, "looks up"),
    ("detectors/a.py", "from relook.recipe import Recipe", house.mixed, "science knows no"),
    ("parts/a.py", "from relook import data", house.mixed, "science knows no"),
    ("train/a.py", "from relook.backbones.resnet import ResNet", house.mixed, "machines hold"),
    ("detectors/a.py", "from relook.detectors.b import B", house.entangled, "do not know each other"),
    ("backbones/a.py", "import relook.backbones.b", house.entangled, "do not know each other"),
    ("assign/a.py", "from relook.assign.b import b", house.entangled, "do not know each other"),
    ("assign/a.py", "from relook.detector import Detector", house.entangled, "needs only ops and types"),
    ("cli/a.py", "def f():\n    import pytorch_lightning.callbacks", house.strayed, "only train"),
    ("ops/a.py", "import cv2", house.strayed, "nobody"),
    ("data/a.py", "from relook.data import b", house.circles, "relook.data.a -> relook.data.b"),
]


@pytest.mark.parametrize(("name", "text", "law", "said"), BREACHES)
def test_a_breach_is_found(tmp_path: Path, name: str, text: str, law: Callable, said: str):
    """Each law answers to code that breaks it, lazily or not."""
    for other in (
        "ops/boxes",
        "data/coco",
        "data/b",
        "data/__init__",
        "detectors/b",
        "zoo/catalog",
        "recipe",
    ):
        file = tmp_path / f"{other}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text("from relook.data.a import x\n" if other == "data/b" else "")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    breaches = law(house.read(tmp_path))
    assert any(said in breach for breach in breaches), breaches


def test_what_is_allowed_is_no_breach(tmp_path: Path):
    """Downward imports, lazy ones, contracts between files of a room, and heavy packages at home all pass."""
    allowed = {
        "assign/atss.py": "from relook.assign.assignment import Assignment\nfrom relook.ops import boxes",
        "assign/assignment.py": "from relook.types import Targets",
        "detectors/a.py": "from relook.assign.atss import atss\nfrom relook.detector import Detector",
        "train/fit.py": "import pytorch_lightning\nfrom relook.train import step",
        "train/step.py": "from relook.detector import Detector",
        "detector.py": "import relook.types",
        "types.py": "import torch",
        "ops/boxes.py": "",
        "cli/train.py": "def f():\n    from relook.training.fit import fit",
    }
    for name, text in allowed.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    imports = house.read(tmp_path)
    assert [breach for law in LAWS for breach in law(imports)] == []


def test_a_relative_import_is_refused(tmp_path: Path):
    """A relative import hides the room, so reading stops at it and names the line."""
    (tmp_path / "ops.py").write_text("\nfrom . import types\n")
    with pytest.raises(ValueError, match=r"ops\.py:2: relative import"):
        house.read(tmp_path)


def test_the_drawing_shows_every_room(imports: list[house.Import]):
    """The figure of docs/house.md has a box for each room and only lines that lead down."""
    rooms = house.graph(imports)
    drawn = house.draw(rooms)
    assert all(f">{house.label(name)}</text>" in drawn for name in rooms)
    assert drawn.count("<path") == sum(map(len, house.reduced(rooms).values()))
