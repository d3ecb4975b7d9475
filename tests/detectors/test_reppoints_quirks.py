"""Quirks of the published RepPoints code, one law a test; docs/quirks.md says why each is kept."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import relook
from relook.backbones.resnet import DeformableConv, ResNet, ResNetConfig
from relook.backbones.timm_maps import TimmMapsConfig
from relook.detectors.reppoints import RepPoints, RepPointsConfig, RepPointsOutputs, moment_box
from relook.ops import levels as L
from relook.parts.fpn import FPN
from relook.types import Targets

SIDE = 128
TINY = RepPointsConfig(
    num_classes=3,
    backbone=TimmMapsConfig(name="mobilenetv2_035"),
    width=16,
    norm_groups=4,
    tower=1,
)
AUTHORS = replace(TINY, box="exact_minmax", refine_assign="atss", select="points", drop_empty=False, nms=0.6)


def build(config: RepPointsConfig) -> RepPoints:
    torch.manual_seed(0)
    return config.build().double()


def outputs_like(
    detector: RepPoints, images: int = 1, *, seed: int = 0, scale: float = 2.0
) -> RepPointsOutputs:
    """Random raw outputs of a detector for images of 128 x 128, without running its network."""
    make = torch.Generator().manual_seed(seed)
    maps = [torch.zeros(1, 1, SIDE // s, SIDE // s, dtype=torch.float64) for s in (8, 16, 32)]
    maps += [torch.zeros(1, 1, -(-SIDE // s), -(-SIDE // s), dtype=torch.float64) for s in (64, 128)]
    grid = L.grid(maps, detector.strides, offset=0.0)
    total = len(grid.points)

    def normal(*shape: int) -> Tensor:
        return torch.randn(images, total, *shape, generator=make, dtype=torch.float64) * scale

    return RepPointsOutputs(grid, normal(3) - 3, normal(9, 2), normal(9, 2))


def targets_of(*boxes: Iterable[tuple[float, ...]], side: int = SIDE) -> Targets:
    """Boxes per image, all of class 1."""
    made = [torch.tensor(list(one), dtype=torch.float64).reshape(-1, 4) for one in boxes]
    return Targets.pad(
        made, [torch.ones(len(one), dtype=torch.int64) for one in made], [(side, side)] * len(made)
    )


def test_rp_01_locations_are_corners_of_cells() -> None:
    """The first location is (0, 0), and every other a whole number of strides away from it."""
    grid = build(TINY)(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64)).grid
    assert grid.points[0].tolist() == [0, 0]
    assert (grid.points % grid.stride[:, None] == 0).all()
    assert grid.points.max(0).values.tolist() == [SIDE - 8, SIDE - 8]


def test_rp_02_two_points_are_the_box_and_may_be_inverted() -> None:
    """Line A's box is its first two points; the others do not count, and inverted corners are left so."""
    detector = build(AUTHORS)
    outputs = outputs_like(detector)
    points = outputs.init.clone().requires_grad_()
    boxes = detector.boxes(outputs.grid, points)
    at = outputs.grid.points + points[0, :, 0] * outputs.grid.stride[:, None]
    torch.testing.assert_close(boxes[0, :, :2], at)
    assert (boxes[..., 2] < boxes[..., 0]).any(), "random corners are sometimes inverted"
    boxes.sum().backward()
    assert points.grad is not None
    assert not points.grad[:, :, 2:].any()

    outputs.logits.fill_(-10)
    outputs.logits[0, 5, 2] = 3
    outputs.refine[0, 5, 0], outputs.refine[0, 5, 1] = torch.tensor([4.0, 4]), torch.tensor([1.0, 2])
    found = detector.predict(outputs, torch.tensor([[SIDE, SIDE]])).unpad()[0]
    assert len(found) == 1
    assert (found.boxes[0, 2:] < found.boxes[0, :2]).all()


