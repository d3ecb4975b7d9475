"""Single functions of DPT, RetinaNet and Mask R-CNN against the published answers."""

import numpy as np
import pytest
import torch

from published import Case, difference
from relook.assign.max_iou import max_iou
from relook.backbones.dpt import DPT, DPTConfig
from relook.ops import levels as L
from relook.ops.anchors import Anchors
from relook.ops.box_coder import decode, encode
from relook.ops.boxes import clip
from relook.ops.masks import paste
from relook.ops.nms import class_nms, class_pairs
from relook.ops.patches import patch_boxes, patch_points
from relook.parts.rpn import AnchorLook, rpn_proposals
from relook.types import Targets

pytestmark = pytest.mark.golden

CASE = Case("dpt", "components")
RATIOS = (0.5, 1.0, 2.0)
OCTAVE = [4 * 2 ** (i / 3) for i in range(3)]


@pytest.fixture(scope="module")
def backbone() -> DPT:
    """DPT-Tiny with the recipe's weights where the case has them."""
    made = DPT(DPTConfig()).double().eval()
    state = {key.removeprefix("backbone."): value for key, value in CASE.state().items()}
    made.load_state_dict(made.config.file_state(state), strict=False)
    return made


@pytest.mark.parametrize("size", ["even", "odd"])
def test_dp_06_deformable_patches(backbone: DPT, size: str) -> None:
    """Boxes, tokens and gradients; with odd sides cells are stretched over the whole map."""
    embed = backbone.stages[1].embed
    x = CASE.tensor(f"depatch/{size}/input").requires_grad_()
    assert difference(embed.boxes(x), CASE.tensor(f"depatch/{size}/boxes")) < 1e-6
    out = embed(x)
    assert difference(out, CASE.tensor(f"depatch/{size}/output")) < 1e-6
    embed.zero_grad()
    (out * CASE.tensor(f"depatch/{size}/weight")).sum().backward()
    assert difference(x.grad.flatten()[::7], CASE.tensor(f"depatch/{size}/grad_input")) < 1e-6
    assert difference(embed.wh_bias.grad, CASE.tensor(f"depatch/{size}/grad_wh_bias")) < 1e-6
    mine = embed.offset_predictor.weight.grad
    assert difference(mine, CASE.tensor(f"depatch/{size}/grad_offset_predictor")) < 1e-6


def test_dp_02_points_of_a_patch_go_column_by_column() -> None:
    """Codes -> boxes -> points, edges included; patches start centred and half a cell large."""
    bias = CASE.tensor("coder/wh_bias")
    codes = CASE.tensor("coder/codes").clone()
    codes[..., 2:] += bias
    boxes = patch_boxes(codes, (3, 4))
    assert difference(boxes, CASE.tensor("coder/boxes")) < 1e-6
    assert difference(patch_points(boxes).flatten(1, 2), CASE.tensor("coder/points")) < 1e-6
    start = DPT(DPTConfig()).stages[1].embed
    assert difference(start.wh_bias.detach().double(), bias) < 1e-6
    still = patch_boxes(
        torch.cat([torch.zeros(1, 12, 2), start.wh_bias.detach().expand(1, 12, 2)], -1), (3, 4)
    )
    torch.testing.assert_close(still[0, 0], torch.tensor([0.0625, 1 / 12, 0.1875, 0.25]))


@pytest.mark.parametrize("name", [key for key in CASE.arrays if key.startswith("pos_embed")])
def test_dp_07_places_are_interpolated(backbone: DPT, name: str) -> None:
    """Grids of other sizes; the first stage asks for the number of tokens alone."""
    _, stage, grid = name.split("/")
    h, w = map(int, grid.split("x"))
    mine = 100 * backbone.stages[int(stage) - 1].places((h, w)).flatten()[::101]
    assert difference(mine, CASE.tensor(name)) < 1e-6


@pytest.mark.parametrize(
    ("name", "scales", "strides", "shapes"),
    [
        ("retina", OCTAVE, (8, 16, 32, 64, 128), [(20, 28), (10, 14), (5, 7), (3, 4), (2, 2)]),
        ("rpn", [8.0], (4, 8, 16, 32, 64), [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)]),
    ],
)
def test_dp_05_anchors_lie_around_corners_of_cells(name: str, scales, strides, shapes) -> None:
    """All of them, in their order; which lie in an image's own padding."""
    grid = L.grid([torch.zeros(1, 1, *s, dtype=torch.float64) for s in shapes], strides, offset=0.0)
    anchors = Anchors(RATIOS, scales)
    assert difference(anchors(grid), CASE.tensor(f"{name}_anchors/grid")) < 1e-6
    if name == "retina":
        valid = L.inside(grid.points, torch.tensor([[160, 200]]), multiple=8)[0].repeat_interleave(9)
        stored = np.unpackbits(CASE.arrays["retina_anchors/valid"])[: len(valid)].astype(bool)
        assert (valid.numpy() == stored).all()


