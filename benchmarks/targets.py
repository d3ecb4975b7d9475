"""What making targets costs: who stands for whom, where corners and classes are, as parts of a training step.

    python benchmarks/targets.py                    two images of 512x512 with 100 boxes each
    python benchmarks/targets.py --save             also into benchmarks/results/
    python benchmarks/targets.py --side 800 --boxes 300 --device cuda

A step is forward, losses, backward and SGD. Parts take turns with whole steps in one process; medians.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import _results
import torch
from models import timed
from rich.console import Console
from rich.table import Table
from torch import Tensor

import relook
from relook.assign.atss import atss
from relook.assign.nearest_point import nearest_point
from relook.assign.verification import corners, semantic
from relook.ops import levels as L
from relook.types import Targets

MODEL = "reppoints_v2_r50_fpn_giou_1x"
IMAGES, CLASSES = 2, 80


def some_targets(boxes: int, side: int, device: str) -> Targets:
    """Boxes of all sizes, the same on every machine."""
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(IMAGES, boxes, 2, generator=random) * side * 0.7
    extent = 8 + torch.rand(IMAGES, boxes, 2, generator=random).square() * side * 0.3
    both = torch.cat([corner, corner + extent], -1)
    labels = torch.randint(0, CLASSES, (IMAGES, boxes), generator=random)
    return Targets.pad(list(both), list(labels), [(side, side)] * IMAGES).to(device)


def parts(detector: Any, images: Tensor, targets: Targets) -> dict[str, Callable[[], Any]]:
    """A whole step, and each way of making targets."""
    sgd = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=1e-5, momentum=0.9)

    def step() -> None:
        sgd.zero_grad()
        torch.stack(list(detector.loss(detector(images), targets).values())).sum().backward()
        sgd.step()

    with torch.no_grad():
        outputs = detector(images)
        first = detector.boxes(outputs.grid, outputs.init)
    grid = outputs.grid
    valid = L.inside(grid.points, targets.sizes, multiple=detector.stride)
    return {
        "whole step": step,
        "init stage": lambda: nearest_point(grid, valid, targets, scale=4.0),
        "refine stage (ATSS)": lambda: atss(first, grid, valid, targets, candidates=9),
        "corners": lambda: corners(grid, valid, targets, overlap=0.7),
        "classes": lambda: semantic(grid, targets, classes=CLASSES, multiple=detector.stride),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--boxes", type=int, default=100, help="in each image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    detector = relook.create_model(MODEL).to(asked.device).train()
    images = torch.rand(IMAGES, 3, asked.side, asked.side, device=asked.device)
    runs = parts(detector, images, some_targets(asked.boxes, asked.side, asked.device))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(asked.rounds + 1):
        for name, run in runs.items():
            seconds = timed(run, asked.device)
            if i:  # the first round warms up
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    whole = medians["whole step"]
    rows = {name: {"ms": 1e3 * t, "of_step_percent": 100 * t / whole} for name, t in medians.items()}
    made = sum(t for name, t in medians.items() if name != "whole step")
    rows["all targets"] = {"ms": 1e3 * made, "of_step_percent": 100 * made / whole}
    table = Table(
        "part", "ms", "% of a step", title=f"{MODEL}, {asked.boxes} boxes in {asked.side}x{asked.side}"
    )
    for name, row in rows.items():
        table.add_row(name, f"{row['ms']:.1f}", f"{row['of_step_percent']:.2f}")
    Console().print(table)
    if asked.save:
        print("saved in", _results.save(f"targets_{asked.device}", rows))


if __name__ == "__main__":
    main()
