"""Small detectors that learn generated shapes from nothing: what looking twice, and verifying, is worth.

    python benchmarks/shapes.py                      three runs of each, with the data of `relook demo`
    python benchmarks/shapes.py --save               also into benchmarks/results/
    python benchmarks/shapes.py --at-once 2          two of them at a time, each in a process of its own
    python benchmarks/shapes.py --seeds 0 --models reppoints_nano reppoints_v2_nano
    python benchmarks/shapes.py --speed --save       instead: milliseconds of a step and of an image, in turns

Every model sees the same pictures in the same order for the same number of steps with the same optimiser.
Between runs the seed changes pictures, order and starting weights. torchvision's FCOS, which looks once, has
relook's backbone, pyramid and training loop, so that nothing but the detector differs; its towers have
torchvision's four 3x3 convolutions, with which it has as many parameters as V2.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import _results
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList

import relook
from relook.backbones.protocol import BackboneConfig
from relook.data.formats.detect import read
from relook.data.shapes import write_shapes
from relook.detector import Detector
from relook.evaluation import evaluate
from relook.parts.fpn import FPN
from relook.train_settings import TrainSettings
from relook.training.fit import fit
from relook.types import Detections, Losses, Targets, record
from relook.zoo.families.reppoints import NANO

PEER = "torchvision FCOS"
MODELS = ("reppoints_nano", "reppoints_v2_nano", PEER)
TRAIN, VAL = 2000, 200  # pictures of `relook demo`
EPOCHS = 4  # one more than there


# -- the peer ----------------------------------------------------------------------------------


class Pyramid(nn.Module):
    """relook's backbone and pyramid as torchvision wants them: maps by name."""

    def __init__(self, backbone: BackboneConfig, *, width: int, extra: int, groups: int) -> None:
        super().__init__()
        self.body = backbone.build()
        channels = cast("tuple[int, ...]", self.body.channels)
        self.neck = FPN(
            channels, width, extra=extra, source="input", norm_groups=groups, relu_before_extra=False
        )
        self.out_channels = width

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        return OrderedDict((str(i), x) for i, x in enumerate(self.neck(self.body(images))))


@record
class FcosOutputs:
    features: list[Tensor]
    anchors: list[Tensor]
    head: dict[str, Tensor]


class TorchvisionFcos(Detector[FcosOutputs]):
    """torchvision's FCOS behind relook's contract, so that the same loop trains and evaluates it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.stride = num_classes, 32
        pyramid = Pyramid(NANO.backbone, width=NANO.width, extra=NANO.extra_levels, groups=NANO.norm_groups)
        anchors = AnchorGenerator(((8,), (16,), (32,), (64,)), ((1.0,),) * 4)
        head = FCOSHead(NANO.width, 1, num_classes, num_convs=4)
        self.fcos = FCOS(
            pyramid,
            num_classes,
            anchor_generator=anchors,
            head=head,
            score_thresh=NANO.score,
            nms_thresh=NANO.nms,
        )

    def forward(self, images: Tensor) -> FcosOutputs:
        features = list(self.fcos.backbone(images).values())
        sizes = [(images.shape[-2], images.shape[-1])] * len(images)
        anchors = self.fcos.anchor_generator(ImageList(images, sizes), features)
        return FcosOutputs(features, anchors, self.fcos.head(features))

    def loss(self, outputs: FcosOutputs, targets: Targets) -> Losses:
        truth = [
            {"boxes": boxes[valid], "labels": labels[valid]}
            for boxes, labels, valid in zip(targets.boxes, targets.labels, targets.valid, strict=True)
        ]
        lengths = [x.shape[-2] * x.shape[-1] for x in outputs.features]
        return self.fcos.compute_loss(truth, outputs.head, outputs.anchors, lengths)

    @torch.no_grad()
    def predict(self, outputs: FcosOutputs, sizes: Tensor) -> Detections:
        lengths = [x.shape[-2] * x.shape[-1] for x in outputs.features]
        head = {name: list(x.split(lengths, 1)) for name, x in outputs.head.items()}
        anchors = [list(x.split(lengths)) for x in outputs.anchors]
        shapes = [(int(h), int(w)) for h, w in sizes.tolist()]
        found = self.fcos.postprocess_detections(head, anchors, shapes)
        most = max([1, *(len(x["scores"]) for x in found)])
        boxes, scores = (
            outputs.features[0].new_zeros(len(found), most, 4),
            outputs.features[0].new_zeros(len(found), most),
        )
        labels = torch.zeros(len(found), most, dtype=torch.int64)
        for i, x in enumerate(found):
            boxes[i, : len(x["boxes"])], scores[i, : len(x["boxes"])] = x["boxes"], x["scores"]
            labels[i, : len(x["boxes"])] = x["labels"]
        count = torch.tensor([len(x["scores"]) for x in found])
        return Detections(boxes, scores, labels, count)


# -- runs --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one training gave."""

    ap: float
    ap50: float
    ap75: float
    minutes: float  # of training, without evaluation
    parameters: int


