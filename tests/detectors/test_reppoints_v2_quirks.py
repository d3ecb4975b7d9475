"""Laws of RepPoints V2's verification that no stored case shows alone; docs/quirks.md has the names."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import relook
from relook.backbones.timm_maps import TimmMapsConfig
from relook.detectors.reppoints_v2 import (
    RepPointsV2,
    RepPointsV2Config,
    RepPointsV2Outputs,
    sem_loss,
    verified,
)
from relook.ops import levels as L
from relook.types import Targets

TINY = RepPointsV2Config(
    num_classes=3,
    backbone=TimmMapsConfig(name="mobilenetv2_035"),
    width=16,
    norm_groups=4,
    tower=1,
    corner_width=8,
)
STRIDES = (8, 16, 32, 64, 128)


def build(config: RepPointsV2Config = TINY) -> RepPointsV2:
    torch.manual_seed(0)
    return config.build().double()


def silent(height: int, width: int) -> RepPointsV2Outputs:
    """Outputs that say nothing: every number is 0."""
    maps = [torch.zeros(1, 1, -(-height // s), -(-width // s), dtype=torch.float64) for s in STRIDES]
    grid = L.grid(maps, STRIDES, offset=0.0)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(1, len(grid.points), *shape, dtype=torch.float64)

    return RepPointsV2Outputs(grid, zeros(3) - 9, zeros(9, 2), zeros(9, 2), zeros(2), zeros(2, 2), zeros(3))


def point(outputs: RepPointsV2Outputs, level: int, row: int, column: int) -> int:
    return sum(outputs.grid.lengths[:level]) + row * outputs.grid.shapes[level][1] + column


def answer(outputs: RepPointsV2Outputs, box: tuple[float, float, float, float], level: int) -> list[float]:
    boxes = torch.tensor([[box]], dtype=torch.float64)
    return verified(outputs, boxes, torch.tensor([[level]]))[0, 0].tolist()


def test_rp_07_verification_learns_from_regression() -> None:
    """What was verified enters both deformable convolutions as it is, and their gradient flows back."""
    detector = build(replace(TINY, gradient_scale=0.0))
    detector.head.cls_conv.weight.data.normal_(0, 0.1)
    detector.head.refine_conv.weight.data.normal_(0, 0.1)
    outputs = detector(torch.randn(1, 3, 128, 128, dtype=torch.float64))
    parts = [detector.head.top_left_score.weight, detector.head.bottom_right_offset.weight]
    for said in (outputs.logits, outputs.refine):
        for grad in torch.autograd.grad(said.square().sum(), parts, retain_graph=True):
            assert grad.abs().max() > 0


def test_rp_12_the_finest_level_stays_and_two_levels_share_a_map() -> None:
    """A warm cell of P3's map moves boxes of P4 and P5; P6 and P7 look at P4's; P3's own stay."""
    outputs = silent(256, 256)
    fine, coarse = point(outputs, 0, 6, 5), point(outputs, 1, 3, 3)
    for warm, offset in ((fine, 0.25), (coarse, 0.5)):
        outputs.score[0, warm, 0] = 5.0
        outputs.corner[0, warm, 0] = torch.tensor([offset, -offset])
    box = (44.0, 46.0, 200.0, 200.0)  # cells (4, 5) of P3 and (2, 2) of P4
    assert answer(outputs, box, 0) == list(box)
    for level in (1, 2):
        assert answer(outputs, box, level)[:2] == [(5 + 0.25) * 8, (6 - 0.25) * 8]
    for level in (3, 4):
        assert answer(outputs, box, level)[:2] == [(3 + 0.5) * 16, (3 - 0.5) * 16]


def test_rp_12_equally_warm_cells_are_taken_row_by_row() -> None:
    """A map that says the same everywhere: the first of the four cells, the one the corner lies in."""
    outputs = silent(256, 256)
    assert answer(outputs, (43.0, 47.0, 130.0, 140.0), 1) == [40, 40, 128, 136]


@pytest.mark.parametrize(
    ("corner", "cell"), [((300.0, 300.0), (30, 30)), ((-20.0, 7.0), (0, 0)), ((255.9, 1.0), (30, 0))]
)
def test_rp_12_the_window_stays_on_the_map(corner: tuple[float, float], cell: tuple[int, int]) -> None:
    """A corner at or beyond the border looks at the last two rows and columns."""
    outputs = silent(256, 256)  # P3 has 32 x 32 cells
    assert answer(outputs, (*corner, *corner), 1)[:2] == [cell[0] * 8, cell[1] * 8]


def test_rp_12_a_map_of_one_cell_is_no_error() -> None:
    """Images so small that P4 has one column: every corner goes to the only cell there is."""
    outputs = silent(32, 16)
    assert answer(outputs, (3.0, 3.0, 12.0, 12.0), 3) == [0, 0, 0, 0]


def test_boxes_that_are_no_numbers_stop_nothing() -> None:
    """A network that has gone astray gives rubbish, not an index error."""
    outputs = silent(64, 64)
    answer(outputs, (float("nan"), float("inf"), float("-inf"), float("nan")), 2)
    outputs.refine.fill_(float("nan"))
    outputs.score.fill_(float("nan"))
    assert build().predict(outputs, torch.tensor([[64, 64]])).boxes.shape[-1] == 4


