"""Samples -> batches for training and tests; a broken image is skipped, counted, listed, and ends no run."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from relook.data.decode import BrokenImage
from relook.data.sample import DataError, Sample, Source
from relook.data.samplers import Batches, EachOnce, FilledGroups, Pick, StreamedGroups, orientation_groups
from relook.data.transforms.network_input import normalise_into, padded_sides
from relook.data.transforms.picture import Picture, picture
from relook.data.transforms.steps import augment, flip, resize
from relook.recipe import Pixels, Recipe, Selection, Size, Step
from relook.rle import bitmap
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
    files: tuple[Tensor, ...] = ()  # [H, W, 3] uint8 each: the decoded files, where they were asked for

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
            self.files,
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
            self.files,
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
        self._training = images.training
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
    images = _TrainingImages(source, recipe.train_size, steps=recipe.augment, groups=groups, seed=seed)
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
    images = _TestImages(source, recipe.test_size, mirrored=mirrored, files=files)
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


def trained_boxes(sample: Sample) -> NDArray[np.bool_]:
    """Which boxes of a sample are learnt: [N].

    Not crowds, not those marked `ignore`, and by the published rule none without area, none narrower or lower
    than 1 pixel (before clipping), none outside the image.
    """
    sides = sample.boxes[:, 2:] - sample.boxes[:, :2]
    large = (sides > 1 - 1e-6).all(1)  # files hold x and width: their sum and difference is not exact
    inside = (sample.boxes[:, 2:] > 0).all(1) & (sample.boxes[:, :2] < [sample.width, sample.height]).all(1)
    return large & inside & (sample.area > 0) & ~sample.crowd & ~sample.ignore


# -- in the workers ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Broken:
    path: str
    why: str


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    """One image of a batch, before normalisation."""

    picture: Picture  # with the objects that are learnt
    original: tuple[int, int]  # (height, width) of the file
    file: Tensor | None  # [H, W, 3] uint8, as decoded
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
    """Picks -> loaded images: what training and tests share."""

    training: bool
    files = False  # deliver the decoded files, too
    masks = False  # and what is annotated as masks
    last_pixel = False  # right and lower corners become pixels of the file, where they were edges

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, pick: Pick) -> _Tried:
        broken: list[_Broken] = []
        for index in self.candidates(pick):
            sample = self.source.samples[index]
            try:
                return _Tried(self._load(sample, pick), tuple(broken))
            except BrokenImage as error:
                broken.append(_Broken(str(sample.path), str(error)))
        return _Tried(None, tuple(broken))

    def candidates(self, pick: Pick) -> Iterator[int]:
        """The image asked for, and what may stand in for it."""
        yield pick.sample

    def change(self, start: Picture, sample: Sample, pick: Pick) -> Picture:
        """From the file to the size of the network."""
        raise NotImplementedError

    def _load(self, sample: Sample, pick: Pick) -> _Loaded:
        file = sample.image()
        learnt = trained_boxes(sample)
        drawn = bitmaps(sample, np.flatnonzero(learnt), file.shape[0], file.shape[1]) if self.masks else None
        boxes = sample.boxes[learnt]
        if self.last_pixel:
            border = np.array([file.shape[1], file.shape[0]])
            boxes[:, 2:] = np.maximum(np.minimum(boxes[:, 2:], border) - 1, boxes[:, :2])
        start = picture(file, boxes, sample.labels[learnt], drawn)
        return _Loaded(
            picture=self.change(start, sample, pick),
            original=(file.shape[0], file.shape[1]),
            file=torch.from_numpy(np.require(file, requirements=["C", "W"])) if self.files else None,
            sample=sample,
        )


class _TrainingImages(_Images):
    """By the recipe's steps; a broken image is replaced."""

    training = True
    _substitutes = 8

    def __init__(
        self,
        source: Source,
        size: Size,
        *,
        steps: Sequence[Step],
        groups: Sequence[NDArray[np.int64]],
        seed: int,
    ) -> None:
        super().__init__(source)
        self._size, self._steps, self._groups, self._seed = size, steps, groups, seed

    @override
    def candidates(self, pick: Pick) -> Iterator[int]:
        """The image asked for, then some others of its orientation, drawn the same every time."""
        yield pick.sample
        random = np.random.default_rng([self._seed & 0xFFFFFFFFFFFFFFFF, *pick])
        group = next(group for group in self._groups if pick.sample in group)
        yield from random.choice(group, self._substitutes).tolist()

    @override
    def change(self, start: Picture, sample: Sample, pick: Pick) -> Picture:
        return augment(start, self._steps, self._size, (self._seed, pick.epoch, sample.id, pick.turn))


