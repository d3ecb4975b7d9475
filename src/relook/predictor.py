"""Any images in, what was found out: one by one, in the order given, with memory that does not grow."""

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from relook.data.images import BrokenImage
from relook.data.pictures import Picture, pictures, pixels
from relook.data.transforms import Prepared, prepare, stack
from relook.detector import Detector
from relook.draw import Mark, Rectangle, draw, enlarged
from relook.draw_looks import CornerMap, Panel, fitted, panels, sheet
from relook.files import whole_file
from relook.recipe import Recipe
from relook.types import Detections, ImageDetections
from relook.views import View, Views, merge, own, to_original

Precision = Literal["32", "bf16", "fp16"]

log = logging.getLogger("relook.predictor")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heat:
    """How surely corners of objects are where in an image.

    Cell (i, j) is the point (j * step[0], i * step[1]) of the original image.
    """

    values: Tensor  # [2, h, w] in 0 .. 1: a top-left, a bottom-right corner is near
    step: tuple[float, float]  # x, y pixels of the original image from cell to cell


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """What was found in one image, best score first, in pixels of the original image."""

    name: str  # the path, or "image 3" for one that has none
    path: Path | None
    height: int
    width: int
    classes: tuple[str, ...]
    objects: ImageDetections
    picture: Picture = field(repr=False)  # as it was given; read again by `pixels`
    heat: dict[int, Heat] = field(
        default_factory=dict, repr=False
    )  # by stride; only of detectors that verify

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
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.classes[label] for _, label, _ in self._rows()]

    def __len__(self) -> int:
        return len(self.objects)

    def above(self, score: float) -> Self:
        """Only those objects whose score is larger than `score`."""
        return replace(self, objects=self.objects.above(score))

    def pixels(self) -> NDArray[np.uint8]:
        """The original image as uint8 RGB [H, W, 3], read again where it came from a file.

        Raises:
            BrokenImage: when the file is no longer there.
        """
        return pixels(self.picture, self.name)

    def marks(self, *, points: bool = False, looks: bool = False, zoom: float = 1.0) -> list[Mark]:
        """What `relook.draw` needs to draw the objects on a picture `zoom` times the size of the original.

        Args:
            points: with the points of both looks.
            looks: with these and the box before verification.
            zoom: 1 for pixels of the original.
        """
        first = self._look("init_points", zoom) if points or looks else None
        second = self._look("refine_points", zoom) if points or looks else None
        regressed = self._look("regressed", zoom) if looks else None
        return [
            Mark(
                box=(x1 * zoom, y1 * zoom, x2 * zoom, y2 * zoom),
                color=label,
                tag=f"{self.classes[label]} {score:.2f}",
                first=None if first is None else first[i],
                second=None if second is None else second[i],
                regressed=None if regressed is None else _rectangle(regressed[i]),
            )
            for i, ((x1, y1, x2, y2), label, score) in enumerate(self._rows())
        ]

    def _rows(self) -> Iterator[tuple[list[float], int, float]]:
        """Box, label and score of each object as plain numbers."""
        boxes = cast("list[list[float]]", self.boxes.double().tolist())
        labels = cast("list[int]", self.labels.tolist())
        return zip(boxes, labels, cast("list[float]", self.scores.double().tolist()), strict=True)

    def _look(self, name: str, zoom: float) -> NDArray[np.float64] | None:
        look = self.objects.looks.get(name)
        return None if look is None else look.double().numpy() * zoom

    def plot(
        self, path: Path | str | None = None, *, points: bool = False, looks: bool = False, side: int = 0
    ) -> Image.Image:
        """The picture with boxes and names on it, and on request what the detector saw.

        Args:
            path: where to write it as well, in the format that its ending says.
            points: draw where the detector looked; only some detectors have points.
            looks: instead, a sheet of all that it saw, step by step: see `panels`.
            side: small pictures are enlarged by a whole factor until their longer side has so many pixels.
        """
        if looks:
            image = sheet(self.panels(side=side))
        else:
            picture, zoom = enlarged(self.pixels(), side)
            image = draw(picture, self.marks(points=points, zoom=zoom))
        if path is not None:
            save_picture(image, path)
        return image

    def panels(self, *, side: int = 0) -> tuple[Panel, ...]:
        """Pictures of what the detector saw, in order: first look, verification, second look, answer.

        Steps that it does not have are left out; verification is also where several views were merged, for
        corner maps are of one view.

        Args:
            side: pixels of each picture's longer side, at least; large pictures are reduced.
        """
        picture, zoom = fitted(self.pixels(), side)
        heat = [
            CornerMap(values=one.values.numpy(), step=(one.step[0] * zoom, one.step[1] * zoom))
            for one in self.heat.values()
        ]
        return panels(picture, self.marks(looks=True, zoom=zoom), heat)

    def to_coco(
        self, image_id: int = 1, *, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """COCO's result format: image_id, category_id, bbox (x, y, width, height), score.

        Args:
            image_id: the id that the image has in the dataset.
            category_ids: the dataset's id of each label; without it label + 1.
        """
        return [
            {
                "image_id": image_id,
                "category_id": label + 1 if category_ids is None else category_ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for (x1, y1, x2, y2), label, score in self._rows()
        ]

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
        return supervision.Detections(
            xyxy=self.boxes.float().numpy(),
            confidence=self.scores.float().numpy(),
            class_id=self.labels.numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )


@dataclass(frozen=True, slots=True)
class Broken:
    """An image that was skipped."""

    name: str
    why: str


class Stream(Iterator[Found]):
    """What was found, image by image. Broken images are skipped, named in a warning and counted."""

    KEPT = 1000  # names of broken images that are kept; all are counted

    def __init__(self, found: Callable[["Stream"], Iterator[Found]]) -> None:
        self.broken: list[Broken] = []
        self.broken_count = 0
        self.count = 0  # images that were not broken
        self._found = found(self)

    def __next__(self) -> Found:
        found = next(self._found)
        self.count += 1
        return found

    def skip(self, name: str, why: str) -> None:
        """Notes a broken image."""
        log.warning("skipped %s", why if why.startswith(name) else f"{name}: {why}")
        self.broken_count += 1
        if len(self.broken) < self.KEPT:
            self.broken.append(Broken(name, why))


class Predictor:
    """A detector ready for any image.

        look = relook.load("mine.safetensors")
        for found in look(["a.jpg", "b.png"]):
            found.above(0.5).plot("out.png")

    Args:
        detector: is moved to the device and put into evaluation mode.
        recipe: how images are resized and normalised (`test_size`, `pixels`).
        classes: the name of each label.
        device: "auto" takes a GPU where there is one.
        batch: images a step. Those of one shape give the same results as alone; others are padded to a
            common size, which the network sees: scores then move, by hundredths on small images.
        precision: arithmetic of the network; "bf16" and "fp16" are for GPUs.
        short: another shorter side than the recipe's, in pixels.
        views: looks at each image several times, at sizes of their own, and merges what is found.

    Raises:
        ValueError: when there are not as many names as the detector has classes.
    """

    def __init__(  # noqa: PLR0913 - what, how and where: all by keyword but three
        self,
        detector: Detector[Any],
        recipe: Recipe,
        classes: Sequence[str],
        *,
        device: str | torch.device = "auto",
        batch: int = 1,
        precision: Precision = "32",
        short: int | None = None,
        views: Views | None = None,
    ) -> None:
        if short is not None and views is not None:
            raise ValueError(f"short={short} and views both say how large images become; give one of them")
        if len(classes) != detector.num_classes:
            raise ValueError(
                f"the detector knows {detector.num_classes} classes but {len(classes)} names were given; "
                "give one name for each class"
            )
        if batch < 1:
            raise ValueError(f"batch={batch} is too small; batch must be at least 1")
        self.device = best_device() if device == "auto" else torch.device(device)
        self.detector = detector.to(self.device).eval()
        self.recipe = (
            recipe if short is None else replace(recipe, test_size=replace(recipe.test_size, short=(short,)))
        )
        self.views = own(self.recipe.test_size) if views is None else views
        self._verifies = (
            len(self.views) == 1 and not self.views.views[0].mirrored
        )  # mirrored corners are others
        self.classes = tuple(classes)
        self.batch = batch
        self.precision: Precision = precision

    def __call__(self, images: Picture | Iterable[Picture]) -> Stream:
        """Looks at images: yields one `Found` for each, lazily and in order.

        Args:
            images: one image, an iterable of them, a folder (all images in it and below) or a pattern
                such as "photos/*.jpg".

        Raises:
            FileNotFoundError: when a folder or pattern holds no image, or a path is not there.
        """
        source = pictures(images)
        return Stream(lambda stream: self._run(source, stream))

    def one(self, image: Picture) -> Found:
        """What is found in one image.

        Raises:
            BrokenImage: when it cannot be read.
        """
        stream = self(image)
        found = next(stream, None)
        if found is None:
            raise BrokenImage(stream.broken[0].why)
        return found

    def _run(self, source: Iterator[Picture], stream: Stream) -> Iterator[Found]:
        ready: list[_Ready] = []
        with (
            ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="relook-read") as pool,
            closing(self._read(source, pool)) as read,
        ):
            for waiting in read:
                try:
                    ready.append(waiting.ready.result())
                except BrokenImage as error:
                    stream.skip(waiting.name, str(error))
                if len(ready) == self.batch:
                    yield from self._detect(ready, pool)
                    ready = []
            if ready:
                yield from self._detect(ready, pool)

    def _read(self, source: Iterator[Picture], pool: ThreadPoolExecutor) -> Generator["_Waiting"]:
        """Decodes in threads, a few images ahead; no more than those are in memory."""
        ahead = max(4, 2 * self.batch)
        queue: deque[_Waiting] = deque()
        try:
            for number, picture in enumerate(source, start=1):
                name = str(picture) if isinstance(picture, (str, Path)) else f"image {number}"
                queue.append(_Waiting(name, pool.submit(self._decode, picture, name)))
                if len(queue) > ahead:
                    yield queue.popleft()
            while queue:
                yield queue.popleft()
        finally:
            for waiting in queue:
                waiting.ready.cancel()

    def _decode(self, picture: Picture, name: str) -> "_Ready":
        image = pixels(picture, name)
        first, *more = self.views.views
        size = (image.shape[0], image.shape[1])
        return _Ready(picture, name, size, self._prepare(image, first), image if more else None)

    def _prepare(self, image: NDArray[np.uint8], view: View) -> Prepared:
        resize = view.resize(self.recipe.test_size)
        return prepare(image, resize=resize, pixels=self.recipe.pixels, mirrored=view.mirrored)

    def _detect(self, ready: Sequence["_Ready"], pool: ThreadPoolExecutor) -> list[Found]:
        seen: list[list[ImageDetections]] = [[] for _ in ready]
        heat: list[dict[int, Heat]] = [{} for _ in ready]  # stays empty where several views are merged
        views, prepared = self.views.views, [r.first for r in ready]
        for number, view in enumerate(views):
            # the next view is made while the network looks at this one, and none after it
            coming = [
                pool.submit(self._prepare, r.image, after)
                for after in views[number + 1 : number + 2]
                for r in ready
                if r.image is not None
            ]
            for i, (one, found) in enumerate(zip(prepared, self._look(prepared), strict=True)):
                seen[i].append(to_original(found, view, width=one.size[1], scale=one.scale))
                heat[i] |= {stride: _heat(warm, stride, one) for stride, warm in found.heat.items()}
            prepared = [one.result() for one in coming]
        return [
            Found(
                name=r.name,
                path=Path(r.picture) if isinstance(r.picture, (str, Path)) else None,
                height=r.original[0],
                width=r.original[1],
                classes=self.classes,
                objects=_single(merge(mine, self.views)),
                picture=r.picture,
                heat=warm,
            )
            for r, mine, warm in zip(ready, seen, heat, strict=True)
        ]

    def _look(self, prepared: Sequence[Prepared]) -> list[ImageDetections]:
        """What is found in each, in pixels of the network's input."""
        images = stack([p.image for p in prepared], pad=self.recipe.pixels.pad, stride=self.detector.stride)
        sizes = torch.tensor([p.size for p in prepared])
        with torch.inference_mode(), self._arithmetic():
            outputs = self.detector(images.to(self.device))
            found = self.detector.predict(outputs, sizes.to(self.device))
        return _host(found, whole=self._verifies).unpad()

    def _arithmetic(self) -> AbstractContextManager[object]:
        if self.precision == "32":
            return nullcontext()
        kind = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=kind)


