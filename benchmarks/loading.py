"""What it costs to load and augment an image: each stage on one core, beside OpenCV and a plain pipeline.

    python benchmarks/loading.py                  table
    python benchmarks/loading.py --save           also into benchmarks/results/
    python benchmarks/loading.py --rounds 9       more rounds

A photograph that ships inside scikit-image, at 640x480 as JPEG of quality 92, goes through everything that
training at the published size does: decode, resize to 800x1067, mirror, normalise, pad into a batch of two.
All candidates take turns in one process with one thread; the figures are medians of the processor time, which
other work on the machine disturbs little.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _results
import cv2
import numpy as np
import skimage.data
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torchvision.transforms.v2 import functional as F

import relook
from relook.data.decode import read_image
from relook.data.loading.loader import train_loader
from relook.data.sample import Sample, Source
from relook.data.shapes import shapes
from relook.data.transforms.network_input import normalise_into
from relook.data.transforms.picture import picture
from relook.data.transforms.sizes import resized_size
from relook.data.transforms.steps import flip, resize
from relook.recipe import Flip, Jitter, KeepRatio, Recipe, Resize

HEIGHT, WIDTH, BOXES = 480, 640, 12
GOAL = 25.0  # milliseconds per image and core


def photograph() -> bytes:
    """640x480 as most of COCO's images are."""
    image = Image.fromarray(skimage.data.rocket()).resize((WIDTH, HEIGHT))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def alternate(work: dict[str, Callable[[], Any]], *, rounds: int, each: int = 5) -> dict[str, float]:
    """Median milliseconds of a core for each, taking turns so that a busy machine is unfair to none."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for run in work.values():
        run()
    for _ in range(rounds):
        for name, run in work.items():
            for _ in range(each):
                started = time.process_time()
                run()
                times[name].append((time.process_time() - started) * 1e3)
    return {name: statistics.median(taken) for name, taken in times.items()}


def stages(data: bytes) -> dict[str, Callable[[], Any]]:
    """Our stages and their peers, on the same image."""
    recipe = Recipe()
    image = read_image(data)
    new = resized_size(HEIGHT, WIDTH, short=800, long=1333)
    given = picture(image, np.zeros((0, 4)))
    resized = resize(given, KeepRatio())
    small, mirrored = resized.image, flip(resized).image
    place = torch.zeros(3, 800, 1088)
    raw = np.frombuffer(data, np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    as_float = tensor.float()
    mean, std = list(recipe.pixels.mean), list(recipe.pixels.std)
    small_float = small.float().contiguous()
    array = np.ascontiguousarray(small.permute(1, 2, 0).numpy())
    return {
        "decode": lambda: read_image(data),
        "decode, OpenCV": lambda: cv2.imdecode(raw, cv2.IMREAD_COLOR_RGB),
        "resize": lambda: resize(given, KeepRatio()),
        "resize, OpenCV": lambda: cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR),
        "resize, torchvision on float": lambda: F.resize(as_float, list(new), antialias=False),
        "mirror": lambda: flip(resized),
        "mirror, OpenCV": lambda: cv2.flip(array, 1),
        "normalise and pad": lambda: normalise_into(place, mirrored, recipe.pixels),
        "normalise and pad, torchvision on float": lambda: F.pad(
            F.normalize(small_float, mean, std), [0, 0, 1088 - new[1], 0]
        ),
    }


def dataset(folder: Path, data: bytes, count: int) -> Source:
    """The photograph under many names, with boxes."""
    random = np.random.default_rng(0)
    samples: list[Sample] = []
    for n in range(count):
        path = folder / f"{n}.jpg"
        path.write_bytes(data)
        corner = random.uniform(0, 300, (BOXES, 2))
        boxes = np.concatenate([corner, corner + random.uniform(10, 150, (BOXES, 2))], 1)
        flags = np.zeros(BOXES, np.bool_)
        labels = random.integers(0, 80, BOXES)
        area = np.full(BOXES, 100.0)
        samples.append(
            Sample(
                id=n,
                path=path,
                height=HEIGHT,
                width=WIDTH,
                boxes=boxes,
                labels=labels,
                crowd=flags,
                ignore=flags,
                area=area,
            )
        )
    names = tuple(map(str, range(80)))
    return Source(
        name="photographs", samples=tuple(samples), classes=names, category_ids=tuple(range(80)), file=None
    )


def whole(source: Source, recipe: Recipe, *, batch: int) -> Callable[[], None]:
    """An epoch of our training loader in this process."""
    loader = train_loader(source, recipe, batch=batch, workers=0, seed=0, stride=32)

    def run() -> None:
        for _ in loader:
            pass

    return run


def whole_opencv(source: Source, *, batch: int) -> Callable[[], None]:
    """The same work as written with OpenCV and NumPy, as the published code did it."""
    mean, std = np.array(Recipe().pixels.mean), np.array(Recipe().pixels.std)
    new = resized_size(HEIGHT, WIDTH, short=800, long=1333)

    def run() -> None:
        for start in range(0, len(source.samples), batch):
            images: list[torch.Tensor] = []
            for sample in source.samples[start : start + batch]:
                image = cv2.imread(str(sample.path), cv2.IMREAD_COLOR_RGB)
                image = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)
                image = cv2.flip(image, 1).astype(np.float32)
                cv2.subtract(image, mean[None], image)
                cv2.multiply(image, 1 / std[None], image)
                padded = cv2.copyMakeBorder(image, 0, 0, 0, 1088 - new[1], cv2.BORDER_CONSTANT, value=0)
                images.append(torch.from_numpy(np.ascontiguousarray(padded.transpose(2, 0, 1))))
            torch.stack(images)

    return run


def measure(rounds: int) -> dict[str, float]:
    """All figures in milliseconds per image."""
    data = photograph()
    figures = alternate(stages(data), rounds=rounds)
    published = Recipe(augment=(Resize(), Flip(probability=1.0)))
    jittered = Recipe(augment=(Jitter(strength=0.4), Resize(), Flip(probability=1.0)))
    scales = Recipe(train_size=KeepRatio(short=(480, 960), between=True))
    with tempfile.TemporaryDirectory() as name:
        source = dataset(Path(name), data, 8)
        epochs = {
            "all": whole(source, published, batch=2),
            "all, OpenCV and NumPy": whole_opencv(source, batch=2),
            "all, multi-scale 480 to 960": whole(source, scales, batch=2),
            "all, with colour jitter": whole(source, jittered, batch=2),
            "all, SSD's augmentation at 512x512": whole(
                source, relook.entry("refinedetpp_512_vggbn_ssdd").recipe, batch=2
            ),
        }
        figures |= {k: v / 8 for k, v in alternate(epochs, rounds=rounds, each=1).items()}
    made = shapes(8, seed=0)
    generate = {"shapes, generate 128x128": lambda: [sample.image() for sample in made.samples]}
    figures |= {k: v / 8 for k, v in alternate(generate, rounds=rounds).items()}
    return {name: round(value, 3) for name, value in figures.items()}


def show(figures: dict[str, float]) -> None:
    table = Table("stage", "ms per image", "of ours", title="640x480 JPEG -> 800x1067, one core")
    ours = 1.0
    for name, value in figures.items():
        stage, _, peer = name.partition(", ")
        ours = value if not peer else ours
        label = f"  {peer}" if peer and stage in figures else name
        table.add_row(label, f"{value:.2f}", f"{value / ours:.2f}x" if peer and stage in figures else "")
    Console().print(table)
    verdict = "reached" if figures["all"] <= GOAL else "MISSED"
    print(f"goal: {GOAL:g} ms for an image, load and augment: {verdict} ({figures['all']:.1f} ms)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    figures = measure(settings.rounds)
    show(figures)
    if settings.save:
        print(f"saved {_results.save('loading', figures)}")


if __name__ == "__main__":
    main()
