"""The loaders of training and of tests, and which images training takes."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from relook.data.loading.batches import Batch, Delivery, Images, TestImages, TrainingImages, deliver
from relook.data.sample import DataError, Source
from relook.data.samplers import Batches, EachOnce, FilledGroups, StreamedGroups, orientation_groups
from relook.recipe import Pixels, Recipe, Selection

log = logging.getLogger("relook.data.loading")


class Loader:
    """Batches of one process, epoch after epoch.

        loader = train_loader(source, recipe, batch=2, workers=4, seed=0, stride=32)
        for epoch in range(12):
            loader.sampler.set_epoch(epoch)
            for batch in loader: ...

    `broken` lists the images that could not be used so far: path -> why.
    """

    def __init__(
        self, images: "Images", batches: Batches, *, workers: int, pixels: Pixels, stride: int
    ) -> None:
        self.sampler = batches
        self.broken: dict[str, str] = {}
        self._name = images.source.name
        self._training = images.training
        self._tried = self._failed = 0
        loader: DataLoader[Any] = DataLoader(
            images,
            batch_sampler=cast("Any", batches),  # torch's types ask for plain indices
            num_workers=workers,
            collate_fn=partial(deliver, pixels=pixels, stride=stride),
            worker_init_fn=_hear_parent,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # so that iterating never touches the global random numbers
        )
        self._deliveries = cast("Iterable[Delivery]", loader)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the epoch; in training each is full, in tests broken images are missing from theirs.

        Raises:
            DataError: when more than half of the images are broken.
        """
        with _unheard():
            deliveries = iter(self._deliveries)  # here the processes that read images start
        for delivery in deliveries:
            self._note(delivery)
            self._stop_when_hopeless(least=16)
            if delivery.batch is not None:
                yield delivery.batch
            elif self._training:  # other processes would wait for this one for ever
                raise self._hopeless()
        self._stop_when_hopeless(least=1)

    def _note(self, delivery: "Delivery") -> None:
        self._tried += delivery.tried
        self._failed += len(delivery.broken)
        for broken in delivery.broken:
            if broken.path not in self.broken:
                self.broken[broken.path] = broken.why
                log.warning("skipped broken image %d of %s: %s", len(self.broken), self._name, broken.why)

    def _stop_when_hopeless(self, *, least: int) -> None:
        if self._tried >= least and self._failed > self._tried / 2:
            raise self._hopeless()

    def _hopeless(self) -> DataError:
        listed = "".join(f"\n  {why}" for why in list(self.broken.values())[:5])
        return DataError(
            f"{self._name}: {self._failed} of the first {self._tried} images are broken; "
            f"check the data with `relook doctor PATH`. The first ones:{listed}"
        )


@contextmanager
def _unheard() -> Generator[None]:
    """Processes started meanwhile do not hear Ctrl-C and SIGHUP, and SIGTERM only from their parent.

    Terminals, `timeout` and schedulers send them to all processes of a program. The one that trains decides
    what happens then, and ends the others when it has no more need of them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows has no such signals
        yield
        return
    heard = {signal.SIGTERM} if hasattr(signal, "sigwaitinfo") else set[signal.Signals]()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP} | heard)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hear_parent(_number: int) -> None:
    """In a process that reads images: ends it when its parent says so."""
    if hasattr(signal, "sigwaitinfo"):
        parent = multiprocessing.parent_process()  # not getppid: a server may have forked this process
        number = os.getppid() if parent is None or parent.pid is None else parent.pid
        threading.Thread(target=_wait_for_parent, args=(number,), daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def train_loader(  # noqa: PLR0913 - what, how, and this process among all: all by keyword but two
    source: Source,
    recipe: Recipe,
    *,
    batch: int,
    workers: int,
    seed: int,
    stride: int,
    rank: int = 0,
    world: int = 1,
    masks: bool = False,
) -> Loader:
    """Shuffled, augmented batches; what an image looks like depends on seed, epoch and image only.

    A broken image is replaced by another of its orientation, so that batches stay full.

    Args:
        source: the training split.
        recipe: sizes, pixels and augmentation.
        batch: images per process and step.
        workers: loading processes; 0 loads in this one. The batches are the same for any number.
        seed: of order and augmentation.
        stride: the detector's; sides of the input are multiples of it.
        rank: number of this process.
        world: number of processes; all get equally many batches.
        masks: targets have masks, too.

    Raises:
        DataError: when the recipe leaves no image to train on, or the data have no masks.
    """
    kept = trainable(source, recipe.selection)
    if masks and not any(part for i in kept for part in source.samples[i].segmentation):
        raise DataError(
            f"{source.file or source.name} has no masks, which this model learns; annotate them in COCO's "
            "format (segmentation: polygons or run lengths), or train a model that finds boxes"
        )
    groups = orientation_groups(source.samples, kept, recipe.group_by)
    kind = StreamedGroups if recipe.group_by == "w>=h" else FilledGroups
    batches = kind(groups, batch=batch, seed=seed, rank=rank, world=world)
    images = TrainingImages(source, recipe.train_size, steps=recipe.augment, groups=groups, seed=seed)
    images.masks, images.last_pixel = masks, recipe.last_pixel
    return Loader(images, batches, workers=workers, pixels=recipe.pixels, stride=stride)


def eval_loader(  # noqa: PLR0913 - as `train_loader`
    source: Source,
    recipe: Recipe,
    *,
    batch: int,
    workers: int,
    stride: int,
    rank: int = 0,
    world: int = 1,
    mirrored: bool = False,
    files: bool = False,
) -> Loader:
    """Batches of all images, each exactly once over all processes, at the recipe's test size.

    Args:
        source: the split to test on.
        recipe: sizes and pixels.
        batch: images per process and step.
        workers: loading processes; 0 loads in this one.
        stride: the detector's; sides of the input are multiples of it.
        rank: number of this process.
        world: number of processes.
        mirrored: left and right change places in all images, and in their targets.
        files: also deliver the decoded files, for further views of them.
    """
    batches = EachOnce(source.samples, batch=batch, rank=rank, world=world)
    images = TestImages(source, recipe.test_size, mirrored=mirrored, files=files)
    return Loader(images, batches, workers=workers, pixels=recipe.pixels, stride=stride)


# -- what is trained on --------------------------------------------------------------------------------


def trainable(source: Source, selection: Selection) -> list[int]:
    """Indices of the samples that the recipe trains on.

    Crowds and dropped boxes count as annotations, as published: such an image trains as an empty one.

    Raises:
        DataError: when there is none.
    """
    kept = [
        i
        for i, sample in enumerate(source.samples)
        if min(sample.height, sample.width) >= selection.min_side
        and (selection.need == "nothing" or len(sample.boxes) > 0)
    ]
    if not kept:
        raise DataError(
            f"{source.file or source.name}: none of {len(source.samples)} images can be trained on: each is "
            f"smaller than {selection.min_side} pixels or has no annotation; look with `relook doctor PATH`"
        )
    return kept
