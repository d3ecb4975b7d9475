"""What a detector saw, step by step and side by side: first look, verification, second look, answer.

Knows arrays and Pillow, no detector and no file.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from relook.draw import DARK, LIGHT, PALETTE, Color, Mark, Pen, enlarged, font

TOP_LEFT: Final[Color] = PALETTE[1]
BOTTOM_RIGHT: Final[Color] = PALETTE[4]
SOFT: Final[Color] = (172, 178, 188)  # of captions
SMALL, LARGE = 384, 960  # pixels of a panel's longer side: others are enlarged or reduced
NARROW = 220  # pixels that a caption needs
SHAPE = 1.4  # width by height that a sheet tries to have
THICK = 1.5  # a sheet is mostly shown smaller than it is
DIM = 0.45  # of the picture under corner maps
FAINT = 0.75  # exponent: what is half sure is shown more than half


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CornerMap:
    """How surely corners are where, on a picture: cell (i, j) is the point (j * step[0], i * step[1])."""

    values: NDArray[np.float32]  # [2, h, w] in 0 .. 1: top left, bottom right
    step: tuple[float, float]  # x, y in pixels of the picture


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
    picture: NDArray[np.uint8], marks: Sequence[Mark], heat: Sequence[CornerMap] = ()
) -> tuple[Panel, ...]:
    """The steps that there is something to see of, in order; the answer always.

    Args:
        picture: uint8 RGB [H, W, 3], from `fitted`.
        marks: objects in pixels of that picture; each gets a colour of its own, the same in all panels.
        heat: corner maps; where they overlap the warmest counts.
    """
    marks = [replace(mark, color=number) for number, mark in enumerate(marks)]
    steps: list[Panel] = []
    if any(mark.first is not None for mark in marks):
        caption = "Nine points for each object, all told by one place of the feature map."
        steps.append(Panel(name="first look", caption=caption, image=_drawn(picture, marks, Pen.first)))
    if heat:
        answer = (("the answer's", LIGHT),) if marks else ()
        steps.append(
            Panel(
                name="verification",
                caption="Where corners were seen:",
                image=_drawn(warmed(picture, heat), marks, Pen.corners),
                keys=(("top left", TOP_LEFT), ("bottom right", BOTTOM_RIGHT), *answer),
            )
        )
    if any(mark.second is not None for mark in marks):
        caption = "The features were read again at those points, which moved."
        image = _drawn(picture, marks, Pen.tracks)
        steps.append(Panel(name="second look", caption=caption, image=image))
    return (*steps, Panel(name="the answer", caption=_answer(marks), image=_named(picture, marks)))


def _named(picture: NDArray[np.uint8], marks: Sequence[Mark]) -> Image.Image:
    """Boxes, how they came about, and names where they hide no corner that moved."""
    image = _drawn(picture, marks, Pen.box, Pen.verified)
    pen = Pen(image, THICK)
    taken = [place for mark in marks for place in pen.moved_corners(mark)]
    for mark in marks:
        pen.tag(mark, taken)
    return image


def _answer(marks: Sequence[Mark]) -> str:
    if not marks:
        return "Nothing was found."
    if any(mark.regressed is not None for mark in marks):
        return "Dashed: the box before verification, where a corner of it moved."
    return "The box of the points; what is in it, and how sure that is."


def _drawn(
    picture: NDArray[np.uint8], marks: Sequence[Mark], *strokes: Callable[[Pen, Mark], None]
) -> Image.Image:
    """A copy of the picture with each kind of stroke for all marks, the best on top."""
    image = Image.fromarray(picture).copy()
    pen = Pen(image, THICK)
    for stroke in strokes:
        for mark in reversed(marks):
            stroke(pen, mark)
    return image


# -- corner maps -----------------------------------------------------------------------------------------


def warmed(picture: NDArray[np.uint8], heat: Sequence[CornerMap]) -> NDArray[np.uint8]:
    """A dim grey copy of a picture, coloured where corners were seen: fully where that is certain.

    A cell shines as far as the next cell of the finest map, so that those of coarser maps are dots.
    """
    height, width = picture.shape[:2]
    reach = min(one.step[0] for one in heat), min(one.step[1] for one in heat)
    warm = np.max([shining(one, height, width, reach) for one in heat], axis=0)  # [2, H, W]
    share = warm / np.maximum(warm.sum(0), 1e-12)  # of each colour, where both are seen
    paints = np.array([TOP_LEFT, BOTTOM_RIGHT], np.float32)
    cover = warm.max(0)[..., None] ** FAINT
    grey = np.asarray(Image.fromarray(picture).convert("L"), np.float32)[..., None] * DIM
    mixed: NDArray[np.float32] = grey * (1 - cover) + np.matmul(np.moveaxis(share, 0, -1), paints) * cover
    return mixed.round().clip(0, 255).astype(np.uint8)


def shining(
    heat: CornerMap, height: int, width: int, reach: tuple[float, float] | None = None
) -> NDArray[np.float32]:
    """The map at every pixel [2, height, width]: cells as they are at their points, fading linearly.

    Args:
        heat: the map.
        height: of the picture.
        width: likewise.
        reach: x, y pixels after which a cell has faded; without it as far as the next cell.
    """
    x, y = reach or heat.step
    rows = _weights(height, heat.values.shape[1], heat.step[1], y)
    columns = _weights(width, heat.values.shape[2], heat.step[0], x)
    return np.matmul(np.matmul(rows, heat.values), columns.T)


def _weights(pixels: int, cells: int, step: float, reach: float) -> NDArray[np.float32]:
    """How much each pixel's middle takes of each cell: [pixels, cells]."""
    away = np.abs(np.arange(0.5, pixels)[:, None] - np.arange(cells) * step)
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
