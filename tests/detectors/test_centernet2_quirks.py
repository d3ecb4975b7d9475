"""Quirks of the published CenterNet2 code, one law a test, and images on which that code stops."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import relook
from relook.backbones.resnet import ResNetConfig
from relook.backbones.timm_maps import TimmMapsConfig
from relook.detectors.centernet2 import CenterNet2, CenterNet2Config, CenterNet2Outputs
from relook.ops.box_coder import LIMIT, decode
from relook.ops.devices import mean_over_devices
from relook.ops.sampling import Budget
from relook.parts.box_head import Regions, box_head_loss, training_regions
from relook.parts.fpn import FPN
from relook.types import Targets

SIDE = 128
TINY = CenterNet2Config(
    num_classes=3, backbone=TimmMapsConfig(name="mobilenetv2_035"), width=16, tower=1, hidden=16
)
ORIGINAL = replace(
    TINY, proposal_shift=False, proposal_gradient=False, resample=False, roi_beta=0.0, drop_empty=True
)
LINES = pytest.mark.parametrize("config", [TINY, ORIGINAL], ids=["mmdetection", "original"])


def build(config: CenterNet2Config = TINY) -> CenterNet2:
    """A small one in float64 that finds something everywhere, of sides that differ."""
    torch.manual_seed(0)
    detector = config.build().double().eval()
    with torch.no_grad():
        detector.head.heat.bias.fill_(-1.0)
        detector.head.heat.weight.mul_(30)
        detector.head.sides.bias.copy_(torch.tensor([1.0, 2.0, 3.0, 1.5]))
        for stage in detector.stages:
            stage.cls.weight.mul_(3)
    return detector


def image(count: int = 1, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, SIDE, SIDE, generator=random, dtype=torch.float64)


def targets_of(*boxes: Tensor) -> Targets:
    """Boxes [n, 4] of each image; classes take turns."""
    labels = [torch.arange(len(one)) % 3 for one in boxes]
    return Targets.pad([one.double() for one in boxes], labels, [(SIDE, SIDE)] * len(boxes))


def many(count: int) -> Tensor:
    random = torch.Generator().manual_seed(2)
    corner = torch.rand(count, 2, generator=random) * 100
    return torch.cat([corner, corner + 2 + 26 * torch.rand(count, 2, generator=random)], 1)


SOME = torch.tensor([[8.0, 10, 60, 70], [30, 40, 110, 120]])
NONE = torch.zeros(0, 4)


# -- images on which the published code stops ------------------------------------------------------------


@LINES
@pytest.mark.parametrize(
    "boxes",
    {
        "no object": (NONE, NONE),
        "one image without": (SOME, NONE),
        "the whole image": (torch.tensor([[0.0, 0, SIDE, SIDE]]), SOME),
        "500 objects": (many(500), SOME),
        "a pixel, nothing, twice the same": (
            torch.tensor([[5.0, 5, 6, 6], [7, 7, 7, 7], [9, 9, 60, 60], [9, 9, 60, 60]]),
            NONE,
        ),
        "at the far border": (torch.tensor([[SIDE, SIDE, SIDE, SIDE], [120.0, 0, SIDE, SIDE]]), SOME),
    }.values(),
    ids=["none", "one without", "whole image", "500", "odd", "border"],
)
@pytest.mark.parametrize("likely", [True, False], ids=["proposals", "none proposed"])
def test_cn_17_every_image_is_trained_on(
    config: CenterNet2Config, boxes: tuple[Tensor, ...], likely: bool
) -> None:
    """Without objects, without proposals, with very many: losses and gradients are finite."""
    detector = build(config)
    if not likely:
        torch.nn.init.constant_(detector.head.heat.bias, -1e3)
    losses = detector.loss(detector(image(2)), targets_of(*boxes))
    trained = [p for p in detector.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(torch.stack(list(losses.values())).sum(), trained)
    assert all(term.isfinite() for term in losses.values())
    assert all(g.isfinite().all() for g in gradients)


@LINES
def test_cn_17_an_image_without_a_candidate_has_no_answer(config: CenterNet2Config) -> None:
    """Nothing is likely anywhere in it: an empty answer, and its neighbour's is what it is alone."""
    detector = build(config)
    sizes = torch.tensor([[SIDE, SIDE]] * 2)
    outputs = detector(image(2))
    logits = outputs.logits.clone()
    logits[0] = -50.0
    dim = CenterNet2Outputs(outputs.grid, outputs.pyramid, logits, outputs.distances)
    found = detector.predict(dim, sizes).unpad()
    assert [len(one) > 0 for one in found] == [False, True]
    torch.testing.assert_close(found[1].boxes, detector.predict(outputs, sizes).unpad()[1].boxes)
    nothing = CenterNet2Outputs(
        outputs.grid, outputs.pyramid, torch.full_like(logits, -50), outputs.distances
    )
    none = detector.predict(nothing, sizes)
    assert none.count.tolist() == [0, 0]
    assert detector.explain(nothing, none, sizes)[0].maps


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["logits", "distances", "pyramid"])
def test_a_network_that_diverged_says_nothing_wrong(value: float, where: str) -> None:
    """Values that are no numbers reach no answer, and do not stop the program."""
    detector = build()
    outputs = detector(image())
    parts: dict[str, Any] = {
        "grid": outputs.grid,
        "pyramid": outputs.pyramid,
        "logits": outputs.logits,
        "distances": outputs.distances,
    }
    spoilt = parts[where][0].clone() if where == "pyramid" else parts[where].clone()
    spoilt.flatten()[::3] = value
    parts[where] = (spoilt, *outputs.pyramid[1:]) if where == "pyramid" else spoilt
    with torch.no_grad():
        found = detector.predict(CenterNet2Outputs(**parts), torch.tensor([[SIDE, SIDE]])).unpad()[0]
    assert found.boxes.isfinite().all()
    assert found.scores.isfinite().all()


