"""RetinaNet: Focal Loss for Dense Object Detection (arXiv:1708.02002), on any backbone.

Nine anchors at every place of the pyramid; each is classified and moved. It looks only once, but on DPT's
backbone, whose patches look twice, it is the published dense detector.

Read from top to bottom: settings, outputs, network (4), losses (3), prediction.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from relook.assign.assignment import Assignment
from relook.assign.max_iou import max_iou
from relook.backbones.protocol import BackboneConfig
from relook.backbones.resnet import ResNetConfig
from relook.detector import Detector
from relook.ops import boxes as B
from relook.ops import levels as L
from relook.ops.anchors import Anchors
from relook.ops.box_coder import decode, encode
from relook.ops.losses import smooth_l1
from relook.ops.nms import class_nms, class_pairs
from relook.parts.checks import check_settings
from relook.parts.fpn import FPN
from relook.parts.patch_looks import patch_looks
from relook.parts.point_sets import class_loss, init_normal, init_prior, tower
from relook.types import Detections, Look, Losses, Targets, record, to_float32


@dataclass(frozen=True, slots=True, kw_only=True)
class RetinaNetConfig:
    """The defaults are mmdetection's `retinanet_r50_fpn_1x_coco`."""

    num_classes: int = 80
    backbone: BackboneConfig = ResNetConfig()
    extra_levels: int = 2  # of the pyramid beyond the backbone's maps
    width: int = 256
    norm_groups: int = 0  # of every group normalisation in neck and head; 0: no norm, a bias instead
    tower: int = 4  # 3x3 convolutions per branch
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # of anchors, height over width
    scale: float = 4.0  # side of the smallest square anchor, in strides
    scales: int = 3  # sizes within an octave
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    beta: float = 0.0  # smooth L1's knee; 0: L1
    top: int = 1000  # anchors per level, before suppression
    score: float = 0.05
    nms: float = 0.5
    keep: int = 100

    def __post_init__(self) -> None:
        shares = "positive_iou negative_iou score nms"
        check_settings(self, counts="num_classes width scales top keep", shares=shares)

    def build(self) -> "RetinaNet":
        return RetinaNet(self)


@record
class RetinaNetOutputs:
    """What the network says of all N anchors of a batch: A at each of P points."""

    grid: L.Grid
    anchors: Tensor  # [N, 4] pixels
    logits: Tensor  # [B, N, C]
    deltas: Tensor  # [B, N, 4] dx, dy, dw, dh
    maps: tuple[Tensor, ...]  # of the backbone, to explain what it looked at


class RetinaNet(Detector[RetinaNetOutputs]):
    """RetinaNet as a whole: backbone, pyramid, head."""

    def __init__(self, config: RetinaNetConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.backbone = config.backbone.build()
        strides = cast("tuple[int, ...]", self.backbone.strides)
        self.stride = strides[-1]
        self.strides = (*strides, *(strides[-1] * 2**i for i in range(1, config.extra_levels + 1)))
        self.neck = FPN(
            cast("tuple[int, ...]", self.backbone.channels),
            config.width,
            extra=config.extra_levels,
            source="input",
            norm_groups=config.norm_groups,
            relu_before_extra=False,
        )
        octave = [config.scale * 2 ** (i / config.scales) for i in range(config.scales)]
        self.anchors = Anchors(config.ratios, octave)
        self.head = RetinaNetHead(config, self.anchors.count)

    # -- 4 network -----------------------------------------------------------------------------

    def forward(self, images: Tensor) -> RetinaNetOutputs:
        """Images [B, 3, H, W], normalised, sides multiples of `stride` -> raw outputs.

        Raises:
            ValueError: when a side is not a multiple of `stride`.
        """
        self.check(images)
        maps = self.backbone(images)
        pyramid = self.neck(maps)
        logits, deltas = zip(*map(self.head, pyramid), strict=True)
        # anchors lie around the corners of cells, no half pixel: docs/quirks.md, dp-05
        grid = L.grid(pyramid, self.strides, offset=0.0)
        return RetinaNetOutputs(
            grid,
            self.anchors(grid),
            L.join(logits).reshape(len(images), -1, self.num_classes),
            L.join(deltas).reshape(len(images), -1, 4),
            tuple(maps),
        )

    # -- 3 losses ------------------------------------------------------------------------------

    def loss(self, outputs: RetinaNetOutputs, targets: Targets) -> Losses:
        """Raw outputs and ground truth -> `cls` and `bbox`, per positive anchor, at least one an image."""
        assigned = self.assign(outputs, targets)
        change = encode(outputs.anchors, assigned.boxes(targets), center_std=1, size_std=1)
        error = smooth_l1(to_float32(outputs.deltas) - change, beta=self.config.beta).sum(-1)
        return {
            "cls": class_loss(to_float32(outputs.logits), assigned, targets),
            "bbox": torch.where(assigned.positive, error, 0).sum() / assigned.count(),
        }

    def assign(self, outputs: RetinaNetOutputs, targets: Targets) -> Assignment:
        """Which object each anchor stands for; those beyond an image's own padding are ignored."""
        cfg = self.config
        valid = L.inside(outputs.grid.points, targets.sizes, multiple=self.stride)
        valid = valid.repeat_interleave(self.anchors.count, dim=1)
        anchors = outputs.anchors.expand(len(valid), -1, -1)
        return max_iou(anchors, valid, targets, positive=cfg.positive_iou, negative=cfg.negative_iou)

    # -- prediction ----------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, outputs: RetinaNetOutputs, sizes: Tensor) -> Detections:
        """Raw outputs and true sizes [B, 2] (h, w) -> detections; boxes are clipped to those sizes."""
        cfg = self.config
        scores = to_float32(outputs.logits).sigmoid()
        lengths = [n * self.anchors.count for n in outputs.grid.lengths]
        rows = L.top_per_level(scores.amax(-1), lengths, cfg.top)  # [B, K]: anchors, not pairs
        deltas = to_float32(L.gather_rows(outputs.deltas, rows))
        boxes = B.clip(decode(outputs.anchors[rows], deltas, center_std=1, size_std=1), sizes)
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

    @torch.no_grad()
    def explain(self, outputs: RetinaNetOutputs, found: Detections, sizes: Tensor) -> tuple[Look, ...]:  # noqa: ARG002
        """Where a backbone of patches looked; nothing of others, since RetinaNet itself looks once."""
        return patch_looks(self.backbone, outputs.maps)


class RetinaNetHead(nn.Module):
    """One level: features [B, width, h, w] -> logits [B, A * C, h, w], deltas [B, A * 4, h, w]."""

    def __init__(self, config: RetinaNetConfig, anchors: int) -> None:
        super().__init__()
        width = config.width
        self.cls_tower = tower(width, config.tower, config.norm_groups)
        self.reg_tower = tower(width, config.tower, config.norm_groups)
        self.cls_out = nn.Conv2d(width, anchors * config.num_classes, 3, padding=1)
        self.reg_out = nn.Conv2d(width, anchors * 4, 3, padding=1)
        init_normal(self)
        init_prior(self.cls_out)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_out(self.cls_tower(x)), self.reg_out(self.reg_tower(x))
