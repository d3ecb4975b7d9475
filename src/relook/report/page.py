"""One self-contained HTML page about a trained detector: numbers, curves, pictures. Needs no network."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Final

from PIL import Image

from relook.files import whole_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """One large number at the top."""

    name: str
    value: str
    means: str  # in a few words


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """One picture of a row."""

    image: Image.Image
    caption: str
    alt: str  # what is to be seen, for those who cannot


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """Views of one image, side by side."""

    name: str
    views: tuple[View, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Lines over the same x."""

    title: str
    x: str  # what x is
    lines: Mapping[str, Sequence[tuple[float, float]]]  # name -> (x, y), x rising
    low: float | None = None  # ends of the y axis; without them those of the values
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """All that the page says."""

    title: str
    summary: str  # a sentence or two
    headlines: tuple[Headline, ...]
    legend: str  # how to read the pictures
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]
    per_class: Mapping[str, float]  # AP by class, 0 .. 1, negative where there is none
    numbers: Mapping[str, float]  # COCO's twelve
    facts: Mapping[str, str]  # what was run
    commands: Mapping[str, str]  # what to do next -> command to type


def write(report: Report, path: Path | str) -> None:
    """Writes the page, whole or not at all."""
    with whole_file(path) as beside:
        beside.write_text(page(report), encoding="utf-8")


def page(report: Report) -> str:
    """The page as text."""
    sections = [
        _section("What it sees", _pictures(report)) if report.rows else "",
        _section("How it learnt", _curves(report.curves)) if report.curves else "",
        _section("How well it does", _tables(report)),
        _section("What was run", _facts(report.facts)),
        _section("What to do next", _commands(report.commands)) if report.commands else "",
    ]
    return _PAGE.format(
        title=escape(report.title),
        summary=escape(report.summary),
        style=_STYLE,
        headlines="".join(_headline(h) for h in report.headlines),
        sections="\n".join(filter(None, sections)),
        version=escape(version("relook")),
    )


