"""Single functions of RepPoints against the published implementations' own answers."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from golden import recipe
from published import Case, difference
from relook.assign.assignment import Assignment
from relook.assign.atss import atss
from relook.assign.max_iou import max_iou
from relook.assign.nearest_point import nearest_point
from relook.backbones.timm_maps import TimmMapsConfig
from relook.detectors.reppoints import RepPointsConfig, grid_box, grid_on_box
from relook.ops import levels as L
from relook.ops.losses import giou_plus_one
from relook.types import Targets

pytestmark = pytest.mark.golden

STRIDES = (8, 16, 32, 64, 128)
PLAIN = Case("reppoints", "components")
ODD = Case("reppoints", "components_odd")


def owners(assigned: Assignment, image: int = 0) -> Tensor:
    """As the goldens write it: 0 negative, k + 1 positive for box k, -1 ignored."""
    found = torch.where(assigned.positive, assigned.index + 1, 0)
    return torch.where(assigned.ignored, -1, found)[image]


@pytest.mark.parametrize("method", ["exact_minmax", "minmax", "partial_minmax", "moment"])
def test_points_to_box(method: Literal["exact_minmax", "minmax", "partial_minmax", "moment"]) -> None:
    """Every way of reading a box off nine points: value, and gradient of points and moment."""
    points = PLAIN.tensor("points/input").requires_grad_()  # [2, 18, 3, 4]
    settings = RepPointsConfig(backbone=TimmMapsConfig(name="mobilenetv2_100"), width=32, box=method)
    detector = settings.build().double()
    if method == "moment":
        detector.moment.data.copy_(PLAIN.tensor("points/moment_transfer"))
    rows = points.flatten(2).mT.unflatten(-1, (9, 2)).flip(-1)  # [2, 12, 9, 2]
    count = rows.shape[1]
    at_origin = L.Grid(
        torch.zeros(count, 2, dtype=torch.float64),
        torch.ones(count, dtype=torch.float64),
        torch.zeros(count, dtype=torch.int64),
        ((3, 4),),
        (12,),
    )
    boxes = detector.boxes(at_origin, rows).mT.reshape(2, 4, 3, 4)
    assert difference(boxes, PLAIN.tensor(f"points/{method}/boxes")) < 1e-6
    (boxes * PLAIN.tensor("points/cotangent")).sum().backward()
    assert points.grad is not None
    assert difference(points.grad, PLAIN.tensor(f"points/{method}/grad_points")) < 1e-6
    if method == "moment":
        assert detector.moment.grad is not None
        assert difference(detector.moment.grad, PLAIN.tensor("points/moment/grad_moment_transfer")) < 1e-6


@pytest.mark.parametrize("previous", ["previous", "default"])
def test_grid_decoding(previous: str) -> None:
    """Regressed numbers and a previous box -> a box, and the 3x3 grid on it."""
    change = PLAIN.tensor("grid/reg")
    if previous == "previous":
        before, suffix = PLAIN.tensor("grid/previous_boxes"), ""
    else:
        before = torch.tensor([-2.0, -2, 2, 2], dtype=torch.float64).reshape(1, 4, 1, 1).expand_as(change)
        suffix = "_from_default"
    boxes = grid_box(before, change)
    assert difference(boxes, PLAIN.tensor(f"grid/boxes{suffix}")) < 1e-6
    assert difference(grid_on_box(boxes), PLAIN.tensor(f"grid/points{suffix}")) < 1e-6


def test_rp_03_giou_with_one_added() -> None:
    """Value and gradient, inverted boxes included."""
    boxes = PLAIN.tensor("loss/giou/pred").requires_grad_()
    values = giou_plus_one(boxes, PLAIN.tensor("loss/giou/target"))
    assert difference(values, PLAIN.tensor("loss/giou/values")) < 1e-6
    values.sum().backward()
    assert boxes.grad is not None
    assert difference(boxes.grad, PLAIN.tensor("loss/giou/grad")) < 1e-6


def test_assigners() -> None:
    """Both lines' init stage, ATSS and MaxIoU, on thirteen boxes."""
    shapes = [(int(h), int(w)) for h, w in PLAIN.tensor("assign/sizes").tolist()]
    grid = L.grid([torch.zeros(1, 1, *s, dtype=torch.float64) for s in shapes], STRIDES, offset=0.0)
    truth = PLAIN.tensor("assign/gt_boxes")
    targets = Targets.pad([truth], [torch.zeros(len(truth), dtype=torch.int64)], [(288, 320)])
    valid = L.inside(grid.points, targets.sizes, multiple=32)
    boxes = PLAIN.tensor("assign/boxes")[None]
    init = owners(nearest_point(grid, valid, targets, scale=4))
    assert torch.equal(init, PLAIN.tensor("assign/init").long())
    assert torch.equal(init, PLAIN.tensor("assign/init_mmdet").long())
    assert torch.equal(
        owners(atss(boxes, grid, valid, targets, candidates=9)), PLAIN.tensor("assign/atss").long()
    )
    overlap = max_iou(boxes, valid, targets, positive=0.5, negative=0.4)
    assert torch.equal(owners(overlap), PLAIN.tensor("assign/max_iou").long())


@pytest.mark.parametrize("image", [0, 1])
def test_assigners_at_everyday_size(image: int) -> None:
    """800x1333 and 747x1000 in one batch, forty boxes each: the same points for the same boxes."""
    about = ODD.about
    sizes = [(i["height"], i["width"]) for i in about["images"]]
    made = [
        recipe.targets(t["seed"], h, w, t["count"], t["num_classes"])
        for t, (h, w) in zip(about["targets"], sizes, strict=True)
    ]
    targets = Targets.pad(
        [torch.from_numpy(t["boxes"]) for t in made],
        [torch.from_numpy(t["labels"]) for t in made],
        sizes,
    )
    shapes = [torch.zeros(1, 1, *s, dtype=torch.float64) for s in about["level_sizes"]]
    grid = L.grid(shapes, STRIDES, offset=0.0)
    valid = L.inside(grid.points, targets.sizes, multiple=32)
    half = (2 * grid.stride)[:, None]
    squares = torch.cat([grid.points - half, grid.points + half], dim=-1)[None].expand(2, -1, -1)
    answers = {
        "init": nearest_point(grid, valid, targets, scale=4),
        "init_mmdet": nearest_point(grid, valid, targets, scale=4),
        "atss": atss(squares, grid, valid, targets, candidates=9),
        "max_iou": max_iou(squares, valid, targets, positive=0.5, negative=0.4),
    }
    for name, assigned in answers.items():
        points = assigned.positive[image].nonzero()[:, 0]
        assert torch.equal(points, ODD.tensor(f"assign/{image}/{name}/points").long()), name
        gts = ODD.tensor(f"assign/{image}/{name}/gts").long()
        assert torch.equal(assigned.index[image, points], gts), name


def test_valid_locations_at_everyday_size() -> None:
    """How many rows and columns of each level belong to each image."""
    shapes = ODD.about["level_sizes"]
    grid = L.grid([torch.zeros(1, 1, *s) for s in shapes], STRIDES, offset=0.0)
    sizes = torch.tensor([(i["height"], i["width"]) for i in ODD.about["images"]])
    for image, valid in enumerate(L.inside(grid.points, sizes, multiple=32)):
        stored = ODD.tensor(f"valid/{image}/size").tolist()  # rows, columns per level
        assert [int(level.sum()) for level in valid.split(grid.lengths)] == [int(h * w) for h, w in stored]
