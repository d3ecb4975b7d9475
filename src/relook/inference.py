"""The one path from images to results: prediction, evaluation, validation while training, all of it is here.

Images come in batches that are decoded and ready for their first view; results leave, in pixels of the
original image, as soon as they are made. Further views of an image are made from its decoded file when the
network comes to them, so that each file is decoded once and no more than two views of a batch are in memory.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from relook.data.transforms.network_input import Prepared, prepare, stack
from relook.detector import Detector
from relook.recipe import Recipe
from relook.results.looks import ImageLook, ImageMap
from relook.types import Detections, HeatMap, ImageDetections, Look
from relook.views import Placement, View, Views, merge, recipe_view, to_original

Precision = Literal["32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ready:
    """A batch of images, ready for the first view of them."""

    images: Tensor  # [B, 3, H, W] float32, normalised, zeros on the right and below
    sizes: Tensor  # [B, 2] int64 (height, width) in `images`, without padding
    scales: Tensor  # [B, 2] float64 (x, y) pixels of `images` per pixel of the file
    originals: Tensor  # [B, 2] int64 (height, width) of the files
    keys: tuple[int, ...]  # the caller's number of each image
    files: tuple[NDArray[np.uint8], ...] = ()  # [H, W, 3] each, where there are several views


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """What was found in one image, in pixels of the original; boxes and scores are float64."""

    key: int
    size: tuple[int, int]  # (height, width) of the original
    objects: ImageDetections
    looks: tuple[ImageLook, ...] = ()


class Engine:
    """A detector at work.

        engine = Engine(detector, recipe)
        for seen in engine.run(batches): ...

    Args:
        detector: is moved to the device. Each batch sees it in evaluation mode, and leaves it as it was.
        recipe: how images are resized and normalised (`test_size`, `pixels`).
        device: "auto" takes a GPU where there is one.
        precision: arithmetic of the network; "bf16" and "fp16" are for GPUs.
        views: looks at each image several times, at sizes of their own, and merges what is found; None: once,
            at the recipe's size.
    """

    def __init__(
        self,
        detector: Detector[Any],
        recipe: Recipe,
        *,
        device: torch.device | str = "auto",
        precision: Precision = "32",
        views: Views | None = None,
    ) -> None:
        self.device = device_named(device)
        self.detector = detector.to(self.device)
        if views is not None and views.merge.endswith("_vote") and _decays(detector):
            raise ValueError(
                f"views that are merged by {views.merge} need scores as they are, and this model's decay in "
                "each view: add --set detector.soft_nms=false, as its authors do"
            )
        self.recipe, self.precision = recipe, precision
        self.views = recipe_view(recipe.test_size) if views is None else views

    def first(self, image: NDArray[np.uint8]) -> Prepared:
        """An upright RGB image [H, W, 3], ready for the first view."""
        return self._prepare(image, self.views.views[0])

    def batch(
        self,
        first: Sequence[Prepared],
        originals: Sequence[tuple[int, int]],
        keys: Sequence[int],
        files: Sequence[NDArray[np.uint8]] = (),
    ) -> Ready:
        """Images that `first` has prepared, as one batch.

        Args:
            first: of each image.
            originals: (height, width) of each file.
            keys: the caller's number of each.
            files: [H, W, 3] each, needed where there are several views.
        """
        stacked = self._stacked(first)
        return Ready(
            images=stacked.images,
            sizes=stacked.sizes,
            scales=stacked.scales,
            originals=torch.tensor(originals),
            keys=tuple(keys),
            files=tuple(files),
        )

    def run(self, batches: Iterable[Ready], *, looks: bool = False) -> Iterator[Seen]:
        """What is found in each image, in the order given.

        Args:
            batches: asked for one after the other, each when the results of the one before have been taken.
            looks: also ask what the detector saw on the way; without it nothing of that is computed.
        """
        threads = ThreadPoolExecutor(4, thread_name_prefix="relook-view") if len(self.views) > 1 else None
        with threads or nullcontext():
            for batch in batches:
                with _evaluating(self.detector):  # not across the yield: the caller may train in between
                    seen = self._see(batch, threads, explained=looks)
                yield from seen

    # -- one batch ------------------------------------------------------------------------------------------

    def _see(self, batch: Ready, threads: ThreadPoolExecutor | None, *, explained: bool) -> list[Seen]:
        """All views of a batch; the next one is made while the network looks at this one."""
        views = self.views.views
        found: list[list[ImageDetections]] = [[] for _ in batch.keys]
        looks: list[list[tuple[ImageLook, ...]]] = [[] for _ in batch.keys]
        now = _Stacked(batch.images, batch.sizes, batch.scales)
        for number, view in enumerate(views):
            coming = [
                threads.submit(self._prepare, file, after)
                for after in views[number + 1 : number + 2]
                for file in batch.files
                if threads is not None
            ]
            for i, (one, look) in enumerate(self._look(now, batch.originals, view, explained=explained)):
                found[i].append(one)
                looks[i].append(look)
            if coming:
                now = self._stacked([one.result() for one in coming])
        plain = len(views) == 1 and not views[0].mirrored
        heights, widths = (cast("list[int]", side.tolist()) for side in batch.originals.unbind(1))
        sizes = zip(heights, widths, strict=True)
        return [
            Seen(key=key, size=size, objects=self._edges(objects), looks=mine)
            for key, size, (objects, mine) in zip(
                batch.keys,
                sizes,
                (_merged(one, seen, self.views, plain=plain) for one, seen in zip(found, looks, strict=True)),
                strict=True,
            )
        ]

    def _look(
        self, now: "_Stacked", originals: Tensor, view: View, *, explained: bool
    ) -> list[tuple[ImageDetections, tuple[ImageLook, ...]]]:
        """One view of a batch: what the network found in each image, and what it saw."""
        images, sizes = (x.to(self.device, non_blocking=True) for x in (now.images, now.sizes))
        # not inference_mode: what a detector keeps for later, such as its grid, must stay fit for training
        with torch.no_grad(), self._arithmetic():
            outputs = self.detector(images)
            files = (originals.to(self.device),) if self.detector.in_original_pixels else ()
            found = self.detector.predict(outputs, sizes, *files)
            looks = self.detector.explain(outputs, found, sizes) if explained else ()
        host = _on_host(found)
        places = [
            Placement(width=int(size[1]), scale=(float(scale[0]), float(scale[1])), mirrored=view.mirrored)
            for size, scale in zip(now.sizes, now.scales, strict=True)
        ]
        answer: list[tuple[ImageDetections, tuple[ImageLook, ...]]] = []
        for i, (one, place) in enumerate(zip(host.unpad(), places, strict=True)):
            rows = view.believes(one.boxes, place.boxes(one.boxes)).nonzero()[:, 0]
            size = (int(now.sizes[i, 0]), int(now.sizes[i, 1]))
            seen = tuple(_image_look(look, i, rows, place, size) for look in looks)
            answer.append((to_original(one.pick(rows), place), seen))
        return answer

    def _edges(self, objects: ImageDetections) -> ImageDetections:
        """Right and lower corners as edges, where the recipe's name pixels."""
        if not self.recipe.last_pixel:
            return objects
        boxes = objects.boxes + objects.boxes.new_tensor([0, 0, 1, 1])
        return ImageDetections(boxes, objects.scores, objects.labels, objects.masks, objects.origin)

    def _prepare(self, image: NDArray[np.uint8], view: View) -> Prepared:
        size = view.resize(self.recipe.test_size, (image.shape[0], image.shape[1]))
        return prepare(image, size=size, pixels=self.recipe.pixels, mirrored=view.mirrored)

    def _stacked(self, prepared: Sequence[Prepared]) -> "_Stacked":
        pad, stride = self.recipe.pixels.pad, self.detector.stride
        return _Stacked(
            stack([one.image for one in prepared], pad=pad, stride=stride),
            torch.tensor([one.size for one in prepared]),
            torch.tensor([one.scale for one in prepared], dtype=torch.float64),
        )

    def _arithmetic(self) -> AbstractContextManager[object]:
        if self.precision == "32":
            return nullcontext()
        kind = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=kind)