@pytest.mark.parametrize("config", [TINY, AUTHORS], ids=["mmdet", "authors"])
def test_rp_05_classes_follow_the_refine_stage(config: RepPointsConfig) -> None:
    """Another way to choose the init stage's positives changes the init loss and not the class loss."""
    detector, other = build(config), build(replace(config, init_assign="max_iou"))
    outputs, targets = outputs_like(detector), targets_of([(10, 20, 70, 60), (60, 60, 120, 126)])
    one, two = detector.loss(outputs, targets), other.loss(outputs, targets)
    assert one["cls"] == two["cls"]
    assert one["pts_refine"] == two["pts_refine"]
    assert one["pts_init"] != two["pts_init"]


def test_rp_06_one_normaliser_with_one_per_empty_image() -> None:
    """Two empty images are divided by two, though no point is positive: at least one counts per image."""
    detector = build(AUTHORS)
    both = outputs_like(detector, 2)
    parts = [
        RepPointsOutputs(both.grid, both.logits[i], both.init[i], both.refine[i])
        for i in (slice(0, 1), slice(1, 2))
    ]
    single = [detector.loss(part, targets_of([]))["cls"] for part in parts]
    torch.testing.assert_close(detector.loss(both, targets_of([], []))["cls"], (single[0] + single[1]) / 2)


def gradient_of_first_look(detector: RepPoints, images: Tensor, *, second: bool) -> Tensor:
    """Gradient of the first look's output layer, from the logits alone or from the refined points alone."""
    outputs = detector(images)
    detector.zero_grad()
    (outputs.refine if second else outputs.logits).square().sum().backward()
    grad = detector.head.init_out.weight.grad
    assert grad is not None
    return grad.clone()


@pytest.mark.parametrize("second", [False, True], ids=["logits", "refined points"])
def test_rp_07_a_tenth_of_the_gradient_reaches_the_first_look(second: bool) -> None:
    """Through the deformable offsets flows a tenth; the sum with the first points sends nothing back."""
    torch.manual_seed(1)
    images = torch.randn(1, 3, SIDE, SIDE, dtype=torch.float64)
    tenth, whole, none = (build(replace(TINY, gradient_scale=s, deform_std=0.1)) for s in (0.1, 1.0, 0.0))
    full = gradient_of_first_look(whole, images, second=second)
    assert full.abs().max() > 0
    torch.testing.assert_close(gradient_of_first_look(tenth, images, second=second), full / 10)
    assert not gradient_of_first_look(none, images, second=second).any()


def test_rp_08_offsets_are_y_x_and_the_kernel_is_taken_away() -> None:
    """Channels are y1, x1, y2, ...; with all points on the location every tap reads there."""
    detector = build(TINY)
    with torch.no_grad():
        detector.head.init_out.weight.zero_()
        detector.head.init_out.bias.copy_(torch.arange(18, dtype=torch.float64))
    outputs = detector(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64))
    expected = [[2 * k + 1, 2 * k] for k in range(9)]  # x from the odd channel, y from the even one
    assert outputs.init[0, 0].tolist() == expected

    with torch.no_grad():
        detector.head.init_out.bias.zero_()
    x = torch.randn(1, 16, 6, 7, dtype=torch.float64)
    summed = detector.head.cls_conv.weight.sum((2, 3), keepdim=True)
    features = nn.functional.conv2d(detector.head.cls_tower(x), summed).relu()
    torch.testing.assert_close(detector.head(x)[0], detector.head.cls_out(features))


def test_rp_09_moment_is_unbiased_and_learns_slowly() -> None:
    """Spread divides by eight, is stretched by exp(m), and the gradient of m is a hundredth."""
    points = torch.randn(2, 5, 9, 2, dtype=torch.float64)
    stretch = torch.tensor([0.3, -0.2], dtype=torch.float64)
    spread = (points - points.mean(2, keepdim=True)).square().sum(2).div(8).sqrt() * stretch.exp()
    expected = torch.cat([points.mean(2) - spread, points.mean(2) + spread], -1)
    torch.testing.assert_close(moment_box(points, stretch), expected)

    detector = build(TINY)
    outputs = outputs_like(detector)
    detector.boxes(outputs.grid, outputs.init)[..., 2:].sum().backward()
    free = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    (moment_box(outputs.init, free) * outputs.grid.stride[:, None])[..., 2:].sum().backward()
    assert free.grad is not None
    torch.testing.assert_close(detector.moment.grad, free.grad / 100)


