"""Single functions of CenterNet2 and of two-stage detectors against the published answers."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from published import Case, difference
from relook.assign.assignment import Assignment
from relook.assign.center_points import CenterTargets, center_targets
from relook.backbones.timm_maps import TimmMapsConfig
from relook.detectors.centernet2 import CenterNet2, CenterNet2Config, CenterNet2Outputs, likelihood_loss
from relook.ops import levels as L
from relook.ops.box_coder import decode, encode
from relook.ops.boxes import clip
from relook.ops.losses import giou
from relook.ops.roi_align import roi_features, roi_levels
from relook.parts.box_head import training_regions
from relook.types import Targets

pytestmark = pytest.mark.golden

CASE = Case("centernet2", "components")
STRIDES = (8, 16, 32, 64, 128)
PUBLISHED = CenterNet2Config()
SMALL: dict[str, Any] = {"backbone": TimmMapsConfig(name="mobilenetv2_035"), "width": 16, "hidden": 8}


def pyramid(shapes: list[tuple[int, int]]) -> L.Grid:
    return L.grid([torch.zeros(1, 1, h, w, dtype=torch.float64) for h, w in shapes], STRIDES, offset=0.5)


def grid_of_targets() -> L.Grid:
    return pyramid([tuple(row) for row in CASE.tensor("in/targets/shapes").tolist()])


def wanted() -> tuple[L.Grid, Targets, CenterTargets]:
    boxes = [CASE.tensor(f"in/targets/boxes/{i}") for i in range(2)]
    labels = [torch.zeros(len(b), dtype=torch.int64) for b in boxes]
    targets = Targets.pad(boxes, labels, [(832, 1088)] * 2)
    grid = grid_of_targets()
    return (
        grid,
        targets,
        center_targets(
            grid,
            targets,
            strides=STRIDES,
            size_from=PUBLISHED.size_from,
            size_to=PUBLISHED.size_to,
            overlap=0.8,
            radius=4.0,
        ),
    )


def flat(grid: L.Grid, per_image: Tensor) -> Tensor:
    """[B, P, ...] in the published order: level, image, row, column."""
    return torch.cat([part.flatten(0, 1) for part in per_image.split(grid.lengths, 1)])


def flat_rows(grid: L.Grid, images: int) -> Tensor:
    """[B, P] where each of our points stands in the published order."""
    places = torch.arange(images * len(grid.points))
    parts = places.split([images * n for n in grid.lengths])
    return torch.cat([part.reshape(images, -1) for part in parts], 1)


def test_locations() -> None:
    """The middle of each cell."""
    grid = grid_of_targets()
    parts = zip(grid.points.split(grid.lengths), grid.shapes, strict=True)
    for i, (points, (_, w)) in enumerate(parts):
        some = points[[0, 1, w, len(points) - 1]]
        assert torch.equal(some, CASE.tensor(f"targets/grid_first_last/{i}"))


def test_cn_06_heat_is_on_every_level_and_duplicates_count() -> None:
    """Heat of two images everywhere; the centres of all objects on all of their levels, duplicates kept."""
    grid, targets, found = wanted()
    assert difference(flat(grid, found.heat), CASE.tensor("targets/heatmap")) < 1e-6
    rows = flat_rows(grid, 2).gather(1, found.row)[found.positive]
    stored = CASE.tensor("targets/pos_inds")
    assert torch.equal(rows.sort().values, stored.sort().values)
    assert len(stored.unique()) < len(stored)
    level = found.positive.reshape(2, -1, len(STRIDES))[0]
    assert torch.equal(level.long(), CASE.tensor("targets/level_mask"))
    assert targets.valid[0].all()


def test_cn_07_nine_cells_around_the_centre_cell() -> None:
    """Which points tell boxes, and how far their sides are."""
    grid, targets, found = wanted()
    order = flat(grid, found.region.positive)
    assert torch.equal(order.nonzero()[:, 0], CASE.tensor("targets/reg_inds"))
    boxes = found.region.boxes(targets)
    low, high = grid.points - boxes[..., :2], boxes[..., 2:] - grid.points
    sides = torch.cat([low, high], -1) / grid.stride[:, None]
    assert difference(flat(grid, sides)[order], CASE.tensor("targets/reg")) < 1e-6


def test_radius() -> None:
    """The heat of single boxes falls with their squared radius."""
    for wh, square in zip(CASE.tensor("in/radius/wh"), CASE.tensor("radius/squared"), strict=True):
        grid = L.grid([torch.zeros(1, 1, 8, 8, dtype=torch.float64)], [8], offset=0.5)
        middle = torch.tensor([30.0, 30.0], dtype=torch.float64)
        box = torch.cat([middle - wh / 2, middle + wh / 2])
        targets = Targets.pad([box[None]], [torch.zeros(1, dtype=torch.int64)], [(64, 64)])
        heat = center_targets(
            grid, targets, strides=[8], size_from=[0], size_to=[1e7], overlap=0.8, radius=4.0
        ).heat[0]
        expected = (-(grid.points - middle).square().sum(-1) / square).exp()
        away = (heat > 0) & (heat < 1)
        torch.testing.assert_close(heat[away], expected[away], rtol=2e-6, atol=0)


def test_cn_09_sure_background_costs_nothing() -> None:
    """Value and gradient of the likelihood's loss, duplicate positives and clamped ones included."""
    logits = CASE.tensor("in/heatmap_loss/logits")[None].requires_grad_()
    rows = CASE.tensor("in/heatmap_loss/pos_inds")[None]
    nobody = torch.zeros(1, 400, dtype=torch.int64)
    targets = CenterTargets(
        CASE.tensor("in/heatmap_loss/target")[None],
        rows,
        torch.ones_like(rows, dtype=torch.bool),
        Assignment(nobody, nobody > 0, nobody > 0),
    )
    # the case divides by 3, an object counts once: 8 do here
    value = 0.5 * likelihood_loss(logits, targets) * rows.numel() / 3
    assert difference(value, CASE.tensor("heatmap_loss/value")) < 1e-6
    value.backward()
    assert logits.grad is not None
    assert difference(logits.grad[0], CASE.tensor("heatmap_loss/grad")) < 1e-6
    assert CASE.tensor("heatmap_loss/value_no_ignore") > 2 * value


