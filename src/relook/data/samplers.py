"""Which images make which batch: grouped by orientation in training, each image exactly once in tests."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from relook.data.sample import Sample


class Pick(NamedTuple):
    """One image of a batch, with all that its random draws depend on."""

    sample: int  # index in the source's samples
    epoch: int
    turn: int  # how often the image came before in this epoch, when images are repeated


class Batches(Protocol):
    """What a loader asks for: the batches of one process in one epoch."""

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """The epoch whose batches come next, without its first `skip`."""
        ...

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[list[Pick]]: ...


def orientation_groups(
    samples: Sequence[Sample], kept: Sequence[int], group_by: Literal["w>h", "w>=h", "none"]
) -> tuple[NDArray[np.int64], ...]:
    """The indices `kept`, apart by orientation as the recipe says; groups without images are left away."""
    index = np.array(kept, np.int64)
    if group_by == "none":
        return (index,) if len(index) else ()
    width = np.array([samples[i].width for i in kept])
    height = np.array([samples[i].height for i in kept])
    lying = width > height if group_by == "w>h" else width >= height
    return tuple(group for group in (index[lying], index[~lying]) if len(group))


class FilledGroups:
    """Training batches of one orientation each; groups are filled up by repeating images (published line A).

    Every epoch each group is shuffled and filled up to a multiple of batch * world by starting over with its
    first images, cut into batches, and the batches of all groups are shuffled and dealt to the processes. So
    all processes have equally many full batches, even when there are fewer images than a batch holds.

    Args:
        groups: indices of samples.
        batch: images per process and step.
        seed: the order depends on it and on the epoch only.
        rank: number of this process.
        world: number of processes.
    """

    def __init__(
        self, groups: Sequence[NDArray[np.int64]], *, batch: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        _check(batch, rank, world)
        self._groups = tuple(groups)
        self._batch, self._seed, self._rank, self._world = batch, seed, rank, world
        self.epoch = self._skip = 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """The epoch whose order comes next, without its first `skip` batches, which are not even loaded."""
        self.epoch, self._skip = epoch, skip

    def __len__(self) -> int:
        total = self._batch * self._world
        return sum(math.ceil(len(group) / total) for group in self._groups)

    def __iter__(self) -> Iterator[list[Pick]]:
        random = _random(self._seed, self.epoch)
        total = self._batch * self._world
        batches: list[list[Pick]] = []
        for group in self._groups:
            order = random.permutation(group)
            filled = np.resize(order, -(-len(order) // total) * total).tolist()
            picks = [Pick(index, self.epoch, n // len(order)) for n, index in enumerate(filled)]
            batches += [picks[n : n + self._batch] for n in range(0, len(picks), self._batch)]
        dealt = random.permutation(len(batches))[self._rank :: self._world]
        yield from (batches[n] for n in dealt[self._skip :])


class StreamedGroups:
    """Training batches of one orientation each, but for the leftovers of the epoch (published line B).

    Every epoch all images are shuffled together and dealt to the processes, the first ones again if the
    number does not divide. Each process fills one batch per orientation as its images come; what is left at
    the end of the epoch goes into mixed batches, the last of which may be smaller. All processes have equally
    many batches.

    Args:
        groups: indices of samples.
        batch: images per process and step.
        seed: the order depends on it and on the epoch only.
        rank: number of this process.
        world: number of processes.
    """

    def __init__(
        self, groups: Sequence[NDArray[np.int64]], *, batch: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        _check(batch, rank, world)
        self._group_of = {index: n for n, group in enumerate(groups) for index in group.tolist()}
        self._groups = len(groups)
        self._batch, self._seed, self._rank, self._world = batch, seed, rank, world
        self.epoch = self._skip = 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """The epoch whose order comes next, without its first `skip` batches, which are not even loaded."""
        self.epoch, self._skip = epoch, skip

    def __len__(self) -> int:
        return math.ceil(math.ceil(len(self._group_of) / self._world) / self._batch)

    def __iter__(self) -> Iterator[list[Pick]]:
        return islice(self._whole(), self._skip, None)

    def _whole(self) -> Iterator[list[Pick]]:
        """All batches of the epoch."""
        count = len(self._group_of)
        order = _random(self._seed, self.epoch).permutation(np.array(list(self._group_of), np.int64))
        filled = np.resize(order, -(-count // self._world) * self._world).tolist()
        waiting: list[list[Pick]] = [[] for _ in range(self._groups)]
        for n in range(self._rank, len(filled), self._world):
            bucket = waiting[self._group_of[filled[n]]]
            bucket.append(Pick(filled[n], self.epoch, n // count))
            if len(bucket) == self._batch:
                yield list(bucket)
                bucket.clear()
        left = [pick for bucket in waiting for pick in bucket]
        yield from (left[n : n + self._batch] for n in range(0, len(left), self._batch))


class EachOnce:
    """Test batches: every image exactly once over all processes, none dropped and none repeated.

    Images are sorted by their ratio of sides, so that a batch needs little padding, and dealt in turn. With
    more processes than images some processes have no batch at all; the last batch of each may be smaller.

    Args:
        samples: the images.
        batch: images per process and step.
        rank: number of this process.
        world: number of processes.
    """

    def __init__(self, samples: Sequence[Sample], *, batch: int, rank: int = 0, world: int = 1) -> None:
        _check(batch, rank, world)
        ratio = np.array([sample.width / max(1, sample.height) for sample in samples])
        self._share: list[int] = np.argsort(ratio, kind="stable")[rank::world].tolist()
        self._batch = batch
        self.epoch = self._skip = 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Tests have one order whatever the epoch; the first `skip` batches are not loaded."""
        self.epoch, self._skip = epoch, skip

    def __len__(self) -> int:
        return math.ceil(len(self._share) / self._batch)

    def __iter__(self) -> Iterator[list[Pick]]:
        for n in range(self._skip * self._batch, len(self._share), self._batch):
            yield [Pick(index, self.epoch, 0) for index in self._share[n : n + self._batch]]


def _random(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, epoch])


def _check(batch: int, rank: int, world: int) -> None:
    if batch < 1:
        raise ValueError(f"a batch needs at least one image, not {batch}")
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} does not exist among {world} processes; ranks count from 0")
