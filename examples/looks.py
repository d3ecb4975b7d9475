"""The pictures of docs/looks.md: what detectors saw, step by step, on generated shapes.

    python examples/looks.py                       trains two small detectors, then draws
    python examples/looks.py --weights V2 REGIONS  only draws, with the files of both

The files are runs/looks/reppoints_v2_nano/best.safetensors and runs/looks/centernet2_nano/best.safetensors.

Everything is drawn by `Result.plot(looks=True)` and `Result.panels()`, as `relook predict --looks` does it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

import relook
from relook.data.shapes import shapes
from relook.predictor import Predictor
from relook.results.result import Result, save_picture

SIDE = 192  # pixels of a picture: large enough that some objects are verified on a finer map than their own
STEPS = ("first", "verification", "second", "answer")  # a picture for each panel
MODELS = ("reppoints_v2_nano", "centernet2_nano")
SHEET, STEPWISE = 53, 58  # which pictures of the validation split are drawn at once, and step by step
LARGE = 576  # pixels of a step's picture
MOST = 200_000  # bytes of a picture


def train(folder: Path, model: str, *, pictures: int, epochs: int) -> Path:
    """Trains on generated shapes; gives the weights."""
    result = relook.train(
        model=model,
        data=f"shapes:train={pictures},val={max(2, pictures // 20)},side={SIDE}",
        epochs=epochs,
        out=folder / model,
        overwrite=True,
        workers=1,
        validate_every=epochs,
        tensorboard=False,
        settings={"recipe.train_size.short": str(SIDE), "recipe.test_size.short": str(SIDE)},
    )
    return result.best or result.last


def seen(look: Predictor, number: int, score: float) -> Result:
    """What is found in one picture that no training has shown."""
    sample = shapes(number + 1, split="val", side=SIDE).samples[number]
    return look.one(sample.image(), looks=True).above(score)


def draw(points: Predictor, regions: Predictor, out: Path, *, score: float) -> None:
    """looks-sheet.png, looks-STEP.png of another picture for each step, looks-regions.png of CenterNet2."""
    _save(seen(points, SHEET, score).plot(looks=True), out / "looks-sheet.png")
    _save(seen(regions, SHEET, score).plot(looks=True), out / "looks-regions.png")
    steps = seen(points, STEPWISE, score).panels(side=LARGE)
    if len(steps) < len(STEPS):
        raise SystemExit(f"nothing scored above {score}; train longer, or give a lower --score")
    for name, panel in zip(STEPS, steps, strict=True):
        _save(panel.image, out / f"looks-{name}.png")


def _save(image: Image.Image, path: Path) -> None:
    """With as fine colours as MOST bytes have room for, at worst with a palette of 256."""
    for less in (*(ImageOps.posterize(image, bits) for bits in (8, 7, 6, 5)), _palette(image)):
        save_picture(less, path)
        if path.stat().st_size < MOST:
            break
    print(f"{path}: {image.width} x {image.height} pixels, {path.stat().st_size // 1000} kB")


def _palette(image: Image.Image) -> Image.Image:
    """By octree, which keeps rare colours: those of points and letters."""
    return image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="where pictures go")
    both = f"of {' and '.join(MODELS)}; without them both are trained"
    parser.add_argument("--weights", type=Path, nargs=2, help=both)
    parser.add_argument("--run", type=Path, default=Path("runs/looks"), help="where training goes")
    parser.add_argument("--pictures", type=int, default=2000, help="to train on")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--score", type=float, default=0.4, help="leave out objects with a lower score")
    asked = parser.parse_args(given)
    weights = asked.weights or [
        train(asked.run, model, pictures=asked.pictures, epochs=asked.epochs) for model in MODELS
    ]
    points = relook.load(weights[0], settings={"detector.score": str(asked.score)})
    regions = relook.load(weights[1], settings={"detector.min_score": str(asked.score)})
    draw(points, regions, asked.out, score=asked.score)


if __name__ == "__main__":
    main()