class _TestImages(_Images):
    """At the test size."""

    training = False

    def __init__(self, source: Source, size: Size, *, mirrored: bool, files: bool) -> None:
        super().__init__(source)
        self._size, self._mirrored, self.files = size, mirrored, files

    @override
    def change(self, start: Picture, sample: Sample, pick: Pick) -> Picture:
        small = resize(start, self._size)
        return flip(small) if self._mirrored else small


def bitmaps(sample: Sample, rows: NDArray[np.int64], height: int, width: int) -> Tensor:
    """The masks of some objects of a sample: [n, height, width] bool.

    An object without a usable segmentation is as large as its box.

    Raises:
        BrokenImage: when run lengths cannot be read; the message names the object.
    """
    drawn = torch.zeros(len(rows), height, width, dtype=torch.bool)
    for place, row in zip(drawn, rows.tolist(), strict=True):
        try:
            mask = bitmap(sample.segmentation[row] if sample.segmentation else None, height, width)
        except ValueError as error:
            raise BrokenImage(f"{sample.path}: object {row + 1}: {error}") from error
        if mask is not None:
            place.copy_(torch.from_numpy(mask))
        else:
            x1, y1, x2, y2 = (round(v) for v in sample.boxes[row].clip(0).tolist())
            place[y1:y2, x1:x2] = True
    return drawn


def _stacked_masks(loaded: Sequence[_Loaded], targets: Targets, height: int, width: int) -> Tensor:
    """Masks of all images, padded like their targets: [B, M, H, W] bool."""
    padded = torch.zeros(*targets.valid.shape, height, width, dtype=torch.bool)
    for place, one in zip(padded, loaded, strict=True):
        masks = one.picture.masks
        if masks is not None:
            place[: len(masks), : masks.shape[1], : masks.shape[2]] = masks
    return padded


def _deliver(tried: Sequence[_Tried], *, pixels: Pixels, stride: int) -> _Delivery:
    """Puts a batch together; runs in the workers."""
    loaded = [one.loaded for one in tried if one.loaded is not None]
    broken = tuple(b for one in tried for b in one.broken)
    batch = _batch(loaded, pixels, stride) if loaded else None
    return _Delivery(batch, broken, len(loaded) + len(broken))


def _batch(loaded: Sequence[_Loaded], pixels: Pixels, stride: int) -> Batch:
    sizes = [one.picture.size for one in loaded]
    height, width = padded_sides(sizes, pad=pixels.pad, stride=stride)
    images = torch.zeros(len(loaded), 3, height, width)
    for place, one in zip(images, loaded, strict=True):
        normalise_into(place, one.picture.image, pixels)
    originals = torch.tensor([one.original for one in loaded], dtype=torch.int64)
    scales = torch.tensor(sizes, dtype=torch.float64) / originals
    targets = Targets.pad(
        boxes=[one.picture.boxes for one in loaded],
        labels=[one.picture.labels for one in loaded],
        sizes=sizes,
    )
    if loaded[0].picture.masks is not None:
        targets = replace(targets, masks=_stacked_masks(loaded, targets, height, width))
    return Batch(
        images=images,
        targets=targets,
        ids=torch.tensor([one.sample.id for one in loaded], dtype=torch.int64),
        originals=originals,
        scales=scales.flip(1),
        paths=tuple(str(one.sample.path) for one in loaded),
        files=tuple(one.file for one in loaded if one.file is not None),
    )
