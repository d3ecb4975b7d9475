"""The contract that every detector signs, held for every wiring; for every entry under `slow`.

A wiring is a way in which a detector's parts are put together; entries that differ in numbers share one.
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
from no_waiting import NoWaiting
from relook.backbones.dpt import DPTConfig
from relook.backbones.resnet import ResNetConfig
from relook.backbones.timm_maps import TimmMapsConfig
from relook.detector import Detector
from relook.ops.nms import class_nms, class_pairs
from relook.ops.suppression.per_class import per_class_nms
from relook.training.step import Step
from relook.types import Detections, Losses, Targets
from relook.zoo.catalog import ENTRIES

SIDE = 128
CLASSES = 5
SMALL = TimmMapsConfig(name="regnetx_002")


def choices(name: str) -> set[Any]:
    """What decides how an entry's parts are put together: its words, its switches, its kind of backbone."""
    config: Any = ENTRIES[name].detector
    backbone = config.backbone
    words = {
        (type(config), f.name, value)
        for f in fields(config)
        if isinstance(value := getattr(config, f.name), str | bool)
    }
    deformable = getattr(backbone, "deformable", ()), getattr(backbone, "modulated", False)
    return words | {(type(config), type(backbone), bool(deformable[0]), deformable[1])}


def wirings() -> list[str]:
    """Entries such that every choice, in every kind of detector, occurs at least once."""
    seen: set[Any] = set()
    chosen: list[str] = []
    for name in ENTRIES:
        if choices(name) - seen:
            chosen.append(name)
            seen |= choices(name)
    return chosen


def first_of_each_kind() -> list[str]:
    """One entry for each class of detectors."""
    return list({type(ENTRIES[name].detector): name for name in reversed(wirings())}.values())


def entries(fast: list[str], every: list[str]) -> Any:
    """Parametrises `detector` over all of `every`; those that are not `fast` are slow."""
    return pytest.mark.parametrize(
        "detector",
        [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in every],
        indirect=True,
    )


each = entries(wirings(), list(ENTRIES))


@cache
def small(name: str) -> Detector[Any]:
    """The entry's detector with a small backbone and five classes; deformable stages stay deformable."""
    config: Any = ENTRIES[name].detector
    backbone = config.backbone
    if isinstance(backbone, DPTConfig):
        small_widths = {"depths": (1, 1, 1, 1), "widths": (16, 32, 80, 128), "ratios": (2, 2, 2, 2)}
        backbone = replace(backbone, **small_widths, drop_path=0.0)
    elif isinstance(backbone, ResNetConfig):
        backbone = replace(backbone, name="resnet10t" if not backbone.deformable else "resnet26")
    else:
        backbone = SMALL
    if hasattr(config, "roi_samples"):  # as published, regions are drawn by lot; here all are taken
        config = replace(config, roi_samples=1_000_000, hidden=64, width=64)
    if hasattr(config, "scales"):  # so few candidates that a graph, which cannot try again, takes them all
        config = replace(config, top=100, width=64)
    if hasattr(config, "rpn_samples"):
        config = replace(config, rpn_samples=1_000_000, proposals=60)
    if hasattr(config, "negatives"):
        config = replace(config, min_score=0.2, width=64)
    torch.manual_seed(0)
    detector = replace(config, backbone=backbone, num_classes=CLASSES).build()
    spread(detector, tame=hasattr(config, "ratios"))
    return detector.eval()


def spread(detector: nn.Module, *, tame: bool) -> None:
    """Weights as of a network in training: scores above the threshold, points away from their cells.

    `tame` towers without a norm do not let signals grow, so that no scores are equally 1.
    """
    random = torch.Generator().manual_seed(1)
    for name, parameter in detector.named_parameters():
        if parameter.ndim > 1 and not name.startswith(("backbone.", "neck.")):
            fan_in = parameter[0].numel()
            parameter.data.normal_(0, min(0.05, 1.2 * fan_in**-0.5) if tame else 0.05, generator=random)
        parameter.data[parameter.data < -4] = -2.0  # biases of scores that start at 0.01


def some_images(count: int = 2, side: int = SIDE) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(2))


def some_targets(count: int = 2, side: int = SIDE) -> Targets:
    boxes = torch.tensor([[8.0, 10, 60, 70], [30, 40, 110, 120], [90, 5, 100, 16]])
    labels = torch.tensor([0, 3, 4])
    made = Targets.pad(
        [boxes[: 3 - i] for i in range(count)],
        [labels[: 3 - i] for i in range(count)],
        [(side, side)] * count,
    )
    return with_masks(made, side)


def with_masks(targets: Targets, side: int = SIDE) -> Targets:
    """The same with masks that fill the boxes."""
    middle = torch.arange(side) + 0.5
    low, high = targets.boxes[..., None, :2], targets.boxes[..., None, 2:]
    inside = (middle[:, None] >= low) & (middle[:, None] <= high)  # [B, M, side, 2] x, y
    return replace(targets, masks=inside[..., 1][..., :, None] & inside[..., 0][..., None, :])


def total(losses: Losses) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.fixture
def detector(request: pytest.FixtureRequest) -> Detector[Any]:
    return small(request.param)


