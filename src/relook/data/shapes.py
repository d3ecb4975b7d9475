"""A generated data set: coloured, textured, overlapping shapes with exact boxes and masks.

Image i of a seed and split is always the same picture, however many are made. A box is tight around the
visible part of its shape, as people draw boxes; at least 60 % of every shape's pixels stay visible.
"""

import json
import math
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from relook.data.sample import DataError, Sample, Source

CLASSES = ("ellipse", "rectangle", "triangle", "star")
Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

_LEAST_VISIBLE = 0.6  # of the pixels of a shape
_LEAST_SIDE = 14  # pixels of the shorter side of a visible box
_LEAST_CONTRAST = 110  # distance in RGB between a shape's first colour and what it covers
_MOST_TURN = 0.35  # radians from upright, as things stand in photographs
_TRIES = 12  # places tried for a shape before it is given up


def shapes(count: int, *, seed: int = 0, split: Split = "train", side: int = 128, most: int = 5) -> Source:
    """`count` square images with one to `most` shapes each; pictures are painted when they are asked for.

    Args:
        count: number of images.
        seed: another seed is another data set.
        split: images of "val" are never those of "train".
        side: height and width of the images in pixels, at least 64.
        most: the largest number of shapes in an image.

    Raises:
        ValueError: when `count`, `side` or `most` is too small.
    """
    if count < 1 or side < 64 or most < 1:
        raise ValueError(
            f"shapes needs count >= 1, side >= 64 and most >= 1, not count={count}, side={side}, most={most}"
        )
    return Source(
        name=f"shapes {split} (seed {seed})",
        samples=tuple(_sample(i, seed=seed, split=split, side=side, most=most) for i in range(count)),
        classes=CLASSES,
        category_ids=tuple(range(1, len(CLASSES) + 1)),
        file=None,
    )


def write_shapes(
    folder: Path | str, *, train: int = 2000, val: int = 200, seed: int = 0, side: int = 128, most: int = 5
) -> Path:
    """Writes the data set as COCO: `annotations/instances_{train,val}2017.json`, `{train,val}2017/*.png`.

    The folder appears whole or not at all. Masks are uncompressed run lengths, so nothing is lost.

    Raises:
        DataError: when `folder` exists and is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not empty; name a new folder or remove it first (rm -r {folder})")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        beside.chmod(0o755)
        (beside / "annotations").mkdir()
        with ThreadPoolExecutor() as pool:
            for split, count in zip(SPLITS, (train, val), strict=True):
                source = shapes(count, seed=seed, split=split, side=side, most=most)
                _write_split(source, beside, f"{split}2017", pool)
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


# -- where the shapes are ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shape:
    """One shape of an image and which pixels of it are seen."""

    label: int
    visible: NDArray[np.bool_]  # [side, side]
    full: int  # pixels of the whole shape

    def box(self) -> NDArray[np.int64]:
        """Tight x1 y1 x2 y2 around the visible pixels; zeros when none is."""
        columns, rows = np.flatnonzero(self.visible.any(0)), np.flatnonzero(self.visible.any(1))
        if not len(columns):
            return np.zeros(4, np.int64)
        return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.int64)

    def seen(self) -> bool:
        """Whether enough of it is visible to be a fair object."""
        x1, y1, x2, y2 = map(int, self.box())
        wide = min(x2 - x1, y2 - y1) >= _LEAST_SIDE
        return wide and int(self.visible.sum()) >= _LEAST_VISIBLE * self.full


def _random(index: int, seed: int, split: Split, part: int) -> np.random.Generator:
    """The random numbers of one image; `part` 0 places the shapes, 1 paints them."""
    return np.random.default_rng([seed, SPLITS.index(split), index, part])


def _place(index: int, *, seed: int, split: Split, side: int, most: int) -> list[_Shape]:
    """The shapes of one image, from the lowest to the topmost."""
    random = _random(index, seed, split, 0)
    shapes_so_far: list[_Shape] = []
    for _ in range(int(random.integers(1, most + 1))):
        for _ in range(_TRIES):
            label = int(random.integers(len(CLASSES)))
            mask = _outline(label, random, side)
            covered = [_Shape(s.label, s.visible & ~mask, s.full) for s in shapes_so_far]
            new = _Shape(label, mask, int(mask.sum()))
            if new.seen() and all(s.seen() for s in covered):
                shapes_so_far = [*covered, new]
                break
    return shapes_so_far


def _outline(label: int, random: np.random.Generator, side: int) -> NDArray[np.bool_]:
    """The pixels of one turned shape, wholly inside the image: [side, side]."""
    longest = math.exp(random.uniform(math.log(24), math.log(side / 2)))  # diameter in pixels
    turn, flat = random.uniform(-_MOST_TURN, _MOST_TURN), random.uniform(0.65, 1)
    radius = longest / 2
    corners: NDArray[np.float64] = _CORNERS[label] * radius  # [V, 2] x, y around 0
    if CLASSES[label] in {"ellipse", "rectangle"}:
        corners = corners * [1, flat]
    cos, sin = math.cos(turn), math.sin(turn)
    corners = np.matmul(corners, np.array([[cos, sin], [-sin, cos]]))
    low: NDArray[np.float64] = 1 - np.min(corners, axis=0)
    high: NDArray[np.float64] = side - 2 - np.max(corners, axis=0)
    corners += random.uniform(low, high)
    canvas = Image.new("1", (side, side))
    ImageDraw.Draw(canvas).polygon(corners.reshape(-1).tolist(), fill=1)
    return np.array(canvas)


def _polygon(count: int, *, inner: float = 1.0, start: float = 0.0) -> NDArray[np.float64]:
    """`count` corners on a circle of radius 1, every second one at `inner`: [count, 2]."""
    angle = np.arange(count) * 2 * np.pi / count + start
    reach = np.where(np.arange(count) % 2, inner, 1.0)
    return np.stack([np.cos(angle), np.sin(angle)], 1) * reach[:, None]


_CORNERS = (
    _polygon(48) * 0.95,
    _polygon(4, start=np.pi / 4) * 1.1,
    _polygon(3, start=-np.pi / 2) * 1.1,
    _polygon(10, inner=0.45, start=-np.pi / 2) * 1.15,
)


# -- how they look -------------------------------------------------------------------------------------


def _paint(index: int, *, seed: int, split: Split, side: int, most: int) -> NDArray[np.uint8]:
    """The picture of one image: [side, side, 3] uint8."""
    random = _random(index, seed, split, 1)
    picture = _background(random, side)
    for shape in _place(index, seed=seed, split=split, side=side, most=most):
        pattern = _pattern(random, side)[shape.visible][:, None]  # [n, 1] in 0 .. 1
        first, second = _two_colours(random, picture[shape.visible].mean(0))
        picture[shape.visible] = first + (second - first) * pattern
    picture += random.standard_normal(picture.shape, dtype=np.float32) * np.float32(random.uniform(2, 10))
    return picture.clip(0, 255).astype(np.uint8)


def _background(random: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Soft coloured clouds: [side, side, 3]."""
    cells = int(random.integers(2, 9))
    clouds = random.uniform(40, 215, 3) + random.uniform(-45, 45, (cells, cells, 3))
    small = Image.fromarray(clouds.clip(0, 255).astype(np.uint8))
    return np.array(small.resize((side, side), Image.Resampling.BICUBIC), np.float32)


