"""Writes the generated parts of README.md and docs/: house, models, numbers, quirks, reference.

    python tools/pages.py            write what is stale
    python tools/pages.py --check    only name what is stale; a test does the same

Facts are taken from where they live: imports from the code, models and figures from the catalog, the tests
that hold a quirk from their names, signatures and docstrings from the package.
"""

import ast
import importlib
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import house

from relook.zoo.catalog import ENTRIES
from relook.zoo.cost import cost
from relook.zoo.entry import Entry

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PUBLISHED = (
    "Figures are those of the people who trained the models, unless a column says that relook measured them."
)


# -- pages -----------------------------------------------------------------------------------------------


def figure() -> str:
    """docs/images/house.svg"""
    return house.draw(house.graph())


def plan(old: str) -> str:
    """docs/house.md with the table of imports."""
    return _between(old, "imports", house.table(house.graph()))


def readme(old: str) -> str:
    """README.md with the table of models."""
    return _between(old, "models", _models())


def benchmarks(old: str) -> str:
    """docs/benchmarks.md with the figures that benchmarks/results/ keeps."""
    return _between(_between(old, "reading", _reading()), "machines", _machines())


def numbers() -> str:
    """docs/numbers.md, whole."""
    lines = [
        "# Published and measured",
        "",
        "<!-- Written by `make pages` from src/relook/zoo; edit the entries, not this page. -->",
        "",
        PUBLISHED,
        "How closely outputs, losses and gradients follow the published code is in [parity](parity.md).",
        "",
        "| model | paper | data | metric | published | by | measured by relook |",
        "|---|---|---|---|---:|---|---:|",
    ]
    for entry in ENTRIES.values():
        paper = f"[{entry.paper}](https://arxiv.org/abs/{entry.paper})"
        theirs = [one for one in entry.figures if not _ours(one.source)]
        ours = {(one.dataset, one.metric): one.value for one in entry.figures if _ours(one.source)}
        for one in theirs:
            mine = ours.pop((one.dataset, one.metric), None)
            cells = (one.dataset, one.metric, f"{one.value:g}", one.source, _value(mine))
            lines.append(f"| `{entry.name}` | {paper} | {' | '.join(cells)} |")
        lines += [
            f"| `{entry.name}` | {paper} | {dataset} | {metric} | | | {_value(value)} |"
            for (dataset, metric), value in ours.items()
        ]
        if not entry.figures:
            lines.append(f"| `{entry.name}` | {paper} | | | none published | {entry.publisher} | not yet |")
    told = [text for entry in ENTRIES.values() for text in (entry.note, entry.doubt) if text]
    for text in dict.fromkeys(told):
        lines += ["", f"{text[0].upper()}{text[1:]}."]
    return "\n".join(lines) + "\n"


def quirks(old: str) -> str:
    """docs/quirks.md, whose last column names the tests whose names carry the quirk."""
    held = _guards()

    def row(found: re.Match[str]) -> str:
        tests = ", ".join(f"`{name}`" for name in held.get(found["name"].replace("-", "_"), ()))
        return f"{found['rest']}| {tests} |"

    return re.sub(r"^(?P<rest>\| (?P<name>[a-z]{2}-\d\d) \|.*)\|[^|\n]*\|$", row, old, flags=re.MULTILINE)