def same(a: Any, b: Any, **tolerance: float) -> None:
    """Equal trees of tensors."""
    for x, y in zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True):
        if isinstance(x, Tensor):
            torch.testing.assert_close(x, y, **(tolerance or {"rtol": 0.0, "atol": 0.0}))
        else:
            assert x == y


@each
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
        if hasattr(detector.config, "negatives"):
            continue  # RefineDet leaves boxes where they are (docs/quirks.md, rd-08)
        assert ((one.boxes >= 0) & (one.boxes <= torch.tensor(size).flip(0).repeat(2))).all()


@each
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


@each
def test_images_without_objects_are_background(detector: Detector[Any]) -> None:
    """No ground truth at all: finite losses that still teach the classifier."""
    none = Targets.pad([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2, [(SIDE, SIDE)] * 2)
    losses = detector.loss(detector(some_images()), with_masks(none))
    mines = hasattr(detector.config, "negatives")  # nothing, where nothing is positive
    assert total(losses) == 0 if mines else total(losses) > 0
    assert all(term.isfinite() for term in losses.values())


@each
def test_padding_rows_change_nothing(detector: Detector[Any]) -> None:
    """More padding of the ground truth, whatever stands in it: the same loss.

    To the last bit in dense detectors. With regions there are more rows to sum, in another order.
    """
    outputs, plain = detector(some_images()), some_targets()
    rubbish = torch.full((2, 4, 4), 1e4)
    padded = Targets(
        torch.cat([plain.boxes, rubbish], 1),
        torch.cat([plain.labels, torch.ones(2, 4, dtype=torch.int64)], 1),
        torch.cat([plain.valid, torch.zeros(2, 4, dtype=torch.bool)], 1),
        plain.sizes,
        torch.cat([plain.masks, torch.ones(2, 4, SIDE, SIDE, dtype=torch.bool)], 1),
    )
    close = {"rtol": 1e-6, "atol": 1e-9} if detector.waits else {}
    same(detector.loss(outputs, plain), detector.loss(outputs, padded), **close)


@each
def test_odd_boxes_are_harmless(detector: Detector[Any]) -> None:
    """One-pixel, empty, image-filling and equal boxes: finite losses and gradients."""
    boxes = torch.tensor([[5.0, 5, 6, 6], [7, 7, 7, 7], [0, 0, SIDE, SIDE], [0, 0, SIDE, SIDE]])
    targets = with_masks(Targets.pad([boxes], [torch.tensor([0, 1, 2, 3])], [(SIDE, SIDE)]))
    losses = detector.loss(detector(some_images(1)), targets)
    gradients = torch.autograd.grad(total(losses), [p for p in detector.parameters() if p.requires_grad])
    assert all(g.isfinite().all() for g in gradients)


@each
def test_batch_equals_singles(detector: Detector[Any]) -> None:
    """An image's detections do not depend on its neighbours in the batch."""
    exact = copy.deepcopy(detector).double()
    images, sizes = some_images().double(), torch.tensor([[SIDE, SIDE]] * 2)
    together = exact.predict(exact(images), sizes).unpad()
    for i, one in enumerate(together):
        alone = exact.predict(exact(images[i : i + 1]), sizes[:1]).unpad()[0]
        assert torch.equal(one.labels, alone.labels)
        same((one.boxes, one.scores), (alone.boxes, alone.scores), rtol=1e-9, atol=1e-9)


@each
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


@each
def test_looks_belong_to_the_detections(detector: Detector[Any]) -> None:
    """A row for each detection, finite, in pixels; maps of the whole input; titles that differ."""
    images, sizes = some_images(), torch.tensor([[SIDE, SIDE], [100, 120]])
    outputs = detector(images)
    found = detector.predict(outputs, sizes)
    looks = detector.explain(outputs, found, sizes)
    assert len({look.title for look in looks}) == len(looks)
    for look in looks:
        assert look.caption
        for rows, sides in ((look.boxes, 4), (look.points, 2), (look.scores, found.scores.shape[1])):
            if rows is not None:
                assert rows.shape[:2] == found.scores.shape
                assert rows.shape[-1] == sides
                assert rows.isfinite().all()
        if look.patches is not None:
            assert look.patches.shape[::2] == (2, 4)
            assert ((look.patches >= 0) & (look.patches <= SIDE)).all()
        for one in look.maps:
            assert one.values.shape[:2] == (2, len(one.names))
            assert ((one.values >= 0) & (one.values <= 1)).all()
            assert one.values.shape[-1] * one.stride <= SIDE + one.stride


@each
def test_a_training_step_never_waits(detector: Detector[Any]) -> None:
    """Forward, loss and backward read no value and make no shape that depends on values, but as declared."""
    images, targets = some_images(), some_targets()
    with NoWaiting(detector.waits):
        total(detector.loss(detector(images), targets)).backward()
    detector.zero_grad()


@pytest.mark.gpu
@each
def test_a_training_step_never_waits_on_a_gpu(detector: Detector[Any]) -> None:
    """The same, asked of the device; detectors that declare waits are left out, it cannot tell which."""
    if detector.waits:
        pytest.skip(f"waits for {', '.join(sorted(detector.waits))} by declaration")
    moved = copy.deepcopy(detector).cuda()
    images, targets = some_images().cuda(), some_targets().to("cuda")
    total(moved.loss(moved(images), targets)).backward()  # kernels are chosen, memory is found
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        total(moved.loss(moved(images), targets)).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.tolist(),
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.numpy(),
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        torch.unique,
        lambda x: torch.bincount(x.long()),
        lambda x: torch.repeat_interleave(x, x.long()),
        lambda x: torch.equal(x, x),
        lambda x: torch.ops.torchvision.nms(x.expand(4, 4), x, 0.5),
    ],
)
def test_every_way_to_wait_is_noticed(waits: Any) -> None:
    """The guard of the tests above is tried on each of them, and lets pass what does not wait."""
    x = torch.ones(4)
    with NoWaiting():
        torch.where(x > 0, x, 0).sum().repeat_interleave(3)
    with pytest.raises(AssertionError, match="makes the host wait"), NoWaiting():
        waits(x)


