"""Runs a detector over a dataset and scores it; one process or many give the same numbers.

Under torchrun every process takes its share of the images; the first one scores, all get the report.
"""

import itertools
import json
import os
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.distributed.distributed_c10d import PrefixStore, Store

from relook.data.loading.loader import eval_loader
from relook.data.sample import Source
from relook.detector import Detector
from relook.files import whole_file
from relook.inference import Engine, Precision, Ready, device_named
from relook.metrics.metric import Metric, Report, Rows
from relook.metrics.named import metric_named
from relook.recipe import Recipe
from relook.views import Views


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The score of a detector on a dataset, and what it was computed from."""

    report: Report
    rows: Rows  # detections by image id, best first; empty but in the first process
    category_ids: tuple[int, ...]  # the dataset's own id of each label
    seconds: float  # for all images, loading included
    broken: tuple[str, ...]  # images that could not be read, and why; they count as images without detections
    views: int = 1  # how often each image was looked at
    classes: tuple[str, ...] = ()  # the detector's, in the order of `category_ids`
    classes_by: str = ""  # how those of the data were brought together with them: "name" or "order"
    notes: tuple[str, ...] = ()  # what reading the data left out or chose

    @property
    def detections(self) -> list[dict[str, Any]]:
        """COCO results, made anew each time: image_id, category_id, bbox (x, y, width, height), score."""
        return self.rows.to_coco(self.category_ids)

    def to_json(self) -> dict[str, Any]:
        """The numbers as plain values; without the detections, which have a file of their own."""
        speed = self.report.images / max(self.seconds, 1e-9)
        rest = {
            "views": self.views,
            "images_per_second": round(speed, 3),
            "broken": list(self.broken),
            "classes_by": self.classes_by,
            "category_ids": dict(zip(self.classes, self.category_ids, strict=False)),
            "notes": list(self.notes),
        }
        return {**self.report.to_json(), **rest}

    def save(self, folder: Path | str) -> tuple[Path, Path]:
        """Writes metrics.json and detections.json (COCO's result format) into `folder`; gives their paths."""
        metrics, detections = Path(folder) / "metrics.json", Path(folder) / "detections.json"
        with whole_file(metrics) as beside:
            beside.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        with whole_file(detections) as beside:
            beside.write_text(json.dumps(self.detections), encoding="utf-8")
        return metrics, detections


def evaluate(  # noqa: PLR0913 - what, on what and how: all by keyword but three
    detector: Detector[Any],
    recipe: Recipe,
    source: Source,
    *,
    batch: int = 1,
    workers: int = 2,
    device: torch.device | str = "auto",
    precision: Precision = "32",
    progress: bool = True,
    views: Views | None = None,
    metric: Metric | None = None,
) -> Evaluation:
    """Detects in every image of `source` and scores the result.

    The detector is moved to `device`, put into evaluation mode and back into the mode it was in. Of images
    that are done only the rows that the metric needs are kept.

    Args:
        detector: must have as many classes as `source`.
        recipe: how images are resized and normalised (`test_size`, `pixels`), and its metric.
        source: the images and their ground truth.
        batch: images a step and process.
        workers: processes that read images, for each process that detects; 0 reads in the same one.
        device: "auto" is the GPU if there is one, under torchrun the one of this process.
        precision: arithmetic of the network; "bf16" and "fp16" are for GPUs.
        progress: show a bar with images a second and the time left (in a terminal only).
        views: looks at each image several times, at sizes of their own, and merges what is found.
        metric: another than the recipe's.

    Raises:
        ValueError: when the detector and `source` differ in their number of classes, or there is no such
            metric.
    """
    if detector.num_classes != len(source.classes):
        raise ValueError(
            f"the detector knows {detector.num_classes} classes but {source.file or source.name} has "
            f"{len(source.classes)}: {', '.join(source.classes[:5])}...; use weights trained on these classes"
        )
    metric = metric_named(recipe.metric) if metric is None else metric
    with _processes():
        rank, world = _place()
        engine = Engine(detector, recipe, device=_device(device), precision=precision, views=views)
        unread: dict[str, str] = {}
        started = time.monotonic()
        total = -(-len(source.samples) // world)
        batches = _batches(engine, source, unread, batch=batch, workers=workers)
        with closing(_bar(batches, total, show=progress and rank == 0)) as shown:
            mine = Rows.join([metric.keep(seen.key, seen.objects, seen.size) for seen in engine.run(shown)])
        everyone = _gather((mine, tuple(unread.values())))
        seconds = time.monotonic() - started
        report, rows, broken = None, Rows.join([]), ()
        if everyone is not None:
            rows = Rows.join([found for found, _ in everyone]).sorted()
            report = metric.report(source, rows)
            broken = tuple(sorted(why for _, whys in everyone for why in whys))
        report, broken, seconds = _tell((report, broken, seconds))
    return Evaluation(
        report=report,
        rows=rows,
        category_ids=source.category_ids,
        seconds=seconds,
        broken=broken,
        views=len(engine.views),
        classes=source.classes,
        classes_by=source.classes_by,
        notes=source.notes,
    )


def _batches(
    engine: Engine, source: Source, broken: dict[str, str], *, batch: int, workers: int
) -> Iterator[Ready]:
    """This process's share of the images, each once; those that cannot be read go into `broken`."""
    rank, world = _place()
    first = engine.views.views[0]
    recipe = engine.recipe
    loader = eval_loader(
        source,
        replace(recipe, test_size=first.resize(recipe.test_size)),
        batch=batch,
        workers=workers,
        stride=engine.detector.stride,
        rank=rank,
        world=world,
        mirrored=first.mirrored,
        files=len(engine.views) > 1,
    )
    loader.broken = broken
    for one in loader:
        yield Ready(
            images=one.images,
            sizes=one.targets.sizes,
            scales=one.scales,
            originals=one.originals,
            keys=tuple(cast("list[int]", one.ids.tolist())),
            files=tuple(file.numpy() for file in one.files),
        )


def _bar(batches: Iterator[Ready], total: int, *, show: bool) -> Generator[Ready]:
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
        for one in batches:
            yield one
            done += len(one.keys)
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
        return device_named(device)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
