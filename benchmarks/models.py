"""How fast a whole detector is, beside torchvision's own, alternating in one process.

    python benchmarks/models.py                     table: images of 480x640 and 800x1216, and a training step
    python benchmarks/models.py --save              also into benchmarks/results/
    python benchmarks/models.py --sides 480x640     one size; --rounds 9 more rounds; --device cuda

relook's RepPoints V1 and V2, CenterNet2, RetinaNet and Mask R-CNN, torchvision's FCOS, RetinaNet v2, Faster
R-CNN v2 and Mask R-CNN v2, all with a ResNet-50 and 80 classes, take turns on the same image, so that a
machine that speeds up or slows down is unfair to none. Medians, and:

    of peak     multiply-adds done per second, as a part of what one large matrix product reaches here
    of ResNet   the same as a part of what a plain ResNet-50 reaches: 1.0 means that nothing but convolutions
                costs time
    loss        matching and losses as a part of a training step (of CenterNet2 with its second look, but
                without the gradients of that look's own weights)
    ratio       V1's time over the model's own
    to peer     the time of the peer of the same kind over the model's own: FCOS for RepPoints, Faster R-CNN
                v2 for CenterNet2, and those of the same name

A third table (--square) has RefineDet++ and RefineDet on VGG-16 beside torchvision's SSD on VGG-16 and
SSDlite on MobileNetV3, all for 21 classes and stretched to the same square. What is comparable: the time of
one image, with the number of anchors and multiply-adds beside it. What is not: torchvision trained its SSD
for 300 and its SSDlite for 320 pixels, so at 512 their anchors are not those of any published model; and
SSDlite is made for telephones, not for accuracy.

Weights are random, so nearly nothing is found; but CenterNet2's second look sees 256 proposals all the same,
and Faster R-CNN's up to 1000, as their published settings say.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import _results
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import relook
from relook.types import Targets
from relook.zoo.cost import count

OURS = "reppoints_moment_r50_fpn_gn_head_gn_1x"
V2 = "reppoints_v2_r50_fpn_giou_1x"
CENTERNET2 = "centernet2_cascade_r50_fpn_1x"
RETINANET, MASK_RCNN = "retinanet_r50_fpn_1x", "mask_rcnn_r50_fpn_1x"
MINE = (OURS, V2, CENTERNET2, RETINANET, MASK_RCNN)
FCOS, FASTER = "torchvision fcos_resnet50_fpn", "torchvision fasterrcnn_resnet50_fpn_v2"
DENSE, MASKS = "torchvision retinanet_resnet50_fpn_v2", "torchvision maskrcnn_resnet50_fpn_v2"
KIND = {  # the peer that each is compared with
    OURS: FCOS,
    V2: FCOS,
    CENTERNET2: FASTER,
    RETINANET: DENSE,
    MASK_RCNN: MASKS,
}
PEERS = {
    FCOS: torchvision.models.detection.fcos_resnet50_fpn,
    DENSE: torchvision.models.detection.retinanet_resnet50_fpn_v2,
    FASTER: torchvision.models.detection.fasterrcnn_resnet50_fpn_v2,
    MASKS: torchvision.models.detection.maskrcnn_resnet50_fpn_v2,
}
RESNET = "plain resnet50 (no detector)"
BOXES = 10  # per training image


def ours(name: str, device: str) -> Callable[[Tensor], Any]:
    """Image in, detections out: as a user's Predictor does, without loading."""
    detector = relook.create_model(name).to(device).eval()
    return lambda images: detector.predict(
        detector(images), torch.tensor([images.shape[-2:]] * len(images), device=device)
    )


def peer(name: str, side: tuple[int, int], device: str) -> Callable[[Tensor], Any]:
    """torchvision's detector, told to leave the image's size as it is."""
    model = PEERS[name](
        weights=None, weights_backbone=None, num_classes=81, min_size=min(side), max_size=max(side)
    )
    model = model.to(device).eval()
    return lambda images: model(list(images))


