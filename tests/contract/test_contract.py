"""The contract that every detector signs, held for every entry of the catalog by its name.

Everything is cheap: small images, and for what only depends on the wiring, a small backbone in place of the
published one. A new entry is covered as soon as the catalog names it.
"""

import copy
from dataclasses import fields, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import relook
from relook.backbones.resnet import ResNetConfig
from relook.backbones.timm_maps import TimmMapsConfig
from relook.detector import Detector
from relook.train.step import Step
from relook.types import Detections, Losses, Targets
from relook.zoo.catalog import ENTRIES

SIDE = 128
CLASSES = 5
SMALL = TimmMapsConfig(name="regnetx_002")


@cache
def small(name: str) -> Detector[Any]:
    """The entry's detector with a small backbone and five classes; deformable stages stay deformable."""
    config: Any = ENTRIES[name].detector
    backbone = config.backbone
    if isinstance(backbone, ResNetConfig):
        backbone = replace(backbone, name="resnet10t" if not backbone.deformable else "resnet26")
    else:
        backbone = SMALL
    torch.manual_seed(0)
    detector = replace(config, backbone=backbone, num_classes=CLASSES).build()
    spread(detector)
    return detector.eval()


def spread(detector: nn.Module) -> None:
    """Weights as of a network in training: scores above the threshold, points away from their cells."""
    random = torch.Generator().manual_seed(1)
    for name, parameter in detector.named_parameters():
        if "head" in name and parameter.ndim > 1:
            parameter.data.normal_(0, 0.05, generator=random)
        if name.endswith("cls_out.bias"):
            parameter.data.fill_(-2.0)


def some_images(count: int = 2, side: int = SIDE) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(2))


def some_targets(count: int = 2, side: int = SIDE) -> Targets:
    boxes = torch.tensor([[8.0, 10, 60, 70], [30, 40, 110, 120], [90, 5, 100, 16]])
    labels = torch.tensor([0, 3, 4])
    return Targets.pad(
        [boxes[: 3 - i] for i in range(count)],
        [labels[: 3 - i] for i in range(count)],
        [(side, side)] * count,
    )


def total(losses: Losses) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ENTRIES])
def detector(request: pytest.FixtureRequest) -> Detector[Any]:
    return small(request.param)


def same(a: Any, b: Any, **tolerance: float) -> None:
    """Equal trees of tensors."""
    for x, y in zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True):
        if isinstance(x, Tensor):
            torch.testing.assert_close(x, y, **(tolerance or {"rtol": 0.0, "atol": 0.0}))
        else:
            assert x == y


def test_shapes(detector: Detector[Any]) -> None:
    """Detections are padded records, best first, of the promised shapes and types."""
    found = detector.predict(detector(some_images()), torch.tensor([[SIDE, SIDE], [100, 120]]))
    count = found.scores.shape[1]
    assert isinstance(found, Detections)
    assert found.boxes.shape == (2, count, 4)
    assert found.labels.dtype == torch.int64
    assert found.count.dtype == torch.int64
    assert (found.scores.diff(dim=1) <= 0).all()
    assert ((found.labels >= 0) & (found.labels < CLASSES)).all()
    for one, size in zip(found.unpad(), [(SIDE, SIDE), (100, 120)], strict=True):
        assert len(one) > 0
        assert (one.scores > 0).all()
        assert ((one.boxes >= 0) & (one.boxes <= torch.tensor(size).flip(0).repeat(2))).all()
        for look in one.looks.values():
            assert len(look) == len(one)


def test_losses_are_finite_and_reach_every_trained_parameter(detector: Detector[Any]) -> None:
    """Every term is a finite scalar; every parameter that is trained gets a gradient, no other does."""
    detector.zero_grad()
    losses = detector.loss(detector(some_images()), some_targets())
    assert all(term.shape == () and term.isfinite() for term in losses.values())
    total(losses).backward()
    for name, parameter in detector.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    detector.zero_grad()


