"""RefineDet++'s second look: how it is computed, and what it brings a small detector.

    python benchmarks/alignment.py              time of three deformable convolutions against one in groups
    python benchmarks/alignment.py --learn 2    also train both small models, 2 epochs, 3 seeds
    python benchmarks/alignment.py --save       also into benchmarks/results/

Three anchors of a place read at places of their own, with weights of their own. Either each is a deformable
convolution, or the map is repeated three times and one convolution with three groups does all: numbers are
the same. `relook.detectors.refinedet` does the first. The sizes are those of a 512x512 image, 20 classes.

With --learn both small models see the same 2000 generated pictures equally often (equal epochs; the time of
each is in the table) and are measured on the same 200 others.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import _results
import torch
from models import alternate
from rich.console import Console
from rich.table import Table
from torch import Tensor

import relook
from relook.detectors.refinedet import AlignedHead, RefineDetConfig
from relook.ops.deform_conv import deform_conv2d

SIDES = (64, 32, 16, 8)
MODELS = ("refinedet_nano", "refinedetpp_nano")
DATA = "shapes:train=2000,val=200"


def grouped(head: AlignedHead, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """All three anchors in one call."""
    classes = len(head.cls[0])
    weight = torch.cat([part for pair in zip(head.cls, head.box, strict=True) for part in pair])
    both = deform_conv2d(x.repeat(1, 3, 1, 1), offsets, weight, padding=1).unflatten(1, (3, -1))
    return both[:, :, :classes].flatten(1, 2), both[:, :, classes:].flatten(1, 2)


def runs(side: int, device: str) -> dict[str, dict[str, Callable[[], object]]]:
    random = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        detector = RefineDetConfig().build()
    head = AlignedHead(256, 21).to(device)
    x = torch.randn(1, 256, side, side, generator=random).to(device).requires_grad_()
    offsets = detector.offsets(torch.randn(1, 12, side, side, generator=random)).to(device)
    ways = {"three": head, "one": lambda *given: grouped(head, *given)}
    a, b = (torch.cat(way(x, offsets), 1) for way in ways.values())
    assert torch.allclose(a, b, atol=1e-4)

    def forward(way: Callable[..., tuple[Tensor, Tensor]]) -> object:
        with torch.no_grad():
            return way(x, offsets)

    def backward(way: Callable[..., tuple[Tensor, Tensor]]) -> object:
        total = torch.cat(way(x, offsets), 1).sum()
        return torch.autograd.grad(total, [x, *head.parameters()])

    return {
        "forward": {name: lambda way=way: forward(way) for name, way in ways.items()},
        "forward+backward": {name: lambda way=way: backward(way) for name, way in ways.items()},
    }


def learn(epochs: int, seeds: int) -> dict[str, dict[str, float]]:
    """AP of both over the seeds: mean, least, most; seconds of a training."""
    rows: dict[str, dict[str, float]] = {}
    for name in MODELS:
        found: list[dict[str, float]] = []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                started = time.monotonic()
                done = relook.train(
                    model=name,
                    data=DATA,
                    epochs=epochs,
                    seed=seed,
                    out=Path(folder) / "run",
                    workers=0,
                    validate_every=epochs,
                    progress=False,
                )
                found.append({**done.report.numbers, "seconds": time.monotonic() - started})
        for number in ("AP", "AP50", "AP75"):
            values = [one[number] for one in found]
            rows.setdefault(name, {}).update(
                {
                    number: statistics.mean(values),
                    f"{number} least": min(values),
                    f"{number} most": max(values),
                }
            )
        rows[name]["seconds"] = statistics.mean([one["seconds"] for one in found])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--learn", type=int, default=0, help="epochs of each training; 0: none")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows: dict[str, dict[str, float]] = {}
    for side in SIDES:
        for what, ways in runs(side, asked.device).items():
            times = alternate(ways, asked.rounds, asked.device)
            rows[f"{side}x{side}, {what}"] = {
                "three_ms": 1e3 * times["three"],
                "one_ms": 1e3 * times["one"],
                "one_over_three": times["one"] / times["three"],
            }
    tables = {"calls": rows}
    if asked.learn:
        tables["learning"] = learn(asked.learn, asked.seeds)
    for title, part in tables.items():
        columns = list(next(iter(part.values())))
        table = Table("", *columns, title=title)
        for name, row in part.items():
            table.add_row(name, *(f"{row[column]:.3g}" for column in columns))
        Console(width=140).print(table)
    if asked.save:
        print("saved in", _results.save(f"alignment_{asked.device}", tables))


if __name__ == "__main__":
    main()
