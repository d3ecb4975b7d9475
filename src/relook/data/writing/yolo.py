"""YOLO's format: images/NAME/ and labels/NAME/ with a text file for each picture, and data.yaml."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from relook.data.sample import Sample
from relook.data.writing.kinds import Split, Writer, counted, has_run_lengths, polygons


def _write(out: Path, splits: Sequence[Split]) -> list[str]:
    """A file for each picture. Objects with an outline are written by it, others by their box.

    Crowds, difficult objects and those that are to be ignored have no place in the format and are left out.
    """
    left = runs = joined = far = 0
    masks = False
    for split in splits:
        folder = out / "labels" / ("" if split.name == "all" else split.name)
        folder.mkdir(parents=True, exist_ok=True)
        for sample, name in split.rows():
            kept = [row for row in range(len(sample.labels)) if not (sample.crowd[row] or sample.ignore[row])]
            left += len(sample.labels) - len(kept)
            runs += sum(has_run_lengths(sample, row) for row in kept)
            outlines = [polygons(sample, row) for row in kept]
            masks = masks or any(outlines)
            joined += sum(len(parts or ()) > 1 for parts in outlines)
            lines = [_line(sample, row, parts) for row, parts in zip(kept, outlines, strict=True)]
            far += sum(_is_far(sample, row) for row in kept)
            (folder / f"{Path(name).stem}.txt").write_text("".join(lines), encoding="utf-8")
    facts: dict[str, Any] = {split.name: _images(split.name) for split in splits if split.name != "all"}
    facts = facts or {"train": _images("all")}
    facts |= {"names": dict(enumerate(splits[0].source.classes))}
    facts |= {"task": "segment"} if masks else {}
    (out / "data.yaml").write_text(
        yaml.safe_dump(facts, allow_unicode=True, sort_keys=False), encoding="utf-8"
    )
    return [
        *counted(
            left, "are crowds, difficult or to be ignored, for which YOLO has no mark; they are left out"
        ),
        *counted(runs, "have a mask of run lengths, which YOLO does not hold; their boxes are written"),
        *counted(far, "pass the border of their picture by far; they are clipped to it"),
        *counted(joined, "have several outlines, which are joined to one"),
    ]


def _line(sample: Sample, row: int, outlines: list[list[float]] | None) -> str:
    """`class x y width height`, or `class x1 y1 x2 y2 ...`, in shares of the picture."""
    sides = (sample.width, sample.height)
    far = _is_far(sample, row)
    if outlines:
        numbers = [value / sides[n % 2] for part in outlines for n, value in enumerate(part)]
        numbers = [min(max(number, 0.0), 1.0) for number in numbers] if far else numbers
    else:
        x1, y1, x2, y2 = sample.boxes[row].tolist()
        if far:
            x1, x2 = (min(max(x, 0.0), float(sample.width)) for x in (x1, x2))
            y1, y2 = (min(max(y, 0.0), float(sample.height)) for y in (y1, y2))
        numbers = [
            (x1 + x2) / 2 / sides[0],
            (y1 + y2) / 2 / sides[1],
            (x2 - x1) / sides[0],
            (y2 - y1) / sides[1],
        ]
    return f"{int(sample.labels[row])} {' '.join(f'{number:.13g}' for number in numbers)}\n"


def _is_far(sample: Sample, row: int) -> bool:
    """Whether an object reaches so far beyond its picture that shares of it would look like pixels."""
    points = [value for part in polygons(sample, row) or () for value in part]
    shares = [value / (sample.width, sample.height)[n % 2] for n, value in enumerate(points)]
    sides = (sample.width, sample.height, sample.width, sample.height)
    shares += [float(value) / side for value, side in zip(sample.boxes[row].tolist(), sides, strict=True)]
    return max(map(abs, shares)) > 1.9


def _images(split: str) -> str:
    return "images" if split == "all" else f"images/{split}"


YOLO = Writer(images=_images, write=_write)