def reference() -> str:
    """docs/reference.md, whole: the public face, the contract and records, the shared formulas."""
    face = importlib.import_module("relook")
    parts = ["# Reference", "", "<!-- Written by `make pages` from the docstrings. -->", ""]
    parts += ["## relook", "", *_members(face, face.__all__)]
    for name in ("types", "detector", "recipe", "settings", *_modules("ops"), *_modules("assign")):
        module = importlib.import_module(f"relook.{name}")
        parts += [
            f"## relook.{name}",
            "",
            inspect.getdoc(module) or "",
            "",
            *_members(module, _public(module)),
        ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


PAGES: dict[Path, Callable[[str], str]] = {
    DOCS / "images" / "house.svg": lambda _: figure(),
    DOCS / "house.md": plan,
    DOCS / "numbers.md": lambda _: numbers(),
    DOCS / "quirks.md": quirks,
    DOCS / "reference.md": lambda _: reference(),
    DOCS / "benchmarks.md": benchmarks,
    ROOT / "README.md": readme,
}
BUILT = {DOCS / "reference.md"}  # made for the site, not kept in the repository


# -- their parts -----------------------------------------------------------------------------------------


def _between(old: str, name: str, new: str) -> str:
    """`old` with what stands between the marks of that name replaced."""
    start = f"<!-- generated: {name} -->\n"
    head, found, rest = old.partition(start)
    _, end, tail = rest.partition("<!-- end -->")
    if not found or not end:
        raise ValueError(f"no marks '{start.strip()}' and '<!-- end -->' in a page that needs them")
    return f"{head}{start}\n{new}\n{end}{tail}"


def _models() -> str:
    rows = [
        "| model | parameters | GFLOPs | AP val2017 | test-dev | other data | by |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    shown = [entry for entry in ENTRIES.values() if entry.figures or entry.publisher == "relook"]
    rows += [_model(entry) for entry in shown]
    if more := len(ENTRIES) - len(shown):
        rows += ["", f"{more} more, of which no figures are published, are [listed](docs/numbers.md) too."]
    if any(entry.doubt for entry in ENTRIES.values()):
        rows += [
            "",
            "(1) One file, two readings; which of them has these figures is [open](docs/numbers.md).",
        ]
    return "\n".join(rows) + "\n"


def _model(entry: Entry) -> str:
    spent = cost(entry)
    ap, test_dev = (entry.figure("AP", f"coco/{part}") for part in ("val2017", "test-dev"))
    sizes = f"{spent.parameters / 1e6:.1f} M | {spent.multiply_adds / 1e9:.1f}"
    mark = " (1)" if entry.doubt else ""
    published = " | ".join("" if value is None else f"{value:.1f}{mark}" for value in (ap, test_dev))
    other = next((f for f in entry.figures if not f.dataset.startswith("coco/")), None)
    published += " | " + (f"{other.dataset}: {other.metric} {other.value:g}" if other else "")
    ours = entry.publisher == "relook"
    whose = "relook: small, for CPUs, the demo and tests" if ours else entry.publisher
    return f"| `{entry.name}` | {sizes} | {published} | {whose} |"


def _reading() -> str:
    """The reading costs on record; they are the same on every machine, so any file will do."""
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    kept = [
        one["reading"] for one in map(json.loads, (file.read_text() for file in files)) if "reading" in one
    ]
    columns = ("files", "lines", "functions", "depth", "build")
    rows = [f"| model | {' | '.join(columns)} | others |", "|---|" + "---:|" * len(columns) + "---|"]
    for name, held in sorted(max(kept, key=lambda one: one["when"])["figures"].items()) if kept else ():
        others = ", ".join(f"{package} {count}" for package, count in held["others"].items())
        rows.append(f"| `{name}` | {' | '.join(str(held[column]) for column in columns)} | {others} |")
    return "\n".join(rows) + "\n"


def _machines() -> str:
    """Every other benchmark on record, machine by machine."""
    lines: list[str] = []
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        kept = {name: one for name, one in json.loads(file.read_text()).items() if name != "reading"}
        for name, one in sorted(kept.items()):
            about = one["machine"]
            where = (
                about["gpu"] or f"{about['processor']}, {about['cores']} cores, {about['threads']} threads"
            )
            lines += [f"### {name}: {where}", "", f"torch {about['torch']}, {one['when']}", ""]
            lines += [*_figures(one["figures"]), ""]
    return "\n".join(lines)


def _figures(figures: Any) -> list[str]:
    """Whatever shape a benchmark's figures have, as tables."""
    if isinstance(figures, list):
        rows = {f"{_shape(row)} {row['pass']}, {row['path']}": row for row in figures}
        keys = ("median_ms", "speed_up", "peak_mib")
        return _table({name: {key: row[key] for key in keys} for name, row in rows.items()})
    if all(isinstance(value, int | float) for value in figures.values()):
        return _table({name: {"ms": value} for name, value in figures.items()})
    if all(isinstance(value, int | float) for row in figures.values() for value in row.values()):
        return _table(figures)
    return [line for name, part in figures.items() for line in (f"**{name}**", "", *_table(part), "")]


def _shape(row: dict[str, Any]) -> str:
    """256 channels at 100x152."""
    shape = row["shape"]
    extra = f", {shape['groups']} groups" if shape["groups"] > 1 else ""
    return f"{shape['channels']} channels{extra}, {shape['height']}x{shape['width']},"


def _table(rows: dict[str, dict[str, float | None]]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [
        f"| | {' | '.join(column.replace('_', ' ') for column in columns)} |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, row in rows.items():
        cells = [_short(row.get(key)) for key in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _short(value: float | None) -> str:
    """Three digits that matter."""
    if value is None:
        return ""
    if value >= 1e9:
        return f"{value / 1e9:.1f} G"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _ours(source: str) -> bool:
    return source.startswith("relook")


def _value(value: float | None) -> str:
    return "not yet" if value is None else f"{value:g}"


def _guards() -> dict[str, list[str]]:
    """rp_03 -> the tests with that in their name."""
    held: dict[str, list[str]] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for name, quirk in re.findall(
            r"^def (test_\w*?([a-z]{2}_\d\d)\w*)\(", file.read_text(), re.MULTILINE
        ):
            held.setdefault(quirk, []).append(name)
    return held


def _modules(room: str) -> list[str]:
    return [f"{room}.{file.stem}" for file in sorted((house.SOURCE / room).glob("[a-z]*.py"))]


def _public(module: ModuleType) -> list[str]:
    """Names that the module itself defines, in its order."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def _members(module: ModuleType, names: list[str]) -> Iterator[str]:
    for name in names:
        value = getattr(module, name)
        if callable(value):
            yield from (f"### {name}", "", "```python", _head(name, value), "```", "", *_words(value), "")
            if inspect.isclass(value):
                yield from _methods(value)


def _methods(kind: type) -> Iterator[str]:
    """Public methods that the class itself has and explains."""
    for name, value in vars(kind).items():
        method = getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(method) and method.__doc__:
            yield from (f"**{kind.__name__}.{name}**", "", "```python", _call(name, method), "```", "")
            yield from (*_words(method), "")


def _head(name: str, value: Any) -> str:
    """How to call a function; the fields of a record as its source has them, shapes included."""
    if not inspect.isclass(value):
        return _call(name, value)
    lines, _ = inspect.getsourcelines(value)
    body = next(
        node for node in ast.parse(textwrap.dedent("".join(lines))).body if isinstance(node, ast.ClassDef)
    )
    fields = [
        line.rstrip()
        for node in body.body
        if isinstance(node, ast.AnnAssign)
        for line in lines[node.lineno - 1 : node.end_lineno]
    ]
    if not fields and "__init__" in vars(value):
        return _call(name, value)
    return "\n".join([f"class {name}" + (":" if fields else ""), *fields])


def _call(name: str, function: Any) -> str:
    """A signature on one line, or on one line per argument where that is too long."""
    signature = inspect.signature(function)
    whole = f"{name}{signature}"
    if len(whole) > 90:
        head, _, tail = str(signature).rpartition(" -> ")
        inner = signature.replace(return_annotation=inspect.Signature.empty)
        marks = [str(one) for one in inner.parameters.values()]
        keywords = [one.kind is inspect.Parameter.KEYWORD_ONLY for one in inner.parameters.values()]
        if True in keywords:
            marks.insert(keywords.index(True), "*")
        whole = (
            f"{name}(\n" + "".join(f"    {mark},\n" for mark in marks) + ")" + (f" -> {tail}" if head else "")
        )
    whole = re.sub(r"\*?<class '([\w.]+)'>", r"\1", re.sub(r"((?::|->) )'([^']*)'", r"\1\2", whole))
    return re.sub(r"\b(?:[A-Za-z_]+\.)+(?=[A-Za-z])", "", whole)


def _words(value: object) -> list[str]:
    """A docstring as Markdown: its sections become lists, columns and examples stay as they are."""
    doc = inspect.getdoc(value) or ""
    if inspect.isclass(value) and doc.startswith(f"{value.__name__}("):  # dataclasses write their own
        return []
    words: list[str] = []
    section = ""
    for line in doc.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Yields):", line):
            section = line[:-1]
            words += ["", f"*{section}*", ""]
        elif section and line.startswith("    "):
            item = re.fullmatch(r" {4}(\w+): (.*)", line)
            words.append(
                f"- `{item[1]}`: {item[2]}" if item else line if line[4] == " " else f"- {line.strip()}"
            )
        else:
            section = "" if line else section
            words.append(f"    {line}" if re.search(r"\S {3,}\S", line) else line)
    return words


# -- at work ---------------------------------------------------------------------------------------------


def fresh() -> dict[Path, str]:
    """What every page should hold now."""
    return {page: write(page.read_text() if page.is_file() else "") for page, write in PAGES.items()}


def stale() -> list[Path]:
    """Pages of the repository that no longer say what the code says."""
    return [
        page
        for page, text in fresh().items()
        if page not in BUILT and (not page.is_file() or page.read_text() != text)
    ]


def main() -> int:
    """Writes stale pages, or with --check names them and fails."""
    if sys.argv[1:] == ["--check"]:
        found = stale()
        print(*(f"{page.relative_to(ROOT)} is stale; run `make pages`" for page in found), sep="\n")
        return 1 if found else 0
    for page, text in fresh().items():
        if not page.is_file() or page.read_text() != text:
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(text)
            print("wrote", page.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
