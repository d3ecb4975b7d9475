"""Pictures with what is annotated on them, one by one and on a contact sheet."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from relook.data.decode import BrokenImage
from relook.data.learnt import trained_boxes
from relook.data.sample import Sample, Source
from relook.escaping import printable
from relook.results.drawing import DARK, LIGHT, Annotation, Shape, draw, font
from relook.results.panels import fitted
from relook.results.result import save_picture
from relook.rle import bitmap

TILE: Final = 320  # pixels of a picture's longer side on the sheet
SMALL: Final = 480  # pictures are enlarged by a whole factor until their longer side has so many


def annotated(sample: Sample, classes: Sequence[str]) -> Image.Image:
    """The picture of a sample with its boxes, its masks if it has some, and their classes.

    A crowd says so, and so does an object that training leaves out.

    Raises:
        BrokenImage: when the picture cannot be read.
    """
    picture, zoom = fitted(sample.image(), SMALL)
    width = picture.shape[1]
    learnt = trained_boxes(sample)
    objects: list[Annotation] = []
    for n, (box, label) in enumerate(zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True)):
        tag = str(classes[label])
        if not learnt[n]:
            tag += " (crowd)" if sample.crowd[n] else " (left out)"
        x1, y1, x2, y2 = (max(-width, min(2 * width, v * zoom)) for v in box)
        segmentation = sample.segmentation[n] if sample.segmentation else None
        shape = _shape(segmentation, sample, (picture.shape[1], picture.shape[0]))
        objects.append(Annotation(box=(x1, y1, x2, y2), color=label, tag=tag, shape=shape))
    return draw(picture, objects)


def _shape(segmentation: object, sample: Sample, size: tuple[int, int]) -> Shape | None:
    """The pixels of an object in a picture of that width and height; None when it has none."""
    try:
        drawn = bitmap(segmentation, sample.height, sample.width)
    except ValueError:
        return None
    if drawn is None or not drawn.any():
        return None
    small = np.asarray(Image.fromarray(drawn).resize(size, Image.Resampling.NEAREST))
    rows, columns = np.flatnonzero(small.any(1)), np.flatnonzero(small.any(0))
    if not len(rows):
        return None
    x, y = int(columns[0]), int(rows[0])
    return Shape(corner=(x, y), pixels=small[y : rows[-1] + 1, x : columns[-1] + 1].copy())


def write_pictures(folder: Path, sources: Mapping[str, Source], most: int) -> list[Path]:
    """Writes some pictures of each split with what is annotated on them, and a contact sheet before them.

    Pictures with objects are preferred, at even distances; those that cannot be read are left out.

    Args:
        folder: gets 00-contact-sheet.jpg, 01-train-NAME.jpg ...
        sources: the splits by name.
        most: pictures of all splits together; at least one of each.

    Returns:
        The paths, the contact sheet first; nothing when no picture could be read.
    """
    shown: list[tuple[str, Image.Image]] = []
    written: list[Path] = []
    for split, source in sources.items():
        with_objects = [n for n, sample in enumerate(source.samples) if len(sample.boxes)]
        chosen = with_objects or list(range(len(source.samples)))
        share = max(1, most // len(sources))
        for n in chosen[:: -(-len(chosen) // share) or 1][:share]:
            sample = source.samples[n]
            name = printable(sample.path.name, 300)
            path = folder / f"{len(shown) + 1:02d}-{split}-{printable(sample.path.stem)[:60]}.jpg"
            try:
                picture = annotated(sample, source.classes)
                save_picture(picture, path)
            except BrokenImage:
                continue
            picture.thumbnail((TILE, TILE))  # of all pictures at once only what the sheet shows
            shown.append((f"{split}: {name}", picture))
            written.append(path)
    if not shown:
        return []
    sheet = folder / "00-contact-sheet.jpg"
    save_picture(contact_sheet(shown), sheet)
    return [sheet, *written]


def contact_sheet(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Named pictures of at most `TILE` pixels on one, in rows."""
    columns = max(1, math.ceil(math.sqrt(len(pictures))))
    rows = max(1, math.ceil(len(pictures) / columns))
    letters, gap, line = font(14), 8, 20
    high = line + max((picture.height for _, picture in pictures), default=0) + gap
    sheet = Image.new("RGB", (columns * (TILE + gap) + gap, rows * high + gap), DARK)
    canvas = ImageDraw.Draw(sheet)
    for n, (name, small) in enumerate(pictures):
        x, y = gap + n % columns * (TILE + gap), gap + n // columns * high
        shown = name if len(name) <= 42 else f"...{name[-40:]}"
        canvas.text((x, y + line / 2), shown, fill=LIGHT, font=letters, anchor="lm")
        sheet.paste(small, (x + (TILE - small.width) // 2, y + line))
    return sheet
