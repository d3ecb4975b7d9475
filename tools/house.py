"""The plan of the house: which room may import which, read from the code without running it, and drawn.

The tests under tests/architecture hold the law; tools/pages.py puts the drawing into docs/house.md.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

PACKAGE = "relook"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

FLOORS: tuple[tuple[str, ...], ...] = (  # from the ground up; a room imports only rooms on lower floors
    ("types", "recipe", "speed", "files"),
    ("ops", "detector", "data", "draw"),
    ("assign", "backbones", "views", "export", "draw_looks"),
    ("parts", "predictor", "evaluate", "serve", "report"),
    ("detectors", "train"),
    ("zoo",),
    ("api",),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SCIENCE = ("ops", "assign", "backbones", "parts", "detectors")
MACHINES = (
    "data",
    "predictor",
    "views",
    "evaluate",
    "train",
    "export",
    "serve",
    "speed",
    "draw",
    "draw_looks",
    "report",
)
NOT_FOR_SCIENCE = (*MACHINES, "recipe", "zoo")
NOT_FOR_MACHINES = tuple(room for room in SCIENCE if room != "ops")
ONLY_IN = {  # packages that one room keeps to itself
    "pytorch_lightning": ("train",),
    "lightning": ("train",),
    "torchmetrics": ("train",),
    "tensorboard": ("train",),
    "matplotlib": ("draw", "report"),
    "supervision": ("predictor",),
    "onnx": ("export",),
    "onnxscript": ("export",),
    "onnxruntime": ("export",),
    "timm": ("backbones", "zoo"),
    "hotcoco": ("evaluate",),
    "pycocotools": ("evaluate",),
    "jsonargparse": ("cli",),
    "cv2": (),
    "mmcv": (),
    "detectron2": (),
}
STRANGERS = {  # files of these rooms never import each other, but for the named ones, which hold the contract
    "detectors": (),
    "backbones": ("protocol",),
    "assign": ("assignment",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One import: `source` imports `target`, both dotted; other people's packages by their first name."""

    file: Path
    line: int
    source: str
    target: str

    @property
    def ours(self) -> bool:
        return self.target == PACKAGE or self.target.startswith(f"{PACKAGE}.")

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line}: {self.source} imports {self.target}"


def dotted(file: Path, root: Path) -> str:
    """src/relook/ops/boxes.py -> relook.ops.boxes; a package's __init__ carries the package's name."""
    parts = (PACKAGE, *file.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """relook.ops.boxes -> ops; the public face, relook itself, is the room `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def read(root: Path = SOURCE) -> list[Import]:
    """Every import of every file, those inside functions and `if TYPE_CHECKING` too.

    Raises:
        ValueError: at a relative import, which hides the room.
    """
    files = sorted(root.rglob("*.py"))
    modules = {dotted(file, root) for file in files}
    return [
        Import(file=file, line=line, source=dotted(file, root), target=target)
        for file in files
        for line, target in _targets(file, modules)
    ]


def _targets(file: Path, modules: set[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(file.read_text(), file.name)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, _named(alias.name)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{file.name}:{node.lineno}: relative import; write {PACKAGE}.... in full")
            base = node.module or ""
            for alias in node.names:  # `from relook.ops import boxes` names the file relook/ops/boxes.py
                whole = f"{base}.{alias.name}"
                yield node.lineno, whole if whole in modules else _named(base)


def _named(module: str) -> str:
    first = module.partition(".")[0]
    return module if first == PACKAGE else first


# -- the laws: each gives one line per breach ----------------------------------------------------------


def upward(imports: Sequence[Import]) -> list[str]:
    """A room imports only rooms on lower floors; files of one room may import each other."""
    breaches: list[str] = []
    for one in imports:
        here, there = room(one.source), room(one.target) if one.ours else ""
        if here not in FLOOR_OF:
            breaches.append(f"{one.file.name}: no floor has a room {here!r}; give it one in tools/house.py")
        elif one.ours and here != there and FLOOR_OF.get(there, len(FLOORS)) >= FLOOR_OF[here]:
            breaches.append(f"{one}: floor {FLOOR_OF[here] + 1} looks up or sideways")
    return breaches


def mixed(imports: Sequence[Import]) -> list[str]:
    """Science never imports a machine, a recipe or the zoo; machines never import science beyond `ops`."""
    return [
        f"{one}: {kind}"
        for one in imports
        if one.ours
        for kind, rooms, shut in (
            ("science knows no machine, recipe or zoo", SCIENCE, NOT_FOR_SCIENCE),
            ("machines hold a Detector and know of science only ops", MACHINES, NOT_FOR_MACHINES),
        )
        if room(one.source) in rooms and room(one.target) in shut
    ]


def entangled(imports: Sequence[Import]) -> list[str]:
    """Detectors never import each other, nor backbones, nor assigners; assigners need only ops and types."""
    breaches: list[str] = []
    for one in (one for one in imports if one.ours):
        here, there = room(one.source), room(one.target)
        if here in STRANGERS and here == there and one.source != f"{PACKAGE}.{here}":
            if one.target.split(".")[-1] not in STRANGERS[here]:
                breaches.append(f"{one}: files of {here} do not know each other")
        elif here == "assign" and there not in {"assign", "ops", "types"}:
            breaches.append(f"{one}: an assigner needs only ops and types")
    return breaches


def strayed(imports: Sequence[Import]) -> list[str]:
    """Heavy packages stay in the one room that needs them."""
    return [
        f"{one}: only {' and '.join(ONLY_IN[one.target]) or 'nobody'} may"
        for one in imports
        if one.target in ONLY_IN and room(one.source) not in ONLY_IN[one.target]
    ]


def circles(imports: Sequence[Import]) -> list[str]:
    """No file imports itself by way of others, lazily or not."""
    graph: dict[str, set[str]] = {}
    for one in imports:
        if one.ours and one.target != one.source:
            graph.setdefault(one.source, set()).add(one.target)
    return sorted({" -> ".join(_from_smallest(way)) for start in graph for way in _ways_back(start, graph)})


def _ways_back(start: str, graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """The shortest way from start to itself, if any."""
    ways, seen = [[start]], set[str]()
    while ways:
        way = ways.pop(0)
        for step in sorted(graph.get(way[-1], ())):
            if step == start:
                yield way
                return
            if step not in seen:
                seen.add(step)
                ways.append([*way, step])


def _from_smallest(way: list[str]) -> list[str]:
    """The same circle, however it was entered."""
    first = way.index(min(way))
    return [*way[first:], *way[:first], way[first]]


# -- the drawing ---------------------------------------------------------------------------------------

WIDTH, BAND, BOX, HIGH, MARGIN = 900, 74, 108, 36, 120
FILLS = {"science": "#d7e8d4", "machine": "#d6e2f2", "contract": "#efe6cf", "door": "#ecd9e3"}


def graph(imports: Sequence[Import]) -> dict[str, set[str]]:
    """Which room imports which, itself left out."""
    found: dict[str, set[str]] = {}
    for one in imports:
        here = room(one.source)
        found.setdefault(here, set())
        if one.ours and room(one.target) != here:
            found[here].add(room(one.target))
            found.setdefault(room(one.target), set())
    return found


def kind(name: str) -> str:
    """What a room is for, which gives its colour."""
    if name in SCIENCE:
        return "science"
    if name in MACHINES:
        return "machine"
    return "door" if FLOOR_OF[name] >= FLOOR_OF["zoo"] else "contract"


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
