"""The code can be read: short files, words at every door, no modes, and settings that do not change."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import house
import pytest

SCIENCE = sorted(file for room in house.SCIENCE for file in (house.SOURCE / room).rglob("*.py"))
EVERYTHING = sorted(house.SOURCE.rglob("*.py"))
FACTS = [house.SOURCE / "types.py", house.SOURCE / "recipe.py", *sorted((house.SOURCE / "zoo").glob("*.py"))]
CONTRACT = {
    "forward",
    "loss",
    "predict",
    "build",
    "train",
}  # told once: in detector.py, entry.py and by torch
Function = ast.FunctionDef | ast.AsyncFunctionDef


def place(file: Path) -> str:
    return str(file.relative_to(house.SOURCE))


@pytest.mark.parametrize("file", sorted((house.SOURCE / "detectors").glob("*.py")), ids=place)
def test_a_detector_is_read_in_one_sitting(file: Path):
    """A detector has at most 400 lines: a paper, not a framework."""
    lines = len(file.read_text().splitlines())
    assert lines <= 400, f"{place(file)} has {lines} lines; move what two papers share to parts/ or ops/"


@pytest.mark.parametrize("file", EVERYTHING, ids=place)
def test_a_file_says_what_it_is_for(file: Path):
    """Every file that holds anything begins with a sentence."""
    tree = ast.parse(file.read_text())
    assert not tree.body or ast.get_docstring(tree), f"{place(file)} does not say what it is for"


def public(file: Path) -> Iterator[tuple[str, Function]]:
    """Public functions of a file and public methods of its public classes; properties are nouns, left out."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if not isinstance(inner, Function) or inner.name.startswith("_") or inner.name in CONTRACT:
                    continue
                marks = {mark.id for mark in inner.decorator_list if isinstance(mark, ast.Name)}
                if not marks & {"property", "override"}:  # an override is told where it comes from
                    yield f"{node.name}.{inner.name}", inner


@pytest.mark.parametrize("file", EVERYTHING, ids=place)
def test_public_functions_say_what_they_do(file: Path):
    """Each public function and method has a docstring."""
    silent = [name for name, node in public(file) if not ast.get_docstring(node)]
    assert not silent, f"{place(file)}: no docstring on {', '.join(silent)}"


@pytest.mark.parametrize("file", SCIENCE, ids=place)
def test_science_has_no_modes(file: Path):
    """Nothing asks `self.training`: forward, loss and predict are the same for every driver."""
    asked = [
        node.lineno
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "training" and isinstance(node.ctx, ast.Load)
    ]
    assert not asked, f"{place(file)} asks for the mode in lines {asked}"


@pytest.mark.parametrize("file", SCIENCE, ids=place)
def test_science_passes_no_bag_of_keywords(file: Path):
    """Every argument has a name: no **kwargs in science."""
    bags = [
        node.name
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, Function) and node.args.kwarg is not None
    ]
    assert not bags, f"{place(file)}: {', '.join(bags)} take **kwargs"


@pytest.mark.parametrize("file", [*SCIENCE, *FACTS], ids=place)
def test_values_are_frozen(file: Path):
    """Settings, records and facts do not change on the way."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ClassDef):
            continue
        for mark in node.decorator_list:
            called = mark.func if isinstance(mark, ast.Call) else mark
            if isinstance(called, ast.Name) and called.id == "dataclass":
                settings = mark.keywords if isinstance(mark, ast.Call) else []
                frozen = any(k.arg == "frozen" and getattr(k.value, "value", False) for k in settings)
                assert frozen, f"{place(file)}:{node.lineno}: dataclass {node.name} is not frozen"


def test_no_file_names_a_place_on_somebodys_machine():
    """Paths in code and pages are relative: nobody else has our home folder."""
    root = house.SOURCE.parents[1]
    kinds = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".json", ""}
    home = re.compile(r"(?<![\w.~-])/(?:home|root|Users)/\w")
    named = [
        f"{file.relative_to(root)}: {found.group()}"
        for folder in ("src", "tests", "docs", "benchmarks", "examples", "tools", ".ci")
        for file in sorted((root / folder).rglob("*"))
        if file.is_file()
        and file.suffix in kinds
        and "__pycache__" not in file.parts
        and "out" not in file.parts
        for found in home.finditer(file.read_text(errors="replace"))
    ]
    assert not named, "\n".join(named)
