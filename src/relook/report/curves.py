"""Precision-recall curves as CSV, as pictures, and as one self-contained page with a slider for the score."""

import base64
import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from relook.files import whole_file
from relook.metrics.curves import OVERLAPS, RECALLS, Curves, Mistake
from relook.report.page import Curve, svg

MOST: Final = 24  # pictures of each kind of mistake
SIDE: Final = 160  # pixels of a picture
SHOWN: Final = (0.5, 0.75, 0.95)  # overlaps in pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A mistake as the page shows it."""

    picture: str  # base64
    name: str
    score: float


def write_curves(folder: Path, found: Curves, image: Callable[[int], NDArray[np.uint8]]) -> Path:
    """Writes curves.csv, curves/CLASS.svg and curves.html into a folder; each whole or not at all.

    Args:
        folder: exists.
        found: what is to be shown.
        image: the picture of an id, RGB [H, W, 3]; asked for those with mistakes that are shown.

    Returns:
        The page.
    """
    with whole_file(folder / "curves.csv") as beside, beside.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("class", "overlap", "recall", "precision", "score"))
        for label, name in enumerate(found.classes):
            for t, overlap in enumerate(OVERLAPS):
                pairs = zip(found.precision[t, :, label], found.score[t, :, label], strict=True)
                rows.writerows(
                    (name, overlap, recall, f"{p:.6f}", f"{s:.6f}")
                    for recall, (p, s) in zip(RECALLS, pairs, strict=True)
                    if p >= 0
                )
    (folder / "curves").mkdir(exist_ok=True)
    for label, name in enumerate(found.classes):
        if (found.precision[:, :, label] >= 0).any():
            with whole_file(folder / "curves" / f"{label + 1:03d}-{_safe(name)}.svg") as beside:
                beside.write_text(_svg(found, label), encoding="utf-8")
    page = folder / "curves.html"
    with whole_file(page) as beside:
        beside.write_text(_page(found, image), encoding="utf-8")
    return page


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).encode()[:120].decode(errors="ignore")


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _svg(found: Curves, label: int) -> str:
    """Precision over recall of a class at three overlaps."""
    lines = {
        f"{overlap:g}": list(
            zip(RECALLS, found.precision[OVERLAPS.index(overlap), :, label].tolist(), strict=True)
        )
        for overlap in SHOWN
    }
    title = f"{found.classes[label]}: precision over recall, a line for each overlap"
    return svg(Curve(title=title, x="recall", lines=lines, low=0, high=1))


def _page(found: Curves, image: Callable[[int], NDArray[np.uint8]]) -> str:
    there = [label for label in range(len(found.classes)) if (found.precision[:, :, label] >= 0).any()]
    data: list[dict[str, Any]] = [
        {
            "precision": np.round(found.precision[:, :, label], 4).tolist(),
            "score": np.round(found.score[:, :, label], 4).tolist(),
        }
        for label in there
    ]
    # no text of the data may end the script that holds it
    text = json.dumps({"overlaps": OVERLAPS, "recalls": RECALLS, "classes": data}).replace("<", "\\u003c")
    template = Path(__file__).with_name("curves.html.j2").read_text(encoding="utf-8")
    return (
        _environment()
        .from_string(template)
        .render(
            data=text,
            overlaps=OVERLAPS,
            classes=[found.classes[label] for label in there],
            wrong=_gallery(found, found.wrong, image, "#d55e00"),
            missed=_gallery(found, found.objects, image, "#0072b2"),
            counts=(len(found.wrong), sum(one.score == 0 for one in found.objects), len(found.objects)),
        )
    )


def _gallery(
    found: Curves, mistakes: Sequence[Mistake], image: Callable[[int], NDArray[np.uint8]], colour: str
) -> list[Shown]:
    shown: list[Shown] = []
    for one in mistakes[:MOST]:
        try:
            picture = Image.fromarray(image(one.image))
        except ValueError:  # what could not be read was told before
            continue
        buffer = io.BytesIO()
        _cut(picture, one.box, colour).save(buffer, format="WEBP", quality=85)
        code = base64.b64encode(buffer.getvalue()).decode()
        shown.append(Shown(picture=code, name=found.classes[one.label], score=one.score))
    return shown


def _cut(picture: Image.Image, box: tuple[float, float, float, float], colour: str) -> Image.Image:
    """A square around a box, twice as large, and the box in it."""
    x1, y1, x2, y2 = box
    half = max(x2 - x1, y2 - y1, 16)
    left, top = (x1 + x2) / 2 - half, (y1 + y2) / 2 - half
    part = picture.transform(
        (SIDE, SIDE),
        Image.Transform.EXTENT,
        (left, top, left + 2 * half, top + 2 * half),
        Image.Resampling.BILINEAR,
    )
    scale = SIDE / (2 * half)
    corners = [(x1 - left) * scale, (y1 - top) * scale, (x2 - left) * scale, (y2 - top) * scale]
    corners[2:] = [max(corners[2], corners[0]), max(corners[3], corners[1])]
    ImageDraw.Draw(part).rectangle(corners, outline=colour, width=2)
    return part
