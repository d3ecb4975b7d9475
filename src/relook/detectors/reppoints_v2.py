"""RepPoints V2: Verification Meets Regression for Object Detection (arXiv:2007.08508).

V1 regresses: it says where things are. V2 also verifies: at every point of the pyramid it asks whether a
corner of an object is there (corner heat maps) and of which class the ground is (class map). What it sees
steers the second look, and at test time a corner that was regressed moves to where one was verified.

Read from top to bottom: settings, outputs, network (4.2), losses (4.1), prediction (4.3).
"""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relook.assign.assignment import Assignment
from relook.assign.atss import atss
from relook.assign.nearest_point import nearest_point
from relook.assign.verification import Corners, corners, semantic
from relook.backbones.protocol import BackboneConfig
from relook.backbones.resnet import ResNetConfig
from relook.detector import Detector
from relook.ops import boxes as B
from relook.ops import levels as L
from relook.ops.corner_pool import Direction, corner_pool
from relook.ops.losses import focal, gaussian_focal, smooth_l1
from relook.ops.nms import class_nms, class_pairs
from relook.parts.point_sets import (
    POINTS,
    box_loss,
    class_loss,
    conv_norm,
    conv_norm_relu,
    init_grid,
    init_kaiming,
    init_normal,
    init_prior,
    plain_kernel,
    point_looks,
    point_pyramid,
    point_rows,
    sample_at_points,
    scale_gradient,
    tower,
)
from relook.types import Detections, HeatMap, Look, Losses, Targets, record, to_float32


@dataclass(frozen=True, slots=True, kw_only=True)
class RepPointsV2Config:
    """The defaults are the authors' `reppoints_v2_r50_fpn_1x`."""

    num_classes: int = 80
    backbone: BackboneConfig = ResNetConfig()
    extra_levels: int = 2  # of the pyramid beyond the backbone's maps
    width: int = 256
    norm_groups: int = 32  # of every group normalisation in neck and head
    tower: int = 3  # 3x3 convolutions per branch before the points
    corner_width: int = 64  # channels in which corners are pooled
    gradient_scale: float = 0.1  # of the gradient that reaches the init points through the deformable kernels
    start_reach: float = 0.0  # strides; published: untrained, all nine points lie on their location
    object_scale: float = 4.0  # a box of side s belongs to stride s / 4
    atss_candidates: int = 9  # per level
    corner_overlap: float = 0.7  # how far a corner's heat reaches
    box_loss: Literal["smooth_l1", "giou"] = "smooth_l1"
    beta: float = 0.11  # smooth L1's knee for boxes
    corner_beta: float = 1 / 9  # and for offsets to corners
    init_weight: float = 0.5
    refine_weight: float = 1.0
    heatmap_weight: float = 0.25
    offset_weight: float = 1.0
    sem_weight: float = 0.1
    top: int = 1000  # points per level, before suppression
    score: float = 0.05
    nms: float = 0.6
    keep: int = 100

    def build(self) -> "RepPointsV2":
        return RepPointsV2(self)


@record
class RepPointsV2Outputs:
    """What the network says at all P grid points of a batch."""

    grid: L.Grid
    logits: Tensor  # [B, P, C]
    init: Tensor  # [B, P, 9, 2] x, y offsets from the grid point, in strides; the first two are the corners
    refine: Tensor  # [B, P, 9, 2] likewise
    score: Tensor  # [B, P, 2] logits: is a top-left, a bottom-right corner near?
    corner: Tensor  # [B, P, 2, 2] from the point to either corner as x, y in strides (docs/quirks.md, rp-21)
    sem: Tensor  # [B, P, C] logits: of which classes is the ground?


