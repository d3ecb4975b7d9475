"""Quirks of the published DPT, RetinaNet and Mask R-CNN code, one law a test."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import relook
from relook.assign.assignment import Assignment
from relook.backbones.dpt import DPT, DPTConfig, Stage
from relook.ops.sampling import Budget
from relook.parts.fpn import FPN
from relook.parts.rpn import AnchorLook, rpn_loss
from relook.training.optim import optimizer
from relook.types import Targets

SMALL = DPTConfig(depths=(1, 1, 1, 1), widths=(16, 32, 80, 128), ratios=(2, 2, 2, 2), drop_path=0.0)


def test_dp_01_only_norms_of_blocks_have_the_small_epsilon() -> None:
    """1e-6 before attention and MLP, 1e-5 everywhere else."""
    for name, module in SMALL.build().named_modules():
        if isinstance(module, nn.LayerNorm):
            inside = name.endswith(("norm1", "norm2"))
            assert module.eps == (1e-6 if inside else 1e-5), name


def test_dp_03_places_come_from_a_normalised_map_and_features_from_the_raw_one() -> None:
    """Twice the map: patches lie where they lay but for the norm's epsilon, and twice as much is read."""
    embed = SMALL.build().stages[1].embed.double()
    nn.init.normal_(embed.offset_predictor.weight)
    nn.init.zeros_(embed.first.proj.bias)
    x = 100 * torch.randn(1, 16, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(embed.boxes(2 * x), embed.boxes(x), rtol=1e-6, atol=1e-6)


def test_dp_08_maps_leave_the_backbone_as_they_are() -> None:
    """No norm behind the last block, and the next stage reads the same map."""
    backbone: Any = SMALL.build()
    maps = backbone(torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(backbone.stages[1](maps[0]), maps[1])
    assert not hasattr(backbone, "norm")


def test_dp_09_a_number_that_nothing_reads() -> None:
    """Published files keep it; whatever it is, nothing changes."""
    backbone = SMALL.build()
    x = torch.randn(1, 3, 64, 64)
    before = backbone(x)[-1]
    names = [n for n, _ in backbone.named_buffers()]
    assert [n.rsplit(".", 1)[1] for n in names] == ["value_level_start_index"] * 3
    for _, buffer in backbone.named_buffers():
        buffer.fill_(7)
    assert torch.equal(backbone(x)[-1], before)


def test_dp_07_any_size_has_places() -> None:
    """Also those of which the published code fails: 3136 tokens in a later stage."""
    backbone: Any = SMALL.build()
    stage = backbone.stages[1]
    assert isinstance(stage, Stage)
    assert stage.places((56, 56)).shape == (1, 3136, 32)
    assert stage.places((28, 28)).shape == (1, 784, 32)
    for side in ((32, 96), (96, 32), (160, 224)):
        maps = backbone(torch.randn(1, 3, *side))
        assert [tuple(m.shape[2:]) for m in maps] == [(side[0] // s, side[1] // s) for s in (4, 8, 16, 32)]


def test_dp_10_extra_levels_of_both_pyramids() -> None:
    """RetinaNet's P6 comes from the backbone's last map, without a ReLU before P7; Mask R-CNN's takes every
    second place of P5."""
    neck = FPN([4, 4, 4], 8, extra=2, source="input", norm_groups=0, relu_before_extra=False)
    maps = [torch.randn(1, 4, s, s) for s in (16, 8, 4)]
    out = neck(maps)
    torch.testing.assert_close(out[3], neck.extra[0](maps[-1]))
    torch.testing.assert_close(out[4], neck.extra[1](out[3]))
    detector: Any = relook.create_model("mask_rcnn_nano", num_classes=2).eval()
    pyramid = detector(torch.randn(1, 3, 128, 128)).pyramid
    assert torch.equal(pyramid[-1], pyramid[-2][..., ::2, ::2])


def test_dp_14_an_image_counts_at_least_one_of_each_kind() -> None:
    """The first look's divisor: an image without a positive anchor counts one all the same."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    look = AnchorLook(anchors, torch.zeros(2, 2), torch.zeros(2, 2, 4), (2,))
    box = torch.tensor([[0.0, 0, 10, 10]])
    targets = Targets.pad(
        [box, box[:0]], [torch.tensor([0]), torch.zeros(0, dtype=torch.int64)], [(32, 32)] * 2
    )
    positive = torch.tensor([[True, False], [False, False]])
    assigned = Assignment(torch.zeros(2, 2, dtype=torch.int64), positive, torch.zeros_like(positive))
    cls, box_loss = rpn_loss(look, assigned, targets, Budget(1_000_000, 0.5))
    assert cls.item() == pytest.approx(4 * torch.log(torch.tensor(2.0)).item() / (1 + 1 + 1 + 2))
    assert box_loss == 0


def test_dp_15_box_and_mask_losses_have_divisors_of_their_own() -> None:
    """A mask loss without a positive region is nothing, and finite."""
    detector: Any = relook.create_model("mask_rcnn_nano", num_classes=2)
    none = Targets.pad([torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)], [(128, 128)])
    none = replace(none, masks=torch.zeros(1, 1, 128, 128, dtype=torch.bool))
    losses = detector.loss(detector(torch.randn(1, 3, 128, 128)), none)
    assert losses["mask"] == losses["bbox"] == losses["rpn_bbox"] == 0
    assert losses["cls"] > 0


def test_dp_19_everything_decays() -> None:
    """AdamW of the published detectors has one group: norms, biases and places decay too."""
    entry = relook.entry("retinanet_dpt_t_fpn_1x")
    model = SMALL.build()
    made = optimizer(model, entry.recipe.optimizer, 1e-4)
    assert [group["weight_decay"] for group in made.param_groups] == [1e-4]
    assert sum(len(group["params"]) for group in made.param_groups) == len(list(model.parameters()))
    assert all(p.requires_grad for p in model.parameters())


def test_patches_are_looked_at() -> None:
    """Untrained, each is half a cell large around the middle of its cell, in pixels of the network input."""
    detector: Any = relook.create_model("retinanet_dpt_nano", num_classes=3).eval()
    sizes = torch.tensor([[96, 128]])
    outputs = detector(torch.randn(1, 3, 96, 128))
    looks = detector.explain(outputs, detector.predict(outputs, sizes), sizes)
    assert [look.title for look in looks] == ["patches of stage 3", "patches of stage 4"]
    assert [tuple(look.patches.shape) for look in looks] == [(1, 48, 4), (1, 12, 4)]
    torch.testing.assert_close(looks[1].patches[0, 0], torch.tensor([8.0, 8, 24, 24]))
    with pytest.raises(ValueError, match="lie on the grid"):
        detector.backbone.patches(torch.zeros(1, 3, 8, 8), 0)
    plain: Any = relook.create_model("mask_rcnn_nano", num_classes=3).eval()
    outputs = plain(torch.randn(1, 3, 96, 128))
    assert [one.title for one in plain.explain(outputs, plain.predict(outputs, sizes), sizes)] == [
        "first look"
    ]


def test_drop_path_is_a_setting_of_the_backbone() -> None:
    """By keyword of `create_model`; it rises from nothing at the first block."""
    detector: Any = relook.create_model("retinanet_dpt_t_fpn_1x")
    rates = [b.drop.drop_prob for s in detector.backbone.stages for b in s.blocks]
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.1)
    assert rates == sorted(rates)
    still: Any = relook.create_model("retinanet_dpt_t_fpn_1x", drop_path=0.0)
    assert isinstance(still.backbone, DPT)
    assert {b.drop.drop_prob for s in still.backbone.stages for b in s.blocks} == {0.0}
    with pytest.raises(ValueError, match="did you mean 'drop_path'"):
        relook.create_model("retinanet_dpt_t_fpn_1x", drop_pat=0.0)
