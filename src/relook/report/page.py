"""One self-contained HTML page about a trained detector: numbers, curves, pictures. Needs no network.

The page itself is page.html.j2; this file makes the values that it shows.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Final

import jinja2
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
    per_class_ap50: Mapping[str, float]  # at IoU 0.50
    numbers: Mapping[str, float]  # the metric's, by name
    facts: Mapping[str, str]  # what was run
    commands: Mapping[str, str]  # what to do next -> command to type


def write(report: Report, path: Path | str) -> None:
    """Writes the page, whole or not at all."""
    with whole_file(path) as beside:
        beside.write_text(page(report), encoding="utf-8")


def svg(curve: Curve) -> str:
    """One curve as a picture of its own."""
    template = Path(__file__).with_name("chart.svg.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(chart=chart(curve))


def page(report: Report) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(webp=_webp, percent=_percent, share=_share)
    template = environment.from_string(Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8"))
    charts = [chart(curve) for curve in report.curves if any(curve.lines.values())]
    return template.render(report=report, charts=charts, meanings=_MEANINGS, version=version("relook"))


def _webp(image: Image.Image) -> str:
    """The picture as base64."""
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=90, method=4)
    return base64.b64encode(buffer.getvalue()).decode()


def _percent(value: float) -> str:
    return f"{100 * min(max(value, 0), 1):.1f}"


def _share(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


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


# -- curves ----------------------------------------------------------------------------------------------

_W, _H = 460, 250  # of the drawing; it grows and shrinks with the page
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 84, 10, 36  # room for numbers and names
_PAINTS: Final = ("var(--one)", "var(--two)", "var(--three)", "var(--four)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A number beside an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartLine:
    """One line of a chart, in pixels of the drawing, and its name at its end."""

    name: str
    paint: str
    path: str
    end: tuple[float, float]
    name_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A curve as it is drawn."""

    title: str
    label: str  # for those who cannot see it
    x: str
    rules: tuple[Tick, ...]
    ticks: tuple[Tick, ...]
    lines: tuple[ChartLine, ...]
    width: int = _W
    height: int = _H
    left: int = _LEFT
    right: int = _W - _RIGHT
    bottom: int = _H - _BOTTOM


def chart(curve: Curve) -> Chart:
    """Where everything of a curve lies in its drawing."""
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

    drawn = {
        name: [place(*p) for p in line if all(map(math.isfinite, p))]
        for name, line in curve.lines.items()
        if line
    }
    heights = _apart([line[-1][1] for line in drawn.values()])
    lines = zip(drawn.items(), heights, _PAINTS * len(drawn), strict=False)
    last = ", ".join(f"{name} ends at {line[-1][1]:.3g}" for name, line in curve.lines.items() if line)
    return Chart(
        title=curve.title,
        label=f"{curve.title}: {last}",
        x=curve.x,
        rules=tuple(Tick(at=place(x0, y)[1], text=f"{y:g}") for y in y_ticks),
        ticks=tuple(Tick(at=place(x, y0)[0], text=f"{x:g}") for x in x_ticks if x0 <= x <= x1),
        lines=tuple(
            ChartLine(
                name=name,
                paint=paint,
                path=" ".join(f"{x},{y}" for x, y in line),
                end=line[-1],
                name_at=height,
            )
            for (name, line), height, paint in lines
        ),
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
