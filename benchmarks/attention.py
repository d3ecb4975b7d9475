"""DPT's attention on this machine: torch's scaled_dot_product_attention beside softmax(q k / sqrt(d)) v.

    python benchmarks/attention.py                table, of the four stages for an image of 512x512
    python benchmarks/attention.py --save         also into benchmarks/results/
    python benchmarks/attention.py --side 800     another size; --rounds 9 more rounds; --device cuda

Both take turns in one process; medians. `relook.backbones.dpt` uses the first.
"""

import argparse
from collections.abc import Callable

import _results
import torch
from models import alternate
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from relook.backbones.dpt import STRIDES, DPTConfig


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.mT) * q.shape[-1] ** -0.5).softmax(-1) @ v


def case(stage: int, side: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of all tokens of a stage, keys and values of its reduced map: [1, heads, N, 64]."""
    config, random = DPTConfig(), torch.Generator().manual_seed(0)
    tokens = (side // STRIDES[stage]) ** 2
    seen = (side // STRIDES[stage] // config.reductions[stage]) ** 2
    heads, wide = config.heads[stage], config.widths[stage] // config.heads[stage]
    shapes = ((1, heads, n, wide) for n in (tokens, seen, seen))
    q, k, v = (torch.randn(s, generator=random).to(device).requires_grad_() for s in shapes)
    return q, k, v


def runs(attend: Callable[..., Tensor], given: tuple[Tensor, ...]) -> dict[str, Callable[[], object]]:
    def forward() -> object:
        with torch.no_grad():
            return attend(*given)

    return {"forward": forward, "forward+backward": lambda: torch.autograd.grad(attend(*given).sum(), given)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=512, help="of the image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    table = Table("stage", "plain ms", "torch's ms", "ratio", title=f"attention, {asked.side}x{asked.side}")
    rows: dict[str, dict[str, float]] = {}
    for stage in range(4):
        given = case(stage, asked.side, asked.device)
        theirs, mine = runs(plain, given), runs(F.scaled_dot_product_attention, given)
        for way in theirs:
            times = alternate({"plain": theirs[way], "torch": mine[way]}, asked.rounds, asked.device)
            row = {"plain_ms": 1e3 * times["plain"], "torch_ms": 1e3 * times["torch"]}
            row["ratio"] = row["plain_ms"] / row["torch_ms"]
            rows[f"stage {stage + 1}, {way}"] = row
            table.add_row(f"{stage + 1}, {way}", *(f"{value:.3g}" for value in row.values()))
    Console().print(table)
    if asked.save:
        print("saved in", _results.save(f"attention_{asked.device}", rows))


if __name__ == "__main__":
    main()
