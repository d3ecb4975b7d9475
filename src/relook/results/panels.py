"""What a detector saw, step by step and side by side: a panel for each look, and the answer.

Knows looks, arrays and Pillow, no detector and no file.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from relook.results.drawing import (
    DARK,
    LIGHT,
    PALETTE,
    Annotation,
    Color,
    Pen,
    PointSet,
    Rectangle,
    enlarged,
    font,
)
from relook.results.looks import ImageLook, ImageMap

PAINTS: Final[tuple[Color, ...]] = (PALETTE[1], PALETTE[4], PALETTE[2], PALETTE[5])  # of a map's channels
SOFT: Final[Color] = (172, 178, 188)  # of captions
SMALL, LARGE = 384, 960  # pixels of a panel's longer side: others are enlarged or reduced
NARROW = 220  # pixels that a caption needs
SHAPE = 1.4  # width by height that a sheet tries to have
THIN = 0.5  # patches are many
THICK = 1.5  # a sheet is mostly shown smaller than it is
DIM = 0.45  # of the picture under maps
FAINT = 0.75  # exponent: what is half sure is shown more than half


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Panel:
    """One step of what a detector saw."""

    name: str
    caption: str
    image: Image.Image
    keys: tuple[tuple[str, Color], ...] = ()  # what colours mean


def fitted(picture: NDArray[np.uint8], side: int = 0) -> tuple[NDArray[np.uint8], float]:
    """A picture (uint8 RGB [H, W, 3]) as large as a panel, and how many times larger it became.

    Small ones are enlarged by a whole factor, to at least `side` or SMALL pixels of the longer side; large
    ones are reduced to `side` or LARGE, whichever is more.
    """
    height, width = picture.shape[:2]
    most = max(side, LARGE)
    zoom = most / max(height, width)
    if zoom >= 1:
        return enlarged(picture, max(side, SMALL))
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)), zoom


def panels(
    picture: NDArray[np.uint8],
    answers: Sequence[Annotation],
    looks: Sequence[ImageLook] = (),
    zoom: float = 1.0,
) -> tuple[Panel, ...]:
    """A panel for each look that there is something to see of, in order, and the answer.

    Args:
        picture: uint8 RGB [H, W, 3], from `fitted`.
        answers: objects in pixels of that picture; each gets a colour of its own, the same in all panels.
        looks: in pixels of the original image; rows are those of `answers`.
        zoom: how many times larger than the original the picture is.
    """
    answers = [replace(one, color=number) for number, one in enumerate(answers)]
    steps: list[Panel] = []
    before: ImageLook | None = None
    for look in looks:
        if look.on_answer:
            answers = _with_before(answers, look, zoom)
        elif look.maps or look.patches is not None or (look.has_rows and answers):
            steps.append(_panel(picture, answers, look, before, zoom))
            before = look if look.points is not None else before
    caption = next((look.caption for look in looks if look.on_answer and look.boxes is not None), "")
    image = _named(picture, answers)
    return (*steps, Panel(name="the answer", caption=_answer(answers, caption), image=image))


def _panel(
    picture: NDArray[np.uint8],
    answers: Sequence[Annotation],
    look: ImageLook,
    before: ImageLook | None,
    zoom: float,
) -> Panel:
    """What one look saw: its maps below, then its boxes and points."""
    keys: tuple[tuple[str, Color], ...] = ()
    image = Image.fromarray(picture).copy()
    if look.maps:
        keys = tuple(zip(look.maps[0].names, PAINTS, strict=False))
        keys += (("the answer's", LIGHT),) if answers else ()
        image = Image.fromarray(warmed(picture, look.maps, zoom))
        _draw_each(image, answers, Pen.corners)
    if look.patches is not None:
        Pen(image, THIN).patches(cast("list[Rectangle]", (look.patches * zoom).tolist()))
        _draw_each(image, answers, Pen.corners)
        keys = (("a patch", PALETTE[1]), *((("the answer's", LIGHT),) if answers else ()))
    _draw_each(image, [replace(one, box=box) for one, box in _boxes(answers, look, zoom)], Pen.box)
    pen = Pen(image, THICK)
    for i in reversed(range(len(answers))):
        if look.points is not None:
            points = _points(look, i, zoom)
            start = _points(before, i, zoom) if look.joined and before is not None else None
            pen.lines(answers[i], start, points, rings=False)
            pen.dots(answers[i], points)
    return Panel(name=look.title, caption=look.caption, image=image, keys=keys)


def _boxes(
    answers: Sequence[Annotation], look: ImageLook, zoom: float
) -> list[tuple[Annotation, tuple[float, float, float, float]]]:
    """Each answer, and its box in a look that has boxes."""
    if look.boxes is None:
        return []
    rows = cast("list[list[float]]", (look.boxes * zoom).tolist())
    return [(one, (x1, y1, x2, y2)) for one, (x1, y1, x2, y2) in zip(answers, rows, strict=True)]


def _points(look: ImageLook, row: int, zoom: float) -> PointSet:
    points = np.zeros((0, 2)) if look.points is None else look.points[row].numpy() * zoom
    return PointSet(at=points, title=look.title, joined=look.joined)


def _with_before(answers: Sequence[Annotation], look: ImageLook, zoom: float) -> list[Annotation]:
    if look.boxes is None:
        return list(answers)
    return [replace(one, before=box) for one, box in _boxes(answers, look, zoom)]


def _named(picture: NDArray[np.uint8], answers: Sequence[Annotation]) -> Image.Image:
    """Boxes, how they came about, and names where they hide no corner that moved."""
    image = Image.fromarray(picture).copy()
    _draw_each(image, answers, Pen.shade)
    _draw_each(image, answers, Pen.box)
    _draw_each(image, answers, Pen.moved)
    pen = Pen(image, THICK)
    taken = [place for one in answers for place in pen.moved_corners(one)]
    for one in answers:
        pen.tag(one, taken)
    return image


def _answer(answers: Sequence[Annotation], caption: str) -> str:
    if not answers:
        return "Nothing was found."
    return caption or "What is in each box, and how sure that is."


def _draw_each(
    image: Image.Image, answers: Sequence[Annotation], stroke: Callable[[Pen, Annotation], None]
) -> None:
    """One kind of stroke for all objects, the best on top."""
    pen = Pen(image, THICK)
    for one in reversed(answers):
        stroke(pen, one)


# -- maps ------------------------------------------------------------------------------------------------


def warmed(picture: NDArray[np.uint8], maps: Sequence[ImageMap], zoom: float = 1.0) -> NDArray[np.uint8]:
    """A dim grey copy of a picture, coloured where something was seen: fully where that is certain.

    A cell shines as far as the next cell of the finest map, so that those of coarser maps are dots. Each
    channel has a colour of its own; where maps overlap the warmest counts.

    Args:
        picture: uint8 RGB [H, W, 3], `zoom` times as large as the original.
        maps: all with the same channels.
        zoom: see there.
    """
    height, width = picture.shape[:2]
    reach = min(one.step[0] for one in maps) * zoom, min(one.step[1] for one in maps) * zoom
    warm = np.max([shining(one, height, width, reach, zoom) for one in maps], axis=0)  # [n, H, W]
    paints = np.array([PAINTS[i % len(PAINTS)] for i in range(len(warm))], np.float32)
    share = warm / np.maximum(warm.sum(0), 1e-12)  # of each colour, where several are seen
    cover = warm.max(0)[..., None] ** FAINT
    grey = np.asarray(Image.fromarray(picture).convert("L"), np.float32)[..., None] * DIM
    mixed: NDArray[np.float32] = grey * (1 - cover) + np.matmul(np.moveaxis(share, 0, -1), paints) * cover
    return mixed.round().clip(0, 255).astype(np.uint8)


def shining(
    one: ImageMap, height: int, width: int, reach: tuple[float, float] | None = None, zoom: float = 1.0
) -> NDArray[np.float32]:
    """The map at every pixel [n, height, width]: cells as they are at their points, fading linearly.

    Args:
        one: the map, in pixels of the original image.
        height: of the picture.
        width: likewise.
        reach: x, y pixels of the picture after which a cell has faded; without it as far as the next cell.
        zoom: how many times larger than the original the picture is.
    """
    values = one.values.numpy()
    step = one.step[0] * zoom, one.step[1] * zoom
    x, y = reach or step
    rows = _weights(height, values.shape[1], one.first[1] * zoom, step[1], y)
    columns = _weights(width, values.shape[2], one.first[0] * zoom, step[0], x)
    return np.matmul(np.matmul(rows, values), columns.T)


def _weights(pixels: int, cells: int, first: float, step: float, reach: float) -> NDArray[np.float32]:
    """How much each pixel's middle takes of each cell: [pixels, cells]."""
    away = np.abs(np.arange(0.5, pixels)[:, None] - (first + np.arange(cells) * step))
    return np.maximum(1 - away / reach, 0).astype(np.float32)