@pytest.mark.parametrize(("mode", "top"), [("test", 1000), ("train", 2000)])
def test_dp_16_proposals_compete_on_their_level_and_are_cut_together(mode: str, top: int) -> None:
    """A thousand of all levels; boxes clipped to nothing keep their places."""
    maps = [CASE.tensor(f"rpn/cls/p{i}") for i in range(2, 7)]
    sides = [CASE.tensor(f"rpn/reg/p{i}") for i in range(2, 7)]
    grid = L.grid(maps, (4, 8, 16, 32, 64), offset=0.0)
    look = AnchorLook(
        Anchors(RATIOS, [8.0])(grid),
        L.join(maps).flatten(1),
        L.join(sides).reshape(1, -1, 4),
        tuple(3 * n for n in grid.lengths),
    )
    found = rpn_proposals(look, torch.tensor([[120, 150]]), top=top, keep=1000, iou=0.7)
    rows = torch.cat([found.boxes[0], found.scores[0, :, None]], 1)
    assert difference(rows, CASE.tensor(f"rpn/proposals/{mode}")) < 1e-6


@pytest.mark.parametrize(("name", "stds"), [("rpn", (1.0, 1.0)), ("rcnn", (0.1, 0.2))])
def test_dp_11_boxes_are_coded_and_clipped_to_the_image(name: str, stds: tuple[float, float]) -> None:
    """Encoding, decoding with its limits, clipping to W and H."""
    boxes, gt, deltas = (CASE.tensor(f"delta/{key}") for key in ("boxes", "gt", "deltas"))
    units = {"center_std": stds[0], "size_std": stds[1]}
    assert difference(encode(boxes, gt, **units), CASE.tensor(f"delta/{name}/encode")) < 1e-6
    moved = decode(boxes, deltas, **units)
    assert difference(moved, CASE.tensor(f"delta/{name}/decode")) < 1e-6
    clipped = clip(moved[None], torch.tensor([[120, 160]]))[0]
    assert difference(clipped, CASE.tensor(f"delta/{name}/decode_clip")) < 1e-6


@pytest.mark.parametrize("count", [5, 4])
@pytest.mark.parametrize(
    ("name", "positive", "negative", "forced"),
    [("retinanet", 0.5, 0.4, 0.0), ("rpn", 0.7, 0.3, 0.3), ("rcnn", 0.5, 0.5, 0.5)],
)
def test_dp_12_ties_of_the_best_overlap_are_all_positive(
    name: str, positive: float, negative: float, forced: float, count: int
) -> None:
    """Exact ties, an object that overlaps nothing, and the least overlap that is forced."""
    gt = CASE.tensor("assign/gt")[:count]
    targets = Targets.pad([gt], [CASE.tensor("assign/gt_labels")[:count]], [(500, 500)])
    boxes = CASE.tensor("assign/boxes")[None]
    valid = torch.ones(1, boxes.shape[1], dtype=torch.bool)
    found = max_iou(boxes, valid, targets, positive=positive, negative=negative, forced=forced)
    told = torch.where(found.positive, found.index + 1, torch.where(found.ignored, -1, 0))[0]
    kind = "all" if count == 5 else "first4"
    assert torch.equal(told, CASE.tensor(f"assign/{name}/{kind}/gt_index"))


def test_dp_18_masks_from_half_on() -> None:
    """Pasted masks, bit for bit: from a probability of exactly one half on a pixel belongs to the object."""
    masks = CASE.tensor("paste/logits").sigmoid()
    found = paste(masks, CASE.tensor("paste/boxes"), (90, 120)).numpy()
    stored = np.unpackbits(CASE.arrays["paste/masks"])[: found.size].reshape(found.shape).astype(bool)
    assert (found == stored).all()


def test_suppression_of_classes() -> None:
    """The forty best, in their order."""
    pairs = class_pairs(CASE.tensor("nms/scores")[None, :, :-1])
    boxes = CASE.tensor("nms/boxes")[None]
    kept = class_nms(boxes, pairs, score=0.05, iou=0.5, keep=40)
    rows = torch.cat([boxes[0, kept.row[0]], kept.score[0, :, None]], 1)
    assert difference(rows, CASE.tensor("nms/dets")) < 1e-6
    assert torch.equal(kept.label[0], CASE.tensor("nms/labels"))