class RepPointsV2(Detector[RepPointsV2Outputs]):
    """RepPoints V2 as a whole: backbone, pyramid, head."""

    def __init__(self, config: RepPointsV2Config) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.backbone = config.backbone.build()
        strides = cast("tuple[int, ...]", self.backbone.strides)
        self.stride = strides[-1]
        self.strides = (*strides, *(strides[-1] * 2**i for i in range(1, config.extra_levels + 1)))
        self.neck = point_pyramid(
            cast("tuple[int, ...]", self.backbone.channels),
            config.width,
            extra=config.extra_levels,
            groups=config.norm_groups,
        )
        self.head = RepPointsV2Head(config)

    # -- 4.2 network ---------------------------------------------------------------------------

    def forward(self, images: Tensor) -> RepPointsV2Outputs:
        """Images [B, 3, H, W], normalised, sides multiples of `stride` -> raw outputs of both looks.

        Raises:
            ValueError: when a side is not a multiple of `stride`.
        """
        self.check(images)
        pyramid = self.neck(self.backbone(images))
        said: list[HeadMaps] = [self.head(x) for x in pyramid]
        corner = L.join([x.corner for x in said])
        return RepPointsV2Outputs(
            grid=L.grid(pyramid, self.strides, offset=0.0),  # no half pixel: docs/quirks.md, rp-01
            logits=L.join([x.logits for x in said]),
            init=point_rows(L.join([x.init for x in said])),
            refine=point_rows(L.join([x.refine for x in said])),
            score=L.join([x.score for x in said]),
            corner=corner.reshape(*corner.shape[:2], 2, 2),
            sem=L.join([x.sem for x in said]),
        )

    def boxes(self, grid: L.Grid, points: Tensor) -> Tensor:
        """Offsets [B, P, 9, 2] in strides -> boxes [B, P, 4] in pixels: the first two points are corners."""
        return points[:, :, :2].flatten(2) * grid.stride[:, None] + grid.points.repeat(1, 2)

    # -- 4.1 losses ----------------------------------------------------------------------------

    def loss(self, outputs: RepPointsV2Outputs, targets: Targets) -> Losses:
        """Raw outputs and ground truth -> regression's `cls`, `pts_init`, `pts_refine`, and verification's
        `heatmap`, `offset` and `sem`, all weighted.

        Each is one sum over all levels and images with one normaliser; nothing is shared between devices.
        """
        cfg, grid = self.config, outputs.grid
        init_boxes = self.boxes(grid, to_float32(outputs.init))
        refine_boxes = self.boxes(grid, to_float32(outputs.refine))
        valid = L.inside(grid.points, targets.sizes, multiple=self.stride)
        init, refine = self.assign(grid, init_boxes.detach(), valid, targets)
        unit, kind, beta = cfg.object_scale * grid.stride, cfg.box_loss, cfg.beta
        first = box_loss(init_boxes, init, targets, unit=unit, kind=kind, beta=beta)
        second = box_loss(refine_boxes, refine, targets, unit=unit, kind=kind, beta=beta)

        wanted = corners(grid, valid, targets, overlap=cfg.corner_overlap)
        weight = semantic(grid, targets, classes=self.num_classes, multiple=self.stride)
        heat, offset = corner_losses(outputs, wanted, valid, beta=cfg.corner_beta)
        return {
            "cls": class_loss(to_float32(outputs.logits), refine, targets),
            "pts_init": cfg.init_weight * first,
            "pts_refine": cfg.refine_weight * second,
            "heatmap": cfg.heatmap_weight * heat,
            "offset": cfg.offset_weight * offset,
            "sem": cfg.sem_weight * sem_loss(to_float32(outputs.sem), weight),
        }

    def assign(
        self, grid: L.Grid, init_boxes: Tensor, valid: Tensor, targets: Targets
    ) -> tuple[Assignment, Assignment]:
        """Who stands for whom in the first look, and in the second given the first's boxes [B, P, 4]."""
        init = nearest_point(grid, valid, targets, scale=self.config.object_scale)
        refine = atss(init_boxes, grid, valid, targets, candidates=self.config.atss_candidates)
        return init, refine

    # -- 4.3 prediction ------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, outputs: RepPointsV2Outputs, sizes: Tensor) -> Detections:
        """Raw outputs and true sizes [B, 2] (h, w) -> detections; boxes are clipped to those sizes."""
        cfg, grid = self.config, outputs.grid
        scores = to_float32(outputs.logits).sigmoid()
        rows = L.top_per_level(scores.amax(-1), grid.lengths, cfg.top)  # [B, N]
        boxes = B.clip(verified(outputs, self.regressed(outputs, rows, sizes), grid.level[rows]), sizes)
        pairs = class_pairs(L.gather_rows(scores, rows))
        kept = class_nms(boxes, pairs, score=cfg.score, iou=cfg.nms, keep=cfg.keep)
        return Detections(
            boxes=L.gather_rows(boxes, kept.row),
            scores=kept.score,
            labels=kept.label,
            count=kept.count,
            origin=rows.gather(1, kept.row),
            truncated=kept.truncated,
        )

    def regressed(self, outputs: RepPointsV2Outputs, rows: Tensor, sizes: Tensor) -> Tensor:
        """Boxes [B, N, 4] of rows [B, N] before verification, in pixels, clipped to sizes [B, 2] (h, w)."""
        return B.clip(L.gather_rows(self.boxes(outputs.grid, to_float32(outputs.refine)), rows), sizes)

    @torch.no_grad()
    def explain(self, outputs: RepPointsV2Outputs, found: Detections, sizes: Tensor) -> tuple[Look, ...]:
        """Points of both looks, the corner maps that verify, and each box before verification, in pixels."""
        first, second = point_looks(outputs.grid, outputs.init, outputs.refine, found)
        verification = Look(
            title="verification",
            caption="Where corners were seen:",
            maps=corner_maps(outputs, self.strides),
        )
        before = Look(
            title="regressed",
            caption="Dashed: the box before verification, where a corner of it moved.",
            boxes=None if found.origin is None else self.regressed(outputs, found.origin, sizes),
            on_answer=True,
        )
        return first, verification, second, before