def test_rp_12_scores_and_order_stay() -> None:
    """Verified corners change boxes, not the ranking."""
    detector = build()
    outputs = silent(128, 128)
    outputs.logits[0, point(outputs, 1, 2, 2), 1] = 2.0
    outputs.refine[0, :, 1] = 3.0
    batch = detector.predict(outputs, torch.tensor([[128, 128]]))
    found = batch.unpad()[0]
    assert found.scores.tolist() == [pytest.approx(torch.tensor(2.0).sigmoid().item())]
    assert found.boxes[0].tolist() == [32, 32, 80, 80], "both corners lie on a cell: nothing moves"
    _, verification, _, before = detector.explain(outputs, batch, torch.tensor([[128, 128]]))
    assert before.boxes is not None
    assert before.boxes[0, 0].tolist() == [32, 32, 80, 80]
    maps = {one.stride: tuple(one.values.shape[1:]) for one in verification.maps}
    assert maps == {8: (2, 16, 16), 16: (2, 8, 8)}


def test_rp_11_a_batch_without_boxes_is_finite() -> None:
    """The published loss divides by the number of positive cells, here by at least one."""
    logits = torch.zeros(1, 5, 3, dtype=torch.float64, requires_grad=True)
    loss = sem_loss(logits, torch.zeros(1, 5, 3, dtype=torch.float64))
    torch.testing.assert_close(float(loss.detach()), 15 * 0.75 * 0.25 * 0.6931471805599453)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_rp_21_corner_offsets_are_x_y_and_points_y_x() -> None:
    """The same numbers in both layers' channels mean different axes."""
    detector = build()
    with torch.no_grad():
        for conv in (detector.head.top_left_offset, detector.head.init_out):
            conv.weight.zero_()
            assert conv.bias is not None
            conv.bias.copy_(torch.arange(len(conv.bias), dtype=torch.float64))
    outputs = detector(torch.zeros(1, 3, 128, 128, dtype=torch.float64))
    assert outputs.corner[0, 0, 0].tolist() == [0, 1]  # x, y as stored
    assert outputs.init[0, 0, 0].tolist() == [1, 0]  # y, x turned to x, y


def test_starting_weights_are_the_published_ones() -> None:
    """Spread of each kind of layer as the authors drew it, and the biases of everything that is rare."""
    head = build(RepPointsV2Config(backbone=TINY.backbone)).head
    spreads: Mapping[str, float] = {
        "cls_tower.0.0": 0.01,
        "shared.0": 0.01,
        "cls_conv": 0.01,
        "init_conv": 0.01,
        "top_left_score": 0.01,
        "sem_out": 0.01,
        "sem_embedding.0": (2 / 256) ** 0.5,  # Kaiming, by outputs
        "top_left.vertical.0": (2 / (64 * 9)) ** 0.5,
        "bottom_right.out.0": (2 / 256) ** 0.5,
        "top_left.merge.0": (1 / (64 * 9) / 3) ** 0.5,  # uniform between -+ 1 / sqrt(inputs)
        "top_left.skip.0": (1 / 256 / 3) ** 0.5,
    }
    for name, spread in spreads.items():
        weight = head.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        assert weight.std().item() == pytest.approx(spread, rel=0.1), name
    for name in ("cls_out", "sem_out", "top_left_score", "bottom_right_score"):
        bias = head.get_submodule(name).bias
        assert isinstance(bias, Tensor)
        torch.testing.assert_close(bias, torch.full_like(bias, -4.59512))


def test_published_settings() -> None:
    """What differs between the authors' models: box loss and its weights, width, backbone, recipe."""
    plain, giou = (relook.entry(f"reppoints_v2_r50_fpn_{n}") for n in ("1x", "giou_1x"))
    for entry, expected in ((plain, ("smooth_l1", 0.5, 1.0)), (giou, ("giou", 1.0, 2.0))):
        config = entry.detector
        assert isinstance(config, RepPointsV2Config)
        assert (config.box_loss, config.init_weight, config.refine_weight) == expected
        assert (config.nms, config.top, config.keep) == (0.6, 1000, 100)
    mobile = relook.entry("reppoints_v2_mnv2_c128_fpn_2x")
    assert mobile.recipe.sync_bn
    assert mobile.recipe.train_size.short == (480, 960)
    assert mobile.recipe.schedule.epochs == 24
    assert giou.figure("AP", "coco/test-dev") == 41.3


@pytest.mark.gpu
def test_a_gpu_gives_the_same() -> None:
    """Losses, gradients and detections of a step on CUDA are the CPU's, in float64."""
    images = torch.randn(2, 3, 128, 128, dtype=torch.float64)
    boxes = torch.tensor([[8.0, 10, 60, 70], [30, 40, 110, 120]], dtype=torch.float64)
    targets = Targets.pad([boxes, boxes[:1]], [torch.tensor([0, 2]), torch.tensor([1])], [(128, 128)] * 2)
    answers: list[list[Tensor]] = []
    for device in ("cpu", "cuda"):
        detector = build(replace(TINY, score=0.0)).to(device).eval()
        outputs = detector(images.to(device))
        losses = detector.loss(outputs, targets.to(device))
        torch.stack(list(losses.values())).sum().backward()
        found = detector.predict(outputs, targets.sizes.to(device))
        gradients = [p.grad for p in detector.parameters() if p.grad is not None]
        answers.append([x.detach().cpu() for x in (*losses.values(), found.boxes, found.scores, *gradients)])
    for here, there in zip(*answers, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-9)
