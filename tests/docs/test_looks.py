"""docs/looks.md: its pictures are made by examples/looks.py, and the functions it names are there."""

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from relook.data.shapes import CLASSES
from relook.weights.models import open_weights
from relook.weights.reading.checkpoint import read_checkpoint
from untrained import untrained

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "looks.md").read_text()
SHOWN = re.findall(r"!\[[^\]]+\]\(images/([^)]+)\)", PAGE)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("looks", ROOT / "examples" / "looks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Small ones that nobody trained and that find something everywhere."""
    folder = tmp_path_factory.mktemp("weights")
    names = ("reppoints_v2_nano", "centernet2_nano")
    return [str(untrained(folder / f"{name}.safetensors", name, keep=3)) for name in names]


def test_the_page_shows_pictures():
    """Two sheets, and a picture for each of the four steps; each has words for those who do not see it."""
    assert len(SHOWN) == len(set(SHOWN)) == 6
    assert PAGE.count("![") == 6


def test_the_script_makes_every_picture_of_the_page(example: ModuleType, weights: list[str], tmp_path: Path):
    """From given weights: the same names, no other, and something to see on each."""
    example.main(["--weights", *weights, "--out", str(tmp_path), "--score", "0.1"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(SHOWN)
    for name in SHOWN:
        picture = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert min(picture.shape[:2]) > 200
        assert picture.std() > 5, f"{name} is empty"


def test_the_script_trains_where_no_weights_are_given(example: ModuleType, tmp_path: Path):
    """In miniature: a few pictures, one epoch; the weights draw the page again, with the same result."""
    small = ["--pictures", "8", "--epochs", "1", "--score", "0"]
    example.main(["--out", str(tmp_path / "a"), "--run", str(tmp_path / "run"), *small])
    weights = [tmp_path / "run" / model / "best.safetensors" for model in example.MODELS]
    for file, model in zip(weights, example.MODELS, strict=True):
        assert open_weights(file).model.entry.name == model
        assert read_checkpoint(file).classes == CLASSES
    example.main(["--out", str(tmp_path / "b"), "--weights", *map(str, weights), *small])
    for name in SHOWN:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_pictures_in_the_repository_are_those_of_the_page(example: ModuleType):
    """Each is there, no other, small enough for a page, and has something to see."""
    kept = {path.name for path in (ROOT / "docs" / "images").glob("looks-*")}
    assert kept == set(SHOWN)
    for name in SHOWN:
        path = ROOT / "docs" / "images" / name
        assert path.stat().st_size < example.MOST, name
        assert len(np.unique(np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_functions_that_the_page_names_are_there():
    """Every `relook.x.y` of the page leads to a module, function or class."""
    named = re.findall(r"`(relook(?:\.\w+)+)`", PAGE)
    assert len(named) > 10
    for one in named:
        parts = one.split(".")
        count = next(n for n in range(len(parts), 0, -1) if _module(".".join(parts[:n])))
        found: object = importlib.import_module(".".join(parts[:count]))
        for part in parts[count:]:
            found = getattr(found, part)


def _module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