# -- losses of verification ----------------------------------------------------------------------


def corner_losses(
    outputs: RepPointsV2Outputs, wanted: Corners, valid: Tensor, *, beta: float
) -> tuple[Tensor, Tensor]:
    """Focal loss of the heat and smooth L1 of the offsets, per positive: each the mean of both kinds."""
    positives = wanted.positive.sum(1).clamp(min=1).sum(0)  # [2] at least one an image: rp-06
    heat = torch.where(valid[..., None], gaussian_focal(to_float32(outputs.score), wanted.heat), 0)
    offset = smooth_l1(to_float32(outputs.corner) - wanted.offset, beta=beta).sum(-1)
    offset = torch.where(wanted.positive, offset, 0)
    return (heat.sum((0, 1)) / positives).mean(), (offset.sum((0, 1)) / positives).mean()


def sem_loss(logits: Tensor, weight: Tensor) -> Tensor:
    """Logits [B, P, C], weight [B, P, C] of positives, 0 elsewhere -> focal loss.

    Positives by weight and normalised by the weights' sum, negatives by the number of positives, which the
    published code divides by even where it is 0; here it is at least 1 (docs/quirks.md, rp-11).
    """
    positive = weight > 0
    error = focal(logits, positive.to(logits.dtype))
    hit = (weight * error).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
    return hit + torch.where(positive, 0, error).sum() / positive.sum().clamp(min=1)


# -- verified corners ----------------------------------------------------------------------------


def verified(outputs: RepPointsV2Outputs, boxes: Tensor, level: Tensor) -> Tensor:
    """Boxes [B, N, 4] of levels [B, N] -> the same, with both corners where a corner was seen.

    A corner looks at four cells of a finer level's heat map, from the one it lies in to the right and
    downwards, and takes the offset of the warmest. Boxes of the finest level stay; the next two levels look
    at its map, the next two at that of the second. Scores do not change (docs/quirks.md, rp-12).
    """
    grid, device = outputs.grid, boxes.device
    source = ((level - 1) // 2).clamp(min=0)  # the level whose map is looked at
    first = torch.tensor([sum(grid.lengths[:i]) for i in range(len(grid.shapes))], device=device)[source]
    side = torch.tensor([(w, h) for h, w in grid.shapes], device=device)[source][:, :, None]  # [B, N, 1, 2]
    first = first[..., None, None]  # of its points in the row of all
    at = boxes.reshape(*level.shape, 2, 2) / grid.stride[first]  # [B, N, 2, 2] kind; x, y in cells
    cell = torch.minimum(
        at.long().clamp(min=0), (side - 2).clamp(min=0)
    )  # NaN coordinates become valid cells
    window = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=device)  # row by row
    cells = torch.minimum(cell[..., None, :] + window, (side - 1)[..., None, :])  # [B, N, 2, 4, 2]
    points = first + cells[..., 1] * side[..., :1] + cells[..., 0]  # [B, N, 2, 4]

    image = torch.arange(len(boxes), device=device)[:, None, None]
    kind = torch.arange(2, device=device)
    warmest = outputs.score[image[..., None], points, kind[:, None]].argmax(-1, keepdim=True)
    best = points.gather(-1, warmest).squeeze(-1)  # [B, N, 2]
    offset = to_float32(outputs.corner)[image, best, kind] * grid.stride[best][..., None]
    return torch.where(level[..., None] > 0, (grid.points[best] + offset).flatten(2), boxes)


def corner_maps(outputs: RepPointsV2Outputs, strides: tuple[int, ...]) -> tuple[HeatMap, ...]:
    """The maps that verify, of the two finest levels: how surely a corner of either kind is near."""
    grid = outputs.grid
    rows = to_float32(outputs.score).sigmoid().mT  # [B, 2, P]
    maps: list[HeatMap] = []
    start = 0
    for stride, (h, w) in zip(strides[:2], grid.shapes, strict=False):
        values = rows[..., start : start + h * w].reshape(-1, 2, h, w)
        maps.append(HeatMap(values, stride, 0.0, ("top left", "bottom right")))
        start += h * w
    return tuple(maps)


# -- private parts -------------------------------------------------------------------------------


@record
class HeadMaps:
    """What the head says of one level, as maps."""

    logits: Tensor  # [B, C, h, w]
    init: Tensor  # [B, 18, h, w] y, x
    refine: Tensor  # [B, 18, h, w] y, x
    score: Tensor  # [B, 2, h, w] top left, bottom right
    corner: Tensor  # [B, 4, h, w] x, y of the top-left, x, y of the bottom-right corner
    sem: Tensor  # [B, C, h, w]