@dataclass(frozen=True, slots=True, eq=False)
class _Ready:
    picture: Picture
    name: str
    original: tuple[int, int]  # height, width
    first: Prepared  # for the first view
    image: NDArray[np.uint8] | None  # [H, W, 3] for further views, where there are any


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    name: str
    ready: Future[_Ready]


def _host(found: Detections, *, whole: bool) -> Detections:
    """Off the device, and ordinary tensors rather than those of inference mode.

    Unless `whole`, without heat and the boxes before verification: after a merge there is no telling whose
    corners they verified.
    """
    looks = {name: look.cpu().clone() for name, look in found.looks.items() if whole or name != "regressed"}
    heat = {stride: warm.cpu() for stride, warm in found.heat.items()} if whole else {}
    masks = None if found.masks is None else found.masks.cpu().clone()
    boxes, scores = found.boxes.cpu().clone(), found.scores.cpu().clone()
    return Detections(
        boxes, scores, found.labels.cpu().clone(), found.count.cpu().clone(), masks, looks, heat
    )


def _heat(warm: Tensor, stride: int, prepared: Prepared) -> Heat:
    """The part of a map [n, h, w] whose points lie in the image itself, not in its padding."""
    height, width = prepared.size
    values = warm[:, : -(-height // stride), : -(-width // stride)].float().clone()
    return Heat(values=values, step=(stride / prepared.scale[0], stride / prepared.scale[1]))


def _single(objects: ImageDetections) -> ImageDetections:
    """Float64, which boxes and points are reckoned in, -> float32."""
    looks = {name: look.float() if look.shape[-1] == 2 else look for name, look in objects.looks.items()}
    return ImageDetections(
        objects.boxes.float(), objects.scores.float(), objects.labels, objects.masks, looks
    )


def _rectangle(corners: NDArray[np.float64]) -> Rectangle:
    x1, y1, x2, y2 = (float(value) for value in corners.reshape(-1))
    return x1, y1, x2, y2


def best_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
