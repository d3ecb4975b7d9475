"""CenterNet2: Probabilistic two-stage detection (arXiv:2103.07461).

The first look says how likely any object at all is centred at a place, and how far its sides are: a true
likelihood, not a filter that merely recalls. The second look reads the features of each proposal again, off
the grid, three times in ever better boxes, and says how likely each class is, given an object. The score of
an answer is made of both.

Two published lines share this file and differ in settings alone: a fork of mmdetection 2.13 (the defaults),
and the paper's authors on detectron2.

Read from top to bottom: settings, outputs, network, proposals, losses of both looks (5), prediction (4).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relook.assign.center_points import CenterTargets, center_targets
from relook.backbones.protocol import BackboneConfig
from relook.backbones.resnet import ResNetConfig
from relook.detector import Detector
from relook.ops import boxes as B
from relook.ops import levels as L
from relook.ops.box_coder import decode
from relook.ops.devices import mean_over_devices
from relook.ops.losses import giou
from relook.ops.nms import box_nms, class_nms, class_pairs, only
from relook.ops.roi_align import roi_features
from relook.ops.sampling import Budget
from relook.parts.box_head import BoxHead, Proposals, box_head_loss, training_regions
from relook.parts.checks import check_settings
from relook.parts.fpn import FPN
from relook.parts.point_sets import init_normal, scale_gradient
from relook.types import Detections, HeatMap, Look, Losses, Targets, record, to_float32

ROI_SIDE: Final = 7  # bins of a region's features
THIN: Final = 0.01  # pixels that a proposal's sides have at least
SURE: Final = 1e-4  # likelihoods are kept within SURE .. 1 - SURE
IGNORED: Final = 0.85  # background that is likelier an object than this costs nothing
HEAT_WEIGHT, POSITIVE_WEIGHT = 0.5, 0.25  # of the loss; of its positives, the rest is of background


@dataclass(frozen=True, slots=True, kw_only=True)
class CenterNet2Config:
    """The defaults are the mmdetection line's `centernet2_cascade_res50_fpn_1x`."""

    num_classes: int = 80
    backbone: BackboneConfig = ResNetConfig()
    extra_levels: int = 2  # of the pyramid beyond the backbone's maps
    width: int = 256
    tower: int = 4  # 3x3 convolutions of the first look
    norm_groups: int = 0  # of the group normalisation behind each of them; 0: none
    spare_tower: bool = True  # a second one, in published files, that nothing reads (docs/quirks.md, cn-03)
    hidden: int = 1024  # width of the second look's layers
    fc_start: Literal["xavier", "detectron2"] = "xavier"  # their initial weights
    # targets of the first look
    size_from: tuple[float, ...] = (
        0,
        64,
        128,
        256,
        512,
    )  # half diagonals, pixels: an object is on each level
    size_to: tuple[float, ...] = (80, 160, 320, 640, 1e7)  # from .. to, both included, so on up to two
    heat_overlap: float = 0.8  # IoU that decides how far heat reaches
    heat_radius: float = 4.0  # pixels, at least
    giou_extra: float = 0.0  # square strides added to intersection and union (docs/quirks.md, cn-11)
    # proposals
    train_top: int = 4000  # points per level, before suppression
    train_proposals: int = 2000  # after it
    test_top: int = 1000
    test_proposals: int = 256
    proposal_nms: float = 0.9
    proposal_shift: bool = True  # boxes move by their score before they are compared (docs/quirks.md, cn-01)
    proposal_gradient: bool = True  # the second look's loss moves proposals too (docs/quirks.md, cn-10)
    # second look, in stages
    roi_level_size: Literal[56, 224] = 56  # which level a region is read from; see relook.ops.roi_align
    stage_iou: tuple[float, ...] = (0.6, 0.7, 0.8)  # of regions that stand for an object
    center_stds: tuple[float, ...] = (0.1, 0.05, 0.033)  # of changes, which the network says in these units
    size_stds: tuple[float, ...] = (0.2, 0.1, 0.067)
    shrink_limit: bool = True  # of a box's sides, as growth always has one (docs/quirks.md, cn-14)
    roi_samples: int = 512  # regions of an image that are trained on, in each stage that draws
    positive_fraction: float = 0.25  # of them at most
    resample: bool = True  # each stage takes in the objects and draws anew; False: the first alone
    roi_beta: float = 1.0  # smooth L1's knee; 0: L1
    feature_gradient: float = 1 / 3  # of the gradient that reaches the pyramid from the regions
    # the answer
    score: Literal["product", "mean_logits"] = "product"  # of both looks, its root; or of the second alone
    min_score: float = 0.05
    nms: float = 0.7
    keep: int = 100
    drop_empty: bool = False  # boxes without width or height are no answers, and not replaced by others

    def __post_init__(self) -> None:
        if len(self.size_from) != len(self.size_to):
            raise ValueError("size_from and size_to: give each as many numbers as the pyramid has levels")
        if not 0 < len(self.stage_iou) == len(self.center_stds) == len(self.size_stds):
            raise ValueError("stage_iou, center_stds and size_stds: give one number for each stage")
        counts = "num_classes width hidden train_top train_proposals test_top test_proposals roi_samples keep"
        shares = "heat_overlap proposal_nms positive_fraction min_score nms"
        check_settings(self, counts=counts, shares=shares)
        if min(*self.center_stds, *self.size_stds) <= 0:
            raise ValueError("center_stds and size_stds: each number must be more than 0")

    def build(self) -> "CenterNet2":
        return CenterNet2(self)


