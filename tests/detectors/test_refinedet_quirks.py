"""What published RefineDet weights depend on, and what a diverging network must not break."""

import math

import pytest
import torch
from torch import nn

import relook
from relook.backbones.vgg import VGGConfig, layers
from relook.detectors.refinedet import RefineDetConfig
from relook.types import Targets
from relook.zoo.families.refinedet import NANO


def nano(**settings) -> nn.Module:
    torch.manual_seed(0)
    name = "refinedetpp_nano" if settings.pop("align", True) else "refinedet_nano"
    return relook.create_model(name, num_classes=3, **settings)


def targets(*boxes: list[list[float]]) -> Targets:
    """One image for each list of boxes, all of class 1."""
    made = [torch.tensor(one).reshape(-1, 4) for one in boxes]
    return Targets.pad(
        made, [torch.ones(len(one), dtype=torch.int64) for one in made], [(128, 128)] * len(made)
    )


def test_rd_02_the_second_look_does_not_move_anchors() -> None:
    """No gradient of its losses reaches the first look's changes."""
    detector = nano().train()
    losses = detector.loss(
        detector(torch.randn(2, 3, 128, 128)), targets([[10, 10, 60, 60]], [[5, 40, 90, 99]])
    )
    (losses["odm_loc"] + losses["odm_conf"]).backward()
    assert all(head.box.weight.grad is None for head in detector.first)
    assert all(weight.grad is not None for head in detector.second for weight in head.box)


def test_rd_11_statistics_of_extra_levels_are_the_batchs() -> None:
    """While those of the ResNet stay as they are."""
    with torch.device("meta"):
        detector = relook.create_model("refinedetpp_512_resnet50_voc").train()
    kinds = {"backbone": False, "extras": True}
    for name, training in kinds.items():
        norms = [m for m in getattr(detector, name).modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        assert all(norm.training is training for norm in norms)


@pytest.mark.parametrize("norm", [False, True])
def test_rd_12_vgg_keeps_biases_and_halves_five_times(norm: bool) -> None:
    """Convolutions have a bias with batch normalisation too; the first of the last two is dilated by 3."""
    made = layers(VGGConfig(norm=norm))
    convs = [layer for layer in made if isinstance(layer, nn.Conv2d)]
    pools = [layer for layer in made if isinstance(layer, nn.MaxPool2d)]
    assert all(conv.bias is not None for conv in convs)
    assert [pool.stride for pool in pools] == [2] * 5
    assert [pool.ceil_mode for pool in pools] == [False, False, True, False, False]
    assert convs[-2].dilation == convs[-2].padding == (3, 3)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in made) == (len(convs) if norm else 0)


def test_rd_13_only_vgg_has_maps_of_learnt_length() -> None:
    with torch.device("meta"):
        vgg, resnet = (relook.create_model(f"refinedetpp_512_{name}_voc") for name in ("vgg", "resnet50"))
    assert [norm.weight.shape[0] for norm in vgg.norms] == [512, 512]
    assert len(resnet.norms) == 0


def test_rd_16_what_the_first_look_does_not_believe_in_is_nothing() -> None:
    """Whatever the second look says of it."""
    detector = nano(align=False).eval()
    for head in detector.first:
        nn.init.zeros_(head.cls.weight)
        head.cls.bias.data = torch.tensor([5.0, 0.0] * 3)  # 0.0067 for an object
    found = detector.predict(detector(torch.randn(1, 3, 128, 128)), torch.tensor([[128, 128]]))
    assert found.count.tolist() == [0]


def test_nothing_is_found_in_padding() -> None:
    """A small image padded to a larger input: no answer lies around a place of the padding."""
    detector = nano(min_score=0.0, objectness=0.0).eval()
    images = torch.zeros(1, 3, 64, 192)
    images[..., :64] = torch.randn(1, 3, 64, 64)
    outputs = detector(images)
    found = detector.predict(outputs, torch.tensor([[64, 64]]))
    assert found.count.item() > 0
    assert (outputs.grid.points[found.origin // 3] < 64).all()


def test_an_image_without_objects_mines_nothing() -> None:
    """It adds nothing to either loss; without any object in the batch all losses are zero."""
    detector = nano(align=False).eval()
    images = torch.randn(2, 3, 128, 128)
    both = detector.loss(detector(images), targets([[10, 10, 60, 60]], []))
    alone = detector.loss(detector(images[:1]), targets([[10, 10, 60, 60]]))
    for name, value in alone.items():
        assert torch.allclose(both[name], value, rtol=1e-5)
    none = detector.loss(detector(images), targets([], []))
    assert all(value == 0 for value in none.values())
    torch.stack(list(none.values())).sum().backward()


@pytest.mark.parametrize("value", [200.0, 1e30, math.inf, math.nan])
@pytest.mark.parametrize("align", [True, False])
def test_outputs_without_bounds_do_not_crash(value: float, align: bool) -> None:
    """Changes that overflow every exponential: no crash, and no box that is not a number."""
    detector = nano(align=align).eval()
    for head in detector.first:
        nn.init.constant_(head.box.bias, value)
    outputs = detector(torch.randn(1, 3, 128, 128))
    found = detector.predict(outputs, torch.tensor([[128, 128]]))
    assert found.boxes.isfinite().all()
    losses = detector.loss(outputs, targets([]))
    assert losses["arm_loc"] == 0


def test_boxes_are_not_clipped_and_suppressed_in_pixels_of_the_file() -> None:
    """A box may leave the image; the last pixel counts more where the file is small."""
    detector = nano(min_score=0.0, objectness=0.0, keep=500).eval()
    outputs = detector(torch.randn(1, 3, 128, 128))
    sizes = torch.tensor([[128, 128]])
    large = detector.predict(outputs, sizes, torch.tensor([[1280, 1280]]))
    small = detector.predict(outputs, sizes, torch.tensor([[16, 16]]))
    assert (large.boxes < 0).any()
    assert small.count < large.count  # of a few pixels each counts


def test_switches_go_off_in_one_order_only() -> None:
    for settings in ({"refine": False}, {"align": False, "fuse": False}, {"fuse": False}):
        with pytest.raises(ValueError, match="switch off `align` first"):
            RefineDetConfig(**settings)


def test_looks_show_anchors_and_points_inside_their_reach() -> None:
    """The refined anchor of each detection, and nine points around its middle."""
    detector = nano(min_score=0.0, objectness=0.0).eval()
    outputs = detector(torch.randn(1, 3, 128, 128))
    sizes = torch.tensor([[128, 128]])
    found = detector.predict(outputs, sizes)
    first, second = detector.explain(outputs, found, sizes)
    assert first.boxes.shape == found.boxes.shape
    assert second.points.shape == (*found.boxes.shape[:2], 9, 2)
    middle = (first.boxes[..., :2] + first.boxes[..., 2:]) / 2
    assert torch.allclose(second.points[:, :, 4], middle, atol=1e-3)  # the fifth point is the middle


def test_settings_of_the_nanos_differ_in_alignment_alone() -> None:
    plain, aligned = (relook.entry(name).detector for name in ("refinedet_nano", "refinedetpp_nano"))
    assert plain == NANO
    assert aligned != plain
