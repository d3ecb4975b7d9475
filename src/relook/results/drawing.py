"""Boxes, names and points drawn on a picture. Knows arrays and Pillow, no detector and no file."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]  # x1, y1, x2, y2

PALETTE: Final[tuple[Color, ...]] = (  # Okabe and Ito's, told apart by colour-blind eyes too
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (213, 94, 0),
    (86, 180, 233),
    (204, 121, 167),
    (240, 228, 66),
)
DARK: Final[Color] = (20, 22, 26)
LIGHT: Final[Color] = (255, 255, 255)
SHADE: Final = 110  # of 255: how much of a mask's colour covers the picture
SMOOTH: Final = 4  # round shapes are drawn this many times larger, then reduced


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PointSet:
    """The points of one object in one look, in pixels of the picture."""

    at: NDArray[np.float64]  # [N, 2] x, y
    title: str = ""  # of the look, for the legend
    joined: bool = False  # filled, each at the end of a line from its place in the set before; else hollow


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shape:
    """The pixels of one object."""

    corner: tuple[int, int]  # x, y of the upper left one
    pixels: NDArray[np.bool_]  # [h, w]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Annotation:
    """One object to draw, in pixels of the picture; a caller lists the best first."""

    box: Rectangle
    color: int = 0  # usually its class
    tag: str = ""
    points: tuple[PointSet, ...] = ()  # in the order of the looks
    before: Rectangle | None = None  # the box before its last move
    shape: Shape | None = None  # shaded in the same colour


def color(index: int) -> Color:
    """A colour for each class: seven that differ in hue, then darker and paler ones of the same hues."""
    base = PALETTE[index % len(PALETTE)]
    shade = index // len(PALETTE) % 3
    if shade == 1:
        return _mix(base, DARK, 0.45)
    return _mix(base, LIGHT, 0.5) if shade == 2 else base


def draw(
    picture: NDArray[np.uint8] | Image.Image,
    annotations: Sequence[Annotation],
    *,
    legend: bool = True,
    thick: float = 1.0,
) -> Image.Image:
    """A copy of a picture (uint8 RGB [H, W, 3]) with annotations; lines and letters grow with its size.

    Points are hollow; those that moved from an earlier look are filled, and a thin line joins each pair. With
    `legend`, a corner names the looks when there are any points. `thick` multiplies lines and letters.
    """
    image = picture.convert("RGB") if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image = image.copy()
    pen = Pen(image, thick)
    for one in reversed(annotations):
        pen.shade(one)
    for one in reversed(annotations):
        pen.box(one)
    for one in reversed(annotations):
        pen.points(one)
    taken: list[Rectangle] = []
    named = dict.fromkeys((points.title, points.joined) for one in annotations for points in one.points)
    if legend and named:
        taken += pen.legend(tuple(named))
    for one in annotations:
        pen.tag(one, taken)
    return image


def enlarged(picture: NDArray[np.uint8], side: int) -> tuple[NDArray[np.uint8], int]:
    """A picture whose longer side is at least `side`, by the smallest whole factor, and that factor.

    Small pictures are enlarged before drawing, so that letters and points stay legible.
    """
    height, width = picture.shape[:2]
    factor = max(1, -(-side // max(height, width)))
    if factor == 1:
        return picture, 1
    return np.asarray(
        Image.fromarray(picture).resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    ), factor


class Pen:
    """Draws on one image with strokes that fit its size."""

    def __init__(self, image: Image.Image, thick: float) -> None:
        self.image = image
        self.canvas = ImageDraw.Draw(image)
        middle = thick * (image.width * image.height) ** 0.5
        self.stroke = max(1, round(middle / 240))
        self.radius = max(2.5, middle / 150)
        self.font = font(max(10, round(middle / 40)))

    def shade(self, one: Annotation) -> None:
        """The object's pixels, half in its colour, so that what is below still shows."""
        if one.shape is None or not one.shape.pixels.any():
            return
        veil = Image.fromarray((one.shape.pixels * SHADE).astype(np.uint8))
        self.image.paste(color(one.color), one.shape.corner, veil)

    def box(self, one: Annotation) -> None:
        """A frame with a hairline of contrast around it, so that it shows on any ground."""
        x1, y1, x2, y2 = (round(v) for v in one.box)
        frame = (min(x1, x2 - 1), min(y1, y2 - 1), max(x1, x2 - 1), max(y1, y2 - 1))  # the last pixel inside
        paint = color(one.color)
        outer = (frame[0] - 1, frame[1] - 1, frame[2] + 1, frame[3] + 1)
        self.canvas.rectangle(outer, outline=_contrast(paint))
        self.canvas.rectangle(frame, outline=paint, width=self.stroke)

    def patches(self, boxes: Sequence[Rectangle]) -> None:
        """Frames that belong to no object; one without a side is a line or a dot."""
        for x1, y1, x2, y2 in boxes:
            corners = (round(x1), round(y1), round(x2), round(y2))
            self.canvas.rectangle(corners, outline=PALETTE[1], width=self.stroke)

    def points(self, one: Annotation) -> None:
        """The points of all looks: hollow ones, filled ones, and a line between each pair."""
        for number, points in enumerate(one.points):
            before = one.points[number - 1] if number and points.joined else None
            self.lines(one, before, points, rings=True)
        for points in one.points:
            self.dots(one, points)

    def dots(self, one: Annotation, points: PointSet) -> None:
        """The points of one look: hollow, or filled where they moved there."""
        paint = color(one.color)
        for place in points.at:
            if points.joined:
                self.ring(_pair(place), self.radius + 1, self.radius + 1, _contrast(paint))
                self.ring(_pair(place), self.radius, self.radius, paint)
            else:
                self.ring(_pair(place), self.radius + 0.8, self.radius * 0.4 + 1.6, _contrast(paint))
                self.ring(_pair(place), self.radius, self.radius * 0.4, paint)

    def lines(self, one: Annotation, before: PointSet | None, points: PointSet, *, rings: bool) -> None:
        """A thin line from where each point was, or from the ring around it, to where it moved."""
        if before is not None:
            for start, end in zip(before.at, points.at, strict=True):
                stroke = self._join if rings else self.line
                stroke(_pair(start), _pair(end), color(one.color))

    def moved(self, one: Annotation) -> None:
        """The box before its last move, dashed, and an arrow at each corner that moved from it."""
        if one.before is not None and one.before != one.box:
            self._dashed(one.before, color(one.color))
            for x1, y1, x2, y2 in _moves(one):
                self._arrow((x1, y1), (x2, y2), color(one.color))

    def moved_corners(self, one: Annotation) -> list[Rectangle]:
        """The places of the arrows that `moved` draws."""
        edge = 2 * self.radius
        return [
            (min(x1, x2) - edge, min(y1, y2) - edge, max(x1, x2) + edge, max(y1, y2) + edge)
            for x1, y1, x2, y2 in _moves(one)
            if max(abs(x1 - x2), abs(y1 - y2)) >= self.stroke
        ]

    def corners(self, one: Annotation) -> None:
        """Only the top-left and the bottom-right corner of a box, each as a white angle."""
        x1, y1, x2, y2 = one.box
        arm = min(5 * self.radius, max(abs(x2 - x1), abs(y2 - y1)) / 2)
        for x, y, way in ((x1, y1, arm), (x2, y2, -arm)):
            for end in ((x + way, y), (x, y + way)):
                self.line((x, y), end, LIGHT)

    def tag(self, one: Annotation, taken: list[Rectangle]) -> None:
        """The name beside its box: inside the picture, and where no other name is, if it can."""
        if not one.tag:
            return
        text = self._fitting(one.tag)
        width, height = self._size(text)
        x1, y1, x2, y2 = one.box
        edge = self.stroke
        places = (
            (x1, y1 - height),
            (x1, y2),
            (x2 - width, y1 - height),
            (x1 + edge, y1 + edge),
            (x1, y2 - height),
        )
        held = [self._held(x, y, width, height) for x, y in places]
        free = [place for place in held if not any(_overlap(place, other) for other in taken)]
        inside = held[0] if not free else free[0]
        taken.append(inside)
        self._label(inside, text, color(one.color))

    def legend(self, looks: Sequence[tuple[str, bool]]) -> list[Rectangle]:
        """What hollow and filled points mean, in the lower left corner; the room it takes, if any.

        Args:
            looks: title of each, and whether its points are filled.
        """
        widths = [self._size(title)[0] for title, _ in looks]
        height = self._size(looks[0][0])[1]
        step = 4 * self.radius
        whole = sum(widths) + len(looks) * step
        if whole > self.image.width or 2 * height > self.image.height:
            return []
        top = self.image.height - height
        self.canvas.rectangle((0, top, whole, self.image.height), fill=DARK)
        x = 0.0
        for (title, filled), width in zip(looks, widths, strict=True):
            middle = (x + step * 0.6, top + height / 2)
            self.ring(middle, self.radius, self.radius if filled else self.radius * 0.4, LIGHT)
            self._text((x + step, top), title, LIGHT)
            x += step + width
        return [(0, top, whole, self.image.height)]

    # -- strokes -------------------------------------------------------------------------------------------

    def ring(self, middle: tuple[float, float], radius: float, width: float, paint: Color) -> None:
        """A circle line of `width` inwards from `radius`; a disc when they are equal."""
        left, top = int(middle[0] - radius) - 1, int(middle[1] - radius) - 1
        side = int(2 * radius) + 4
        mask = Image.new("L", (side * SMOOTH, side * SMOOTH))
        x, y = (middle[0] - left) * SMOOTH, (middle[1] - top) * SMOOTH
        pen = ImageDraw.Draw(mask)
        big, small = radius * SMOOTH, (radius - width) * SMOOTH
        pen.ellipse((x - big, y - big, x + big, y + big), fill=255)
        if small > 0:
            pen.ellipse((x - small, y - small, x + small, y + small), fill=0)
        self.image.paste(paint, (left, top), mask.reduce(SMOOTH))

    def _join(self, start: tuple[float, float], end: tuple[float, float], paint: Color) -> None:
        """A line from the rim of a ring, which stays hollow, to the other point."""
        away = (end[0] - start[0], end[1] - start[1])
        length = (away[0] ** 2 + away[1] ** 2) ** 0.5
        if length > self.radius:
            share = self.radius / length
            self.line((start[0] + away[0] * share, start[1] + away[1] * share), end, paint)

    def line(self, start: tuple[float, float], end: tuple[float, float], paint: Color) -> None:
        """A smooth thin line between two points, in pixels."""
        left, top = int(min(start[0], end[0])) - 2, int(min(start[1], end[1])) - 2
        width, height = int(abs(start[0] - end[0])) + 5, int(abs(start[1] - end[1])) + 5
        if width * height > 4 * self.image.width * self.image.height:  # a point far outside: not worth a mask
            self.canvas.line((start, end), fill=paint)
            return
        mask = Image.new("L", (width * SMOOTH, height * SMOOTH))
        ends = [((x - left) * SMOOTH, (y - top) * SMOOTH) for x, y in (start, end)]
        ImageDraw.Draw(mask).line(ends, fill=220, width=round(max(1.0, self.stroke * 0.6) * SMOOTH))
        self.image.paste(paint, (left, top), mask.reduce(SMOOTH))

    def _dashed(self, box: Rectangle, paint: Color) -> None:
        """The outline of a box, as far as the picture goes; between dashes lies the colour of contrast."""
        wide, high = self.image.width, self.image.height
        x1, x2 = (round(min(max(x, -9.0), wide + 9.0)) for x in (box[0], box[2]))
        y1, y2 = (round(min(max(y, -9.0), high + 9.0)) for y in (box[1], box[3]))
        thin = max(1, self.stroke - 1)
        for number, (left, right) in enumerate(_dashes(x1, x2, 3 * self.stroke + 2)):
            for y in (y1, y2):
                ink = _contrast(paint) if number % 2 else paint
                self.canvas.rectangle((left, y, right, y + thin - 1), fill=ink)
        for number, (top, bottom) in enumerate(_dashes(y1, y2, 3 * self.stroke + 2)):
            for x in (x1, x2):
                ink = _contrast(paint) if number % 2 else paint
                self.canvas.rectangle((x, top, x + thin - 1, bottom), fill=ink)

    def _arrow(self, start: tuple[float, float], end: tuple[float, float], paint: Color) -> None:
        """From a corner to where it moved; the head is as long as the way, if that is short."""
        x, y = end[0] - start[0], end[1] - start[1]
        length = (x * x + y * y) ** 0.5
        if length < self.stroke:  # a smaller move cannot be seen
            return
        head = min(length, 3 * self.radius)
        x, y = x / length * head, y / length * head
        back, side = (end[0] - x, end[1] - y), (-y * 0.45, x * 0.45)
        if length > head:
            self.line(start, back, paint)
        tips = [end, (back[0] + side[0], back[1] + side[1]), (back[0] - side[0], back[1] - side[1])]
        self.canvas.polygon(tips, fill=paint, outline=_contrast(paint))

    # -- letters -------------------------------------------------------------------------------------------

    def _size(self, text: str) -> tuple[int, int]:
        """(width, height) of a label: the same height for all texts."""
        pad = max(2, round(self.font.size / 5))
        return round(self.font.getlength(text)) + 2 * pad, round(self.font.size * 1.35) + pad // 2

    def _fitting(self, text: str) -> str:
        """The text, cut where the picture is narrower."""
        while self._size(text)[0] > self.image.width and len(text) > 2:
            text = text.removesuffix("…")[:-1] + "…"
        return text

    def _held(self, x: float, y: float, width: int, height: int) -> Rectangle:
        x = min(max(0.0, x), max(0.0, self.image.width - width))
        y = min(max(0.0, y), max(0.0, self.image.height - height))
        return (x, y, x + width, y + height)

    def _label(self, place: Rectangle, text: str, paint: Color) -> None:
        x1, y1, x2, y2 = (round(v) for v in place)
        self.canvas.rectangle((x1, y1, x2 - 1, y2 - 1), fill=paint)
        self._text((x1, y1), text, _contrast(paint))

    def _text(self, corner: tuple[float, float], text: str, paint: Color) -> None:
        pad = max(2, round(self.font.size / 5))
        height = self._size(text)[1]
        self.canvas.text(
            (corner[0] + pad, corner[1] + height / 2), text, fill=paint, font=self.font, anchor="lm"
        )