@record
class CenterNet2Outputs:
    """The features, and what the first look says at all P grid points of a batch."""

    grid: L.Grid
    pyramid: tuple[Tensor, ...]  # [B, width, h, w], finest first, for the second look
    logits: Tensor  # [B, P] is an object centred here?
    distances: Tensor  # [B, P, 4] left, top, right, bottom, in strides, from 0 on


class CenterNet2(Detector[CenterNet2Outputs]):
    """CenterNet2 as a whole: backbone, pyramid, first look, cascade."""

    waits: ClassVar[frozenset[str]] = frozenset({"nms"})

    def __init__(self, config: CenterNet2Config) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.backbone = config.backbone.build()
        strides = cast("tuple[int, ...]", self.backbone.strides)
        self.stride = strides[-1]
        self.strides = (*strides, *(strides[-1] * 2**i for i in range(1, config.extra_levels + 1)))
        if len(self.strides) != len(config.size_from):
            raise ValueError(
                f"size_from and size_to have {len(config.size_from)} numbers each, but the pyramid has "
                f"{len(self.strides)} levels (strides {self.strides}); give one for each"
            )
        self.neck = FPN(
            cast("tuple[int, ...]", self.backbone.channels),
            config.width,
            extra=config.extra_levels,
            source="output",
            norm_groups=0,
            relu_before_extra=True,
        )
        self.head = FirstLook(config, len(self.strides))
        sizes = config.width, ROI_SIDE, config.hidden, config.num_classes
        self.stages = nn.ModuleList(
            BoxHead(*sizes, per_class=False, start=config.fc_start) for _ in config.stage_iou
        )

    # -- network -------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> CenterNet2Outputs:
        """Images [B, 3, H, W], normalised, sides multiples of `stride` -> features and the first look.

        Raises:
            ValueError: when a side is not a multiple of `stride`.
        """
        self.check(images)
        pyramid = self.neck(self.backbone(images))
        logits, sides = zip(*map(self.head, pyramid), strict=True)
        distances = [F.relu(scale * x) for scale, x in zip(self.head.scales, sides, strict=True)]
        return CenterNet2Outputs(
            L.grid(pyramid, self.strides, offset=0.5),
            tuple(pyramid),
            L.join(logits).squeeze(-1),
            L.join(distances),
        )

    def second(self, pyramid: Sequence[Tensor], rois: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """The second look of a stage at regions [B, N, 4] -> logits [B, N, C + 1] and changes [B, N, 4]."""
        size = self.config.roi_level_size
        features = roi_features(pyramid, rois, strides=self.strides, size=size, side=ROI_SIDE)
        logits, deltas = self.stages[stage](features)
        return to_float32(logits).reshape(*rois.shape[:2], -1), to_float32(deltas).reshape(rois.shape)

    # -- proposals -----------------------------------------------------------------------------

    def propose(self, outputs: CenterNet2Outputs, *, top: int, keep: int) -> Proposals:
        """The `top` likeliest points of each level, suppressed, and the `keep` best: scores are roots."""
        cfg = self.config
        likely = to_float32(outputs.logits).detach().sigmoid()
        rows = L.top_per_level(likely, outputs.grid.lengths, top)  # [B, N]
        likely = likely.gather(1, rows)
        scores = torch.where(likely > SURE, likely.sqrt(), 0)
        boxes = self.boxes(outputs, rows)
        compared = boxes.detach()
        if cfg.proposal_shift:
            real = (scores[..., None] > 0) & compared.isfinite()
            largest = torch.where(real, compared, 0).flatten(1).amax(1, keepdim=True)
            compared = compared + (scores * (largest + 1)).unsqueeze(-1)
        kept = box_nms(compared, scores, iou=cfg.proposal_nms, keep=keep, ties=True)
        return Proposals(L.gather_rows(boxes, kept.row), kept.score, rows.gather(1, kept.row), kept.truncated)

    def boxes(self, outputs: CenterNet2Outputs, rows: Tensor) -> Tensor:
        """Boxes [B, N, 4] that points rows [B, N] tell, in pixels, not clipped; no side is below THIN."""
        far = L.gather_rows(to_float32(outputs.distances), rows) * outputs.grid.stride[rows][..., None]
        points = outputs.grid.points[rows]
        low, high = points - far[..., :2], points + far[..., 2:]
        return torch.cat([low, torch.maximum(high, low + THIN)], dim=-1)

    # -- losses of both looks ------------------------------------------------------------------

    def loss(self, outputs: CenterNet2Outputs, targets: Targets) -> Losses:
        """Raw outputs and ground truth -> `heatmap`, `loc` of the first look, `cls_i`, `box_i` of stage i.

        The first look's two are divided by means over all devices, the others by what this device has.
        """
        cfg = self.config
        wanted = center_targets(
            outputs.grid,
            targets,
            strides=self.strides,
            size_from=cfg.size_from,
            size_to=cfg.size_to,
            overlap=cfg.heat_overlap,
            radius=cfg.heat_radius,
        )
        likelihood = HEAT_WEIGHT * likelihood_loss(to_float32(outputs.logits), wanted)
        losses = {"heatmap": likelihood, "loc": self._loc_loss(outputs, wanted, targets)}
        seen = self.propose(outputs, top=cfg.train_top, keep=cfg.train_proposals)
        return losses | self._cascade_loss(outputs, seen, targets)

    def _loc_loss(self, outputs: CenterNet2Outputs, wanted: CenterTargets, targets: Targets) -> Tensor:
        """GIoU of the boxes that points around centres tell, in strides, per point."""
        grid, region = outputs.grid, wanted.region
        points, far = grid.points.repeat(1, 2), to_float32(outputs.distances)
        should = (region.boxes(targets).to(points.dtype) - points) / grid.stride[:, None]
        said = torch.cat([-far[..., :2], far[..., 2:]], dim=-1)
        # elsewhere the box stands for itself, so that nothing odd flows back through the mask
        said = torch.where(region.positive[..., None], said, should)
        error = torch.where(region.positive, giou(said, should, extra=self.config.giou_extra), 0).sum()
        return error / mean_over_devices(region.positive.sum()).clamp(min=1)

    def _cascade_loss(self, outputs: CenterNet2Outputs, seen: Proposals, targets: Targets) -> Losses:
        """Each stage learns on what the one before made of its regions."""
        cfg, objects = self.config, targets.boxes.shape[1]
        losses: Losses = {}
        # three stages read the pyramid and each sends back a third: docs/quirks.md, cn-12
        pyramid = [scale_gradient(x, cfg.feature_gradient) for x in outputs.pyramid]
        boxes = seen.boxes if cfg.proposal_gradient else seen.boxes.detach()
        valid = seen.scores > 0
        for i, (iou, *std) in enumerate(self._stages()):
            draws = cfg.resample or i == 0
            if draws:
                boxes = torch.cat([targets.boxes.to(boxes.dtype), boxes], dim=1)
                valid = torch.cat([targets.valid, valid], dim=1)
            regions = training_regions(
                boxes,
                valid,
                targets,
                iou=iou,
                own=objects if cfg.resample else 0,
                budget=Budget(cfg.roi_samples, cfg.positive_fraction) if draws else None,
            )
            logits, deltas = self.second(pyramid, regions.boxes, i)
            terms = box_head_loss(
                logits, deltas, regions, center_std=std[0], size_std=std[1], beta=cfg.roi_beta
            )
            losses[f"cls_{i}"], losses[f"box_{i}"] = terms
            boxes = self._moved(regions.boxes.detach(), deltas.detach(), i, targets.sizes)
            if cfg.resample:  # objects are taken in again by the next stage: docs/quirks.md, cn-13
                valid = regions.chosen & (regions.index >= objects)
            else:
                valid = regions.chosen & (B.size(boxes) > 0).all(-1)
        return losses

    def _stages(self) -> list[tuple[float, float, float]]:
        cfg = self.config
        return list(zip(cfg.stage_iou, cfg.center_stds, cfg.size_stds, strict=True))

    def _moved(self, rois: Tensor, deltas: Tensor, stage: int, sizes: Tensor) -> Tensor:
        """Regions [B, N, 4] as a stage changes them, clipped to the images without padding."""
        _, center_std, size_std = self._stages()[stage]
        limit = self.config.shrink_limit
        boxes = decode(rois, deltas, center_std=center_std, size_std=size_std, limit_both=limit)
        return B.clip(boxes, sizes)

    # -- 4 prediction --------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, outputs: CenterNet2Outputs, sizes: Tensor) -> Detections:
        """Raw outputs and true sizes [B, 2] (h, w) -> detections; boxes are clipped to those sizes."""
        cfg = self.config
        seen = self.propose(outputs, top=cfg.test_top, keep=cfg.test_proposals)
        boxes, classes = self.cascade(outputs, seen.boxes, sizes)[1:]
        scores = (seen.scores[..., None] * classes).sqrt() if cfg.score == "product" else classes
        fit = boxes.isfinite().all(-1) & (seen.scores > 0)
        boxes, scores = torch.where(fit[..., None], boxes, 0), torch.where(fit[..., None], scores, 0)
        kept = class_nms(boxes, class_pairs(scores), score=cfg.min_score, iou=cfg.nms, keep=cfg.keep)
        if cfg.drop_empty:
            kept = only(kept, (B.size(L.gather_rows(boxes, kept.row)) > 0).all(-1))
        return Detections(
            boxes=L.gather_rows(boxes, kept.row),
            scores=kept.score,
            labels=kept.label,
            count=kept.count,
            origin=seen.rows.gather(1, kept.row),
            truncated=kept.truncated | seen.truncated,
        )

    def cascade(
        self, outputs: CenterNet2Outputs, rois: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All stages at test, of rois [B, N, 4]: those of the last one, its boxes, and classes [B, N, C]."""
        said: list[Tensor] = []
        boxes = rois
        for i in range(len(self.stages)):
            rois = boxes
            logits, deltas = self.second(outputs.pyramid, rois, i)
            said.append(logits)
            boxes = self._moved(rois, deltas, i, sizes)
        every, together = torch.stack(said), self.config.score == "mean_logits"
        classes = every.mean(0).softmax(-1) if together else every.softmax(-1).mean(0)
        return rois, boxes, classes[..., :-1]  # background is the last

    @torch.no_grad()
    def explain(self, outputs: CenterNet2Outputs, found: Detections, sizes: Tensor) -> tuple[Look, ...]:
        """The likelihood map, each answer's proposal and score; where the last stage looked, its score."""
        if found.origin is None:
            raise ValueError("these detections do not say which rows they are from; take them from `predict`")
        likely, proposals = to_float32(outputs.logits).sigmoid(), self.boxes(outputs, found.origin)
        rois, _, classes = self.cascade(outputs, proposals, sizes)
        first = Look(
            title="first look",
            caption="Where an object of any class is likely centred, and the proposals behind the answers.",
            boxes=B.clip(proposals, sizes),
            scores=likely.gather(1, found.origin).sqrt(),
            maps=likelihood_maps(outputs, self.strides),
        )
        second = Look(
            title="second look",
            caption="Features were read again inside each box, step by step; here they were read last.",
            boxes=B.clip(rois, sizes),
            scores=classes.gather(2, found.labels[..., None]).squeeze(-1),
        )
        return first, second


# -- 5 loss of the first look ----------------------------------------------------------------


def likelihood_loss(logits: Tensor, wanted: CenterTargets) -> Tensor:
    """Focal loss of logits [B, P] against the heat of objects, per object and level.

    Background that is sure to be an object costs nothing: it may be one that nobody annotated.
    """
    p = logits.sigmoid().clamp(SURE, 1 - SURE)
    centre = p.gather(1, wanted.row)  # an object on two levels, and two in a cell, count twice: cn-06
    hit = torch.where(wanted.positive, (1 - centre).square() * centre.log(), 0).sum()
    miss = (1 - wanted.heat).pow(4) * p.square() * (1 - p).log()
    miss = torch.where(p < IGNORED, miss, 0).sum()
    count = mean_over_devices(wanted.positive.sum()).clamp(min=1)
    return -(POSITIVE_WEIGHT * hit + (1 - POSITIVE_WEIGHT) * miss) / count


def likelihood_maps(outputs: CenterNet2Outputs, strides: Sequence[int]) -> tuple[HeatMap, ...]:
    """How likely an object is centred in each cell, level by level."""
    levels = torch.split(to_float32(outputs.logits).sigmoid(), list(outputs.grid.lengths), dim=1)
    return tuple(
        HeatMap(values.reshape(-1, 1, h, w), stride, stride / 2, ("an object's centre",))
        for values, (h, w), stride in zip(levels, outputs.grid.shapes, strides, strict=True)
    )


# -- private parts -----------------------------------------------------------------------------


class FirstLook(nn.Module):
    """One level: features [B, width, h, w] -> logits [B, 1, h, w], unscaled distances [B, 4, h, w]."""

    def __init__(self, config: CenterNet2Config, levels: int) -> None:
        super().__init__()
        self.tower = _tower(config)
        self.heat = nn.Conv2d(config.width, 1, 3, padding=1)
        self.sides = nn.Conv2d(config.width, 4, 3, padding=1)
        self.scales = nn.ParameterList(torch.ones(()) for _ in range(levels))
        if config.spare_tower:
            self.spare_tower = _tower(config).requires_grad_(requires_grad=False)
        init_normal(self)
        nn.init.constant_(cast("Tensor", self.heat.bias), -math.log(99))  # a likelihood of 0.01
        nn.init.constant_(cast("Tensor", self.sides.bias), 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tower(x)
        return self.heat(x), self.sides(x)


def _tower(config: CenterNet2Config) -> nn.Sequential:
    parts: list[nn.Module] = []
    for _ in range(config.tower):
        parts.append(nn.Conv2d(config.width, config.width, 3, padding=1))
        if config.norm_groups:
            parts.append(nn.GroupNorm(config.norm_groups, config.width))
        parts.append(nn.ReLU())
    return nn.Sequential(*parts)