def _pattern(random: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Plain, stripes or checks: [side, side] in 0 .. 1."""
    kind = random.integers(3)
    period, turn = random.uniform(5, 12), random.uniform(0, np.pi)
    if kind == 0:
        return np.zeros((side, side), np.float32)
    along = np.arange(side, dtype=np.float32) * np.float32(2 * np.pi / period)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    wave = np.sin(along[:, None] * sin + along[None] * cos)
    if kind == 2:
        wave = wave * np.sin(along[:, None] * cos - along[None] * sin)
    return (wave > 0).astype(np.float32)


def _two_colours(
    random: np.random.Generator, below: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A strong colour that differs from what lies below the shape, and the same darker or lighter."""
    first = below
    while np.linalg.norm(first - below) < _LEAST_CONTRAST:
        first = random.uniform(0, 255, 3).astype(np.float32)
        first[random.integers(3)] = random.choice([0, 255])
    return first, first + np.float32(random.choice([-1, 1]) * random.uniform(20, 50))


# -- as samples and files ------------------------------------------------------------------------------


def _sample(index: int, *, seed: int, split: Split, side: int, most: int) -> Sample:
    """Image `index` with its annotation; ids count from 1, as people number images."""
    placed = _place(index, seed=seed, split=split, side=side, most=most)
    return Sample(
        id=index + 1,
        path=Path(f"shapes/seed-{seed}/{split}/{index + 1:06d}.png"),
        height=side,
        width=side,
        boxes=np.array([s.box() for s in placed], np.float64),
        labels=np.array([s.label for s in placed], np.int64),
        crowd=np.zeros(len(placed), np.bool_),
        ignore=np.zeros(len(placed), np.bool_),
        area=np.array([s.visible.sum() for s in placed], np.float64),
        segmentation=tuple(_run_lengths(s.visible) for s in placed),
        pixels=partial(_paint, index, seed=seed, split=split, side=side, most=most),
    )


def _run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask as COCO's uncompressed run lengths: down the columns, first the unset pixels."""
    column_wise = mask.T.reshape(-1)
    changes = np.flatnonzero(column_wise[1:] != column_wise[:-1]) + 1
    ends = np.concatenate([[0], changes, [mask.size]])
    counts = np.diff(ends).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if column_wise[0] else counts}


def _write_picture(sample: Sample, folder: Path) -> None:
    Image.fromarray(sample.image()).save(folder / sample.path.name, compress_level=1)


def _write_split(source: Source, folder: Path, name: str, pool: ThreadPoolExecutor) -> None:
    (folder / name).mkdir()
    written = pool.map(partial(_write_picture, folder=folder / name), source.samples, chunksize=50)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sample in source.samples:
        images.append(
            {"id": sample.id, "file_name": sample.path.name, "height": sample.height, "width": sample.width}
        )
        for n, (x1, y1, x2, y2) in enumerate(sample.boxes.tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": sample.id,
                    "category_id": source.category_ids[int(sample.labels[n])],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(sample.area[n]),
                    "iscrowd": 0,
                    "segmentation": sample.segmentation[n],
                }
            )
    categories = [
        {"id": i, "name": c, "supercategory": "shape"}
        for i, c in zip(source.category_ids, source.classes, strict=True)
    ]
    info = {"description": f"relook {source.name}, {len(images)} images", "version": "1"}
    whole = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(whole))
    for _ in written:  # waits for the pictures, and raises what went wrong with one
        pass