def test_a_declared_wait_is_allowed() -> None:
    """Only the one that is declared."""
    boxes, scores = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4]]), torch.tensor([0.9, 0.8])
    with NoWaiting({"nms", "suppression/per_class"}):
        assert torch.ops.torchvision.nms(boxes, scores, 0.5).shape == (1,)
        kept = class_nms(boxes[None], class_pairs(scores[None, :, None]), score=0.1, iou=0.5, keep=5)
        per_class_nms(boxes[None], scores[None, :, None], score=0.1, iou=0.5, top=5, keep=5)
    assert kept.count.tolist() == [1]
    with pytest.raises(AssertionError, match="tolist"), NoWaiting({"nms"}):
        scores.tolist()
    with pytest.raises(AssertionError, match="makes the host wait"), NoWaiting():
        class_nms(boxes[None], class_pairs(scores[None, :, None]), score=0.1, iou=0.5, keep=5)


@each
def test_state_dict_round_trip(detector: Detector[Any]) -> None:
    """Weights of one detector in another of the same settings: the same answer."""
    config: Any = detector.config
    other = config.build().eval()
    other.load_state_dict(detector.state_dict())
    images = some_images(1)
    same(detector(images), other(images))


@each
def test_widths_that_do_not_fit_are_refused(detector: Detector[Any]) -> None:
    """An image side that is no multiple of the stride: one sentence with the fix."""
    with pytest.raises(ValueError, match=rf"multiple of {detector.stride}.*pad it"):
        detector(torch.zeros(1, 3, 100, SIDE))


# What follows compiles or exports: once for each kind of detector, every wiring under `slow` -------------


once = entries(first_of_each_kind(), wirings())


@pytest.mark.export
@once
def test_compiled_step_equals_eager(detector: Detector[Any]) -> None:
    """The whole training step is one graph, assignments and losses included, and gives the same gradients."""
    torch._dynamo.reset()
    detector = copy.deepcopy(detector).double()  # in which no tie is decided by rounding
    step = Step(detector)
    images, targets = some_images().double(), some_targets()
    targets = replace(targets, boxes=targets.boxes.double())
    trained = [p for p in detector.parameters() if p.requires_grad]
    eager = step(images, targets)
    expected = torch.autograd.grad(total(eager), trained)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(images, targets)
    gradients = torch.autograd.grad(total(compiled), trained)
    same(compiled, eager, rtol=1e-9, atol=1e-9)
    same(gradients, expected, rtol=1e-7, atol=1e-9)


class Whole(nn.Module):
    """Images and sizes in, detections out: what is exported."""

    def __init__(self, detector: Detector[Any]) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        found = self.detector.predict(self.detector(images), sizes)
        assert found.truncated is not None, "a graph that leaves candidates out must say so"
        return found.boxes, found.scores, found.labels, found.count, found.truncated


@pytest.mark.export
@once
def test_exported_graph_equals_eager(detector: Detector[Any]) -> None:
    """torch.export of forward and predict: the same detections."""
    if getattr(detector.config, "soft_nms", False):
        pytest.skip("scores that decay cannot be exported, and the detector says so")
    whole = Whole(copy.deepcopy(detector).double()).eval()
    arguments = (some_images(1).double(), torch.tensor([[SIDE, SIDE]]))
    with torch.no_grad():
        expected = whole(*arguments)
        exported = torch.export.export(whole, arguments)
        got = exported.module()(*arguments)
    real = int(expected[3])  # a graph may fill up with more rows than are needed
    cut = [(*(x[:, :real] for x in parts[:3]), *parts[3:]) for parts in (got, expected)]
    same(*cut, rtol=1e-9, atol=1e-9)


def test_create_model_takes_settings() -> None:
    """Settings by keyword; a wrong name is answered with the nearest."""
    made: Any = relook.create_model("reppoints_nano", num_classes=3, nms=0.4)
    assert (made.num_classes, made.config.nms) == (3, 0.4)
    with pytest.raises(ValueError, match="num_classes"):
        relook.create_model("reppoints_nano", num_clases=3)