@lru_cache(maxsize=32)
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, so many pixels large.

    Raises:
        TypeError: when Pillow has none.
    """
    letters = ImageFont.load_default(size)
    if not isinstance(letters, ImageFont.FreeTypeFont):
        raise TypeError(
            "Pillow was built without FreeType; install a Pillow wheel: `pip install --force pillow`"
        )
    return letters


def _dashes(start: int, end: int, length: int) -> list[tuple[int, int]]:
    """From one end to the other, whichever is first, in pieces of a length."""
    low, high = min(start, end), max(start, end)
    return [(at, min(at + length - 1, high)) for at in range(low, high + 1, length)]


def _moves(one: Annotation) -> list[Rectangle]:
    """From where to where the top-left and the bottom-right corner moved."""
    if one.before is None:
        return []
    return [(*one.before[:2], *one.box[:2]), (*one.before[2:], *one.box[2:])]


def _pair(point: NDArray[np.float64]) -> tuple[float, float]:
    return float(point[0]), float(point[1])


def _mix(one: Color, other: Color, share: float) -> Color:
    r, g, b = (round(a + (z - a) * share) for a, z in zip(one, other, strict=True))
    return r, g, b


def _contrast(ground: Color) -> Color:
    """Dark or light, whichever has the higher contrast (WCAG) to the ground."""
    return DARK if _luminance(ground) > 0.18 else LIGHT


def _luminance(paint: Color) -> float:
    linear = [(v / 255) / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in paint]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