def test_rp_13_lines_cut_pairs_or_locations_and_drop_empty_boxes_or_not() -> None:
    """With room for one, line B keeps one (location, class) pair, line A a location with all its classes."""
    pairs, points = build(replace(TINY, top=1)), build(replace(TINY, top=1, select="points"))
    outputs = outputs_like(pairs)
    outputs.logits.fill_(-10)
    outputs.logits[0, 0] = torch.tensor([2.0, 3.0, 1.0])
    outputs.logits[0, 1] = torch.tensor([2.5, -9.0, -9.0])
    outputs.refine[0, 0] = torch.linspace(1, 8, 18).reshape(9, 2)
    size = torch.tensor([[SIDE, SIDE]])
    assert pairs.predict(outputs, size).unpad()[0].labels.tolist() == [1]
    assert points.predict(outputs, size).unpad()[0].labels.tolist() == [1, 0, 2]

    outputs.refine[0, 0] = 3.0  # nine points on one place: a box without area
    assert len(pairs.predict(outputs, size).unpad()[0]) == 0
    assert len(build(replace(TINY, top=1, drop_empty=False)).predict(outputs, size).unpad()[0]) == 1

    for name, expected in (
        ("reppoints_v1_r50_fpn_1x", ("points", False, 0.6)),
        ("reppoints_moment_r50_fpn_gn_head_gn_1x", ("pairs", True, 0.5)),
    ):
        config = relook.entry(name).detector
        assert isinstance(config, RepPointsConfig)
        assert (config.select, config.drop_empty, config.nms) == expected
        assert config.top == 1000


