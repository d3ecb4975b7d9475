"""`make bench` can run every benchmark and keep its figures."""

import importlib
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[2] / "benchmarks").glob("[a-z]*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_benchmark_keeps_its_figures_when_asked(file: Path):
    """Each takes --save, as `make bench` gives it, and is listed in docs/benchmarks.md."""
    text = file.read_text()
    assert '"--save"' in text
    assert "_results.save(" in text
    assert f"`{file.name}`" in (file.parents[1] / "docs" / "benchmarks.md").read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_benchmark_uses_names_that_exist(file: Path, monkeypatch: pytest.MonkeyPatch):
    """All that it takes from relook is there; what it measures is behind `main`, so importing is quick."""
    monkeypatch.syspath_prepend(str(file.parent))
    assert callable(importlib.import_module(file.stem).main)
