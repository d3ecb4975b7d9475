"""The plan of the house, drawn: rooms on their floors, and which room imports which.

The law itself stands in pyproject.toml and is held by import-linter (`make law`); this file reads the floors
there and the imports from the code, and tools/pages.py puts the drawing and the table into docs/house.md.
"""

import tomllib
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import grimp

PACKAGE = "relook"
ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / PACKAGE


def contracts() -> list[dict[str, Any]]:
    """The law, contract by contract."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def floors() -> tuple[tuple[str, ...], ...]:
    """Rooms of each floor from the ground up, those to come (in parentheses) too."""
    layers = next(one["layers"] for one in contracts() if one.get("containers") == [PACKAGE])
    from_the_ground = [tuple(name.strip(" ()") for name in layer.split("|")) for layer in reversed(layers)]
    return (*from_the_ground[:-1], (*from_the_ground[-1], "__init__"))


FLOORS = floors()
SCIENCE = ("ops", "assign", "backbones", "parts", "detectors")
KINDS = {
    "science": SCIENCE,
    "machine": (
        *("data", "inputs", "metrics", "views", "results", "report", "inference", "predictor", "evaluation"),
        *("training", "export", "serve", "speed"),
    ),
    "door": ("zoo", "weights", "api", "cli", "__init__", "__main__"),
}


def room(module: str) -> str:
    """relook.ops.boxes -> ops; the public face, relook itself, is the room `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def graph() -> dict[str, set[str]]:
    """Which room imports which, itself left out; lazy imports and those for types count."""
    modules = grimp.build_graph(PACKAGE)
    found: dict[str, set[str]] = {}
    for module in modules.modules:
        here = found.setdefault(room(module), set())
        here |= {room(other) for other in modules.find_modules_directly_imported_by(module)}
    return {name: to - {name} for name, to in found.items()}


def size(folder: Path) -> int:
    """Lines of Python in a folder itself, without those below it."""
    return sum(len(file.read_text().splitlines()) for file in folder.glob("*.py"))


# -- the drawing ---------------------------------------------------------------------------------------

WIDTH, BAND, BOX, HIGH, MARGIN = 900, 74, 108, 36, 120
FILLS = {"science": "#d7e8d4", "machine": "#d6e2f2", "contract": "#efe6cf", "door": "#ecd9e3"}


def kind(name: str) -> str:
    """What a room is for, which gives its colour."""
    for colour, rooms in KINDS.items():
        if name in rooms:
            return colour
    return "contract"


def reduced(rooms: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Only imports that do not already follow from others, so that the drawing can be read."""

    def below(name: str) -> set[str]:
        return rooms[name].union(*(below(next_) for next_ in rooms[name]))

    return {
        name: {one for one in to if all(one not in below(via) for via in to)} for name, to in rooms.items()
    }


def draw(rooms: Mapping[str, set[str]]) -> str:
    """The house as an SVG: floors from the ground up, rooms that exist, imports as lines downwards."""
    floors = [
        (floor, present)
        for floor, names in enumerate(FLOORS)
        if (present := [name for name in names if name in rooms])
    ]
    place: dict[str, tuple[float, float]] = {}
    for up, (_, names) in enumerate(floors):
        step = (WIDTH - MARGIN) / len(names)
        for i, name in enumerate(names):
            place[name] = (MARGIN + step * (i + 0.5), BAND * (len(floors) - up - 0.5))
    lines = [
        _line(place[here], place[there])
        for here, to in sorted(reduced(rooms).items())
        for there in sorted(to)
    ]
    boxes = [_box(name, *at) for name, at in sorted(place.items())]
    bands = [_band(floor, BAND * (len(floors) - up - 1)) for up, (floor, _) in enumerate(floors)]
    size = f'viewBox="0 0 {WIDTH} {BAND * len(floors)}" width="{WIDTH}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="14">'
    title = "<title>The rooms of relook; every line is an import and goes down</title>"
    return "\n".join([head, title, *bands, *lines, *boxes, "</svg>"]) + "\n"


def _band(floor: int, top: float) -> str:
    shade = "#f7f7f5" if floor % 2 else "#ffffff"
    label = f'<text x="14" y="{top + BAND / 2 + 5:g}" fill="#777777">floor {floor + 1}</text>'
    return f'<rect x="0" y="{top:g}" width="{WIDTH}" height="{BAND}" fill="{shade}"/>{label}'


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x, y), (u, v) = start, end
    y, v = y + HIGH / 2, v - HIGH / 2
    bend = (v - y) / 2
    curve = f"M{x:.0f} {y:.0f}C{x:.0f} {y + bend:.0f} {u:.0f} {v - bend:.0f} {u:.0f} {v:.0f}"
    return f'<path d="{curve}" fill="none" stroke="#999999" stroke-width="1.2"/>'


def _box(name: str, x: float, y: float) -> str:
    frame = f'x="{x - BOX / 2:.0f}" y="{y - HIGH / 2:.0f}" width="{BOX}" height="{HIGH}" rx="5"'
    text = (
        f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" fill="#222222">{escape(label(name))}</text>'
    )
    return f'<rect {frame} fill="{FILLS[kind(name)]}" stroke="#777777"/>{text}'


def label(name: str) -> str:
    """A room's name for people."""
    return {"__init__": "import relook", "__main__": "python -m relook"}.get(name, name)


def table(rooms: Mapping[str, set[str]]) -> str:
    """Every room, its floor, and the rooms it imports, as Markdown."""
    rows = ["| floor | room | imports |", "|---|---|---|"]
    for floor in range(len(FLOORS) - 1, -1, -1):
        for name in (name for name in FLOORS[floor] if name in rooms):
            below = ", ".join(f"`{one}`" for one in sorted(rooms[name])) or "nothing of ours"
            rows.append(f"| {floor + 1} | `{label(name)}` | {below} |")
    return "\n".join(rows) + "\n"
