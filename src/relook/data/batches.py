"""Samples -> batches for training and tests; a broken image is skipped, counted, listed, and ends no run."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from relook.data.images import BrokenImage
from relook.data.sample import DataError, Sample, Source
from relook.data.samplers import Batches, EachOnce, FilledGroups, Pick, StreamedGroups, orientation_groups
from relook.data.transforms import (
    Draw,
    draw,
    mirror_boxes,
    normalise_into,
    only_short,
    padded_sides,
    reshape_image,
    resize_boxes,
)
from relook.recipe import Augment, Pixels, Recipe, Resize
from relook.types import Targets, record

log = logging.getLogger(__name__)


@record
class Batch:
    """Images ready for the network, and what is known of them."""

    images: Tensor  # [B, 3, H, W] float32, normalised, zeros on the right and below
    targets: Targets  # in pixels of `images`
    ids: Tensor  # [B] int64
    originals: Tensor  # [B, 2] int64 (height, width) of the files
    scales: Tensor  # [B, 2] float64 (x, y) pixels of `images` per pixel of the file
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device | str) -> Self:
        """The images and targets on another device, copied without waiting; ids, sizes and scales stay."""
        return type(self)(
            self.images.to(device, non_blocking=True),
            self.targets.to(device),
            self.ids,
            self.originals,
            self.scales,
            self.paths,
        )

    def pin_memory(self) -> Self:
        """The images and targets in page-locked memory, so that `to` need not wait."""
        return type(self)(
            self.images.pin_memory(),
            self.targets.pin_memory(),
            self.ids,
            self.originals,
            self.scales,
            self.paths,
        )


class Loader:
    """Batches of one process, epoch after epoch.

        loader = train_loader(source, recipe, batch=2, workers=4, seed=0, stride=32)
        for epoch in range(12):
            loader.sampler.set_epoch(epoch)
            for batch in loader: ...

    `broken` lists the images that could not be used so far: path -> why.
    """

    def __init__(
        self, images: "_Images", batches: Batches, *, workers: int, pixels: Pixels, stride: int
    ) -> None:
        self.sampler = batches
        self.broken: dict[str, str] = {}
        self._name = images.source.name
        self._training = images.augment is not None
        self._tried = self._failed = 0
        loader: DataLoader[Any] = DataLoader(
            images,
            batch_sampler=cast("Any", batches),  # torch's types ask for plain indices
            num_workers=workers,
            collate_fn=partial(_deliver, pixels=pixels, stride=stride),
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # so that iterating never touches the global random numbers
        )
        self._deliveries = cast("Iterable[_Delivery]", loader)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the epoch; in training each is full, in tests broken images are missing from theirs.

        Raises:
            DataError: when more than half of the images are broken.
        """
        for delivery in self._deliveries:
            self._note(delivery)
            self._stop_when_hopeless(least=16)
            if delivery.batch is not None:
                yield delivery.batch
            elif self._training:  # other processes would wait for this one for ever
                raise self._hopeless()
        self._stop_when_hopeless(least=1)

    def _note(self, delivery: "_Delivery") -> None:
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

    Raises:
        DataError: when the recipe leaves no image to train on.
    """
    kept = trainable(source, recipe.augment)
    groups = orientation_groups(source.samples, kept, recipe.augment)
    kind = StreamedGroups if recipe.augment.group_by == "w>=h" else FilledGroups
    batches = kind(groups, batch=batch, seed=seed, rank=rank, world=world)
    images = _Images(source, recipe.train_size, augment=recipe.augment, groups=groups, seed=seed)
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
    """
    batches = EachOnce(source.samples, batch=batch, rank=rank, world=world)
    images = _Images(source, recipe.test_size, mirrored=mirrored)
    return Loader(images, batches, workers=workers, pixels=recipe.pixels, stride=stride)


# -- what is trained on --------------------------------------------------------------------------------


def trainable(source: Source, augment: Augment) -> list[int]:
    """Indices of the samples that the recipe trains on.

    Crowds and dropped boxes count as annotations, as published: such an image trains as an empty one.

    Raises:
        DataError: when there is none.
    """
    kept = [
        i
        for i, sample in enumerate(source.samples)
        if min(sample.height, sample.width) >= augment.min_side
        and (augment.need == "nothing" or len(sample.boxes) > 0)
    ]
    if not kept:
        raise DataError(
            f"{source.file or source.name}: none of {len(source.samples)} images can be trained on: each is "
            f"smaller than {augment.min_side} pixels or has no annotation; look with `relook doctor PATH`"
        )
    return kept


def trained_boxes(sample: Sample) -> NDArray[np.bool_]:
    """Which boxes of a sample are learnt: [N].

    Not crowds, not those marked `ignore`, and by the published rule none without area, none narrower or lower
    than 1 pixel (before clipping), none outside the image.
    """
    sides = sample.boxes[:, 2:] - sample.boxes[:, :2]
    large = (sides > 1 - 1e-6).all(1)  # files hold x and width: their sum and difference is not exact
    inside = (sample.boxes[:, 2:] > 0).all(1) & (sample.boxes[:, :2] < [sample.width, sample.height]).all(1)
    return large & inside & (sample.area > 0) & ~sample.crowd & ~sample.left_out


