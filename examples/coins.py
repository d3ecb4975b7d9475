"""A detector for ancient coins from one photograph: real pixels, a data set made by hand, training, pictures.

    python examples/coins.py --out runs/coins

The photograph ships inside scikit-image (303x384, grey, 24 Greek coins). Its upper part gives the images
to train on, its lower part those to judge by; no coin is in both. What to copy for your own images: write
them and one COCO file into a folder (see `write_split`), call `relook.train`, then `relook.load`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.filters import sobel
from skimage.segmentation import watershed

import relook
from relook.files import whole_file

SIDE = 128  # of a crop, in pixels; a coin is 40 to 60 wide
BORDER = 150  # rows above it are for training, from it on for validation: no coin lies across it
LEAST = 0.5  # a coin of which a crop shows less is a crowd region: neither hit nor miss


def coins() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The photograph [303, 384] and its coins' boxes [24, 4], x1 y1 x2 y2.

    Regions grow from what is surely coin and surely background along the edges between them (watershed); the
    boxes were checked by eye.
    """
    photograph = skimage.data.coins()
    sure = np.where(photograph < 30, 1, np.where(photograph > 150, 2, 0))
    filled = ndimage.binary_fill_holes(watershed(sobel(photograph), sure) == 2)
    regions, _ = ndimage.label(filled)
    found = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(regions)]
    boxes = [b for b in found if (b[2] - b[0]) * (b[3] - b[1]) > 600]
    return photograph, np.array(boxes)


def crops(
    boxes: NDArray[np.int64], rows: tuple[int, int], width: int, count: int, seed: int
) -> list[tuple[int, int]]:
    """Top-left corners (x, y) of `count` crops within some rows of the photograph, each with a coin."""
    random = np.random.default_rng(seed)
    chosen: list[tuple[int, int]] = []
    while len(chosen) < count:
        x = int(random.integers(0, width - SIDE + 1))
        y = int(random.integers(rows[0], rows[1] - SIDE + 1))
        if any(shown(box, x, y) >= LEAST for box in boxes):
            chosen.append((x, y))
    return chosen


def shown(box: NDArray[np.int64], x: int, y: int) -> float:
    """Which part of a box a crop at x, y shows."""
    width = min(box[2], x + SIDE) - max(box[0], x)
    height = min(box[3], y + SIDE) - max(box[1], y)
    return max(width, 0) * max(height, 0) / float((box[2] - box[0]) * (box[3] - box[1]))


def write_split(
    folder: Path,
    name: str,
    photograph: NDArray[np.uint8],
    boxes: NDArray[np.int64],
    corners: Sequence[tuple[int, int]],
) -> None:
    """One split of a COCO data set: folder/NAME/*.png and folder/annotations/NAME.json."""
    images, annotations = [], []
    (folder / name).mkdir(parents=True, exist_ok=True)
    for i, (x, y) in enumerate(corners):
        file = f"{i:04d}.png"
        Image.fromarray(photograph[y : y + SIDE, x : x + SIDE]).save(folder / name / file)
        images.append({"id": i, "file_name": file, "width": SIDE, "height": SIDE})
        for box in boxes:
            part = shown(box, x, y)
            if part == 0:
                continue
            x1, y1 = max(int(box[0]) - x, 0), max(int(box[1]) - y, 0)
            x2, y2 = min(int(box[2]) - x, SIDE), min(int(box[3]) - y, SIDE)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(part < LEAST),
                }
            )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "coin"}]}
    with whole_file(folder / "annotations" / f"{name}.json") as beside:
        beside.write_text(json.dumps(content))


def write_dataset(folder: Path, *, train: int, val: int) -> Path:
    """Crops of the upper part to train on, of the lower part to validate on."""
    photograph, boxes = coins()
    height, width = photograph.shape
    upper, lower = boxes[boxes[:, 3] <= BORDER], boxes[boxes[:, 1] >= BORDER]
    write_split(folder, "train", photograph, upper, crops(upper, (0, BORDER), width, train, seed=0))
    write_split(folder, "val", photograph, lower, crops(lower, (BORDER, height), width, val, seed=1))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/coins"))
    parser.add_argument("--epochs", type=int, default=10)
    asked = parser.parse_args()

    data = write_dataset(asked.out / "data", train=320, val=60)
    result = relook.train(
        model="reppoints_nano",
        data=data,
        epochs=asked.epochs,
        out=asked.out / "run",
        overwrite=True,
        settings={"recipe.augment": "jitter(strength=0.3), resize, flip"},
    )
    print(f"AP50 on coins it has never seen: {result.report.numbers['AP50']:.3f}")

    look = relook.load(result.best)
    for result in look(sorted((data / "val").glob("*.png"))[:12], looks=True):
        result.above(0.4).plot(asked.out / "pictures" / Path(result.path).name, points=True, side=512)
    print(f"pictures with the points on the coins: {asked.out / 'pictures'}")


if __name__ == "__main__":
    main()