_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header>
<h1>{title}</h1>
<p class="summary">{summary}</p>
<dl class="headlines">{headlines}</dl>
</header>
{sections}
<footer>Written by relook {version}. This page is one file and loads nothing.</footer>
</main>
</body>
</html>
"""

_STYLE: Final = """
:root { --ground: #fbfbfa; --paper: #ffffff; --ink: #1b1f24; --soft: #59626d; --line: #dfe2e6; --bar: #0072b2;
  --one: #0072b2; --two: #d55e00; --three: #009e73; --four: #8a5a83; --code: #f1f3f5; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171a; --paper: #1c2024; --ink: #e9ecef; --soft: #a3abb5; --line: #343a41;
    --bar: #56b4e9; --one: #56b4e9; --two: #e69f00; --three: #2fc79a; --four: #cc79a7; --code: #252a30; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 48px 24px 64px; }
h1 { font-size: clamp(1.9rem, 4.5vw, 2.7rem); line-height: 1.15; margin: 0 0 12px; letter-spacing: -0.02em; }
h2 { font-size: 1.35rem; margin: 0 0 16px; letter-spacing: -0.01em; }
h3 { font-size: 1rem; margin: 0 0 8px; }
p { margin: 0 0 14px; max-width: 70ch; }
.summary { font-size: 1.1rem; color: var(--soft); }
section { margin-top: 56px; }
.headlines { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 14px;
  margin: 28px 0 0; }
.headlines > div { background: var(--paper); border: 1px solid var(--line); border-radius: 12px;
  padding: 16px 18px; display: flex; flex-direction: column; }
.headlines dt { order: 1; font-weight: 600; }
.headlines dd { margin: 0; }
.headlines .value { order: 0; font-size: 2.2rem; font-weight: 650; line-height: 1.15;
  font-variant-numeric: tabular-nums; letter-spacing: -0.02em; }
.headlines .means { order: 2; color: var(--soft); font-size: 0.86rem; line-height: 1.4; }
.row { margin: 0 0 26px; padding: 0; border: 0; }
.views { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 14px; }
figure { margin: 0; }
figure img { width: 100%; height: auto; display: block; border-radius: 8px; border: 1px solid var(--line);
  background: var(--paper); }
figcaption { color: var(--soft); font-size: 0.86rem; margin-top: 6px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 22px;
  align-items: start; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px; }
svg { width: 100%; height: auto; display: block; overflow: visible; font: 12px system-ui, sans-serif; }
svg text { fill: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); }
tr:last-child > * { border-bottom: 0; }
th { font-weight: 500; }
thead th { color: var(--soft); font-size: 0.86rem; }
td.number { text-align: right; width: 5.5em; padding-right: 0; }
.bar { background: var(--line); border-radius: 4px; height: 9px; min-width: 80px; }
.bar span { display: block; background: var(--bar); border-radius: 4px; height: 9px; }
pre { background: var(--code); border-radius: 8px; padding: 12px 14px; margin: 6px 0 18px; overflow-x: auto;
  font: 0.88rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
footer { margin-top: 64px; color: var(--soft); font-size: 0.86rem; }
"""


def _section(title: str, body: str) -> str:
    name = title.lower().replace(" ", "-")
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>\n{body}</section>'


def _headline(headline: Headline) -> str:
    return (
        f'<div><dt>{escape(headline.name)}</dt><dd class="value">{escape(headline.value)}</dd>'
        f'<dd class="means">{escape(headline.means)}</dd></div>'
    )


# -- pictures --------------------------------------------------------------------------------------------


def _pictures(report: Report) -> str:
    rows = "\n".join(
        f'<div class="row"><div class="views">{"".join(map(_view, row.views))}</div></div>'
        for row in report.rows
    )
    return f"<p>{escape(report.legend)}</p>\n{rows}"


def _view(view: View) -> str:
    buffer = io.BytesIO()
    view.image.save(buffer, format="WEBP", quality=90, method=4)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure><img src="data:image/webp;base64,{data}" alt="{escape(view.alt, quote=True)}" '
        f'width="{view.image.width}" height="{view.image.height}">'
        f"<figcaption>{escape(view.caption)}</figcaption></figure>"
    )


# -- curves ----------------------------------------------------------------------------------------------

_W, _H = 460, 250  # of the drawing; it grows and shrinks with the page
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 84, 10, 36  # room for numbers and names
_PAINTS: Final = ("var(--one)", "var(--two)", "var(--three)", "var(--four)")


def _curves(curves: Sequence[Curve]) -> str:
    cards = "".join(
        f'<div class="card"><h3>{escape(curve.title)}</h3>{curve_svg(curve)}</div>'
        for curve in curves
        if any(curve.lines.values())
    )
    return f'<div class="pair">{cards}</div>'


def curve_svg(curve: Curve) -> str:
    """One chart as SVG, with the name of each line at its end."""
    points = [point for line in curve.lines.values() for point in line if all(map(math.isfinite, point))]
    x_ticks = ticks(min(p[0] for p in points), max(p[0] for p in points))
    low = min(p[1] for p in points) if curve.low is None else curve.low
    high = max(p[1] for p in points) if curve.high is None else curve.high
    y_ticks = ticks(low, high)
    x0, x1, y0, y1 = min(p[0] for p in points), max(p[0] for p in points), y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        right = (x - x0) / ((x1 - x0) or 1) * (_W - _LEFT - _RIGHT)
        up = (y - y0) / ((y1 - y0) or 1) * (_H - _TOP - _BOTTOM)
        return round(_LEFT + right, 1), round(_H - _BOTTOM - up, 1)

    parts = [_rule(place(x0, y)[1], _number(y)) for y in y_ticks]
    parts += [
        f'<text x="{place(x, y0)[0]}" y="{_H - _BOTTOM + 18}" text-anchor="middle">{_number(x)}</text>'
        for x in x_ticks
        if x0 <= x <= x1
    ]
    parts.append(
        f'<text x="{(_LEFT + _W - _RIGHT) / 2}" y="{_H - 2}" text-anchor="middle">{escape(curve.x)}</text>'
    )
    drawn = {
        name: [place(*p) for p in line if all(map(math.isfinite, p))]
        for name, line in curve.lines.items()
        if line
    }
    heights = _apart([line[-1][1] for line in drawn.values()])
    for (name, line), height, paint in zip(drawn.items(), heights, _PAINTS * len(drawn), strict=False):
        path = " ".join(f"{x},{y}" for x, y in line)
        x, y = line[-1]
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{paint}" stroke-width="2"/>'
            f'<circle cx="{x}" cy="{y}" r="3.5" fill="{paint}"/>'
            f'<text x="{x + 8}" y="{height + 4}" style="fill:{paint};font-weight:600">{escape(name)}</text>'
        )
    last = ", ".join(f"{name} ends at {line[-1][1]:.3g}" for name, line in curve.lines.items() if line)
    label = escape(f"{curve.title}: {last}", quote=True)
    return f'<svg viewBox="0 0 {_W} {_H}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _rule(y: float, text: str) -> str:
    return (
        f'<line x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{y}" y2="{y}" stroke="var(--line)"/>'
        f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{text}</text>'
    )


def _apart(heights: Sequence[float], step: float = 15) -> list[float]:
    """The same heights, moved as little as it takes that names do not touch."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved = list(heights)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + step)
    for i in range(len(order)):  # from the bottom up: no name below the axis
        lowest = _H - _BOTTOM - step * i
        moved[order[-1 - i]] = min(moved[order[-1 - i]], lowest)
    return moved


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers around low .. high, at most `most` + 2 of them; the ends lie at or outside the range."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:g}"


# -- tables ----------------------------------------------------------------------------------------------

_MEANINGS: Final = {
    "AP": "mean over overlaps 0.50 to 0.95",
    "AP50": "at overlap 0.50",
    "AP75": "at overlap 0.75",
    "APs": "small objects (below 32 x 32 pixels)",
    "APm": "medium objects",
    "APl": "large objects (96 x 96 pixels and more)",
    "AR1": "recall with 1 detection a picture",
    "AR10": "recall with 10",
    "AR100": "recall with 100",
    "ARs": "recall of small objects",
    "ARm": "of medium objects",
    "ARl": "of large objects",
}


def _tables(report: Report) -> str:
    classes = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{_bar(value)}</td>'
        f'<td class="number">{_share(value)}</td></tr>'
        for name, value in report.per_class.items()
    )
    numbers = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(_MEANINGS.get(name, ""))}</td>'
        f'<td class="number">{_share(value)}</td></tr>'
        for name, value in report.numbers.items()
    )
    return (
        '<div class="pair"><div class="card"><h3>By class</h3><table><thead><tr><th scope="col">class</th>'
        f'<th scope="col">AP</th><th></th></tr></thead><tbody>{classes}</tbody></table></div>'
        '<div class="card"><h3>COCO\'s twelve numbers</h3><table><tbody>'
        f"{numbers}</tbody></table></div></div>"
    )


def _bar(value: float) -> str:
    return f'<div class="bar"><span style="width:{100 * min(max(value, 0), 1):.1f}%"></span></div>'


def _share(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in facts.items()
    )
    return f'<div class="card"><table><tbody>{rows}</tbody></table></div>'


def _commands(commands: Mapping[str, str]) -> str:
    return "".join(
        f"<h3>{escape(what)}</h3><pre>{escape(command)}</pre>" for what, command in commands.items()
    )
