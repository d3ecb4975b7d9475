"""What a reader must hold to follow a detector: files, lines, functions and depth of one training step.

    python benchmarks/reading.py --save                  the default models, also into benchmarks/results/
    python benchmarks/reading.py MODEL... [--files]      others; --files lists what was entered

A tracer watches every Python call of making the model and of one training step: forward, loss, backward. Our
own code is counted, its kernels left out; packages other than torch and ours are listed apart, for they too
must be read.
"""

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import _results
import torch

import relook
from relook.types import Targets

HOME = str(Path(relook.__file__).parent)
KERNELS = str(Path("ops") / "kernels")  # fast ways to compute what `ops` defines: nobody need read them
MODELS = (
    "reppoints_nano",
    "reppoints_v1_r50_fpn_1x",
    "reppoints_v2_r50_fpn_giou_1x",
    "reppoints_moment_r50_fpn_gn_head_gn_1x",
    "centernet2_nano",
    "centernet2_cascade_r50_fpn_1x",
    "centernet2_original_r50_fpn_1x",
    "retinanet_dpt_t_fpn_1x",
    "mask_rcnn_r50_fpn_1x",
    "refinedetpp_512_vgg_voc",
)
SIDE, IMAGES = 128, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one person can hold in mind for an afternoon."""

    files: int
    lines: int  # of the functions entered, from `def` to their end
    functions: int
    depth: int
    build: int  # calls to make the model


DENSE = Limits(files=16, lines=730, functions=59, depth=7, build=400)
TWO_STAGE = Limits(files=24, lines=1100, functions=90, depth=8, build=500)  # those that wait for suppression


@dataclass(slots=True)
class Trace:
    """Every function of ours that was entered; other packages by their files."""

    codes: set[CodeType] = field(default_factory=set)
    others: dict[str, set[str]] = field(default_factory=dict)
    calls: int = 0
    depth: int = 0

    @property
    def files(self) -> list[str]:
        return sorted({code.co_filename for code in self.codes})

    @property
    def lines(self) -> int:
        """Lines of the functions entered."""
        return sum(len(inspect.getsourcelines(code)[0]) for code in self.codes)


@contextmanager
def traced() -> Iterator[Trace]:
    """Watches the calls of this thread."""
    trace = Trace()
    ours: list[FrameType] = []

    def watch(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call":
            if code.co_filename.startswith(HOME):
                if _is_function(code) and KERNELS not in code.co_filename:
                    ours.append(frame)
                    trace.codes.add(code)
                    trace.calls += 1
                    trace.depth = max(trace.depth, len(ours))
            elif package := _package(code.co_filename):
                trace.others.setdefault(package, set()).add(code.co_filename)
        elif event == "return" and ours and ours[-1] is frame:
            ours.pop()

    sys.setprofile(watch)
    try:
        yield trace
    finally:
        sys.setprofile(None)


def _is_function(code: CodeType) -> bool:
    """A function with a name; not a comprehension, nor the body of a class or module."""
    return bool(code.co_flags & inspect.CO_OPTIMIZED) and not code.co_name.startswith("<")


def _package(file: str) -> str:
    """timm for a file of timm; nothing for Python's own library and torch, which everyone knows."""
    _, found, rest = file.partition("site-packages/")
    name = rest.split("/", 1)[0].removesuffix(".py")
    return name if found and name not in {"torch", "numpy"} else ""


def batch(detector: torch.nn.Module) -> tuple[torch.Tensor, Targets]:
    """Two small images with three boxes, the same for every model."""
    stride = int(getattr(detector, "stride", 32))
    side = -(-SIDE // stride) * stride
    images = torch.linspace(-1, 1, IMAGES * 3 * side * side).reshape(IMAGES, 3, side, side)
    boxes = [torch.tensor([[8.0, 8, 60, 70], [50, 30, 120, 110]]), torch.tensor([[20.0, 40, 90, 100]])]
    labels = [torch.tensor([0, 1]), torch.tensor([2])]
    targets = Targets.pad(boxes, labels, [(side, side)] * IMAGES)
    masks = torch.ones(*targets.valid.shape, side, side, dtype=torch.bool)
    return images, replace(targets, masks=masks)


def step(detector: Any, images: torch.Tensor, targets: Targets) -> None:
    """One training step without the optimiser, which is torch's."""
    losses = detector.loss(detector(images), targets)
    sum(losses.values()).backward()


def read(make: Callable[[], Any]) -> dict[str, Any]:
    """The reading cost of the detector that `make` makes: numbers by name, and the files behind them."""
    relook.list_models()  # the catalog is read once in a process, not for each model
    with traced() as build:
        detector = make()
    detector.train()
    images, targets = batch(detector)
    with traced() as run:
        step(detector, images, targets)
    files = [Path(file) for file in run.files]
    return {
        "stages": 2 if detector.waits else 1,
        "files": len(files),
        "lines": run.lines,
        "functions": len(run.codes),
        "depth": run.depth,
        "build": build.calls,
        "whole_files": sum(len(file.read_text().splitlines()) for file in files),
        "others": {name: len(entered) for name, entered in sorted(run.others.items())},
        "entered": [str(file.relative_to(HOME)) for file in files],
    }


def limits(cost: dict[str, Any]) -> Limits:
    """Those of its kind: dense detectors are shorter than two-stage ones."""
    return TWO_STAGE if cost["stages"] == 2 else DENSE


def breaches(cost: dict[str, Any]) -> list[str]:
    """Which limits of its kind a cost passes, one line each."""
    allowed = asdict(limits(cost))
    return [f"{name} {cost[name]} > {most}" for name, most in allowed.items() if cost[name] > most]


def main() -> int:
    """Prints the table, saves it, and fails when a model costs more than the limits allow."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"zoo names (default: {' '.join(MODELS)})")
    parser.add_argument("--files", action="store_true", help="list the files entered")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/")
    asked = parser.parse_args()
    names = asked.models or MODELS
    costs = {name: read(lambda name=name: relook.create_model(name)) for name in names}
    columns = [*asdict(DENSE), "whole_files"]
    wide = max(map(len, costs))
    print(f"{'model':{wide}}", *(f"{column:>11}" for column in columns), " other packages (files)")
    for name, cost in costs.items():
        others = ", ".join(f"{package} {count}" for package, count in cost["others"].items())
        print(f"{name:{wide}}", *(f"{cost[column]:>11}" for column in columns), f" {others}")
        if asked.files:
            print(*(f"    {file}" for file in cost["entered"]), sep="\n")
    for name, most in (("limit, dense", DENSE), ("two-stage", TWO_STAGE)):
        print(f"{name:{wide}}", *(f"{value:>11}" for value in asdict(most).values()))
    if asked.save:
        print("saved in", _results.save("reading", costs))
    over = [f"{name}: {breach}" for name, cost in costs.items() for breach in breaches(cost)]
    print(*over, sep="\n", end="\n" if over else "")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