def test_giou() -> None:
    """Each element, the mean and its gradient, of distances that may be nothing."""
    pred = CASE.tensor("in/giou/pred").requires_grad_()
    boxes = [torch.cat([-d[:, :2], d[:, 2:]], -1) for d in (pred, CASE.tensor("in/giou/target"))]
    error = giou(*boxes)
    assert difference(error, CASE.tensor("giou/elements")) < 1e-6
    assert difference(error.mean(), CASE.tensor("giou/value")) < 1e-6
    error.mean().backward()
    assert pred.grad is not None
    assert difference(pred.grad, CASE.tensor("giou/grad")) < 1e-6


@pytest.mark.parametrize("mode", ["test", "train"])
@pytest.mark.parametrize("shift", [True, False])
def test_cn_01_proposals_are_shifted_by_their_score(mode: Literal["test", "train"], shift: bool) -> None:
    """Candidates above the threshold, suppressed as published or plainly: as many, in the same order."""
    config = CenterNet2Config(**SMALL, proposal_shift=shift)
    detector = config.build().double()
    logits, sides = (
        [CASE.tensor(f"in/proposals/{name}/{i}").double() for i in range(5)] for name in ("agn_hm", "reg")
    )
    grid = pyramid([(x.shape[-2], x.shape[-1]) for x in logits])
    outputs = CenterNet2Outputs(grid, (), L.join(logits).squeeze(-1), L.join(sides))
    top, keep = (1000, 256) if mode == "test" else (4000, 2000)
    found = detector.propose(outputs, top=top, keep=keep)
    every = detector.propose(outputs, top=top, keep=1_000_000)
    for i in range(2):
        _, kept, plainly, returned = CASE.tensor(f"proposals/{mode}/counts/{i}").tolist()
        assert int((every.scores[i] > 0).sum()) == (kept if shift else plainly)
        if shift:
            real = found.scores[i] > 0
            assert int(real.sum()) == returned
            rows = torch.cat([found.boxes[i], found.scores[i, :, None]], 1)[real]
            assert difference(rows, CASE.tensor(f"proposals/{mode}/{i}")) < 1e-6


