"""What an image costs, from the array to the result, with and without what the detector saw on the way.

    python benchmarks/looks.py                  the nano models, 128x160
    python benchmarks/looks.py --save           also into benchmarks/results/
    python benchmarks/looks.py --rounds 300

With and without looks take turns in one process; medians. The weights are random, so there are few
detections, and looks cost what they cost at least.
"""

import argparse
from collections.abc import Callable
from typing import Any

import _results
import numpy as np
import torch
from models import alternate
from rich.console import Console
from rich.table import Table

import relook

MODELS = ("reppoints_nano", "reppoints_v2_nano", "centernet2_nano")
HEIGHT, WIDTH = 128, 160


def runs(name: str, device: str) -> dict[str, Callable[[], Any]]:
    """One image, with and without looks."""
    torch.manual_seed(0)
    detector = relook.create_model(name)
    classes = [str(label) for label in range(detector.num_classes)]
    look = relook.Predictor(detector, relook.entry(name).recipe, classes, device=device)
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return {"plain": lambda: list(look([image])), "looks": lambda: list(look([image], looks=True))}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    table = Table("model", "ms", "ms with looks", "ratio", title=f"one image of {HEIGHT}x{WIDTH}")
    rows: dict[str, dict[str, float]] = {}
    for name in MODELS:
        medians = alternate(runs(name, asked.device), asked.rounds, asked.device)
        plain, looks = 1e3 * medians["plain"], 1e3 * medians["looks"]
        rows[name] = {"ms": plain, "ms_with_looks": looks, "ratio": looks / plain}
        table.add_row(name, f"{plain:.1f}", f"{looks:.1f}", f"{looks / plain:.3f}")
    Console().print(table)
    if asked.save:
        print("saved in", _results.save(f"looks_{asked.device}", rows))


if __name__ == "__main__":
    main()
