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
from relook.results.drawing import DARK, LIGHT, Annotation, Shape, draw, enlarged, font
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
            try:
                picture = annotated(sample, source.classes)
            except BrokenImage:
                continue
            shown.append((f"{split}: {sample.path.name}", picture))
            written.append(folder / f"{len(shown):02d}-{split}-{sample.path.stem}.jpg")
            save_picture(picture, written[-1])
    if not shown:
        return []
    sheet = folder / "00-contact-sheet.jpg"
    save_picture(contact_sheet(shown), sheet)
    return [sheet, *written]


def contact_sheet(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Named pictures on one, reduced, in rows."""
    columns = max(1, math.ceil(math.sqrt(len(pictures))))
    rows = max(1, math.ceil(len(pictures) / columns))
    letters, gap, line = font(14), 8, 20
    reduced = [picture.copy() for _, picture in pictures]
    for small in reduced:
        small.thumbnail((TILE, TILE))
    high = line + max((small.height for small in reduced), default=0) + gap
    sheet = Image.new("RGB", (columns * (TILE + gap) + gap, rows * high + gap), DARK)
    canvas = ImageDraw.Draw(sheet)
    for n, ((name, _), small) in enumerate(zip(pictures, reduced, strict=True)):
        x, y = gap + n % columns * (TILE + gap), gap + n // columns * high
        shown = name if len(name) <= 42 else f"...{name[-40:]}"
        canvas.text((x, y + line / 2), shown, fill=LIGHT, font=letters, anchor="lm")
        sheet.paste(small, (x + (TILE - small.width) // 2, y + line))
    return sheet