def multiply_adds(run: Callable[[], Any]) -> float:
    """Of convolutions and matrix products, in billions; deformable ones as those they replace."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 2e9


def peak(device: str) -> float:
    """Billions of multiply-adds per second of a large matrix product: what this machine can do at best."""
    a = torch.randn(2048, 2048, device=device)
    times = [timed(lambda: a @ a, device) for _ in range(10)]
    return 2048**3 / 1e9 / min(times)


def timed(run: Callable[[], Any], device: str) -> float:
    """Seconds, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def alternate(runs: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each, one round unmeasured first."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            seconds = timed(run, device)
            if i:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def images_of(side: tuple[int, int], rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Batch 1, image to detections."""
    images = torch.rand(1, 3, *side, device=device)
    trunk = torchvision.models.resnet50(weights=None).to(device).eval()
    models: dict[str, Callable[[Tensor], Any]] = {name: ours(name, device) for name in MINE}
    models[RESNET] = trunk
    models |= {name: peer(name, side, device) for name in PEERS}
    runs = {name: _without_gradient(model, images) for name, model in models.items()}
    work = {name: multiply_adds(run) for name, run in runs.items() if name not in MINE}
    for name in MINE:
        work[name] = count(replace(relook.entry(name), input=side)).multiply_adds / 1e9
    times = alternate(runs, rounds, device)
    best = peak(device)
    reached = {name: work[name] / times[name] for name in runs}
    return {
        name: {
            "ms": 1e3 * times[name],
            "ratio": times[OURS] / times[name],
            **to_peer(name, times),
            "multiply_adds": work[name],
            "of_peak": reached[name] / best,
            "of_resnet": reached[name] / reached[RESNET],
        }
        for name in runs
    }


def to_peer(name: str, times: dict[str, float]) -> dict[str, float]:
    """How much longer the peer of its kind takes, for a model of ours."""
    return {"to_peer": times[KIND[name]] / times[name]} if name in KIND else {}


def _without_gradient(model: Callable[[Tensor], Any], images: Tensor) -> Callable[[], Any]:
    @torch.inference_mode()
    def run() -> Any:
        return model(images)

    return run


# -- squares -----------------------------------------------------------------------------------

SQUARE = ("refinedetpp_512_vgg_voc", "refinedet_512_vgg_voc")
SSD = {
    "torchvision ssd300_vgg16": torchvision.models.detection.ssd300_vgg16,
    "torchvision ssdlite320_mobilenet_v3_large": torchvision.models.detection.ssdlite320_mobilenet_v3_large,
}


def squares(side: int, rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Milliseconds of one image, for models that stretch images; ratio: SSD's time over the model's own."""
    images = torch.rand(1, 3, side, side, device=device)
    models: dict[str, Callable[[Tensor], Any]] = {name: ours(name, device) for name in SQUARE}
    anchors: dict[str, float] = {}
    for name in SQUARE:
        with torch.no_grad():
            anchors[name] = len(relook.create_model(name).to(device).eval()(images).anchors)
    for name, build in SSD.items():
        model = build(weights=None, weights_backbone=None, num_classes=21).to(device).eval()
        model.transform.fixed_size = (side, side)
        models[name] = lambda x, model=model: model(list(x))
        with torch.no_grad():
            maps = list(model.backbone(images).values())
        anchors[name] = sum(
            m.shape[2] * m.shape[3] * n
            for m, n in zip(maps, model.anchor_generator.num_anchors_per_location(), strict=True)
        )
    runs = {name: _without_gradient(model, images) for name, model in models.items()}
    work = {name: multiply_adds(run) for name, run in runs.items() if name not in SQUARE}
    for name in SQUARE:
        work[name] = count(replace(relook.entry(name), input=(side, side))).multiply_adds / 1e9
    times = alternate(runs, rounds, device)
    return {
        name: {
            "ms": 1e3 * times[name],
            "ratio": times["torchvision ssd300_vgg16"] / times[name],
            "multiply_adds": work[name],
            "anchors": anchors[name],
        }
        for name in runs
    }


# -- one training step -------------------------------------------------------------------------


def some_boxes(side: int, device: str) -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(2, BOXES, 2, generator=random) * side * 0.6
    extent = 12 + torch.rand(2, BOXES, 2, generator=random) * side * 0.3
    boxes = torch.cat([corner, corner + extent], -1)
    labels = torch.randint(0, 80, (2, BOXES), generator=random)
    return [{"boxes": b.to(device), "labels": n.to(device)} for b, n in zip(boxes, labels, strict=True)]


def full_masks(boxes: Tensor, side: int) -> Tensor:
    """Masks that fill boxes [N, 4]: [N, side, side] bool."""
    middle = torch.arange(side, device=boxes.device) + 0.5
    inside = (middle[:, None] >= boxes[:, None, :2]) & (middle[:, None] <= boxes[:, None, 2:])  # [N, side, 2]
    return inside[..., 1][:, :, None] & inside[..., 0][:, None]


def our_targets(truth: list[dict[str, Tensor]], side: int) -> Targets:
    targets = Targets.pad([t["boxes"] for t in truth], [t["labels"] for t in truth], [(side, side)] * 2)
    return replace(targets, masks=torch.stack([full_masks(t["boxes"], side) for t in truth]))


def step_of(name: str, side: int, device: str) -> Callable[[], Any]:
    """Forward, losses, backward, SGD on two images."""
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    truth = some_boxes(side, device)
    if name in MINE:
        model: Any = relook.create_model(name).to(device).train()
        targets = our_targets(truth, side)
        losses = lambda: model.loss(model(images), targets)  # noqa: E731 (two short branches side by side)
    else:
        model = PEERS[name](
            weights=None, weights_backbone=None, num_classes=81, min_size=side, max_size=side
        ).to(device).train()  # fmt: skip
        truth = [{**t, "masks": full_masks(t["boxes"], side).to(torch.uint8)} for t in truth]
        losses = lambda: model(list(images), truth)  # noqa: E731
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)

    def step() -> None:
        sgd.zero_grad()
        torch.stack(list(losses().values())).sum().backward()
        sgd.step()

    return step


def training(side: int, rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Seconds of a step, and what of ours is matching and losses."""
    names = [*MINE, *PEERS]
    times = alternate({name: step_of(name, side, device) for name in names}, rounds, device)
    answer = {
        name: {"ms": 1e3 * times[name], "ratio": times[OURS] / times[name], **to_peer(name, times)}
        for name in names
    }
    for name in MINE:
        answer[name]["loss_part"] = loss_part(name, side, rounds, device) / times[name]
    for name in names:
        answer[name]["peak_mb"] = peak_memory(name, side, device)
    return answer


def loss_part(name: str, side: int, rounds: int, device: str) -> float:
    """Seconds of assignment and losses, forward and backward down to the raw outputs."""
    detector: Any = relook.create_model(name).to(device)
    truth = some_boxes(side, device)
    targets = our_targets(truth, side)
    with torch.no_grad():
        raw = detector(torch.rand(2, 3, side, side, device=device))
    said = [t for t in pytree.tree_leaves(raw) if isinstance(t, Tensor) and t.is_floating_point()]
    leaves = [t.requires_grad_() for t in said if t.dim() > 2 or t.shape[0] == 2]  # not the grid

    def run() -> None:
        total = torch.stack(list(detector.loss(raw, targets).values())).sum()
        torch.autograd.grad(total, leaves, allow_unused=True)

    return alternate({"loss": run}, rounds, device)["loss"]


def peak_memory(name: str, side: int, device: str) -> float:
    """Megabytes that a step needs beyond what importing costs, measured in a process of its own."""
    if device == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step_of(name, side, device)()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    command = [sys.executable, __file__, "--memory-of", name, "--step", str(side)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_memory(name: str, side: int) -> float:
    """Megabytes that this process grows by in two steps."""
    before = high_water()
    step = step_of(name, side, "cpu")
    step()
    step()
    return high_water() - before


def high_water() -> float:
    """Megabytes this program has held at most; getrusage would count the parent's from before the exec."""
    status = Path("/proc/self/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) / 1024


# -- printing ----------------------------------------------------------------------------------


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    table = Table("model", *columns, title=title)
    for name, row in rows.items():
        table.add_row(name, *(f"{row[c]:.3g}" if c in row else "-" for c in columns))
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", default="480x640,800x1216", help="heightxwidth, with commas between")
    parser.add_argument(
        "--step", type=int, default=512, help="side of the two images of a training step; 0: none"
    )
    parser.add_argument("--square", type=int, default=512, help="side of RefineDet's image; 0: none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.memory_of:
        print(own_memory(asked.memory_of, asked.step))
        return
    answer: dict[str, Any] = {}
    for text in filter(None, asked.sides.split(",")):
        height, width = map(int, text.split("x"))
        answer[text] = images_of((height, width), asked.rounds, asked.device)
        show(
            f"one image of {text}, {asked.device}, {asked.threads} threads; ratio: ours over theirs",
            answer[text],
        )
    if asked.square:
        square = squares(asked.square, asked.rounds, asked.device)
        show(f"one image of {asked.square}x{asked.square}, 21 classes", square)
        if asked.save:
            _results.save(f"models_square_{asked.device}", square)
    if asked.step:
        answer["step"] = training(asked.step, asked.rounds, asked.device)
        show(f"one training step, two images of {asked.step}x{asked.step}", answer["step"])
    if asked.save and answer:
        print(_results.save(f"models_{asked.device}", answer))


if __name__ == "__main__":
    main()
