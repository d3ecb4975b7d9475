"""What loading processes do: an image is read, changed and put into a batch with others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from relook.data.decode import BrokenImage
from relook.data.learnt import trained_boxes
from relook.data.sample import Sample, Source
from relook.data.samplers import Pick
from relook.data.transforms.network_input import normalise_into, padded_sides
from relook.data.transforms.picture import Picture, picture
from relook.data.transforms.steps import augment, flip, resize
from relook.recipe import Pixels, Size, Step
from relook.rle import bitmap
from relook.types import Targets, record


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


@dataclass(frozen=True, slots=True)
class Broken:
    path: str
    why: str


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """One image of a batch, before normalisation."""

    picture: Picture  # with the objects that are learnt
    original: tuple[int, int]  # (height, width) of the file
    file: Tensor | None  # [H, W, 3] uint8, as decoded
    sample: Sample


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """The outcome of one pick: an image, unless all that were tried are broken."""

    loaded: Loaded | None
    broken: tuple[Broken, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """What a worker sends: a batch, unless all of it is broken, and the news about broken images."""

    batch: Batch | None
    broken: tuple[Broken, ...]
    tried: int

    def pin_memory(self) -> "Delivery":
        """Called by DataLoader."""
        return Delivery(None if self.batch is None else self.batch.pin_memory(), self.broken, self.tried)


class Images(Dataset[Tried]):
    """Picks -> loaded images: what training and tests share."""

    training: bool
    files = False  # deliver the decoded files, too
    masks = False  # and what is annotated as masks
    last_pixel = False  # right and lower corners become pixels of the file, where they were edges

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, pick: Pick) -> Tried:
        broken: list[Broken] = []
        for index in self.candidates(pick):
            sample = self.source.samples[index]
            try:
                return Tried(self._load(sample, pick), tuple(broken))
            except BrokenImage as error:
                broken.append(Broken(str(sample.path), str(error)))
        return Tried(None, tuple(broken))

    def candidates(self, pick: Pick) -> Iterator[int]:
        """The image asked for, and what may stand in for it."""
        yield pick.sample

    def change(self, start: Picture, sample: Sample, pick: Pick) -> Picture:
        """From the file to the size of the network."""
        raise NotImplementedError

    def _load(self, sample: Sample, pick: Pick) -> Loaded:
        file = sample.image()
        learnt = trained_boxes(sample)
        drawn = bitmaps(sample, np.flatnonzero(learnt), file.shape[0], file.shape[1]) if self.masks else None
        boxes = sample.boxes[learnt]
        if self.last_pixel:
            border = np.array([file.shape[1], file.shape[0]])
            boxes[:, 2:] = np.maximum(np.minimum(boxes[:, 2:], border) - 1, boxes[:, :2])
        start = picture(file, boxes, sample.labels[learnt], drawn)
        return Loaded(
            picture=self.change(start, sample, pick),
            original=(file.shape[0], file.shape[1]),
            file=torch.from_numpy(np.require(file, requirements=["C", "W"])) if self.files else None,
            sample=sample,
        )


class TrainingImages(Images):
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


class TestImages(Images):
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


def _stacked_masks(loaded: Sequence[Loaded], targets: Targets, height: int, width: int) -> Tensor:
    """Masks of all images, padded like their targets: [B, M, H, W] bool."""
    padded = torch.zeros(*targets.valid.shape, height, width, dtype=torch.bool)
    for place, one in zip(padded, loaded, strict=True):
        masks = one.picture.masks
        if masks is not None:
            place[: len(masks), : masks.shape[1], : masks.shape[2]] = masks
    return padded


def deliver(tried: Sequence[Tried], *, pixels: Pixels, stride: int) -> Delivery:
    """Puts a batch together; runs in the workers."""
    loaded = [one.loaded for one in tried if one.loaded is not None]
    broken = tuple(b for one in tried for b in one.broken)
    batch = _batch(loaded, pixels, stride) if loaded else None
    return Delivery(batch, broken, len(loaded) + len(broken))


def _batch(loaded: Sequence[Loaded], pixels: Pixels, stride: int) -> Batch:
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