# -- quirks ----------------------------------------------------------------------------------------------


def test_cn_01_scores_apart_suppress_nothing() -> None:
    """Two equal boxes of different scores both stay; without the shift the worse one goes."""
    for shift, left in ((True, 2), (False, 1)):
        detector = build(replace(TINY, proposal_shift=shift))
        outputs = detector(image())
        logits = torch.full_like(outputs.logits, -50)
        logits[0, :2] = torch.tensor([1.0, 0.0])
        distances = outputs.distances.clone()
        distances[0, 0], distances[0, 1] = torch.tensor([[2.0, 2, 3, 2], [3.0, 2, 2, 2]])
        same = CenterNet2Outputs(outputs.grid, outputs.pyramid, logits, distances)
        proposed = detector.propose(same, top=100, keep=10)
        assert int((proposed.scores > 0).sum()) == left


def test_cn_02_scores_are_roots_of_roots() -> None:
    """A proposal's score is the root of its likelihood; an answer's the root of that times the class."""
    detector, sizes = build(), torch.tensor([[SIDE, SIDE]])
    outputs = detector(image())
    proposed = detector.propose(outputs, top=1000, keep=256)
    likely = outputs.logits.sigmoid().gather(1, proposed.rows)
    torch.testing.assert_close(proposed.scores, likely.sqrt())
    found = detector.predict(outputs, sizes)
    first, second = detector.explain(outputs, found, sizes)
    assert first.scores is not None
    assert second.scores is not None
    torch.testing.assert_close(found.scores, (first.scores * second.scores).sqrt())


def test_cn_03_a_tower_that_nothing_reads() -> None:
    """It is in published files, is not trained, and changes nothing."""
    detector = build()
    before = detector(image()).logits
    for p in detector.head.spare_tower.parameters():
        assert not p.requires_grad
        torch.nn.init.normal_(p)
    assert torch.equal(detector(image()).logits, before)
    assert not hasattr(build(replace(TINY, spare_tower=False)).head, "spare_tower")


def test_cn_08_distances_are_in_strides_and_never_negative() -> None:
    """Untrained they are eight strides, whatever the level; a negative one is nothing and has no gradient."""
    torch.manual_seed(0)
    detector = TINY.build()
    torch.nn.init.zeros_(detector.head.sides.weight)
    assert (detector(image().float()).distances == 8).all()
    torch.nn.init.constant_(detector.head.sides.bias, -1.0)
    distances = detector(image().float()).distances
    assert not distances.any()
    distances.sum().backward()
    assert not detector.head.sides.bias.grad.any()


