"""The page about a trained detector."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relook.report.page import Curve, Headline, Report, Row, View, page, ticks, write


def example(**changes: object) -> Report:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    facts = {
        "title": "Shapes <& co>",
        "summary": "A sentence.",
        "headlines": (Headline(name="AP50", value="0.83", means="half"),),
        "legend": "Hollow, then filled.",
        "rows": (Row(name="a", views=(View(image=image, caption="truth", alt='two "stars"'),) * 3),),
        "curves": (
            Curve(
                title="Loss", x="step", lines={"class": [(1, 2.0), (5, 1.0)], "box": [(1, 1.5), (5, 1.02)]}
            ),
        ),
        "per_class": {"star": 0.5, "none": -1.0},
        "per_class_ap50": {"star": 0.75, "none": -1.0},
        "numbers": {"AP": 0.4, "APl": -1.0},
        "facts": {"Model": "nano"},
        "commands": {"Next": "relook predict <x>"},
    }
    return Report(**{**facts, **changes})


class Reader(HTMLParser):
    """Collects tags and checks that they are closed in order."""

    VOID = frozenset({"meta", "img", "circle", "line", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    return reader


def test_the_page_is_whole_and_loads_nothing():
    """Tags are balanced; every address is data inside the page; text is escaped."""
    text = page(example())
    reader = read(text)
    for tag, attributes in reader.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert not re.search(r"url\(|@import|<script|https?://", text)
    assert "Shapes &lt;&amp; co&gt;" in text
    assert "relook predict <x>" in reader.words


def test_it_can_be_read_without_seeing():
    """A language, one h1, sections with names, texts for pictures and charts."""
    reader = read(page(example()))
    tags = [tag for tag, _ in reader.tags]
    assert dict(reader.tags)["html"]["lang"] == "en"
    assert tags.count("h1") == 1
    ids = {a["id"] for tag, a in reader.tags if tag == "h2"}
    assert {a["aria-labelledby"] for tag, a in reader.tags if tag == "section"} == ids
    assert all(a["alt"] == 'two "stars"' for tag, a in reader.tags if tag == "img")
    (label,) = [a["aria-label"] or "" for tag, a in reader.tags if tag == "svg"]
    assert "class ends at 1" in label


def test_what_does_not_exist_is_a_dash_and_sections_without_content_are_left_out():
    """No object of a class is no zero; no picture, no section of pictures."""
    reader = read(page(example(rows=(), curves=(), commands={})))
    assert reader.words.count("-") == 3  # of a class both numbers, and one of the others
    assert "What it sees" not in reader.words
    assert "How it learnt" not in reader.words
    assert "What was run" in reader.words


def chart_svg(curve: Curve) -> str:
    """The drawing of one curve in the page."""
    text = page(example(curves=(curve,)))
    return text[text.index("<svg") : text.index("</svg>")]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.003, 0.0071), (-5, 1234), (2, 2), (0, 1e-9), (999, 1001)]
)
def test_ticks_are_round_rising_and_hold_the_range(low: float, high: float):
    """Between two and eight, equally far apart, from at or below to at or above."""
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert found[0] <= low + 1e-9
    assert found[-1] >= high - 1e-9
    steps = np.diff(found)
    assert (steps > 0).all()
    assert np.allclose(steps, steps[0])


def test_a_curve_lies_where_its_numbers_say():
    """The highest value is drawn highest, the line ends at the right, names do not touch; NaN is left out."""
    lines = {"a": [(0, 0.0), (5, float("nan")), (10, 1.0)], "b": [(0, 0.5), (10, 0.99)], "empty": []}
    svg = chart_svg(Curve(title="T", x="step", lines=lines, low=0, high=1))
    paths = [
        [tuple(map(float, p.split(","))) for p in m.split()] for m in re.findall(r'points="([^"]+)"', svg)
    ]
    assert len(paths) == 2
    (left, bottom), (right, top) = paths[0]
    assert left < right
    assert top < bottom
    assert paths[1][0][1] == pytest.approx((top + bottom) / 2, abs=0.2)
    names = [float(y) for y in re.findall(r'y="([\d.]+)" style', svg)]
    assert abs(names[0] - names[1]) >= 14
    flat = chart_svg(Curve(title="T", x="step", lines={"a": [(3, 2.0)]}))
    assert "nan" not in flat


def test_three_lines_at_the_bottom_keep_their_names_inside():
    """Names that would fall below the axis are moved up."""
    lines = {name: [(0, 0.0), (1, 0.0)] for name in ("AP50", "AP", "AP75")}
    svg = chart_svg(Curve(title="T", x="step", lines=lines, low=0, high=1))
    heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)" style', svg))
    assert heights[-1] <= 250 - 36 + 5
    assert np.diff(heights).min() >= 14


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 420])
def test_a_browser_shows_it(tmp_path: Path, width: int):
    """Headless Chromium lays the page out: text and pictures appear, nothing hangs over the right edge."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium or Chrome on this machine")
    path, shot = tmp_path / "index.html", tmp_path / "shot.png"
    write(example(), path)
    command = [
        *(
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={tmp_path}/p",
        ),
        *(f"--window-size={width},1600", f"--screenshot={shot}", path.as_uri()),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert shot.exists(), done.stderr
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    ground = pixels[3, 3]
    painted = np.abs(pixels - ground).sum(-1) > 30
    assert painted.mean() > 0.02, "the page is empty"
    assert not painted[:, -8:].any(), "something hangs over the right edge"
    assert len(np.unique(pixels[painted].reshape(-1, 3), axis=0)) > 500, "the pictures are missing"