# -- in the workers ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Broken:
    path: str
    why: str


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    """One image of a batch, before normalisation."""

    image: Tensor  # [3, h, w] uint8
    boxes: Tensor  # [n, 4] float32, pixels of `image`
    labels: Tensor  # [n] int64
    ignored: Tensor  # [g, 4]
    original: tuple[int, int]  # (height, width)
    sample: Sample


@dataclass(frozen=True, slots=True, eq=False)
class _Tried:
    """The outcome of one pick: an image, unless all that were tried are broken."""

    loaded: _Loaded | None
    broken: tuple[_Broken, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Delivery:
    """What a worker sends: a batch, unless all of it is broken, and the news about broken images."""

    batch: Batch | None
    broken: tuple[_Broken, ...]
    tried: int

    def pin_memory(self) -> "_Delivery":
        """Called by DataLoader."""
        return _Delivery(None if self.batch is None else self.batch.pin_memory(), self.broken, self.tried)


class _Images(Dataset[_Tried]):
    """Picks -> loaded images; with `augment` as in training, without as in tests."""

    _substitutes = 8

    def __init__(
        self,
        source: Source,
        resize: Resize,
        *,
        augment: Augment | None = None,
        groups: Sequence[NDArray[np.int64]] = (),
        seed: int = 0,
        mirrored: bool = False,
    ) -> None:
        self.source, self.augment = source, augment
        self._resize, self._groups, self._seed, self._mirrored = resize, groups, seed, mirrored

    def __getitem__(self, pick: Pick) -> _Tried:
        broken: list[_Broken] = []
        for index in self._candidates(pick):
            sample = self.source.samples[index]
            try:
                return _Tried(self._load(sample, pick), tuple(broken))
            except BrokenImage as error:
                broken.append(_Broken(str(sample.path), str(error)))
        return _Tried(None, tuple(broken))

    def _candidates(self, pick: Pick) -> Iterator[int]:
        """The image asked for; in training then some others of its orientation, drawn the same every time."""
        yield pick.sample
        if self.augment is not None:
            random = np.random.default_rng([self._seed & 0xFFFFFFFFFFFFFFFF, *pick])
            group = next(group for group in self._groups if pick.sample in group)
            yield from random.choice(group, self._substitutes).tolist()

    def _load(self, sample: Sample, pick: Pick) -> _Loaded:
        image = sample.image()
        if self.augment is None:
            drawn = Draw(short=only_short(self._resize), mirrored=self._mirrored)
        else:
            drawn = draw(self._resize, self.augment, (self._seed, pick.epoch, sample.id, pick.turn))
        small = reshape_image(image, drawn, self._resize)
        old, new = (image.shape[0], image.shape[1]), (small.shape[1], small.shape[2])
        boxes = resize_boxes(sample.boxes, old=old, new=new)
        if drawn.mirrored:
            boxes = mirror_boxes(boxes, new[1])
        learnt = torch.from_numpy(trained_boxes(sample))
        return _Loaded(
            image=small,
            boxes=boxes[learnt],
            labels=torch.from_numpy(sample.labels)[learnt],
            ignored=boxes[torch.from_numpy(sample.crowd)],
            original=old,
            sample=sample,
        )


def _deliver(tried: Sequence[_Tried], *, pixels: Pixels, stride: int) -> _Delivery:
    """Puts a batch together; runs in the workers."""
    loaded = [one.loaded for one in tried if one.loaded is not None]
    broken = tuple(b for one in tried for b in one.broken)
    batch = _batch(loaded, pixels, stride) if loaded else None
    return _Delivery(batch, broken, len(loaded) + len(broken))


def _batch(loaded: Sequence[_Loaded], pixels: Pixels, stride: int) -> Batch:
    sizes = [(one.image.shape[1], one.image.shape[2]) for one in loaded]
    height, width = padded_sides(sizes, pad=pixels.pad, stride=stride)
    images = torch.zeros(len(loaded), 3, height, width)
    for place, one in zip(images, loaded, strict=True):
        normalise_into(place, one.image, pixels)
    originals = torch.tensor([one.original for one in loaded], dtype=torch.int64)
    scales = torch.tensor(sizes, dtype=torch.float64) / originals
    targets = Targets.pad(
        boxes=[one.boxes for one in loaded],
        labels=[one.labels for one in loaded],
        sizes=sizes,
        ignored=[one.ignored for one in loaded],
    )
    return Batch(
        images=images,
        targets=targets,
        ids=torch.tensor([one.sample.id for one in loaded], dtype=torch.int64),
        originals=originals,
        scales=scales.flip(1),
        paths=tuple(str(one.sample.path) for one in loaded),
    )