def test_cn_11_the_authors_add_one_square_stride() -> None:
    """To intersection and union: a miss costs less than without."""
    outputs, targets = build()(image()), targets_of(SOME)
    with_one = build(replace(TINY, giou_extra=1.0)).loss(outputs, targets)["loc"]
    assert with_one < build().loss(outputs, targets)["loc"]


def test_cn_12_a_third_of_the_gradient_reaches_the_features() -> None:
    """Of every stage; the stages' own parameters get all of it."""
    grads: list[tuple[Tensor, Tensor]] = []
    for part in (1.0, 1 / 3):
        detector = build(replace(TINY, feature_gradient=part, proposal_gradient=False))
        outputs = detector(image())
        losses = detector.loss(outputs, targets_of(SOME))
        total = torch.stack([v for k, v in losses.items() if k[:3] in ("cls", "box")]).sum()
        weight = detector.stages[0].cls.weight
        grads.append(torch.autograd.grad(total, [outputs.pyramid[0], weight]))
    torch.testing.assert_close(grads[1][0], grads[0][0] / 3)
    torch.testing.assert_close(grads[1][1], grads[0][1])


def test_cn_13_objects_join_every_stage_or_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each for itself before every stage and gone before the next; or once, refined with the others."""
    for config, joined in ((TINY, [2, 2, 2]), (ORIGINAL, [2, 0, 0])):
        detector = build(replace(config, roi_samples=10_000))
        exact: list[int] = []

        def watch(boxes: Tensor, valid: Tensor, targets: Targets, **rest: Any) -> Regions:
            regions = training_regions(boxes, valid, targets, **rest)
            same = (regions.boxes[:, :, None] == targets.boxes[:, None]).all(-1).any(-1)
            exact.append(int((same & regions.chosen).sum()))  # noqa: B023
            return regions

        monkeypatch.setattr("relook.detectors.centernet2.training_regions", watch)
        detector.loss(detector(image()), targets_of(SOME))
        assert exact == joined


def test_cn_14_limits_of_the_box_coder() -> None:
    """No side grows more than 62.5 times; in one line none shrinks more either."""
    roi = torch.tensor([[0.0, 0, 10, 10]])
    far = torch.tensor([[0.0, 0, 50, -50]])
    both = decode(roi, far, center_std=1, size_std=1)
    growth = decode(roi, far, center_std=1, size_std=1, limit_both=False)
    assert both[0, 2] - both[0, 0] == pytest.approx(10 * math.exp(LIMIT))
    assert both[0, 3] - both[0, 1] == pytest.approx(10 * math.exp(-LIMIT))
    assert growth[0, 3] - growth[0, 1] < 1e-6


def test_cn_15_proposals_enter_unclipped_and_leave_clipped() -> None:
    """The first stage reads what lies beyond the border, the later ones do not."""
    detector, sizes = build(), torch.tensor([[SIDE, 100]])
    outputs = detector(image())
    rois = torch.tensor([[[-40.0, 5, 60, 90], [90, 10, 140, 60], [120, 20, 160, 60]]]).double()
    seen: list[Tensor] = []
    second = detector.second
    detector.second = lambda maps, boxes, i: seen.append(boxes) or second(maps, boxes, i)  # type: ignore[method-assign]
    detector.cascade(outputs, rois, sizes)
    assert torch.equal(seen[0], rois)
    for later in seen[1:]:
        assert later.min() >= 0
        assert later[..., 2].max() <= 100


@pytest.mark.parametrize("line", ["xavier", "detectron2"])
def test_cn_16_initial_weights_of_the_second_look(line: Any) -> None:
    """Xavier-normal to the last layer in one line, small outputs in the other."""
    torch.manual_seed(0)
    stage = replace(TINY, hidden=256, fc_start=line).build().stages[0]
    expected = {"xavier": (math.sqrt(2 / (256 + 4)), math.sqrt(2 / 260)), "detectron2": (0.01, 0.001)}[line]
    assert stage.cls.weight.std().item() == pytest.approx(expected[0], rel=0.1)
    assert stage.box.weight.std().item() == pytest.approx(expected[1], rel=0.1)


def test_cn_18_only_the_input_of_p7_is_rectified() -> None:
    """P6 comes from P5's output, and is handed on with its negative values."""
    torch.manual_seed(0)
    neck = FPN([4, 4, 4], 8, extra=2, source="output", norm_groups=0, relu_before_extra=True)
    maps = [torch.randn(1, 4, s, s) for s in (16, 8, 4)]
    out = neck(maps)
    assert out[3].min() < 0
    torch.testing.assert_close(out[3], neck.extra[0](out[2]))
    torch.testing.assert_close(out[4], neck.extra[1](out[3].relu()))


