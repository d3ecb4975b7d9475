"""RoIAlign on this machine: torchvision's operator beside matrix products, which take turns.

    python benchmarks/regions.py                table
    python benchmarks/regions.py --save         also into benchmarks/results/
    python benchmarks/regions.py --rounds 9

The sizes are maps of a small detector (64 channels) and of a large one (256). `relook.ops.roi_align` takes
the products on CPUs for maps of at most CELLS cells, where a gradient is wanted.
"""

import argparse
from collections.abc import Callable

import _results
import torch
import torchvision
from models import alternate
from rich.console import Console
from rich.table import Table
from torch import Tensor

from relook.ops.roi_align import by_products

SIDE = 7
CASES = {  # images, regions of each, channels, map's side, a region's longest side in cells
    "8 x 64 regions, 64 channels, 16x16": (8, 64, 64, 16, 12),
    "8 x 64 regions, 64 channels, 32x32": (8, 64, 64, 32, 12),
    "8 x 64 regions, 64 channels, 64x64": (8, 64, 64, 64, 12),
    "2 x 512 regions, 256 channels, 16x16": (2, 512, 256, 16, 8),
    "2 x 512 regions, 256 channels, 64x64": (2, 512, 256, 64, 14),
}


def case(images: int, count: int, channels: int, side: int, longest: int) -> tuple[Tensor, Tensor]:
    """A map and regions in cells, the same in every run."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(images, channels, side, side, generator=random)
    corner = torch.rand(images, count, 2, generator=random) * side * 0.8
    extent = torch.rand(images, count, 2, generator=random) * longest
    return x, torch.cat([corner, corner + extent], -1)


def torchvisions(x: Tensor, rois: Tensor) -> Tensor:
    image = torch.arange(len(rois), dtype=rois.dtype).repeat_interleave(rois.shape[1])
    numbered = torch.cat([image[:, None], rois.flatten(0, 1)], 1)
    return torchvision.ops.roi_align(x, numbered, SIDE, aligned=True)


def ours(x: Tensor, rois: Tensor) -> Tensor:
    return by_products(x, rois, SIDE)


def runs(
    read: Callable[[Tensor, Tensor], Tensor], x: Tensor, rois: Tensor
) -> dict[str, Callable[[], object]]:
    learnt = x.clone().requires_grad_()

    def both() -> None:
        torch.autograd.grad(read(learnt, rois).sum(), learnt)

    return {"forward": lambda: read(x, rois), "forward+backward": both}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    table = Table("case", "torchvision ms", "products ms", "ratio")
    rows: dict[str, dict[str, float]] = {}
    for name, sizes in CASES.items():
        x, rois = case(*sizes)
        theirs, mine = runs(torchvisions, x, rois), runs(ours, x, rois)
        for way in theirs:
            times = alternate({"theirs": theirs[way], "mine": mine[way]}, asked.rounds, "cpu")
            row = {"torchvision_ms": 1e3 * times["theirs"], "products_ms": 1e3 * times["mine"]}
            row["ratio"] = row["torchvision_ms"] / row["products_ms"]
            rows[f"{name}, {way}"] = row
            table.add_row(f"{name}, {way}", *(f"{value:.3g}" for value in row.values()))
    Console(width=120).print(table)
    if asked.save:
        print("saved in", _results.save("regions", rows))


if __name__ == "__main__":
    main()