def one(name: str, seed: int, epochs: int, folder: Path) -> Run:
    """Trains a model on the shapes of a seed and scores it."""
    data = folder / f"shapes-{seed}"
    train, val = read(data, "train"), read(data, "val")
    torch.manual_seed(seed)
    classes = len(train.classes)
    ours = "reppoints_nano" if name == PEER else name
    detector = make(name, classes)
    settings = TrainSettings(
        out=folder / f"{name.replace(' ', '-')}-{seed}",
        epochs=epochs,
        validate_every=epochs,
        seed=seed,
        workers=1,
        tensorboard=False,
        progress=False,
        overwrite=True,
    )
    recipe = relook.entry(ours).recipe
    began = time.monotonic()
    fit(detector, recipe, train, None, settings, {})
    minutes = (time.monotonic() - began) / 60
    numbers = evaluate(detector, recipe, val, batch=8, workers=1, progress=False).report.numbers
    return Run(
        ap=numbers["AP"],
        ap50=numbers["AP50"],
        ap75=numbers["AP75"],
        minutes=minutes,
        parameters=sum(p.numel() for p in detector.parameters()),
    )


def make(name: str, classes: int) -> Detector[Any]:
    """A model with random weights."""
    return TorchvisionFcos(classes) if name == PEER else relook.create_model(name, num_classes=classes)


def speed(names: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of a training step of 8 pictures and of one picture's detections, alternating."""
    random = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 128, 128, generator=random)
    corner = torch.rand(8, 3, 2, generator=random) * 70
    boxes = torch.cat([corner, corner + 24 + 30 * torch.rand(8, 3, 2, generator=random)], -1)
    targets = Targets.pad(list(boxes), [torch.arange(3)] * 8, [(128, 128)] * 8)
    times: dict[str, dict[str, list[float]]] = {}
    detectors = {name: make(name, 4) for name in names}
    for i in range(rounds + 1):
        for name, detector in detectors.items():
            detector.train()
            began = time.perf_counter()
            torch.stack(list(detector.loss(detector(images), targets).values())).sum().backward()
            step = time.perf_counter() - began
            detector.zero_grad()
            detector.eval()
            began = time.perf_counter()
            with torch.inference_mode():
                detector.predict(detector(images[:1]), targets.sizes[:1])
            if i:  # the first round warms up
                kept = times.setdefault(name, {"step_ms": [], "image_ms": []})
                kept["step_ms"].append(1e3 * step)
                kept["image_ms"].append(1e3 * (time.perf_counter() - began))
    return {
        name: {key: statistics.median(values) for key, values in row.items()} for name, row in times.items()
    }


def average(runs: list[Run]) -> dict[str, float]:
    """Mean of every number, and the deviation of those that chance decides."""
    rows = [asdict(run) for run in runs]
    answer: dict[str, float] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        answer[name] = statistics.mean(values)
        if name.startswith("ap") and len(values) > 1:
            answer[f"± {name}"] = statistics.stdev(values)
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument(
        "--at-once", type=int, default=1, metavar="N", help="runs that go on at the same time"
    )
    parser.add_argument("--speed", action="store_true", help="only time steps and images; nothing is trained")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.speed:
        rows = speed(asked.models, 30)
        print(*(f"{name}: {row}" for name, row in rows.items()), sep="\n")
        if asked.save:
            print("saved in", _results.save("shapes_speed", rows))
        return 0
    runs: dict[str, list[Run]] = {name: [] for name in asked.models}
    alone = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(asked.at_once, alone, torch.set_num_threads, (asked.threads,)) as pool,
    ):
        for seed in asked.seeds:
            write_shapes(Path(folder) / f"shapes-{seed}", train=TRAIN, val=VAL, seed=seed)
        # models take turns, so that a machine that slows down is unfair to none
        pairs = [(seed, name) for seed in asked.seeds for name in asked.models]
        waiting = [pool.submit(one, name, seed, asked.epochs, Path(folder)) for seed, name in pairs]
        for (seed, name), done in zip(pairs, waiting, strict=True):
            runs[name].append(done.result())
            print(seed, name, runs[name][-1], flush=True)
    averages = {name: average(each) for name, each in runs.items()}
    table = Table("model", *next(iter(averages.values())), title=f"{len(asked.seeds)} runs, ± one deviation")
    for name, row in averages.items():
        table.add_row(name, *(f"{value:.3g}" for value in row.values()))
    Console(width=140).print(table)
    if asked.save:
        each = {
            f"{name}, seed {seed}": asdict(run)
            for name, some in runs.items()
            for seed, run in zip(asked.seeds, some, strict=True)
        }
        figures = {f"mean of {len(asked.seeds)} runs": averages, "each run": each}
        print("saved in", _results.save("shapes", figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