TWO = """
import sys, torch
from torch import distributed as dist
from relook.ops.devices import mean_over_devices
from relook.ops.sampling import Budget
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=2)
mine = torch.tensor(3 + 4 * rank)
assert mean_over_devices(mine) == 5 and mine == 3 + 4 * rank
dist.destroy_process_group()
"""


def test_cn_19_counts_are_means_over_devices(tmp_path: Path) -> None:
    """Two processes with 3 and 7 objects both divide by 5; one alone by its own number."""
    assert mean_over_devices(torch.tensor(3)) == 3
    place = f"file://{tmp_path / 'meeting'}"
    started = [subprocess.Popen([sys.executable, "-c", TWO, str(rank), place]) for rank in range(2)]
    assert [one.wait(timeout=120) for one in started] == [0, 0]


def test_cn_20_one_file_two_readings() -> None:
    """The two entries hold the same tensors and predict differently."""
    released, trained = (
        relook.entry(f"centernet2_cascade_r50_fpn_1x{end}").detector for end in ("", "_traincommit")
    )
    assert (released.roi_level_size, released.score) == (56, "product")
    assert (trained.roi_level_size, trained.score) == (224, "mean_logits")
    assert replace(trained, roi_level_size=56, score="product") == released
    detector, sizes = build(replace(TINY, score="mean_logits")), torch.tensor([[SIDE, SIDE]])
    outputs = detector(image())
    found = detector.predict(outputs, sizes)
    second = detector.explain(outputs, found, sizes)[1]
    torch.testing.assert_close(found.scores, second.scores)


def test_cn_21_proposals_that_tie_with_the_last_stay() -> None:
    """Where everything scores the same, everything is proposed, whatever the limit."""
    detector = build()
    outputs = detector(image())
    flat = CenterNet2Outputs(
        outputs.grid, outputs.pyramid, torch.ones_like(outputs.logits), outputs.distances
    )
    tied = detector.propose(flat, top=1000, keep=5)
    assert int((tied.scores > 0).sum()) > 5
    assert tied.boxes.shape[1] == int((tied.scores > 0).sum())
    assert detector.propose(outputs, top=1000, keep=5).boxes.shape[1] == 5


def test_cn_22_empty_boxes_are_dropped_last_in_one_line() -> None:
    """A box beyond the border of the image is empty: an answer in one line, left out in the other."""
    counts: list[int] = []
    for drop in (False, True):
        detector = build(replace(TINY, drop_empty=drop, nms=1.0, min_score=0.0, keep=2000))
        with torch.no_grad():
            for stage in detector.stages:
                stage.box.weight.zero_()
        found = detector.predict(detector(image()), torch.tensor([[SIDE, 16]])).unpad()[0]
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        assert bool((sides > 0).all()) == drop
        assert (found.scores.diff() <= 0).all()
        counts.append(len(found))
    assert counts[1] < counts[0]


def test_proposals_of_an_image_do_not_depend_on_its_neighbour() -> None:
    """Another image may keep more, by ties: this one keeps its own."""
    detector = build()
    outputs = detector(image(2))
    logits = outputs.logits.clone()
    logits[1] = 1.0
    both = CenterNet2Outputs(outputs.grid, outputs.pyramid, logits, outputs.distances)
    counts = (detector.propose(both, top=1000, keep=5).scores > 0).sum(1)
    assert counts[0] == 5
    assert counts[1] > 5


