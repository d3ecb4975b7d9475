"""Mask R-CNN (arXiv:1703.06870), on any backbone.

The first look proposes boxes that may hold something. The second look reads the features inside each of
them, off the grid (RoIAlign), says what it is and where exactly, and draws the object's mask in the frame of
its box.

Read from top to bottom: settings, outputs, network, losses (2, 3), prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relook.assign.max_iou import max_iou
from relook.backbones.protocol import BackboneConfig
from relook.backbones.resnet import ResNetConfig
from relook.detector import Detector
from relook.ops import boxes as B
from relook.ops import levels as L
from relook.ops.anchors import Anchors
from relook.ops.box_coder import decode
from relook.ops.masks import mask_targets
from relook.ops.nms import class_nms
from relook.ops.roi_align import roi_features
from relook.ops.sampling import Budget, chosen_first
from relook.parts.box_head import BoxHead, Proposals, Regions, box_head_loss, training_regions
from relook.parts.checks import check_settings
from relook.parts.fpn import FPN
from relook.parts.patch_looks import patch_looks
from relook.parts.rpn import AnchorLook, RPNHead, rpn_loss, rpn_proposals
from relook.types import Detections, Look, Losses, Targets, record, to_float32

BOX_SIDE: Final = 7  # bins of a region's features, for its class and box ...
MASK_SIDE: Final = 14  # ... and for its mask, which is twice as large
CENTER_STD, SIZE_STD = 0.1, 0.2  # units of changes of boxes


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRCNNConfig:
    """The defaults are mmdetection's `mask_rcnn_r50_fpn_1x_coco`."""

    num_classes: int = 80
    backbone: BackboneConfig = ResNetConfig(maps=(1, 2, 3, 4))
    width: int = 256
    hidden: int = 1024  # width of the box head's layers
    mask_convs: int = 4  # 3x3 convolutions of the mask head
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # of anchors, height over width
    scale: float = 8.0  # side of the square anchor, in strides
    # first look
    rpn_positive: float = 0.7  # IoU
    rpn_negative: float = 0.3
    rpn_forced: float = 0.3  # an object's best anchors are positive from this IoU on
    rpn_samples: int = 256  # anchors of an image that are trained on, half of them positive at most
    train_top: int = 2000  # anchors of each level that are proposed, before suppression
    test_top: int = 1000
    proposals: int = 1000  # of an image, after it
    proposal_nms: float = 0.7
    # second look
    roi_iou: float = 0.5  # of regions that stand for an object
    roi_forced: float | None = 0.5  # as `rpn_forced`; None: no object forces regions
    roi_samples: int = 512  # regions of an image that are trained on
    positive_fraction: float = 0.25  # of them at most
    roi_beta: float = 0.0  # smooth L1's knee; 0: L1
    # the answer
    score: float = 0.05
    nms: float = 0.5
    keep: int = 100

    def __post_init__(self) -> None:
        counts = "num_classes width hidden rpn_samples train_top test_top proposals roi_samples keep"
        shares = "rpn_positive rpn_negative proposal_nms positive_fraction score nms"
        check_settings(self, counts=counts, shares=shares)

    def build(self) -> "MaskRCNN":
        return MaskRCNN(self)


@record
class MaskRCNNOutputs:
    """The features, and what the first look says of all N anchors of a batch: A at each of P points."""

    grid: L.Grid
    pyramid: tuple[Tensor, ...]  # [B, width, h, w], finest first; the last is the first look's alone
    first: AnchorLook
    maps: tuple[Tensor, ...]  # of the backbone, to explain what it looked at


