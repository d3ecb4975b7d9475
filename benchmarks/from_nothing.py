"""Training a published model from random weights: all of it, beside its recipe's frozen parts.

    python benchmarks/from_nothing.py FOLDER                 a data set of yours, as --data takes it
    python benchmarks/from_nothing.py                        one epoch of generated pictures
    python benchmarks/from_nothing.py FOLDER --epochs 24
    python benchmarks/from_nothing.py FOLDER --save          also into benchmarks/results/

Recipes that start from ImageNet weights keep the first two parts of the backbone and all batch statistics.
Without such weights `relook train` keeps nothing (docs/how-to/train.md).
"""

import argparse
import tempfile
from pathlib import Path

import _results

import relook

MODEL = "reppoints_v1_r50_fpn_1x"  # with normalised pyramid and head
FROZEN = {"detector.backbone.frozen": "2", "detector.backbone.freeze_statistics": "true"}


def measured(model: str, data: str, epochs: int, size: int, settings: dict[str, str]) -> dict[str, float]:
    """The metric's numbers after a training."""
    with tempfile.TemporaryDirectory() as folder:
        result = relook.train(
            model=model,
            data=data,
            settings=settings,
            backbone_weights="none",
            size=size,
            out=Path(folder) / "run",
            epochs=epochs,
            batch=4,
            lr=0.005,
            validate_every=epochs,
            tensorboard=False,
        )
    return {name: result.report.numbers[name] for name in ("AP", "AP50", "AP75")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", default="shapes")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    epochs = given.epochs or (1 if given.data == "shapes" else 12)
    found = {
        "frozen, as the recipe": measured(given.model, given.data, epochs, given.size, FROZEN),
        "nothing frozen": measured(given.model, given.data, epochs, given.size, {}),
    }
    for name, numbers in found.items():
        print(f"{name:<24}" + "  ".join(f"{key} {value:.3f}" for key, value in numbers.items()))
    if given.save:
        what = f"{Path(given.data).name} at {given.size} pixels, {epochs} epochs"
        print("saved in", _results.save(f"from_nothing {given.model}, {what}", found))


if __name__ == "__main__":
    main()