# -- sheets ----------------------------------------------------------------------------------------------


def sheet(steps: Sequence[Panel]) -> Image.Image:
    """All panels on one picture, numbered and named; beside or above each other, as fits their shape."""
    wide = max(NARROW, *(step.image.width for step in steps))
    high = max(step.image.height for step in steps)
    heads = _Heads(steps, wide)
    gap = max(6, wide // 50)
    columns = min(
        (n for n in range(1, len(steps) + 1) if len(steps) % n == 0),
        key=lambda n: abs(math.log(n * wide / (len(steps) // n * (high + heads.height)) / SHAPE)),
    )
    rows = len(steps) // columns
    size = (columns * (wide + gap) + gap, rows * (high + heads.height + gap) + gap)
    whole = Image.new("RGB", size, DARK)
    for number, step in enumerate(steps):
        x = gap + number % columns * (wide + gap)
        y = gap + number // columns * (high + heads.height + gap)
        heads.write(whole, (x, y), number)
        whole.paste(step.image, (x + (wide - step.image.width) // 2, y + heads.height))
    return whole


class _Heads:
    """The lines above the panels, broken so that they fit, all of one height."""

    def __init__(self, steps: Sequence[Panel], wide: int) -> None:
        self.steps, self.wide = steps, wide
        self.large, self.small = font(max(15, wide // 24)), font(max(11, wide // 36))
        self.line = round(self.small.size * 1.35)
        self.top = round(self.large.size * 1.4)
        most = max(sum(1 for _ in self._lines(step)) for step in steps)
        self.height = self.top + most * self.line + self.line // 3

    def write(self, whole: Image.Image, corner: tuple[int, int], number: int) -> None:
        """The head of one panel at its upper left corner."""
        x, y = corner
        step = self.steps[number]
        canvas = ImageDraw.Draw(whole)
        title = f"{number + 1}  {step.name}" if len(self.steps) > 1 else step.name
        canvas.text((x, y + self.top / 2), title, fill=LIGHT, font=self.large, anchor="lm")
        y += self.top
        for line in self._lines(step):
            at = x
            for text, paint in line:
                if paint is not None:
                    side = round(self.small.size * 0.7)
                    above = y + (self.line - side) // 2
                    canvas.rectangle((at, above, at + side - 1, above + side - 1), fill=paint)
                    at += self._swatch()
                canvas.text((at, y + self.line / 2), text, fill=SOFT, font=self.small, anchor="lm")
                at += round(self.small.getlength(text)) + self._swatch()
            y += self.line

    def _lines(self, step: Panel) -> Iterator[list[tuple[str, Color | None]]]:
        """Lines of (text, colour of the swatch before it)."""
        line: list[tuple[str, Color | None]] = []
        for text in _broken(step.caption, self.small, self.wide):
            if line:
                yield line
            line = [(text, None)]
        for key in step.keys:
            if line and self._length([*line, key]) > self.wide:
                yield line
                line = []
            line.append(key)
        yield line

    def _swatch(self) -> int:
        return round(self.small.size)

    def _length(self, line: Sequence[tuple[str, Color | None]]) -> float:
        swatches = sum(paint is not None for _, paint in line) + len(line) - 1
        return sum(self.small.getlength(text) for text, _ in line) + swatches * self._swatch()


def _broken(text: str, letters: ImageFont.FreeTypeFont, wide: int) -> list[str]:
    """A text in lines that are no wider than `wide`, where words allow it."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and letters.getlength(longer) > wide:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
