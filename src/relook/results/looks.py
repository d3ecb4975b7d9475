"""What a detector saw of one image on the way to its answer, in pixels of the original."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageMap:
    """How sure a detector was of something, place by place.

    Cell (i, j) is the point (first[0] + j * step[0], first[1] + i * step[1]) of the original image.
    """

    values: Tensor  # [n, h, w] float32 in 0 .. 1
    step: tuple[float, float]  # x, y pixels of the original from cell to cell
    first: tuple[float, float] = (0.0, 0.0)  # x, y pixels of cell (0, 0)
    names: tuple[str, ...]  # n, what each channel says


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageLook:
    """One step of what was seen; row i belongs to the object of row i."""

    title: str
    caption: str = field(default="", repr=False)
    boxes: Tensor | None = None  # [N, 4] float64
    points: Tensor | None = None  # [N, P, 2] float64 x, y
    scores: Tensor | None = None  # [N] float64
    maps: tuple[ImageMap, ...] = ()
    patches: Tensor | None = None  # [M, 4] float64, of the whole image
    joined: bool = False  # the points are those of the look before, moved
    on_answer: bool = False  # the boxes are those before their last move

    @property
    def has_rows(self) -> bool:
        """Whether it says something of each object, not only of the image."""
        return any(x is not None for x in (self.boxes, self.points, self.scores))

    def pick(self, rows: Tensor) -> "ImageLook":
        """Of the objects that `rows` names, [M] int64 or [N] bool; maps are the whole image's."""
        boxes, points, scores = (
            None if x is None else x[rows] for x in (self.boxes, self.points, self.scores)
        )
        return replace(self, boxes=boxes, points=points, scores=scores)

    @staticmethod
    def join(parts: Sequence["ImageLook"]) -> "ImageLook":
        """The rows of the same step in several views, one view after the other, without maps."""

        def together(name: str) -> Tensor | None:
            columns = [getattr(part, name) for part in parts]
            return None if columns[0] is None else torch.cat(columns)

        return replace(
            parts[0],
            boxes=together("boxes"),
            points=together("points"),
            scores=together("scores"),
            maps=(),
            patches=None,
        )

    def columns(self) -> dict[str, list[Any]]:
        """What a results file keeps of each object: "first look" with points is `first_points`."""
        name = self.title.removesuffix(" look").replace(" ", "_")
        kinds = (("box", self.boxes), ("points", self.points), ("score", self.scores))
        return {f"{name}_{kind}": values.tolist() for kind, values in kinds if values is not None}
