"""The public face: `import relook` needs no extra, and every name it offers exists and is explained."""

import re
import subprocess
import sys
import textwrap
import tomllib

import house
import pytest

import relook

ROOT = house.SOURCE.parents[1]
EXTRAS = (
    *("pytorch_lightning", "lightning", "tensorboard", "matplotlib", "supervision", "onnx", "onnxruntime"),
    *("cv2", "pycocotools", "skimage", "ray"),
)
NAMES = {"list_models", "entry", "create_model", "load_published", "load", "train", "Predictor", "Targets"}


def without_extras(code: str) -> str:
    """Runs code in a new Python in which no extra can be imported; returns what it printed."""
    # None stands for "not installed": both `import` and `find_spec` answer so, whatever torch tries by itself
    shut = f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS!r}))\n"
    program = shut + textwrap.dedent(code)
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_shut_extra_would_be_noticed():
    """The door of the next tests is really shut."""
    with pytest.raises(AssertionError, match="import of matplotlib halted"):
        without_extras("import matplotlib")


def test_import_needs_no_extra():
    """`import relook`, making a model and every name of the public face work with the core install alone."""
    code = """
        import relook
        for name in relook.__all__:
            getattr(relook, name)
        print(relook.create_model("reppoints_nano", num_classes=3).num_classes)
    """
    assert without_extras(code).strip() == "3"


def test_import_alone_costs_nothing():
    """`import relook` and the overview of the command line import neither torch nor anything heavy."""
    code = """
        import relook, relook.cli
        relook.cli.main([])
        heavy = {"torch", "torchvision", "timm", "numpy", "PIL", "hotcoco", "jsonargparse", "rich"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    assert "relook" in without_extras(code)


def test_command_line_needs_no_extra():
    """`relook models` and the help of every verb work with the core install alone."""
    assert "reppoints_nano" in without_extras("from relook.cli import main; main(['models'])")


def test_public_names_exist_and_are_explained():
    """`relook.__all__` holds the face of the documentation, each name with a docstring."""
    assert set(relook.__all__) >= NAMES
    silent = [name for name in relook.__all__ if name != "__version__" and not getattr(relook, name).__doc__]
    assert not silent


def test_version_is_the_packages():
    """`relook.__version__` is the version of pyproject.toml, which has a place in the changelog."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert relook.__version__ == version
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"[{version}]" in changelog or "[Unreleased]" in changelog


def test_constraints_hold_every_floor():
    """constraints.txt names a version for each package that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *(one for group in project["optional-dependencies"].values() for one in group),
    ]
    names = {re.split(r"[\[<>=!~ ;]", one)[0].lower().replace("_", "-") for one in asked} - {"relook"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    locked = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert names <= locked, f"not in constraints.txt: {names - locked}; run `make lock`"