def test_a_detector_in_half_precision_finds_something() -> None:
    """All of its weights in 16 bits: regions are read in single precision and go on in half."""
    detector = build().bfloat16()
    found = detector.predict(detector(image().bfloat16()), torch.tensor([[SIDE, SIDE]]))
    assert found.count > 0


# -- parts -----------------------------------------------------------------------------------------------


def test_regions_are_drawn_by_lot_and_balanced() -> None:
    """At most a quarter of the budget is positive; a seed draws the same; a large budget draws nothing."""
    boxes = torch.cat([SOME[:1].expand(40, -1), many(200)])[None].double()
    valid = torch.ones(1, 240, dtype=torch.bool)
    targets = targets_of(SOME)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(training_regions(boxes, valid, targets, iou=0.6, budget=Budget(64, 0.25)))
    assert torch.equal(drawn[0].index, drawn[1].index)
    assert not torch.equal(drawn[0].index, drawn[2].index)
    for one in drawn:
        assert one.boxes.shape == (1, 64, 4)
        assert int(one.positive.sum()) == 16
        assert one.chosen.all()
        assert (one.index.diff() > 0).all()
    every = training_regions(boxes, valid, targets, iou=0.6, budget=Budget(1_000_000, 0.25))
    assert torch.equal(every.index[0], torch.arange(240))
    few = training_regions(boxes[:, 38:44], valid[:, 38:44], targets, iou=0.6, budget=Budget(64, 0.25))
    assert few.boxes.shape == (1, 6, 4)
    assert few.chosen.all()


def test_changes_of_each_class_or_of_all() -> None:
    """With four changes a class, those of the region's own class count, and no other gets a gradient."""
    targets = targets_of(SOME)
    regions = training_regions(
        targets.boxes, torch.ones(1, 2, dtype=torch.bool), targets, iou=0.5, budget=None
    )
    logits = torch.zeros(1, 2, 4, dtype=torch.float64)
    deltas = torch.ones(1, 2, 12, dtype=torch.float64, requires_grad=True)
    units = {"center_std": 0.1, "size_std": 0.2, "beta": 0.0}
    cls, box = box_head_loss(logits, deltas, regions, **units)
    assert cls.item() == pytest.approx(math.log(4))
    assert box.item() == pytest.approx(4.0)
    box.backward()
    told = deltas.grad.reshape(2, 3, 4).any(-1)
    assert told.tolist() == [[True, False, False], [False, True, False]]
    assert box_head_loss(logits, torch.ones(1, 2, 4).double(), regions, **units)[1] == pytest.approx(4.0)


def test_strides_of_caffe_and_constant_norms() -> None:
    """The first 1x1 convolution has the stride, and no batch normalisation is trained."""
    made: Any = ResNetConfig(frozen_norms=True, caffe_stride=True).build()
    for stage in (2, 3, 4):
        block = made.body[f"layer{stage}"][0]
        assert block.conv1.stride == (2, 2)
        assert block.conv2.stride == (1, 1)
    assert made.body["layer1"][0].conv1.stride == (1, 1)
    assert not any(p.requires_grad for n, p in made.named_parameters() if "bn" in n or "downsample.1" in n)
    assert made.body["layer4"][0].conv1.weight.requires_grad
    plain: Any = ResNetConfig().build()
    assert plain.body["layer4"][0].bn1.weight.requires_grad


def test_settings_that_do_not_fit_are_refused() -> None:
    """One sentence with what to change."""
    with pytest.raises(ValueError, match="as many numbers as the pyramid has levels"):
        CenterNet2Config(size_from=(0.0, 1.0))
    with pytest.raises(ValueError, match="one number for each stage"):
        CenterNet2Config(stage_iou=(0.5,))
    with pytest.raises(ValueError, match="roi_samples=0"):
        CenterNet2Config(roi_samples=0)
    with pytest.raises(ValueError, match=r"levels \(strides \(8, 16, 32, 64\)\)"):
        replace(TINY, extra_levels=1).build()
    model = relook.create_model("centernet2_nano", roi_level_size=224)
    assert model.config.roi_level_size == 224
