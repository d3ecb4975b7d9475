"""Any images in, results out: one by one, in the order given, with memory that does not grow."""

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from relook.data.decode import BrokenImage
from relook.data.transforms.network_input import Prepared
from relook.detector import Detector
from relook.inference import Engine, Precision, Ready, Seen
from relook.inputs import Given, Picture, pictures, pixels
from relook.recipe import Recipe
from relook.results.result import Result, ResultStream
from relook.views import Views


class Predictor:
    """A detector ready for any image.

        look = relook.load("mine.safetensors")
        for result in look(["a.jpg", "b.png"]):
            result.above(0.5).plot("out.png")

    Args:
        detector: is moved to the device and put into evaluation mode.
        recipe: how images are resized and normalised (`test_size`, `pixels`).
        classes: the name of each label.
        device: "auto" takes a GPU where there is one.
        batch: images a step. Those of one shape give the same results as alone, to rounding; others are
            padded to a common size, which the network sees: scores then move, by hundredths on small images.
        precision: arithmetic of the network; "bf16" and "fp16" are for GPUs.
        views: looks at each image several times, at sizes of their own, and merges what is found.

    Raises:
        ValueError: when there are not as many names as the detector has classes.
    """

    def __init__(
        self,
        detector: Detector[Any],
        recipe: Recipe,
        classes: Sequence[str],
        *,
        device: str | torch.device = "auto",
        batch: int = 1,
        precision: Precision = "32",
        views: Views | None = None,
    ) -> None:
        if len(classes) != detector.num_classes:
            raise ValueError(
                f"the detector knows {detector.num_classes} classes but {len(classes)} names were given; "
                "give one name for each class"
            )
        if batch < 1:
            raise ValueError(f"batch={batch} is too small; batch must be at least 1")
        detector.eval()
        self._engine = Engine(detector, recipe, device=device, precision=precision, views=views)
        self.detector, self.device, self.views = detector, self._engine.device, self._engine.views
        self.recipe = recipe
        self.classes = tuple(classes)
        self.batch = batch

    def __call__(self, images: Given | Iterable[Given], *, looks: bool = False) -> ResultStream:
        """Looks at images: yields one `Result` for each, lazily and in order.

        Args:
            images: one image, an iterable of them, a folder (all images in it and below) or a pattern
                such as "photos/*.jpg".
            looks: also ask what the detector saw on the way, for `plot(points=True)` and `plot(looks=True)`.

        Raises:
            FileNotFoundError: when a folder or pattern holds no image, or a path is not there.
        """
        source = pictures(images)
        return ResultStream(lambda stream: self._run(source, stream, looks=looks))

    def one(self, image: Given, *, looks: bool = False) -> Result:
        """What is found in one image.

        Raises:
            BrokenImage: when it cannot be read.
        """
        stream = self(image, looks=looks)
        result = next(stream, None)
        if result is None:
            raise BrokenImage(stream.broken[0].why)
        return result

    def _run(self, source: Iterator[Picture], stream: ResultStream, *, looks: bool) -> Iterator[Result]:
        given: dict[int, _Given] = {}  # images whose results have not come yet
        with closing(self._batches(source, stream, given)) as batches:
            for seen in self._engine.run(batches, looks=looks):
                yield self._result(given.pop(seen.key), seen, looks=looks)

    def _result(self, one: "_Given", seen: Seen, *, looks: bool) -> Result:
        return Result(
            name=one.name,
            path=Path(one.picture) if isinstance(one.picture, (str, Path)) else None,
            height=one.size[0],
            width=one.size[1],
            classes=self.classes,
            objects=seen.objects,
            picture=one.picture,
            looks=seen.looks if looks else None,
        )

    def _batches(
        self, source: Iterator[Picture], stream: ResultStream, given: dict[int, "_Given"]
    ) -> Generator[Ready]:
        """Images that can be read, as many at a time as a step takes; `given` notes who they are."""
        ready: list[_Decoded] = []
        with (
            ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="relook-read") as pool,
            closing(self._read(source, pool)) as read,
        ):
            for waiting in read:
                try:
                    ready.append(waiting.decoded.result())
                except BrokenImage as error:
                    stream.skip(waiting.given.name, str(error))
                    continue
                given[waiting.given.key] = replace(waiting.given, size=ready[-1].size)
                if len(ready) == self.batch:
                    yield self._batched(ready)
                    ready = []
            if ready:
                yield self._batched(ready)

    def _batched(self, ready: Sequence["_Decoded"]) -> Ready:
        return self._engine.batch(
            [one.first for one in ready],
            [one.size for one in ready],
            [one.key for one in ready],
            [one.image for one in ready if one.image is not None],
        )

    def _read(self, source: Iterator[Picture], pool: ThreadPoolExecutor) -> Generator["_Waiting"]:
        """Decodes in threads, a few images ahead; no more than those are in memory."""
        ahead = max(4, 2 * self.batch)
        queue: deque[_Waiting] = deque()
        try:
            for number, picture in enumerate(source, start=1):
                name = str(picture) if isinstance(picture, (str, Path)) else f"image {number}"
                one = _Given(number, picture, name)
                queue.append(_Waiting(one, pool.submit(self._decode, one)))
                if len(queue) > ahead:
                    yield queue.popleft()
            while queue:
                yield queue.popleft()
        finally:
            for waiting in queue:
                waiting.decoded.cancel()

    def _decode(self, one: "_Given") -> "_Decoded":
        image = pixels(one.picture, one.name)
        several = len(self.views) > 1
        size = (image.shape[0], image.shape[1])
        return _Decoded(one.key, size, self._engine.first(image), image if several else None)


@dataclass(frozen=True, slots=True, eq=False)
class _Given:
    """An image as it was given."""

    key: int
    picture: Picture
    name: str
    size: tuple[int, int] = (0, 0)  # height, width; known when it is decoded


@dataclass(frozen=True, slots=True, eq=False)
class _Decoded:
    """An image in memory."""

    key: int
    size: tuple[int, int]  # height, width
    first: Prepared  # for the first view
    image: NDArray[np.uint8] | None  # [H, W, 3], for further views


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    given: _Given
    decoded: Future[_Decoded]