class RepPointsV2Head(nn.Module):
    """One level: features [B, width, h, w] -> everything that is said of it."""

    def __init__(self, config: RepPointsV2Config) -> None:
        super().__init__()
        width, groups = config.width, config.norm_groups
        self.gradient_scale = config.gradient_scale
        self.cls_tower = tower(width, config.tower, groups)
        self.reg_tower = tower(width, config.tower, groups)
        self.shared = conv_norm_relu(width, width, 3, groups)
        self.sem_out = nn.Conv2d(width, config.num_classes, 1)
        self.sem_embedding = conv_norm_relu(width, width, 1, groups)
        self.top_left = CornerPooling(config, "top", "left")
        self.bottom_right = CornerPooling(config, "bottom", "right")
        self.top_left_score = nn.Conv2d(width, 1, 3, padding=1)
        self.bottom_right_score = nn.Conv2d(width, 1, 3, padding=1)
        self.top_left_offset = nn.Conv2d(width, 2, 3, padding=1)
        self.bottom_right_offset = nn.Conv2d(width, 2, 3, padding=1)
        self.init_conv = nn.Conv2d(width, width, 3, padding=1)
        self.init_out = nn.Conv2d(width, 2 * POINTS, 1)
        self.cls_conv = nn.Conv2d(width + 6, width, 3, padding=1, bias=False)  # deformable
        self.cls_out = nn.Conv2d(width, config.num_classes, 1)
        self.refine_conv = nn.Conv2d(width + 6, width, 3, padding=1, bias=False)  # deformable
        self.refine_out = nn.Conv2d(width, 2 * POINTS, 1)
        self.kernel: Tensor
        self.register_buffer("kernel", plain_kernel(), persistent=False)
        self._init_weights(config.start_reach)

    def forward(self, x: Tensor) -> HeadMaps:
        cls, reg = self.cls_tower(x), self.reg_tower(x)
        # verification: of which class is the ground, and is it a corner?
        shared = self.shared(reg)
        sem = self.sem_out(shared)
        ground = self.sem_embedding(shared)
        cls, reg, shared = cls + ground, reg + ground, shared + ground
        top_left, bottom_right = self.top_left(shared), self.bottom_right(shared)
        score = torch.cat([self.top_left_score(top_left), self.bottom_right_score(bottom_right)], dim=1)
        corner = torch.cat([self.top_left_offset(top_left), self.bottom_right_offset(bottom_right)], dim=1)
        # regression, which sees what was verified; its gradient flows back into verification: rp-07
        seen = torch.cat([score, corner], dim=1)
        init = self.init_out(F.relu(self.init_conv(reg)))
        where = scale_gradient(init, self.gradient_scale) - self.kernel
        logits = self.cls_out(F.relu(sample_at_points(torch.cat([cls, seen], dim=1), where, self.cls_conv)))
        refine = self.refine_out(
            F.relu(sample_at_points(torch.cat([reg, seen], dim=1), where, self.refine_conv))
        )
        return HeadMaps(logits, init, refine + init.detach(), score, corner, sem)

    def _init_weights(self, reach: float) -> None:
        """Published starting weights: all normal, but for what `CornerPooling` and `sem_embedding` draw."""
        for part in self.children():
            if not isinstance(part, CornerPooling):
                init_normal(part)
        init_kaiming(self.sem_embedding)
        for conv in (self.cls_out, self.sem_out, self.top_left_score, self.bottom_right_score):
            init_prior(conv)
        init_grid(self.init_out, reach)


class CornerPooling(nn.Module):
    """Features [B, width, h, w] -> the same shape, where every cell knows what lies along both borders.

    The top-left corner of an object often has nothing of it; its top border lies to the right, its left
    border below. So the maximum travels towards the corner, along either.
    """

    def __init__(self, config: RepPointsV2Config, vertical: Direction, horizontal: Direction) -> None:
        super().__init__()
        width, inner, groups = config.width, config.corner_width, config.norm_groups
        self.directions: tuple[Direction, Direction] = (vertical, horizontal)
        self.vertical = conv_norm_relu(width, inner, 3, groups)
        self.horizontal = conv_norm_relu(width, inner, 3, groups)
        self.merge = conv_norm(inner, width, 3, groups)
        self.skip = conv_norm(width, width, 1, groups)
        self.out = conv_norm_relu(width, width, 1, groups)
        for part in (self.vertical, self.horizontal, self.out):
            init_kaiming(part)

    def forward(self, x: Tensor) -> Tensor:
        vertical, horizontal = self.directions
        pooled = corner_pool(self.vertical(x), vertical) + corner_pool(self.horizontal(x), horizontal)
        return self.out(F.relu(self.merge(pooled) + self.skip(x)))
