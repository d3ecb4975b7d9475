"""Names and shapes of every catalog model's tensors, without building the models.

shapes.json.gz keeps them with the settings they belong to; a model with other settings is built, which takes
half a second. `python -m relook.weights.shapes` writes the file.
"""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import torch

from relook.files import whole_file
from relook.weights.compare import Shape, shapes
from relook.zoo.catalog import ENTRIES
from relook.zoo.entry import DetectorConfig, Entry

FILE: Final = Path(__file__).with_name("shapes.json.gz")


@dataclass(frozen=True, slots=True, eq=False)
class Growth:
    """A side of a tensor that depends on the number of classes."""

    name: str
    side: int  # which of the tensor's sides
    per_class: int  # by how much it grows with each class
    base: int  # how long it would be without any class


@dataclass(frozen=True, slots=True, eq=False)
class Wiring:
    """The tensors of a detector, by name."""

    shapes: Mapping[str, Shape]  # at the published number of classes
    growing: tuple[Growth, ...]

    def at(self, classes: int) -> dict[str, Shape]:
        """Name -> shape for another number of classes."""
        changed = {name: list(shape) for name, shape in self.shapes.items()}
        for one in self.growing:
            changed[one.name][one.side] = one.base + classes * one.per_class
        return {name: tuple(shape) for name, shape in changed.items()}


def wiring(entry: Entry) -> Wiring:
    """Of a catalog model from the table, of any other by building it."""
    index, settings = _rows().get(entry.name, (0, ""))
    return _stored(index) if settings == repr(entry.detector) else built(entry.detector)


@cache
def built(config: DetectorConfig) -> Wiring:
    """The same, found by building the detector without memory, twice."""
    classes = config.num_classes
    now, more = _built(config), _built(with_classes(config, classes + 1))
    growing = [
        Growth(name, side, longer - size, size - classes * (longer - size))
        for name, shape in now.items()
        for side, (size, longer) in enumerate(zip(shape, more[name], strict=True))
        if longer != size
    ]
    return Wiring(now, tuple(growing))


def with_classes(config: DetectorConfig, classes: int) -> DetectorConfig:
    """The same settings for another number of classes."""
    return cast("DetectorConfig", replace(cast("Any", config), num_classes=classes))


def _built(config: DetectorConfig) -> dict[str, Shape]:
    with torch.device("meta"):
        return shapes(config.build().state_dict())


# -- the table -------------------------------------------------------------------------------------------


@cache
def _table() -> dict[str, Any]:
    if not FILE.exists():
        return {"wirings": [], "entries": {}}
    return cast("dict[str, Any]", json.loads(gzip.decompress(FILE.read_bytes())))


def _rows() -> dict[str, tuple[int, str]]:
    """Entry -> number of its wiring, and the settings that it was made from."""
    return cast("dict[str, tuple[int, str]]", _table()["entries"])


@cache
def _stored(index: int) -> Wiring:
    row = _table()["wirings"][index]
    return Wiring(
        {name: tuple(shape) for name, shape in row["shapes"]},
        tuple(Growth(*facts) for facts in row["growing"]),
    )


def write() -> None:
    """Builds every model of the catalog and writes shapes.json.gz; equal wirings are kept once."""
    wirings: list[str] = []
    entries: dict[str, tuple[int, str]] = {}
    for name, entry in ENTRIES.items():
        made = built(entry.detector)
        growing = [(g.name, g.side, g.per_class, g.base) for g in made.growing]
        row = json.dumps({"shapes": list(made.shapes.items()), "growing": growing})
        if row not in wirings:
            wirings.append(row)
        entries[name] = (wirings.index(row), repr(entry.detector))
    text = json.dumps({"wirings": [json.loads(row) for row in wirings], "entries": entries})
    with whole_file(FILE) as beside:
        beside.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    write()