def test_rp_15_pyramid_has_no_activation_and_starts_p6_at_c5() -> None:
    """Negative values pass between all levels; P6 is made of the backbone's last map, P7 of P6 as it is."""
    torch.manual_seed(0)
    neck = build(TINY).neck
    assert isinstance(neck, FPN)
    assert not [part for part in neck.modules() if isinstance(part, nn.ReLU)]
    channels = [conv[0].in_channels for conv in neck.lateral]
    maps = [torch.randn(1, c, 16 // 2**i, 16 // 2**i, dtype=torch.float64) for i, c in enumerate(channels)]
    pyramid = neck(maps)
    sixth = neck.extra[0](maps[-1])
    assert (sixth < 0).any()
    torch.testing.assert_close(pyramid[3], sixth)
    torch.testing.assert_close(pyramid[4], neck.extra[1](sixth))


def test_rp_16_mask_is_a_plain_sigmoid_and_strided_convolutions_deform_too() -> None:
    """At its start a modulated convolution is half of the ordinary one; every 3x3 of a stage deforms."""
    plain = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
    x = torch.randn(1, 4, 9, 8)
    torch.testing.assert_close(DeformableConv(plain, modulated=True)(x), plain(x) / 2)
    torch.testing.assert_close(DeformableConv(plain, modulated=False)(x), plain(x))
    body = ResNet(ResNetConfig(deformable=(2, 3, 4), modulated=True)).body
    for stage in ("layer2", "layer3", "layer4"):
        convs = [block.conv2 for block in body[stage]]
        assert all(isinstance(conv, DeformableConv) for conv in convs)
        assert convs[0].stride == (2, 2)


def statistics_after_training(backbone: nn.Module) -> bool:
    """Whether a training step moves any running mean."""
    backbone.train()
    before = {
        name: value.clone() for name, value in backbone.named_buffers() if name.endswith("running_mean")
    }
    backbone(torch.randn(2, 3, 64, 64))
    return any(
        not torch.equal(value, before[name]) for name, value in backbone.named_buffers() if name in before
    )


def test_rp_17_only_mobilenet_trains_with_statistics_of_the_batch() -> None:
    """A training step moves MobileNetV2's running means and none of a ResNet's."""
    mobilenet = relook.entry("reppoints_v1_mnv2_fpn_2x")
    assert statistics_after_training(mobilenet.detector.backbone.build())
    assert mobilenet.recipe.sync_bn
    assert not statistics_after_training(ResNetConfig(name="resnet50").build())
    resnets = [relook.entry(name) for name in relook.list_models("reppoints_*r50*")]
    assert all(entry.detector.backbone.freeze_statistics and not entry.recipe.sync_bn for entry in resnets)


@pytest.mark.parametrize("config", [TINY, AUTHORS], ids=["mmdet", "authors"])
def test_rp_18_locations_outside_the_image_weigh_nothing(config: RepPointsConfig) -> None:
    """What is said where only the batch's padding lies changes no loss."""
    detector = build(config)
    outputs, targets = outputs_like(detector), targets_of([(4, 6, 40, 44)], side=64)
    outside = (outputs.grid.points >= 64).any(-1)
    assert outside.any()
    loud = RepPointsOutputs(
        outputs.grid, outputs.logits.clone(), outputs.init.clone(), outputs.refine.clone()
    )
    for field in (loud.logits, loud.init, loud.refine):
        field[:, outside] += 7
    one, two = detector.loss(outputs, targets), detector.loss(loud, targets)
    assert {name: value.item() for name, value in one.items()} == {
        name: value.item() for name, value in two.items()
    }


def test_rp_18_ignored_locations_weigh_nothing() -> None:
    """Line B: a location whose box overlaps an object by 0.4 to 0.5 is not classified."""
    detector = build(replace(TINY, box="minmax"))
    outputs = outputs_like(detector, scale=0.1)
    box = (32.0, 32.0, 64.0, 64.0)
    place = int((outputs.grid.points == 32).all(-1).nonzero()[0, 0])  # stride 8
    better = place + 1
    for row, width in ((place, 14.4 / 8), (better, 0.0)):
        x, y = outputs.grid.points[row].tolist()
        right = x + width * 8 if width else 64.0
        corners = torch.tensor([[box[0] - x, box[1] - y], [right - x, box[3] - y]], dtype=torch.float64) / 8
        outputs.init[0, row] = corners[[0, 1, 0, 1, 0, 1, 0, 1, 0]]
    targets = targets_of([box])
    quiet = detector.loss(outputs, targets)["cls"]
    outputs.logits[0, place] += 5
    assert detector.loss(outputs, targets)["cls"] == quiet
    outputs.logits[0, better] += 5
    assert detector.loss(outputs, targets)["cls"] != quiet


def test_rp_19_one_name_for_different_networks() -> None:
    """X-101 is 64x4d for the authors and 32x4d for mmdetection; without group norm there are biases."""
    names = {
        "reppoints_v1_x101_fpn_giou_2x": "resnext101_64x4d",
        "reppoints_moment_x101_dconv_c3_c5_fpn_gn_head_gn_2x": "resnext101_32x4d",
    }
    for name, backbone in names.items():
        assert relook.entry(name).detector.backbone.name == backbone
    assert relook.entry("reppoints_moment_r50_fpn_1x").detector.norm_groups == 0
    for groups, biased in ((4, False), (0, True)):
        detector = build(replace(TINY, norm_groups=groups))
        blocks = [
            *detector.neck.lateral,
            *detector.neck.smooth,
            *detector.neck.extra,
            *detector.head.cls_tower,
        ]
        assert [block[0].bias is not None for block in blocks] == [biased] * len(blocks)
        assert any(isinstance(part, nn.GroupNorm) for part in detector.neck.modules()) is not biased


def test_rp_20_deformable_convolutions_start_differently() -> None:
    """Line A draws them from a normal distribution of 0.01, line B uniformly within sqrt(6 / fan-in)."""
    for name, std in (("reppoints_v1_r50_fpn_1x", 0.01), ("reppoints_moment_r50_fpn_gn_head_gn_1x", None)):
        config = relook.entry(name).detector
        assert isinstance(config, RepPointsConfig)
        assert config.deform_std == std
        head = build(replace(TINY, deform_std=std, width=64)).head
        limit = (6 / (9 * 64)) ** 0.5
        for conv in (head.cls_conv, head.refine_conv):
            expected = limit / 3**0.5 if std is None else std
            assert conv.weight.std().item() == pytest.approx(expected, rel=0.02)
            assert (conv.weight.abs().max() <= limit) or std is not None