def test_images_without_objects_are_background(detector: Detector[Any]) -> None:
    """No ground truth at all: finite losses that still teach the classifier."""
    none = Targets.pad([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2, [(SIDE, SIDE)] * 2)
    losses = detector.loss(detector(some_images()), none)
    assert losses["cls"] > 0
    assert all(term.isfinite() for term in losses.values())


def test_padding_rows_change_nothing(detector: Detector[Any]) -> None:
    """More padding of the ground truth, whatever stands in it: the same loss."""
    outputs, plain = detector(some_images()), some_targets()
    rubbish = torch.full((2, 4, 4), 1e4)
    padded = Targets(
        torch.cat([plain.boxes, rubbish], 1),
        torch.cat([plain.labels, torch.ones(2, 4, dtype=torch.int64)], 1),
        torch.cat([plain.valid, torch.zeros(2, 4, dtype=torch.bool)], 1),
        plain.sizes,
    )
    same(detector.loss(outputs, plain), detector.loss(outputs, padded))


def test_odd_boxes_are_harmless(detector: Detector[Any]) -> None:
    """One-pixel, empty, image-filling and equal boxes: finite losses and gradients."""
    boxes = torch.tensor([[5.0, 5, 6, 6], [7, 7, 7, 7], [0, 0, SIDE, SIDE], [0, 0, SIDE, SIDE]])
    targets = Targets.pad([boxes], [torch.tensor([0, 1, 2, 3])], [(SIDE, SIDE)])
    losses = detector.loss(detector(some_images(1)), targets)
    gradients = torch.autograd.grad(total(losses), [p for p in detector.parameters() if p.requires_grad])
    assert all(g.isfinite().all() for g in gradients)


def test_batch_equals_singles(detector: Detector[Any]) -> None:
    """An image's detections do not depend on its neighbours in the batch."""
    exact = copy.deepcopy(detector).double()
    images, sizes = some_images().double(), torch.tensor([[SIDE, SIDE]] * 2)
    together = exact.predict(exact(images), sizes).unpad()
    for i, one in enumerate(together):
        alone = exact.predict(exact(images[i : i + 1]), sizes[:1]).unpad()[0]
        assert torch.equal(one.labels, alone.labels)
        same((one.boxes, one.scores), (alone.boxes, alone.scores), rtol=1e-9, atol=1e-9)


def test_two_runs_are_equal(detector: Detector[Any]) -> None:
    """Bit for bit: outputs, losses, gradients, detections."""
    images, targets = some_images(), some_targets()
    runs: list[Any] = []
    for _ in range(2):
        outputs = detector(images)
        losses = detector.loss(outputs, targets)
        gradients = torch.autograd.grad(total(losses), [p for p in detector.parameters() if p.requires_grad])
        runs.append((losses, gradients, detector.predict(outputs, targets.sizes)))
    same(*runs)


class NoWaiting(torch.utils._python_dispatch.TorchDispatchMode):
    """Refuses whatever makes the host wait for the device: values read, shapes that depend on values."""

    WAITS = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "item",
        "unique",
        "is_nonzero",
        "_to_cpu",
        "nms",
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITS, f"{name} makes the host wait"
        if name in ("index", "index_put", "index_put_"):
            indices = args[1]
            assert all(i is None or i.dtype != torch.bool for i in indices), (
                "boolean indexing makes the host wait"
            )
        return func(*args, **(kwargs or {}))


def test_a_training_step_never_waits(detector: Detector[Any]) -> None:
    """Forward, loss and backward read no value and make no shape that depends on values."""
    images, targets = some_images(), some_targets()
    with NoWaiting():
        total(detector.loss(detector(images), targets)).backward()
    detector.zero_grad()


def test_state_dict_round_trip(detector: Detector[Any]) -> None:
    """Weights of one detector in another of the same settings: the same answer."""
    config: Any = detector.config
    other = config.build().eval()
    other.load_state_dict(detector.state_dict())
    images = some_images(1)
    same(detector(images), other(images))


def test_widths_that_do_not_fit_are_refused(detector: Detector[Any]) -> None:
    """An image side that is no multiple of the stride: one sentence with the mend."""
    with pytest.raises(ValueError, match=r"multiple of 32.*pad it"):
        detector(torch.zeros(1, 3, 100, SIDE))


# What follows compiles or exports: once per wiring, not per entry ---------------------------------------


def wirings() -> list[str]:
    """Entries such that every choice of every setting, in every kind of detector, occurs at least once."""
    seen: set[Any] = set()
    chosen: list[str] = []
    for name, entry in ENTRIES.items():
        config: Any = entry.detector
        choices = {
            (type(config), f.name, value)
            for f in fields(config)
            if isinstance(value := getattr(config, f.name), str | bool)
        }
        if choices - seen:
            chosen.append(name)
            seen |= choices
    return chosen


@pytest.mark.export
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in wirings()])
def test_compiled_step_equals_eager(name: str) -> None:
    """The whole training step is one graph, assignments and losses included, and gives the same gradients."""
    torch._dynamo.reset()
    detector = small(name)
    step = Step(detector)
    images, targets = some_images(), some_targets()
    trained = [p for p in detector.parameters() if p.requires_grad]
    eager = step(images, targets)
    expected = torch.autograd.grad(total(eager), trained)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(images, targets)
    gradients = torch.autograd.grad(total(compiled), trained)
    same(compiled, eager, rtol=1e-5, atol=1e-6)
    same(gradients, expected, rtol=1e-3, atol=1e-5)


class Whole(nn.Module):
    """Images and sizes in, detections out: what is exported."""

    def __init__(self, detector: Detector[Any]) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found = self.detector.predict(self.detector(images), sizes)
        return found.boxes, found.scores, found.labels, found.count


@pytest.mark.export
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in wirings()])
def test_exported_graph_equals_eager(name: str) -> None:
    """torch.export of forward and predict: the same detections."""
    whole = Whole(copy.deepcopy(small(name)).double()).eval()
    arguments = (some_images(1).double(), torch.tensor([[SIDE, SIDE]]))
    with torch.no_grad():
        expected = whole(*arguments)
        exported = torch.export.export(whole, arguments)
        same(exported.module()(*arguments), expected, rtol=1e-9, atol=1e-9)


def test_create_model_takes_settings() -> None:
    """Settings by keyword; a wrong name is answered with the nearest."""
    made: Any = relook.create_model("reppoints_nano", num_classes=3, nms=0.4)
    assert (made.num_classes, made.config.nms) == (3, 0.4)
    with pytest.raises(ValueError, match="num_classes"):
        relook.create_model("reppoints_nano", num_clases=3)