@dataclass(frozen=True, slots=True, eq=False)
class _Stacked:
    """A batch as one view sees it."""

    images: Tensor  # [B, 3, H, W]
    sizes: Tensor  # [B, 2] h, w
    scales: Tensor  # [B, 2] x, y


def _decays(detector: nn.Module) -> bool:
    return bool(getattr(getattr(detector, "config", None), "soft_nms", False))


@contextmanager
def _evaluating(detector: nn.Module) -> Generator[None]:
    """Evaluation mode; afterwards each module is in the mode it had, so that what was frozen stays so."""
    # one that is being evaluated already is not walked through: that takes a twentieth of a small one's time
    training = [module for module in detector.modules() if module.training] if detector.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def best_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_named(name: torch.device | str) -> torch.device:
    """The device of that name, if it is there; "auto" is the best one.

    Raises:
        ValueError: when there is no such device here; the message says which there are.
    """
    if name == "auto":
        return best_device()
    count = torch.cuda.device_count()
    there = "cpu" if not count else "cpu and " + ", ".join(f"cuda:{n}" for n in range(count))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"there is no device {str(name)!r}; here are {there}") from None
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device {str(name)!r}: torch finds no such GPU here; here are {there}")
    if device.type == "cpu" and device.index not in (None, 0):
        raise ValueError(
            f"device {str(name)!r}: there is one CPU, `cpu`; its threads are set by OMP_NUM_THREADS"
        )
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device {str(name)!r} is none that relook computes on; here are {there}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {str(name)!r}: torch finds no such GPU here; here are {there}")
    return device


