"""What was found in one image, and a stream of such results."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from relook.files import whole_file
from relook.inputs import Picture, pixels
from relook.ops.masks import mask_runs, paste, paste_one
from relook.results.drawing import Annotation, PointSet, Shape, draw, enlarged
from relook.results.looks import ImageLook
from relook.results.panels import Panel, fitted, panels, sheet
from relook.rle import Runs
from relook.types import ImageDetections

log = logging.getLogger("relook.predictor")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """What was found in one image, best score first, in pixels of the original image."""

    name: str  # the path, or "image 3" for one that has none
    path: Path | None
    height: int
    width: int
    classes: tuple[str, ...]
    objects: ImageDetections  # boxes and scores are float64
    picture: Picture = field(repr=False)  # as it was given; read again by `pixels`
    looks: tuple[ImageLook, ...] | None = field(default=None, repr=False)  # None: they were not asked for

    @property
    def boxes(self) -> Tensor:
        """[N, 4] x1, y1, x2, y2 in original pixels."""
        return self.objects.boxes

    @property
    def scores(self) -> Tensor:
        """[N] in 0 .. 1."""
        return self.objects.scores

    @property
    def labels(self) -> Tensor:
        """[N] int64, rows of `classes`."""
        return self.objects.labels

    @property
    def masks(self) -> Tensor | None:
        """[N, height, width] bool, which pixels belong to each object; None when the model finds boxes only.

        Made when asked for. For many objects in a large picture `runs` needs far less memory.
        """
        found = self.objects.masks
        return None if found is None else paste(found.float(), self.boxes, (self.height, self.width))

    def runs(self) -> list[Runs] | None:
        """The masks as COCO's compressed run lengths, made one at a time; None when there are none."""
        found = self.objects.masks
        if found is None:
            return None
        return list(mask_runs(found, self.boxes, (self.height, self.width)))

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.classes[label] for _, label, _ in self._rows()]

    def __len__(self) -> int:
        return len(self.objects)

    def above(self, score: float) -> Self:
        """Only those objects whose score is larger than `score`."""
        rows = self.objects.scores > score
        looks = None if self.looks is None else tuple(look.pick(rows) for look in self.looks)
        return replace(self, objects=self.objects.pick(rows), looks=looks)

    def pixels(self) -> NDArray[np.uint8]:
        """The original image as uint8 RGB [H, W, 3], read again where it came from a file.

        Raises:
            BrokenImage: when the file is no longer there.
        """
        return pixels(self.picture, self.name)

    def asked_looks(self) -> tuple[ImageLook, ...]:
        """What the detector saw, step by step.

        Raises:
            ValueError: when nobody asked for it at prediction.
        """
        if self.looks is None:
            raise ValueError(
                f"{self.name}: what the detector saw was not asked for; predict again with looks=True, "
                "as in `look(images, looks=True)`"
            )
        return self.looks

    def annotations(self, *, points: bool = False, zoom: float = 1.0) -> list[Annotation]:
        """What `relook.results.drawing` needs to draw the objects.

        Args:
            points: with the points of all looks that have any.
            zoom: how many times larger than the original the picture is.

        Raises:
            ValueError: when points are wanted and looks were not asked for.
        """
        looks = [look for look in self.asked_looks() if look.points is not None] if points else []
        shapes = self._shapes(zoom)
        return [
            Annotation(
                box=(x1 * zoom, y1 * zoom, x2 * zoom, y2 * zoom),
                shape=shapes[i] if shapes else None,
                color=i if points else label,  # with points, what belongs together has one colour
                tag=f"{self.classes[label]} {score:.2f}",
                points=tuple(
                    PointSet(
                        at=cast("Tensor", look.points)[i].numpy() * zoom, title=look.title, joined=look.joined
                    )
                    for look in looks
                ),
            )
            for i, ((x1, y1, x2, y2), label, score) in enumerate(self._rows())
        ]

    def _shapes(self, zoom: float) -> list[Shape]:
        """The mask of each object, as large as its box, in pixels of a picture `zoom` times as large."""
        if self.objects.masks is None:
            return []
        size = max(1, round(self.height * zoom)), max(1, round(self.width * zoom))
        pasted = (
            paste_one(mask, box, size)
            for mask, box in zip(self.objects.masks.float(), self.boxes * zoom, strict=True)
        )
        return [Shape(corner=(x, y), pixels=part.numpy()) for (y, x), part in pasted]

    def _rows(self) -> Iterator[tuple[list[float], int, float]]:
        """Box, label and score of each object as plain numbers."""
        boxes = cast("list[list[float]]", self.boxes.tolist())
        labels = cast("list[int]", self.labels.tolist())
        return zip(boxes, labels, cast("list[float]", self.scores.tolist()), strict=True)

    def plot(
        self, path: Path | str | None = None, *, points: bool = False, looks: bool = False, side: int = 0
    ) -> Image.Image:
        """The picture with boxes and names on it, and on request what the detector saw.

        Args:
            path: where to write it as well, in the format that its ending says.
            points: draw where the detector looked; only some detectors have points.
            looks: instead, a sheet of all that it saw, step by step: see `panels`.
            side: small pictures are enlarged by a whole factor until their longer side has so many pixels.

        Raises:
            ValueError: for points and looks that were not asked for at prediction, or an unknown ending.
        """
        if looks:
            image = sheet(self.panels(side=side))
        else:
            annotations = self.annotations(points=points)  # refuses before the file is read again
            picture, zoom = enlarged(self.pixels(), side)
            annotations = annotations if zoom == 1 else self.annotations(points=points, zoom=zoom)
            image = draw(picture, annotations)
        if path is not None:
            save_picture(image, path)
        return image

    def panels(self, *, side: int = 0) -> tuple[Panel, ...]:
        """Pictures of what the detector saw, in order, and of its answer; each detector has its own steps.

        Where several views were merged, maps are left out, for they are of one view.

        Args:
            side: pixels of each picture's longer side, at least; large pictures are reduced.

        Raises:
            ValueError: when looks were not asked for at prediction.
        """
        looks = self.asked_looks()
        picture, zoom = fitted(self.pixels(), side)
        return panels(picture, self.annotations(zoom=zoom), looks, zoom)

    def to_coco(
        self, image_id: int = 1, *, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """COCO's result format: image_id, category_id, bbox (x, y, width, height), score.

        Models that find masks also give segmentation, as compressed run lengths.

        Args:
            image_id: the id that the image has in the dataset.
            category_ids: the dataset's id of each label; without it label + 1.
        """
        rows: list[dict[str, Any]] = [
            {
                "image_id": image_id,
                "category_id": label + 1 if category_ids is None else category_ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for (x1, y1, x2, y2), label, score in self._rows()
        ]
        for row, mask in zip(rows, self.runs() or (), strict=False):
            row["segmentation"] = mask
        return rows

    def to_supervision(self) -> Any:
        """The same as `supervision.Detections`.

        Raises:
            ImportError: when the package is not installed.
        """
        try:
            import supervision  # noqa: PLC0415 (an extra that only this method needs)
        except ImportError:
            raise ImportError(
                "to_supervision() needs the package supervision: `pip install 'relook[report]'`"
            ) from None
        masks = self.masks
        return supervision.Detections(
            xyxy=self.boxes.float().numpy(),
            mask=None if masks is None else masks.numpy(),
            confidence=self.scores.float().numpy(),
            class_id=self.labels.numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )


@dataclass(frozen=True, slots=True)
class Broken:
    """An image that was skipped."""

    name: str
    why: str


class ResultStream(Iterator[Result]):
    """Results, image by image. Broken images are skipped, named in a warning and counted."""

    KEPT = 1000  # names of broken images that are kept; all are counted

    def __init__(self, results: Callable[["ResultStream"], Iterator[Result]]) -> None:
        self.broken: list[Broken] = []
        self.broken_count = 0
        self.count = 0  # images that were not broken
        self._results = results(self)

    def __next__(self) -> Result:
        result = next(self._results)
        self.count += 1
        return result

    def skip(self, name: str, why: str) -> None:
        """Notes a broken image."""
        log.warning("skipped %s", why if why.startswith(name) else f"{name}: {why}")
        self.broken_count += 1
        if len(self.broken) < self.KEPT:
            self.broken.append(Broken(name, why))


def save_picture(image: Image.Image, path: Path | str) -> None:
    """Writes a picture in the format its ending says, whole or not at all.

    Raises:
        ValueError: when the ending names no format.
    """
    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise ValueError(f"{path}: {Path(path).suffix!r} names no picture format; use .png or .jpg")
    with whole_file(path) as beside:
        image.save(beside, format=kind, **({"quality": 92} if kind == "JPEG" else {}))
