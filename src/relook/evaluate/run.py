"""Runs a detector over a dataset and scores it; one process or many give the same numbers.

Under torchrun every process takes its share of the images; the first one scores, all get the report.
"""

import itertools
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.distributed.distributed_c10d import PrefixStore, Store

from relook.data.batches import Batch, Loader, eval_loader
from relook.data.sample import Source
from relook.detector import Detector
from relook.evaluate.coco_ap import ApReport, coco_ap
from relook.files import whole_file
from relook.recipe import Recipe
from relook.types import Detections, ImageDetections
from relook.views import View, Views, merge, own, to_original


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The score of a detector on a dataset, and what it was computed from."""

    report: ApReport
    detections: list[dict[str, Any]]  # COCO results by image id, best first; empty but in the first process
    seconds: float  # for all images, loading included
    broken: tuple[str, ...]  # images that could not be read, and why; they count as images without detections
    views: int = 1  # how often each image was looked at

    def to_json(self) -> dict[str, Any]:
        """The numbers as plain values; without the detections, which have a file of their own."""
        speed = self.report.images / max(self.seconds, 1e-9)
        rest = {"views": self.views, "images_per_second": round(speed, 3), "broken": list(self.broken)}
        return {**self.report.to_json(), **rest}

    def save(self, folder: Path | str) -> tuple[Path, Path]:
        """Writes metrics.json and detections.json (COCO's result format) into `folder`; gives their paths."""
        metrics, detections = Path(folder) / "metrics.json", Path(folder) / "detections.json"
        with whole_file(metrics) as beside:
            beside.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        with whole_file(detections) as beside:
            beside.write_text(json.dumps(self.detections), encoding="utf-8")
        return metrics, detections


@dataclass(frozen=True, slots=True)
class _Found:
    """Detections of many images, row by row, small enough to travel between processes."""

    image: NDArray[np.int64]  # [N] image id
    label: NDArray[np.int64]  # [N] contiguous label
    score: NDArray[np.float64]  # [N]
    box: NDArray[np.float64]  # [N, 4] x, y, width, height in original pixels

    @classmethod
    def join(cls, parts: Sequence["_Found"]) -> "_Found":
        """All parts in the order of their image ids; within an image nothing changes its place."""
        image = np.concatenate([np.zeros(0, np.int64), *(p.image for p in parts)])
        order = np.argsort(image, kind="stable")
        return cls(
            image[order],
            np.concatenate([np.zeros(0, np.int64), *(p.label for p in parts)])[order],
            np.concatenate([np.zeros(0), *(p.score for p in parts)])[order],
            np.concatenate([np.zeros((0, 4)), *(p.box for p in parts)])[order],
        )

    def to_coco(self, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        columns = zip(
            self.image.tolist(), self.label.tolist(), self.box.tolist(), self.score.tolist(), strict=True
        )
        return [
            {"image_id": image, "category_id": category_ids[label], "bbox": box, "score": score}
            for image, label, box, score in columns
        ]


def evaluate(  # noqa: PLR0913 - what, on what and how: all by keyword but three
    detector: Detector[Any],
    recipe: Recipe,
    source: Source,
    *,
    batch: int = 1,
    workers: int = 2,
    device: torch.device | str = "auto",
    progress: bool = True,
    views: Views | None = None,
) -> Evaluation:
    """Detects in every image of `source` and scores the result.

    The detector is moved to `device`, put into evaluation mode and back into the mode it was in. For a
    reduced precision call this within `torch.autocast`.

    Args:
        detector: must have as many classes as `source`.
        recipe: how images are resized and normalised (`test_size`, `pixels`).
        source: the images and their ground truth.
        batch: images a step and process.
        workers: processes that read images, for each process that detects; 0 reads in the same one.
        device: "auto" is the GPU if there is one, under torchrun the one of this process.
        progress: show a bar with images a second and the time left (in a terminal only).
        views: looks at each image several times, at sizes of their own, and merges what is found.

    Raises:
        ValueError: when the detector and `source` differ in their number of classes.
    """
    if detector.num_classes != len(source.classes):
        raise ValueError(
            f"the detector knows {detector.num_classes} classes but {source.file or source.name} has "
            f"{len(source.classes)}: {', '.join(source.classes[:5])}...; use weights trained on these classes"
        )
    with _processes():
        rank, world = _place()
        place = _device(device)
        views = own(recipe.test_size) if views is None else views
        load = partial(
            eval_loader, source, batch=batch, workers=workers, stride=detector.stride, rank=rank, world=world
        )
        unread: dict[str, str] = {}
        started = time.monotonic()
        total = -(-len(source.samples) // world) * len(views)
        batches = _bar(_batches(load, recipe, views, unread), total, show=progress and rank == 0)
        everyone = _gather((_detect(detector, batches, place, views), tuple(unread.values())))
        seconds = time.monotonic() - started
        report, detections, broken = None, [], ()
        if everyone is not None:
            detections = _Found.join([found for found, _ in everyone]).to_coco(source.category_ids)
            report = coco_ap(source, detections)
            broken = tuple(sorted(why for _, whys in everyone for why in whys))
        report, broken, seconds = _tell((report, broken, seconds))
    return Evaluation(report=report, detections=detections, seconds=seconds, broken=broken, views=len(views))


def _batches(
    load: Callable[..., Loader], recipe: Recipe, views: Views, broken: dict[str, str]
) -> Iterator[tuple[View, Batch]]:
    """This process's share of the images, once for each view; those that are broken go into `broken`."""
    for view in views.views:
        loader = load(replace(recipe, test_size=view.resize(recipe.test_size)), mirrored=view.mirrored)
        loader.broken = broken  # one list for all, so that an image is told once
        for batch in loader:
            yield view, batch


def _detect(
    detector: Detector[Any], batches: Iterator[tuple[View, Batch]], device: torch.device, views: Views
) -> _Found:
    """What is found in this process's share of the images, merged over the views."""
    detector.to(device)
    training = detector.training
    detector.eval()
    seen: dict[int, list[ImageDetections]] = defaultdict(list)
    try:
        # not inference_mode: what a detector keeps for later, such as its grid, must stay fit for training
        with torch.no_grad():
            for view, batch in batches:
                images = batch.images.to(device, non_blocking=True)
                sizes = batch.targets.sizes.to(device, non_blocking=True)
                for image, found in _original(detector.predict(detector(images), sizes), batch, view):
                    seen[image].append(found)
    finally:
        detector.train(training)
    return _Found.join([_rows(image, merge(found, views)) for image, found in seen.items()])


def _original(found: Detections, batch: Batch, view: View) -> Iterator[tuple[int, ImageDetections]]:
    """Image ids, and what was found in original pixels, without looks and masks."""
    host = Detections(found.boxes.cpu(), found.scores.cpu(), found.labels.cpu(), found.count.cpu())
    for i, image in enumerate(host.unpad()):
        width, scale = int(batch.targets.sizes[i, 1]), (float(batch.scales[i, 0]), float(batch.scales[i, 1]))
        yield int(batch.ids[i]), to_original(image, view, width=width, scale=scale)


def _rows(image: int, found: ImageDetections) -> _Found:
    boxes = found.boxes.numpy()
    return _Found(
        np.full(len(found), image, np.int64),
        found.labels.numpy(),
        found.scores.numpy(),
        np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
    )


def _bar(batches: Iterator[tuple[View, Batch]], total: int, *, show: bool) -> Iterator[tuple[View, Batch]]:
    """Passes the batches on and draws how far they are."""
    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield from batches
        return
    columns = (
        TextColumn("evaluating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    started = time.monotonic()
    with Progress(*columns, console=console, transient=True) as bar:
        task, done = bar.add_task("evaluating", total=total, speed=""), 0
        for view, batch in batches:
            yield view, batch
            done += len(batch)
            speed = done / (time.monotonic() - started)
            bar.update(task, completed=done, speed=f"{speed:.1f} images/s")


# -- several processes ---------------------------------------------------------------------------------


@contextmanager
def _processes() -> Generator[None]:
    """Joins the processes that torchrun started, unless somebody (the training loop) has already done so."""
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1 or "MASTER_ADDR" not in os.environ
    if alone or not dist.is_available() or dist.is_initialized():
        yield
        return
    store, rank, world = _meeting()
    # Under a name of its own, since a store keeps what it was told: of an earlier group it would hand out
    # addresses at which nobody listens any more.
    fresh = PrefixStore(f"relook/evaluate/{next(_groups)}", store)
    # only Python objects travel, once, at the end
    dist.init_process_group("gloo", store=fresh, rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


_groups = itertools.count()  # evaluations of several processes so far; the same number in each of them


@cache
def _meeting() -> tuple[Store, int, int]:
    """Where the processes meet, this process, number of processes; one place for all evaluations."""
    return next(cast("Any", dist).rendezvous("env://"))  # torch's types stop here


def _place() -> tuple[int, int]:
    """(this process, number of processes)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _gather(mine: Any) -> list[Any] | None:
    """Everybody's object in the first process, None in the others."""
    rank, world = _place()
    if world == 1:
        return [mine]
    everyone: list[Any] | None = [None] * world if rank == 0 else None
    dist.gather_object(mine, everyone)
    return everyone


def _tell(mine: Any) -> Any:
    """The first process's object in all of them."""
    if _place()[1] == 1:
        return mine
    box = [mine]
    dist.broadcast_object_list(box)
    return box[0]


def _device(device: torch.device | str) -> torch.device:
    if device != "auto":
        return torch.device(device)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