@pytest.mark.parametrize(("size", "name"), [(56, "finest56"), (224, "canonical224")])
def test_cn_04_two_rules_for_the_level_of_a_region(size: int, name: str) -> None:
    """Sides at, just below and just above each border; none and huge ones."""
    rois = CASE.tensor("in/roi_level/rois")[:, 1:]
    assert torch.equal(roi_levels(rois, size=size, levels=5), CASE.tensor(f"roi_level/{name}"))


def test_region_features() -> None:
    """Regions beyond the image, tiny, empty, long: from the right level, at the right places."""
    maps = [CASE.tensor(f"in/roi_align/feat/{i}").double() for i in range(5)]
    rois = CASE.tensor("in/roi_align/rois")
    stored = CASE.tensor("roi_align/out")
    both = rois[:, 1:].expand(2, -1, -1)  # every region in each image; the right one is looked at
    found = roi_features(maps, both, strides=STRIDES, size=56, side=7).reshape(2, len(rois), 2, 7, 7)
    mine = found[rois[:, 0].long(), torch.arange(len(rois))]
    assert difference(mine, stored) < 1e-6


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_cn_05_box_coder_with_the_units_of_each_stage(stage: int) -> None:
    """Encoding, and decoding with limits and clipping; the last stage's units are 0.033 and 0.067."""
    units = {"center_std": PUBLISHED.center_stds[stage], "size_std": PUBLISHED.size_stds[stage]}
    boxes, gt, deltas = (CASE.tensor(f"in/coder/{name}") for name in ("boxes", "gt", "deltas"))
    assert difference(encode(boxes, gt, **units), CASE.tensor(f"coder/encode/{stage}")) < 1e-6
    decoded = clip(decode(boxes, deltas, **units)[None], torch.tensor([[256, 320]]))[0]
    assert difference(decoded, CASE.tensor(f"coder/decode_clipped_256x320/{stage}")) < 1e-6


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_assignment_of_regions(stage: int) -> None:
    """Objects first, each for itself; the rest by overlap; what each should become."""
    gt, labels = CASE.tensor("in/assign/gt"), CASE.tensor("in/assign/labels")
    targets = Targets.pad([gt], [labels], [(256, 320)])
    boxes = torch.cat([gt, CASE.tensor("in/assign/proposals")])[None]
    valid = torch.ones(1, boxes.shape[1], dtype=torch.bool)
    found = training_regions(boxes, valid, targets, iou=PUBLISHED.stage_iou[stage], own=len(gt))
    hit = found.positive[0].nonzero()[:, 0]
    assert torch.equal(hit, CASE.tensor(f"assign/pos_inds/{stage}"))
    assert torch.equal((~found.positive[0]).nonzero()[:, 0], CASE.tensor(f"assign/neg_inds/{stage}"))
    assert torch.equal(found.wanted[0, hit], gt[CASE.tensor(f"assign/pos_gt/{stage}")])
    assert torch.equal(found.labels[0, hit], CASE.tensor(f"assign/labels/{stage}")[: len(hit)])
    change = encode(
        found.boxes[0, hit],
        found.wanted[0, hit],
        center_std=PUBLISHED.center_stds[stage],
        size_std=PUBLISHED.size_stds[stage],
    )
    assert difference(change, CASE.tensor(f"assign/box_targets/{stage}")[: len(hit)]) < 1e-6


def test_the_detector_is_what_it_says() -> None:
    """The small one that these tests use has the published levels."""
    detector = CenterNet2Config(**SMALL).build()
    assert isinstance(detector, CenterNet2)
    assert detector.strides == STRIDES