def _on_host(found: Detections) -> Detections:
    """Off the device. `truncated` is of graphs alone, and stays behind."""
    masks, origin = (None if x is None else x.cpu() for x in (found.masks, found.origin))
    return Detections(
        boxes=found.boxes.cpu(),
        scores=found.scores.cpu(),
        labels=found.labels.cpu(),
        count=found.count.cpu(),
        masks=masks,
        origin=origin,
    )


# -- several views, one answer ---------------------------------------------------------------------------


def _merged(
    found: Sequence[ImageDetections],
    looks: Sequence[tuple[ImageLook, ...]],
    views: Views,
    *,
    plain: bool,
) -> tuple[ImageDetections, tuple[ImageLook, ...]]:
    """One answer from all views of an image.

    Looks follow the box that a merged box grew from. Maps, and boxes before their last move, are those of a
    single plain view: a mirrored top-left corner is another corner, and a merged box is none that was moved.
    """
    if plain:
        return found[0], looks[0]
    starts = np.cumsum([0, *(len(one) for one in found)]).tolist()
    numbered = [
        ImageDetections(one.boxes, one.scores, one.labels, one.masks, torch.arange(start, start + len(one)))
        for one, start in zip(found, starts, strict=False)
    ]
    objects = merge(numbered, views)
    rows = objects.origin if objects.origin is not None else torch.arange(len(objects))
    kept = [tuple(look for look in seen if not look.on_answer and look.has_rows) for seen in looks]
    return (
        ImageDetections(objects.boxes, objects.scores, objects.labels, objects.masks),
        tuple(ImageLook.join(same).pick(rows) for same in zip(*kept, strict=True)),
    )


# -- looks in pixels of the original ---------------------------------------------------------------------


def _image_look(look: Look, i: int, rows: Tensor, place: Placement, size: tuple[int, int]) -> ImageLook:
    """What was seen of image i: its rows, in original pixels; maps without what lies in the padding."""
    boxes, points, scores = (
        None if x is None else x[i].cpu()[rows] for x in (look.boxes, look.points, look.scores)
    )
    return ImageLook(
        title=look.title,
        caption=look.caption,
        boxes=None if boxes is None else place.boxes(boxes),
        points=None if points is None else place.points(points),
        scores=None if scores is None else scores.double(),
        maps=tuple(_image_map(one, i, place, size) for one in look.maps),
        patches=None if look.patches is None else place.boxes(look.patches[i].cpu()),
        joined=look.joined,
        on_answer=look.on_answer,
    )


def _image_map(one: HeatMap, i: int, place: Placement, size: tuple[int, int]) -> ImageMap:
    """The cells whose points lie in the image itself."""
    rows, columns = (max(1, int(-(-(side - one.first) // one.stride))) for side in size)
    return ImageMap(
        values=one.values[i, :, :rows, :columns].float().cpu().clone(),
        step=(one.stride / place.scale[0], one.stride / place.scale[1]),
        first=(one.first / place.scale[0], one.first / place.scale[1]),
        names=one.names,
    )
