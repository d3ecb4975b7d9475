"""RepPoints: Point Set Representation for Object Detection (arXiv:1904.11490).

An object is nine points. Every cell of the pyramid proposes nine points (init); a deformable convolution
looks exactly there, classifies what it sees and moves the points once more (refine). A box is read off the
points.

Two published lines share this file and differ in settings alone: mmdetection's (boxes by moment or minmax,
overlap decides) and the RepPoints V2 authors' V1 (the first two points are the corners, ATSS decides).

Read from top to bottom: settings, outputs, network (3.1), points to box (3.2), loss (3.3), prediction.
"""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relook.assign.assignment import Assignment
from relook.assign.atss import atss
from relook.assign.max_iou import max_iou
from relook.assign.nearest_point import nearest_point
from relook.backbones.protocol import BackboneConfig
from relook.backbones.resnet import ResNetConfig
from relook.detector import Detector
from relook.ops import boxes as B
from relook.ops import levels as L
from relook.ops.nms import class_nms, class_pairs
from relook.parts.point_sets import (
    POINTS,
    box_loss,
    class_loss,
    init_grid,
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
from relook.types import Detections, Look, Losses, Targets, record, to_float32


@dataclass(frozen=True, slots=True, kw_only=True)
class RepPointsConfig:
    """The defaults are mmdetection's `reppoints-moment_r50_fpn-gn_head-gn`."""

    num_classes: int = 80
    backbone: BackboneConfig = ResNetConfig()
    extra_levels: int = 2  # of the pyramid beyond the backbone's maps
    width: int = 256
    norm_groups: int = 32  # of every group normalisation in neck and head; 0: no norm, a bias instead
    tower: int = 3  # 3x3 convolutions per branch before the points
    box: Literal["moment", "minmax", "partial_minmax", "exact_minmax"] = "moment"  # how points become a box
    grid_points: bool = False  # the nine points are a 3x3 grid on a box that is regressed instead
    gradient_scale: float = 0.1  # of the gradient that reaches the init points through the deformable kernels
    moment_scale: float = 0.01  # of the gradient of the two moment parameters
    deform_std: float | None = (
        None  # initial weights of the deformable kernels: normal; None: Kaiming-uniform
    )
    start_reach: float = 0.0  # strides; published: untrained, all nine points lie on their location
    init_assign: Literal["nearest_point", "max_iou"] = "nearest_point"
    refine_assign: Literal["max_iou", "atss"] = "max_iou"
    object_scale: float = 4.0  # section 4.2: a box of side s belongs to stride s / 4
    positive_iou: float = 0.5  # max_iou
    negative_iou: float = 0.4
    atss_candidates: int = 9  # per level
    box_loss: Literal["smooth_l1", "giou"] = "smooth_l1"
    beta: float = 0.11  # smooth L1's knee
    init_weight: float = 0.5
    refine_weight: float = 1.0
    select: Literal["points", "pairs"] = (
        "pairs"  # what `top` counts per level: points, or (point, class) pairs
    )
    drop_empty: bool = True  # boxes without width or height are no detections
    top: int = 1000  # per level, before suppression
    score: float = 0.05
    nms: float = 0.5
    keep: int = 100

    def build(self) -> "RepPoints":
        return RepPoints(self)


@record
class RepPointsOutputs:
    """What the network says at all P grid points of a batch."""

    grid: L.Grid
    logits: Tensor  # [B, P, C]
    init: Tensor  # [B, P, 9, 2] x, y offsets from the grid point, in strides
    refine: Tensor  # [B, P, 9, 2] likewise


class RepPoints(Detector[RepPointsOutputs]):
    """RepPoints V1 as a whole: backbone, pyramid, head."""

    def __init__(self, config: RepPointsConfig) -> None:
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
        self.head = RepPointsHead(config)
        if config.box == "moment":  # log of how many spreads make half a box: width, height
            self.moment = nn.Parameter(torch.zeros(2))

    # -- 3.1 network ---------------------------------------------------------------------------

    def forward(self, images: Tensor) -> RepPointsOutputs:
        """Images [B, 3, H, W], normalised, sides multiples of `stride` -> raw outputs of both looks.

        Raises:
            ValueError: when a side is not a multiple of `stride`.
        """
        self.check(images)
        pyramid = self.neck(self.backbone(images))
        logits, init, refine = zip(*map(self.head, pyramid), strict=True)
        return RepPointsOutputs(
            L.grid(pyramid, self.strides, offset=0.0),  # no half pixel: docs/quirks.md, rp-01
            L.join(logits),
            point_rows(L.join(init)),
            point_rows(L.join(refine)),
        )

    # -- 3.2 points to box ---------------------------------------------------------------------

    def boxes(self, grid: L.Grid, points: Tensor) -> Tensor:
        """Offsets [B, P, 9, 2] in strides -> boxes [B, P, 4] in pixels."""
        if self.config.box == "moment":
            corners = moment_box(points, scale_gradient(self.moment, self.config.moment_scale))
        elif self.config.box == "exact_minmax":
            # the first two points ARE the corners and may be inverted: docs/quirks.md, rp-02
            corners = points[:, :, :2].flatten(2)
        else:
            some = points[:, :, :4] if self.config.box == "partial_minmax" else points
            corners = torch.cat([some.min(2).values, some.max(2).values], dim=-1)
        return corners * grid.stride[:, None] + grid.points.repeat(1, 2)

    # -- 3.3 loss ------------------------------------------------------------------------------

    def loss(self, outputs: RepPointsOutputs, targets: Targets) -> Losses:
        """Raw outputs and ground truth -> `cls`, `pts_init` and `pts_refine`, weighted.

        Each is one sum over all levels and images with one normaliser, at least 1 an image; nothing is
        shared between devices (docs/quirks.md, rp-06).
        """
        cfg, grid = self.config, outputs.grid
        logits = to_float32(outputs.logits)
        init_boxes = self.boxes(grid, to_float32(outputs.init))
        refine_boxes = self.boxes(grid, to_float32(outputs.refine))
        valid = L.inside(grid.points, targets.sizes, multiple=self.stride)
        init, refine = self.assign(grid, init_boxes.detach(), valid, targets)

        unit, kind, beta = cfg.object_scale * grid.stride, cfg.box_loss, cfg.beta
        first = box_loss(init_boxes, init, targets, unit=unit, kind=kind, beta=beta)
        second = box_loss(refine_boxes, refine, targets, unit=unit, kind=kind, beta=beta)
        return {
            # classes follow the refined assignment alone: docs/quirks.md, rp-05
            "cls": class_loss(logits, refine, targets),
            "pts_init": cfg.init_weight * first,
            "pts_refine": cfg.refine_weight * second,
        }

    def assign(
        self, grid: L.Grid, init_boxes: Tensor, valid: Tensor, targets: Targets
    ) -> tuple[Assignment, Assignment]:
        """Who stands for whom in the first look, and in the second given the first's boxes [B, P, 4]."""
        cfg = self.config
        if cfg.init_assign == "nearest_point":
            init = nearest_point(grid, valid, targets, scale=cfg.object_scale)
        else:
            init = self._by_overlap(_squares(grid, cfg.object_scale), valid, targets)
        if cfg.refine_assign == "atss":
            refine = atss(init_boxes, grid, valid, targets, candidates=cfg.atss_candidates)
        else:
            refine = self._by_overlap(init_boxes, valid, targets)
        return init, refine

    def _by_overlap(self, boxes: Tensor, valid: Tensor, targets: Targets) -> Assignment:
        cfg = self.config
        return max_iou(boxes, valid, targets, positive=cfg.positive_iou, negative=cfg.negative_iou)

    # -- prediction ----------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, outputs: RepPointsOutputs, sizes: Tensor) -> Detections:
        """Raw outputs and true sizes [B, 2] (h, w) -> detections; boxes are clipped to those sizes."""
        cfg, grid = self.config, outputs.grid
        scores = to_float32(outputs.logits).sigmoid()
        if cfg.select == "points":
            rows = L.top_per_level(scores.amax(-1), grid.lengths, cfg.top)  # [B, N]
            pairs = class_pairs(L.gather_rows(scores, rows))
        else:
            lengths = [n * self.num_classes for n in grid.lengths]
            best = L.top_per_level(scores.flatten(1), lengths, cfg.top)
            rows, label = best // self.num_classes, best % self.num_classes
            within = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
            pairs = (within, label, scores.flatten(1).gather(1, best))
        boxes = B.clip(L.gather_rows(self.boxes(grid, to_float32(outputs.refine)), rows), sizes)
        if cfg.drop_empty:
            real = (B.size(boxes) > 0).all(-1)  # [B, N]
            pairs = (pairs[0], pairs[1], torch.where(real.gather(1, pairs[0]), pairs[2], 0))

        kept = class_nms(boxes, pairs, score=cfg.score, iou=cfg.nms, keep=cfg.keep)
        return Detections(
            boxes=L.gather_rows(boxes, kept.row),
            scores=kept.score,
            labels=kept.label,
            count=kept.count,
            origin=rows.gather(1, kept.row),
            truncated=kept.truncated,
        )

    @torch.no_grad()
    def explain(self, outputs: RepPointsOutputs, found: Detections, sizes: Tensor) -> tuple[Look, ...]:  # noqa: ARG002
        """The nine points of each detection in the first look and in the second, in pixels."""
        return point_looks(outputs.grid, outputs.init, outputs.refine, found)


# -- geometry ----------------------------------------------------------------------------------


def moment_box(points: Tensor, moment: Tensor) -> Tensor:
    """Points [..., 9, 2], moment [2] -> boxes [..., 4]: mean -+ spread, stretched by exp(moment)."""
    middle = points.mean(-2)
    half = points.std(-2) * moment.exp()
    return torch.cat([middle - half, middle + half], dim=-1)


def grid_box(previous: Tensor, change: Tensor) -> Tensor:
    """Boxes [B, 4, ...], changes (tx, ty, tw, th) [B, 4, ...] -> boxes [B, 4, ...], as in Faster R-CNN."""
    size = (previous[:, 2:] - previous[:, :2]).clamp(min=1e-6)
    middle = (previous[:, :2] + previous[:, 2:]) / 2 + size * change[:, :2]
    half = size * change[:, 2:].exp() / 2
    return torch.cat([middle - half, middle + half], dim=1)


def grid_on_box(boxes: Tensor) -> Tensor:
    """Boxes [B, 4, ...] -> [B, 18, ...] y, x pairs: nine points, corners included, row by row."""
    low, size = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    places = [(i / 2, j / 2) for i in range(3) for j in range(3)]
    pairs = [[low[:, 1] + i * size[:, 1], low[:, 0] + j * size[:, 0]] for i, j in places]
    return torch.stack([value for pair in pairs for value in pair], dim=1)


def _squares(grid: L.Grid, scale: float) -> Tensor:
    """[1, P, 4] squares of side scale * stride in the middle of which each point lies."""
    half = (scale / 2 * grid.stride)[:, None]
    return torch.cat([grid.points - half, grid.points + half], dim=-1)[None]


# -- private parts -----------------------------------------------------------------------------


class RepPointsHead(nn.Module):
    """One level: features [B, width, h, w] -> logits [B, C, h, w], init and refine [B, 18, h, w]."""

    def __init__(self, config: RepPointsConfig) -> None:
        super().__init__()
        width, numbers = config.width, 4 if config.grid_points else 2 * POINTS
        self.gradient_scale, self.grid_points = config.gradient_scale, config.grid_points
        self.cls_tower = tower(width, config.tower, config.norm_groups)
        self.reg_tower = tower(width, config.tower, config.norm_groups)
        self.init_conv = nn.Conv2d(width, width, 3, padding=1)
        self.init_out = nn.Conv2d(width, numbers, 1)
        self.cls_conv = nn.Conv2d(width, width, 3, padding=1, bias=False)  # deformable
        self.cls_out = nn.Conv2d(width, config.num_classes, 1)
        self.refine_conv = nn.Conv2d(width, width, 3, padding=1, bias=False)  # deformable
        self.refine_out = nn.Conv2d(width, numbers, 1)
        self.kernel: Tensor
        self.register_buffer("kernel", plain_kernel(), persistent=False)
        self._init_weights(config.deform_std, config.start_reach)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cls, reg = self.cls_tower(x), self.reg_tower(x)
        init = self.init_out(F.relu(self.init_conv(reg)))
        first = init
        if self.grid_points:
            four = init.new_tensor([-2.0, -2.0, 2.0, 2.0]).reshape(1, 4, 1, 1)
            first = grid_box(four.expand_as(init), init)
            init = grid_on_box(first)
        where = scale_gradient(init, self.gradient_scale) - self.kernel
        logits = self.cls_out(F.relu(sample_at_points(cls, where, self.cls_conv)))
        refine = self.refine_out(F.relu(sample_at_points(reg, where, self.refine_conv)))
        # the second look moves the first points but sends no gradient back into them: rp-07
        refine = grid_on_box(grid_box(first.detach(), refine)) if self.grid_points else refine + init.detach()
        return logits, init, refine

    def _init_weights(self, deform_std: float | None, reach: float) -> None:
        init_normal(self)
        init_prior(self.cls_out)
        if not self.grid_points:  # which start as a grid anyway
            init_grid(self.init_out, reach)
        for conv in (self.cls_conv, self.refine_conv):
            if deform_std is None:
                nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
            else:
                nn.init.normal_(conv.weight, std=deform_std)
