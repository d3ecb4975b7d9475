"""Deformable convolution on every path beside a plain one: time, forward and backward, and peak memory.

    python benchmarks/deform_conv.py
    python benchmarks/deform_conv.py --size 1x256x50x76 --threads 2 --json mine.json
    python benchmarks/deform_conv.py --threads 1 --clock processor      # on a busy machine
    python benchmarks/deform_conv.py --save                             # keep in benchmarks/results/

Paths take turns in one process, so a busy machine slows all alike. The speed-up is torchvision's median time
over the path's, in brackets the same of the shortest times. Memory is what a process grows by at its peak;
each path has a process of its own.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import _results
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from relook.ops.deform_conv import deform_conv2d
from relook.ops.lowering import lowering

PATHS = ("conv2d", "torchvision", "portable", "fast")
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
PASSES = ("forward", "forward+backward")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One 3x3 convolution, stride 1, as many channels out as in."""

    batch: int = 1
    channels: int = 256
    height: int
    width: int
    groups: int = 1
    mask: bool = False

    def __str__(self) -> str:
        size = f"{self.batch}x{self.channels}x{self.height}x{self.width}"
        return size + (f" groups {self.groups}" if self.groups > 1 else "") + (" mask" if self.mask else "")


SHAPES = (
    Shape(height=100, width=152),
    Shape(height=50, width=76),
    Shape(height=25, width=38),
    Shape(batch=2, height=64, width=64),
    Shape(batch=2, height=64, width=64, mask=True),
    Shape(batch=2, height=64, width=64, groups=32, mask=True),
    Shape(batch=16, channels=64, height=16, width=16),
)


class Subject:
    """The inputs of one shape and the two things that are timed."""

    def __init__(self, shape: Shape, device: str) -> None:
        torch.manual_seed(0)
        s, k = shape, 9
        self.groups = s.groups
        self.x = torch.randn(s.batch, s.channels, s.height, s.width, device=device).requires_grad_()
        self.offset = torch.randn(s.batch, 2 * k, s.height, s.width, device=device).mul_(2).requires_grad_()
        self.weight = torch.randn(s.channels, s.channels // s.groups, 3, 3, device=device).requires_grad_()
        self.mask: Tensor | None = None
        if s.mask:
            self.mask = torch.rand(s.batch, k, s.height, s.width, device=device).requires_grad_()
        self.grad = torch.randn_like(self.x)

    def forward(self, path: str) -> Tensor:
        if path == "conv2d":
            return F.conv2d(self.x, self.weight, padding=1, groups=self.groups)
        with lowering(deform_conv=path):
            return deform_conv2d(self.x, self.offset, self.weight, padding=1, mask=self.mask)

    def run(self, path: str, which: str) -> None:
        if which == "forward":
            with torch.no_grad():
                self.forward(path)
        else:
            self.forward(path).backward(self.grad)
            for leaf in (self.x, self.offset, self.weight, self.mask):
                if leaf is not None:
                    leaf.grad = None


def times(
    shape: Shape, paths: tuple[str, ...], options: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each pass and path, taking turns for so many seconds a pass, three turns at least."""
    subject = Subject(shape, options.device)
    found: dict[str, dict[str, list[float]]] = {}
    for which in PASSES:
        spent: dict[str, list[float]] = {path: [] for path in paths}
        for path in paths:
            subject.run(path, which)
        until, turns = time.perf_counter() + options.seconds, 0
        while turns < 3 or time.perf_counter() < until:
            turns += 1
            for path in paths:
                spent[path].append(once(subject, path, which, options))
        found[which] = spent
    return found


def once(subject: Subject, path: str, which: str, options: argparse.Namespace) -> float:
    def now() -> float:
        if options.device == "cuda":
            torch.cuda.synchronize()
        return CLOCKS[options.clock]()

    begin = now()
    subject.run(path, which)
    return 1e3 * (now() - begin)


def peak(shape: Shape, path: str, threads: int) -> dict[str, float]:
    """MiB by which this process, which does nothing else, grows at its peak beyond its inputs."""
    torch.set_num_threads(threads)
    tiny = Subject(Shape(height=4, width=4, channels=shape.groups), "cpu")
    for which in PASSES:  # what libraries allocate once is not the convolution's
        tiny.run(path, which)
    subject, grown = Subject(shape, "cpu"), {}
    before = resident()
    for which in PASSES:
        subject.run(path, which)
        grown[which] = resident() - before
    return grown


def resident() -> float:
    """MiB this process held at most so far; Linux counts the parent's into `ru_maxrss`, not into VmHWM."""
    status = Path("/proc/self/status")
    if status.exists():
        return (
            next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) / 1024
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def memory(shape: Shape, paths: tuple[str, ...], threads: int) -> dict[str, dict[str, float]]:
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as pool:
        return {path: pool.submit(peak, shape, path, threads).result() for path in paths}


def measure(shape: Shape, options: argparse.Namespace, paths: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row for each pass and path."""
    spent = times(shape, paths, options)
    grown = memory(shape, paths, options.threads) if options.memory and options.device == "cpu" else {}
    rows: list[dict[str, Any]] = []
    for which in PASSES:
        reference = spent[which]["torchvision"]
        for path in paths:
            mine = spent[which][path]
            row = {"shape": asdict(shape), "pass": which, "path": path, "turns": len(mine)}
            row |= {"median_ms": round(statistics.median(mine), 3), "least_ms": round(min(mine), 3)}
            row["speed_up"] = round(statistics.median(reference) / statistics.median(mine), 2)
            row["speed_up_of_least"] = round(min(reference) / min(mine), 2)
            row["peak_mib"] = round(grown[path][which], 1) if grown else None
            rows.append(row)
    return rows


def show(console: Console, shape: Shape, rows: list[dict[str, Any]]) -> None:
    table = Table(title=str(shape), title_justify="left")
    for heading in ("pass", "path", "median ms", "least ms", "speed-up", "MiB"):
        table.add_column(heading, justify="left" if heading in {"pass", "path"} else "right", no_wrap=True)
    for row in rows:
        speed_up = f"{row['speed_up']:.2f} ({row['speed_up_of_least']:.2f})"
        figures = (f"{row['median_ms']:.2f}", f"{row['least_ms']:.2f}", speed_up)
        table.add_row(
            row["pass"], row["path"], *figures, "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        )
    console.print(table)


def size(text: str) -> Shape:
    batch, channels, height, width = map(int, text.split("x"))
    return Shape(batch=batch, channels=channels, height=height, width=width)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=size, action="append", help="BxCxHxW; may be given several times")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=10.0, help="for each shape and pass")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    paths = PATHS if options.device == "cpu" else PATHS[:3]
    console, machine, rows = Console(), _results.machine(), []
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), f"{options.clock} time")
    for shape in options.size or SHAPES:
        rows += (found := measure(shape, options, paths))
        show(console, shape, found)
        if options.json:
            options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    if options.save:
        name = f"deform_conv_{options.device}_{options.threads}_threads_{options.clock}"
        console.print(f"saved {_results.save(name, rows)}")


if __name__ == "__main__":
    main()