class MaskRCNN(Detector[MaskRCNNOutputs]):
    """Mask R-CNN as a whole: backbone, pyramid, proposals, box head, mask head."""

    waits: ClassVar[frozenset[str]] = frozenset({"nms", "sampling"})
    has_masks: ClassVar[bool] = True

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.backbone = config.backbone.build()
        strides = cast("tuple[int, ...]", self.backbone.strides)
        self.stride = strides[-1]
        self.strides = (*strides, 2 * strides[-1])
        self.neck = FPN(
            cast("tuple[int, ...]", self.backbone.channels),
            config.width,
            extra=0,
            source="output",
            norm_groups=0,
            relu_before_extra=False,
        )
        self.anchors = Anchors(config.ratios, [config.scale])
        self.rpn = RPNHead(config.width, self.anchors.count)
        self.box_head = BoxHead(
            config.width, BOX_SIDE, config.hidden, config.num_classes, per_class=True, start="mmdet"
        )
        self.mask_head = MaskHead(config.width, config.mask_convs, config.num_classes)

    # -- network -------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> MaskRCNNOutputs:
        """Images [B, 3, H, W], normalised, sides multiples of `stride` -> features and the first look.

        Raises:
            ValueError: when a side is not a multiple of `stride`.
        """
        self.check(images)
        maps = self.backbone(images)
        pyramid = self.neck(maps)
        pyramid.append(pyramid[-1][..., ::2, ::2])
        logits, deltas = zip(*map(self.rpn, pyramid), strict=True)
        grid = L.grid(pyramid, self.strides, offset=0.0)
        first = AnchorLook(
            self.anchors(grid),
            L.join(logits).flatten(1),
            L.join(deltas).reshape(len(images), -1, 4),
            tuple(n * self.anchors.count for n in grid.lengths),
        )
        return MaskRCNNOutputs(grid, tuple(pyramid), first, tuple(maps))

    def propose(self, outputs: MaskRCNNOutputs, sizes: Tensor, *, top: int) -> Proposals:
        """What the first look proposes, clipped to images of sizes [B, 2] (h, w)."""
        keep, iou = self.config.proposals, self.config.proposal_nms
        return rpn_proposals(outputs.first, sizes, top=top, keep=keep, iou=iou)

    def second(self, pyramid: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Regions [B, S, 4] -> logits [B, S, C + 1], background last, and changes [B, S, 4 * C]."""
        logits, deltas = self.box_head(self._features(pyramid, rois, BOX_SIDE))
        shape = rois.shape[:2]
        return to_float32(logits).reshape(*shape, -1), to_float32(deltas).reshape(*shape, -1)

    def masks(self, pyramid: Sequence[Tensor], rois: Tensor, labels: Tensor) -> Tensor:
        """Regions [B, S, 4] of classes [B, S] -> logits of their masks [B, S, 28, 28]."""
        every = self.mask_head(self._features(pyramid, rois, MASK_SIDE))  # [B * S, C, 28, 28]
        mine = torch.take_along_dim(every, labels.reshape(-1, 1, 1, 1), dim=1)
        return to_float32(mine).reshape(*labels.shape, *every.shape[-2:])

    def _features(self, pyramid: Sequence[Tensor], rois: Tensor, side: int) -> Tensor:
        return roi_features(pyramid[:-1], rois, strides=self.strides[:-1], size=56, side=side)

    # -- losses --------------------------------------------------------------------------------

    def loss(self, outputs: MaskRCNNOutputs, targets: Targets) -> Losses:
        """Raw outputs and ground truth -> `rpn_cls`, `rpn_bbox`, `cls`, `bbox` and `mask`.

        Raises:
            ValueError: when the ground truth has no masks.
        """
        cfg = self.config
        if targets.masks is None:
            raise ValueError(
                "Mask R-CNN learns masks, and these targets have none; annotate them (COCO: segmentation)"
            )
        rpn_cls, rpn_bbox = self._rpn_loss(outputs, targets)
        seen = self.propose(outputs, targets.sizes, top=cfg.train_top)
        boxes = torch.cat([targets.boxes.to(seen.boxes.dtype), seen.boxes], dim=1)
        regions = training_regions(
            boxes,
            torch.cat([targets.valid, seen.scores > 0], dim=1),
            targets,
            iou=cfg.roi_iou,
            forced=cfg.roi_forced,
            own=targets.boxes.shape[1],
            budget=Budget(cfg.roi_samples, cfg.positive_fraction),
        )
        logits, deltas = self.second(outputs.pyramid, regions.boxes)
        cls, bbox = box_head_loss(
            logits, deltas, regions, center_std=CENTER_STD, size_std=SIZE_STD, beta=cfg.roi_beta
        )
        mask = self._mask_loss(outputs, regions, targets.masks)
        return {"rpn_cls": rpn_cls, "rpn_bbox": rpn_bbox, "cls": cls, "bbox": bbox, "mask": mask}

    def _rpn_loss(self, outputs: MaskRCNNOutputs, targets: Targets) -> tuple[Tensor, Tensor]:
        cfg = self.config
        valid = L.inside(outputs.grid.points, targets.sizes, multiple=self.stride)
        assigned = max_iou(
            outputs.first.anchors.expand(len(valid), -1, -1),
            valid.repeat_interleave(self.anchors.count, dim=1),
            targets,
            positive=cfg.rpn_positive,
            negative=cfg.rpn_negative,
            forced=cfg.rpn_forced,
        )
        return rpn_loss(outputs.first, assigned, targets, Budget(cfg.rpn_samples, 0.5))

    def _mask_loss(self, outputs: MaskRCNNOutputs, regions: Regions, masks: Tensor) -> Tensor:
        """Binary cross entropy of the own class's mask, over all cells of positive regions."""
        most = max(1, int(self.config.roi_samples * self.config.positive_fraction))
        taken = chosen_first(regions.positive, most)
        boxes, labels, owner = (
            L.gather_rows(x, taken.index) for x in (regions.boxes, regions.labels, regions.owner)
        )
        logits = self.masks(outputs.pyramid, boxes, labels)
        wanted = mask_targets(masks, boxes, owner, logits.shape[-1]).to(logits.dtype)
        error = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean((-2, -1))
        return torch.where(taken.chosen, error, 0).sum() / taken.chosen.sum().clamp(min=1)

    # -- prediction ----------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, outputs: MaskRCNNOutputs, sizes: Tensor) -> Detections:
        """Raw outputs and true sizes [B, 2] (h, w) -> detections with masks; boxes are clipped to sizes."""
        cfg, classes = self.config, self.num_classes
        seen = self.propose(outputs, sizes, top=cfg.test_top)
        logits, deltas = self.second(outputs.pyramid, seen.boxes)
        images, count = seen.scores.shape
        scores = torch.where((seen.scores > 0)[..., None], logits.softmax(-1)[..., :-1], 0)
        changes = deltas.reshape(images, count, classes, 4)
        moved = decode(seen.boxes[:, :, None], changes, center_std=CENTER_STD, size_std=SIZE_STD)
        boxes = B.clip(moved.flatten(1, 2), sizes)  # [B, N * C, 4]: each class has a box of its own
        fit = boxes.isfinite().all(-1)
        boxes = torch.where(fit[..., None], boxes, 0)
        row = torch.arange(count * classes, device=boxes.device).expand(images, -1)
        pairs = (row, row % classes, torch.where(fit, scores.flatten(1), 0))
        kept = class_nms(boxes, pairs, score=cfg.score, iou=cfg.nms, keep=cfg.keep)
        found = L.gather_rows(boxes, kept.row)
        return Detections(
            boxes=found,
            scores=kept.score,
            labels=kept.label,
            count=kept.count,
            masks=self.masks(outputs.pyramid, found, kept.label).sigmoid(),
            origin=seen.rows.gather(1, kept.row // classes),
            truncated=kept.truncated | seen.truncated,
        )

    @torch.no_grad()
    def explain(self, outputs: MaskRCNNOutputs, found: Detections, sizes: Tensor) -> tuple[Look, ...]:
        """Where a backbone of patches looked; each detection's proposal, and how likely it seemed."""
        if found.origin is None:
            raise ValueError("these detections do not say which rows they are from; take them from `predict`")
        said = outputs.first
        deltas = to_float32(L.gather_rows(said.deltas, found.origin))
        boxes = decode(said.anchors[found.origin], deltas, center_std=1, size_std=1)
        first = Look(
            title="first look",
            caption="The boxes that were proposed because something may be in them.",
            boxes=B.clip(boxes, sizes),
            scores=to_float32(said.logits).sigmoid().gather(1, found.origin),
        )
        return (*patch_looks(self.backbone, outputs.maps), first)


class MaskHead(nn.Module):
    """Features of N regions [N, width, 14, 14] -> logits of a mask for each class [N, C, 28, 28]."""

    def __init__(self, width: int, depth: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.upsample = nn.ConvTranspose2d(width, width, 2, 2)
        self.out = nn.Conv2d(width, num_classes, 1)
        for layer in (*self.convs, self.upsample, self.out):
            nn.init.kaiming_normal_(cast("Tensor", layer.weight), mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(cast("Tensor", layer.bias))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.out(F.relu(self.upsample(x)))
