"""How a training goes, as one self-contained page that loads itself again while it goes on."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Final

from relook.files import whole_file
from relook.report.page import Curve, svg

SECONDS: Final = 10  # between two looks at the file
MOST: Final = 400  # points of a line
ASIDE: Final = frozenset({"kind", "step", "epoch", "seconds", "images", "objects", "detections"})

Row = Mapping[str, float | int | str]


def write_live(path: Path, rows: Sequence[Row], *, running: bool) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: of the page.
        rows: as metrics.jsonl has them: "kind" is train or validation, "step" counts changes of the weights.
        running: the training goes on, so the page loads itself again.
    """
    train, val = ([row for row in rows if row["kind"] == kind] for kind in ("train", "validation"))
    losses = [name for name in _names(train) if name.startswith("loss")]
    curves = [
        Curve(title="Losses", x="step", lines=_lines(train, losses), low=0),
        Curve(title="Validation", x="step", lines=_lines(val, _numbers(val)), low=0, high=1),
        Curve(title="Learning rate", x="step", lines={"": _line(train, "lr")}, low=0),
        Curve(title="Images a second", x="step", lines={"": _line(train, "images_per_second")}, low=0),
    ]
    drawn = "\n".join(f"<figure>{svg(one)}</figure>" for one in curves if any(one.lines.values()))
    told = "".join(f"<p>{escape(text)}</p>" for text in _told(train, val, running=running))
    again = f'<meta http-equiv="refresh" content="{SECONDS}">' if running else ""
    with whole_file(path) as beside:
        beside.write_text(_PAGE.format(again=again, told=told, drawn=drawn), encoding="utf-8")


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _numbers(rows: Sequence[Row]) -> list[str]:
    """What of a validation is drawn: average precision, and that at single overlaps."""
    names = [name for name in _names(rows) if name not in ASIDE]
    return [name for name in names if name.removeprefix("segm ") in {"AP", "AP50", "AP75", "mAP"}]


def _lines(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    lines = {name.removeprefix("loss_"): _line(rows, name) for name in names}
    return {name: line for name, line in lines.items() if line}


def _line(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    """Step and value, thinned where there are many; the last one stays."""
    mine = [row for row in rows if name in row]
    step = max(1, -(-len(mine) // MOST))
    return [(float(row["step"]), float(row[name])) for row in (*mine[:-1:step], *mine[-1:])]


def _told(train: Sequence[Row], val: Sequence[Row], *, running: bool) -> list[str]:
    told = [f"This page loads itself again every {SECONDS} seconds." if running else "Training has ended."]
    if train:
        last = {"epoch": "?", "loss": math.nan, **train[-1]}
        told.append(f"Epoch {last['epoch']}, step {last['step']}: loss {last['loss']:.4f}.")
    if val:
        numbers = ", ".join(f"{name} {val[-1][name]:.4f}" for name in _numbers(val[-1:]))
        told.append(f"Last validation, at step {val[-1]['step']}: {numbers}.")
    return told


_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
{again}
<title>Training</title>
<style>
body {{ margin: 0 auto; max-width: 1080px; padding: 32px 24px; font: 16px/1.5 system-ui, sans-serif;
  background: #ffffff; color: #1b1f24; }}
main {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(360px, 1fr)); gap: 18px; }}
figure {{ margin: 0; }}
p {{ color: #59626d; margin: 0 0 6px; }}
</style>
</head>
<body>
<h1>Training</h1>
{told}
<main>
{drawn}
</main>
</body>
</html>
"""
