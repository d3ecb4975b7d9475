"""Pictures with what is annotated on them, one by one and on a contact sheet."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from relook.data.learnt import trained_boxes
from relook.data.sample import Sample
from relook.results.drawing import DARK, LIGHT, Annotation, Shape, draw, enlarged, font
from relook.rle import bitmap

TILE: Final = 320  # pixels of a picture's longer side on the sheet
SMALL: Final = 480  # pictures are enlarged by a whole factor until their longer side has so many


def annotated(sample: Sample, classes: Sequence[str]) -> Image.Image:
    """The picture of a sample with its boxes, its masks if it has some, and their classes.

    A crowd says so, and so does an object that training leaves out.

    Raises:
        BrokenImage: when the picture cannot be read.
    """
    picture, zoom = enlarged(sample.image(), SMALL)
    width = picture.shape[1]
    learnt = trained_boxes(sample)
    objects: list[Annotation] = []
    for n, (box, label) in enumerate(zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True)):
        tag = str(classes[label])
        if not learnt[n]:
            tag += " (crowd)" if sample.crowd[n] else " (left out)"
        x1, y1, x2, y2 = (max(-width, min(2 * width, v * zoom)) for v in box)
        segmentation = sample.segmentation[n] if sample.segmentation else None
        objects.append(
            Annotation(box=(x1, y1, x2, y2), color=label, tag=tag, shape=_shape(segmentation, sample, zoom))
        )
    return draw(picture, objects)


def _shape(segmentation: object, sample: Sample, zoom: int) -> Shape | None:
    try:
        drawn = bitmap(segmentation, sample.height, sample.width)
    except ValueError:
        return None
    if drawn is None:
        return None
    return Shape(corner=(0, 0), pixels=np.kron(drawn, np.ones((zoom, zoom), np.bool_)) if zoom > 1 else drawn)


def contact_sheet(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Named pictures on one, reduced, in rows."""
    columns = max(1, math.ceil(math.sqrt(len(pictures))))
    rows = max(1, math.ceil(len(pictures) / columns))
    letters, gap = font(14), 8
    line = 20
    sheet = Image.new("RGB", (columns * (TILE + gap) + gap, rows * (TILE + line + gap) + gap), DARK)
    canvas = ImageDraw.Draw(sheet)
    for n, (name, picture) in enumerate(pictures):
        x, y = gap + n % columns * (TILE + gap), gap + n // columns * (TILE + line + gap)
        small = picture.copy()
        small.thumbnail((TILE, TILE))
        shown = name if len(name) <= 42 else f"...{name[-40:]}"
        canvas.text((x, y + line / 2), shown, fill=LIGHT, font=letters, anchor="lm")
        sheet.paste(small, (x + (TILE - small.width) // 2, y + line))
    return sheet
