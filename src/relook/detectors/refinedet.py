"""RefineDet (arXiv:1711.06897) and RefineDet++ (Zhang et al., IEEE TCSVT): anchors are refined first.

The first look (anchor refinement module, ARM) says of every anchor whether it holds any object, and moves it.
The second look (object detection module, ODM) names the class and moves the refined anchor again. In
RefineDet++ it reads the features exactly in the refined anchor, by deformable convolutions whose offsets are
computed from that anchor, one for each of the three anchors of a place; in RefineDet it reads the cell.

Read from top to bottom: settings, outputs, network (III-A, B), losses (III-C), prediction, modules.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relook.assign.best_prior import best_prior
from relook.backbones.protocol import BackboneConfig
from relook.backbones.vgg import VGGConfig
from relook.detector import Detector
from relook.ops import levels as L
from relook.ops.box_coder import decode, encode
from relook.ops.deform_conv import deform_conv2d
from relook.ops.devices import mean_over_devices
from relook.ops.losses import smooth_l1
from relook.ops.sampling import hardest
from relook.ops.suppression.per_class import per_class_nms
from relook.ops.suppression.soft import soft_nms
from relook.parts.checks import check_settings
from relook.parts.ssd_levels import (
    L2Norm,
    anchor_shapes,
    at_most,
    extra_bottleneck,
    extra_convs,
    init_xavier,
    taps,
)
from relook.types import Detections, Look, Losses, Targets, record, to_float32

ANCHORS: Final = 3  # of each place: a square, a wide and a tall box of one area, sides 1 : 2
CENTER_STD, SIZE_STD = 0.1, 0.2  # units of changes ("variances" in SSD's code)
EXTRA: Final = 1e-5  # added to ratios of sides before their logarithm (docs/quirks.md, rd-04)
FAR: Final = 1e4  # cells: what is sampled further away is zero anyway, and infinity is no place
LARGE: Final = 30.0  # logarithm of a ratio of sides, so that no exponential overflows
APART: Final = 1e6  # pixels beyond which it does not matter how much two boxes overlap
TINY: Final = 1e-6  # positives that are divided by, where there are none
SOFT_IOU, SOFT_LEAST = 0.3, 0.01  # of the decay that follows hard suppression


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineDetConfig:
    """The defaults are RefineDet512++ on VGG-16 without batch normalisation, for Pascal VOC."""

    num_classes: int = 20
    backbone: BackboneConfig = VGGConfig()
    l2_norm: tuple[float, ...] = (10.0, 8.0)  # initial lengths to which the finest maps are scaled; (): none
    extra: Literal["convs", "bottlenecks"] = "convs"  # what makes coarser levels than the backbone's
    extra_widths: tuple[int, ...] = (512,)  # channels of each of them
    extra_norm: bool = False  # batch normalisation in these convolutions; bottlenecks always have it
    extra_groups: int = 1  # of the bottlenecks' 3x3 convolutions
    width: int = 256
    scale: float = 4.0  # side of the square anchor, in strides
    refine: bool = True  # a first look; without it the anchors themselves are classified and moved
    fuse: bool = True  # coarse levels are added to finer ones before the second look
    align: bool = True  # the second look reads in refined anchors (RefineDet++); False: in cells (RefineDet)
    # training
    iou: float = 0.5  # from which on an anchor stands for an object
    negatives: int = 3  # for each positive
    # the answer
    objectness: float = 0.01  # an anchor with less is nothing, in training too
    min_score: float = 0.01
    top: int = 1000  # anchors of a class before suppression
    nms: float = 0.49
    nms_plus_one: bool = True  # sides count the last pixel when overlaps are measured; needs pixels of files
    keep: int = 500  # of a class after suppression
    soft_nms: bool = False  # then scores decay with overlap, which the published test of COCO adds

    def __post_init__(self) -> None:
        if (self.align and not self.refine) or (self.refine and not self.fuse):
            raise ValueError("switch off `align` first, then `refine` too, then `fuse` too: no other way")
        if any(width < 8 or width % 4 for width in self.extra_widths):
            raise ValueError(f"extra_widths={self.extra_widths}: each must be a multiple of 4, at least 8")
        counts = "num_classes width negatives top keep extra_groups"
        check_settings(self, counts=counts, shares="iou objectness min_score nms")

    def build(self) -> "RefineDet":
        return RefineDet(self)


@record
class RefineDetOutputs:
    """What the network says of all N anchors of a batch: three at each of P points."""

    grid: L.Grid
    anchors: Tensor  # [N, 4] pixels
    first_logits: Tensor | None  # [B, N, 2] nothing, an object; None without a first look
    first_deltas: Tensor | None  # [B, N, 4] dx, dy, dw, dh from anchors
    logits: Tensor  # [B, N, C + 1] nothing, classes
    deltas: Tensor  # [B, N, 4] from refined anchors


@record
class Wanted:
    """What all N anchors of a batch should say."""

    classes: Tensor  # [B, N] int64, 0 is nothing
    positive: Tensor  # [B, N] bool, those whose box is learnt
    boxes: Tensor  # [B, N, 4] of the object that each stands for


class RefineDet(Detector[RefineDetOutputs]):
    """RefineDet as a whole: backbone, coarser levels, first look, fused levels, second look."""

    in_original_pixels: ClassVar[bool] = True

    def __init__(self, config: RefineDetConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.backbone = config.backbone.build()
        channels = (*cast("tuple[int, ...]", self.backbone.channels), *config.extra_widths)
        strides = cast("tuple[int, ...]", self.backbone.strides)
        self.strides = (*strides, *(strides[-1] * 2 ** (i + 1) for i in range(len(config.extra_widths))))
        self.stride = self.strides[-1]
        self.extras = nn.ModuleList(
            extra_convs(*step, norm=config.extra_norm)
            if config.extra == "convs"
            else extra_bottleneck(*step, groups=config.extra_groups)
            for step in zip(channels[len(strides) - 1 :], config.extra_widths, strict=False)
        )
        if len(config.l2_norm) > len(channels):
            raise ValueError(f"l2_norm has {len(config.l2_norm)} numbers, but there are {len(channels)} maps")
        self.norms = nn.ModuleList(map(L2Norm, channels, config.l2_norm))
        if config.refine:
            self.first = nn.ModuleList(PlainHead(width, 2) for width in channels)
        if config.fuse:
            self.fusion = Fusion(channels, config.width)
            channels = (config.width,) * len(channels)
        head = AlignedHead if config.align else PlainHead
        self.second = nn.ModuleList(head(width, config.num_classes + 1) for width in channels)

    # -- network (III-A, B) ----------------------------------------------------------------------

    def forward(self, images: Tensor) -> RefineDetOutputs:
        """Images [B, 3, H, W], normalised, sides multiples of `stride` -> raw outputs.

        Raises:
            ValueError: when a side is not a multiple of `stride`.
        """
        self.check(images)
        maps = list(self.backbone(images))
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        for i, norm in enumerate(self.norms):
            maps[i] = norm(maps[i])
        grid = L.grid(maps, self.strides, offset=0.5)
        first = [head(x) for head, x in zip(self.first, maps, strict=True)] if self.config.refine else []
        if self.config.fuse:
            maps = self.fusion(maps)
        if self.config.align:  # no gradient flows from the second look into the anchors: rd-02
            offsets = [self.offsets(deltas.detach()) for _, deltas in first]
            second = [head(*one) for head, *one in zip(self.second, maps, offsets, strict=True)]
        else:
            second = [head(x) for head, x in zip(self.second, maps, strict=True)]
        height, width = images.shape[-2:]
        return RefineDetOutputs(
            grid,
            self.anchors(grid, (width, height)),
            anchor_rows([logits for logits, _ in first]) if first else None,
            anchor_rows([deltas for _, deltas in first]) if first else None,
            anchor_rows([logits for logits, _ in second]),
            anchor_rows([deltas for _, deltas in second]),
        )

    def anchors(self, grid: L.Grid, size: tuple[int, int]) -> Tensor:
        """[N, 4] pixels, three for each point, of an input of `size` (width, height) pixels."""
        sides = anchor_shapes(grid.points) * self.config.scale * grid.stride[:, None, None]  # [P, 3, 2]
        # published: the four numbers centre and size are clamped, not the corners (docs/quirks.md, rd-03)
        centers = at_most(grid.points, size)[:, None]
        half = at_most(sides, size) / 2
        return torch.cat([centers - half, centers + half], dim=-1).flatten(0, 1)

    def offsets(self, deltas: Tensor) -> Tensor:
        """A level's first changes [B, 3 * 4, h, w] -> offsets of nine taps for each anchor [B, 3 * 18, h, w].

        In cells, y before x, taps row by row.
        """
        batch, _, h, w = deltas.shape
        deltas = to_float32(deltas).reshape(batch, ANCHORS, 4, h, w).movedim(2, -1)  # [B, 3, h, w, 4]
        sides = anchor_shapes(deltas)[:, None, None] * self.config.scale
        away = (sampled(deltas, sides) - taps(deltas)).clamp(-FAR, FAR)  # [B, 3, h, w, 9, 2]
        return away.flip(-1).flatten(-2).movedim(-1, 2).flatten(1, 2)

    # -- losses (III-C) --------------------------------------------------------------------------

    def loss(self, outputs: RefineDetOutputs, targets: Targets) -> Losses:
        """Raw outputs and ground truth -> `odm_loc`, `odm_conf`, and of the first look `arm_loc`, `arm_conf`.

        Each pair is divided by its positives in all images of all devices; without any it is zero.
        """
        cfg, boxes, believed = self.config, outputs.anchors[None], None
        losses: Losses = {}
        if outputs.first_logits is not None and outputs.first_deltas is not None:
            logits, deltas = to_float32(outputs.first_logits), to_float32(outputs.first_deltas)
            assigned = best_prior(boxes, targets, positive=cfg.iou)
            wanted = Wanted(assigned.positive.long(), assigned.positive, assigned.boxes(targets))
            losses["arm_loc"], losses["arm_conf"] = module_loss(logits, deltas, boxes, wanted, cfg.negatives)
            boxes = self.refined(outputs).detach()
            believed = logits.detach().softmax(-1)[..., 1] > cfg.objectness
        assigned = best_prior(boxes, targets, positive=cfg.iou)
        classes = torch.where(assigned.positive, assigned.labels(targets) + 1, 0)
        # an anchor that the first look does not believe in is no positive, but if it is mined, its class is
        # still wanted of it (docs/quirks.md, rd-06)
        positive = assigned.positive if believed is None else assigned.positive & believed
        wanted = Wanted(classes, positive, assigned.boxes(targets))
        logits, deltas = to_float32(outputs.logits), to_float32(outputs.deltas)
        losses["odm_loc"], losses["odm_conf"] = module_loss(logits, deltas, boxes, wanted, cfg.negatives)
        return losses

    def refined(self, outputs: RefineDetOutputs) -> Tensor:
        """Anchors after the first look: [B, N, 4] pixels; without one as they were."""
        if outputs.first_deltas is None:
            return outputs.anchors[None].expand(len(outputs.deltas), -1, -1)
        return moved(outputs.anchors, to_float32(outputs.first_deltas))

    # -- prediction ------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(
        self, outputs: RefineDetOutputs, sizes: Tensor, originals: Tensor | None = None
    ) -> Detections:
        """Raw outputs, sizes [B, 2] in the input and of the files [B, 2] (h, w) -> detections.

        Boxes are not clipped, and there is no limit for an image but `keep` of each class.
        """
        cfg = self.config
        boxes = moved(self.refined(outputs), to_float32(outputs.deltas))
        inside = L.inside(outputs.grid.points, sizes, multiple=self.stride)  # nothing is found in padding
        real = boxes.isfinite().all(-1) & inside.repeat_interleave(ANCHORS, dim=1)
        if outputs.first_logits is not None:
            real &= to_float32(outputs.first_logits).softmax(-1)[..., 1] > cfg.objectness
        scores = torch.where(real[..., None], to_float32(outputs.logits).softmax(-1)[..., 1:], 0)
        ratio = (originals if originals is not None else sizes).to(boxes.dtype) / sizes
        compared = boxes * ratio.flip(-1).repeat(1, 2)[:, None]  # in pixels of the files
        compared = torch.where(real[..., None], compared, 0).clamp(-APART, APART)
        kept = per_class_nms(
            compared,
            scores,
            score=cfg.min_score,
            iou=cfg.nms,
            top=cfg.top,
            keep=cfg.keep,
            plus_one=cfg.nms_plus_one,
        )
        if cfg.soft_nms:
            kept = soft_nms(compared, kept, iou=SOFT_IOU, least=SOFT_LEAST, plus_one=True)
        return Detections(
            boxes=L.gather_rows(boxes, kept.row),
            scores=kept.score,
            labels=kept.label,
            count=kept.count,
            origin=kept.row,
            truncated=kept.truncated,
        )

    @torch.no_grad()
    def explain(self, outputs: RefineDetOutputs, found: Detections, sizes: Tensor) -> tuple[Look, ...]:  # noqa: ARG002
        """The refined anchor of each detection, and where the second look sampled in it."""
        if outputs.first_deltas is None or found.origin is None:
            return ()
        rows = found.origin
        first = Look(
            title="first look",
            caption="The anchor behind each object, where the first look moved it.",
            boxes=L.gather_rows(self.refined(outputs), rows),
            on_answer=True,
        )
        if not self.config.align:
            return (first,)
        deltas = L.gather_rows(to_float32(outputs.first_deltas), rows)
        points = sampled(deltas, anchor_shapes(deltas)[rows % ANCHORS] * self.config.scale)
        stride, centers = (x[rows // ANCHORS] for x in (outputs.grid.stride, outputs.grid.points))
        second = Look(
            title="second look",
            caption="The features were read again at nine points of the anchor that the first look moved.",
            points=points * stride[..., None, None] + centers[:, :, None],
        )
        return first, second


# -- geometry ----------------------------------------------------------------------------------


def moved(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Boxes [..., 4] in pixels after changes [..., 4]; nothing is clipped."""
    return decode(boxes, deltas, center_std=CENTER_STD, size_std=SIZE_STD, limit=LARGE, limit_both=False)


def sampled(deltas: Tensor, sides: Tensor) -> Tensor:
    """Where the second look reads an anchor: [..., 9, 2] x, y in cells, from the centre of its cell.

    Args:
        deltas: [..., 4] dx, dy, dw, dh of the first look.
        sides: [..., 2] width and height of the anchors in cells, broadcast.
    """
    center = CENTER_STD * sides * deltas[..., :2]
    # published: the unit stands outside the exponential, so that the nine points of a box that does not
    # change cover a fifth of it, and not the box that is decoded (docs/quirks.md, rd-01)
    size = SIZE_STD * sides * deltas[..., 2:].clamp(max=LARGE).exp()
    return center.unsqueeze(-2) + size.unsqueeze(-2) / 3 * taps(deltas)


def anchor_rows(maps: Sequence[Tensor]) -> Tensor:
    """Maps [B, 3 * K, h, w] of all levels -> [B, N, K], the three anchors of a point one after the other."""
    rows = L.join(maps)
    return rows.reshape(len(rows), ANCHORS * rows.shape[1], -1)


# -- the loss of either look -------------------------------------------------------------------


def module_loss(
    logits: Tensor, deltas: Tensor, boxes: Tensor, wanted: Wanted, ratio: int
) -> tuple[Tensor, Tensor]:
    """Smooth L1 and cross-entropy, both per positive of all images and devices.

    Args:
        logits: [B, N, K], nothing first.
        deltas: [B, N, 4].
        boxes: [1 or B, N, 4] what they start from.
        wanted: what they should say.
        ratio: mined negatives for each positive.
    """
    should = encode(boxes, wanted.boxes, center_std=CENTER_STD, size_std=SIZE_STD, extra=EXTRA)
    loc = smooth_l1(torch.where(wanted.positive[..., None], deltas - should, 0), beta=1).sum()
    error = F.cross_entropy(logits.flatten(0, 1), wanted.classes.flatten(), reduction="none")
    error = error.reshape(wanted.classes.shape)
    mined = hardest(torch.where(wanted.positive, 0, error.detach()), ratio * wanted.positive.sum(1))
    conf = torch.where(wanted.positive | mined, error, 0).sum()
    count = mean_over_devices(wanted.positive.sum()).clamp(min=TINY)  # where there are none both sums are 0
    return loc / count, conf / count


# -- modules -----------------------------------------------------------------------------------


class PlainHead(nn.Module):
    """Three anchors of a level: [B, C, h, w] -> logits [B, 3 * K, h, w], changes [B, 3 * 4, h, w]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.cls = nn.Conv2d(channels, ANCHORS * classes, 3, padding=1)
        self.box = nn.Conv2d(channels, ANCHORS * 4, 3, padding=1)
        init_xavier(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls(x), self.box(x)


class AlignedHead(nn.Module):
    """The same, where each anchor has weights of its own and reads where `offsets` [B, 3 * 18, h, w] say."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.cls, self.box = (
            nn.ParameterList(nn.Parameter(torch.empty(out, channels, 3, 3)) for _ in range(ANCHORS))
            for out in (classes, 4)
        )
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.01)

    def forward(self, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        classes = len(self.cls[0])
        weights = (torch.cat(pair) for pair in zip(self.cls, self.box, strict=True))
        parts = zip(offsets.chunk(ANCHORS, 1), weights, strict=True)
        both = torch.stack([deform_conv2d(x, offset, weight, padding=1) for offset, weight in parts], 1)
        return both[:, :, :classes].flatten(1, 2), both[:, :, classes:].flatten(1, 2)


class Fusion(nn.Module):
    """Every level [B, C, h, w] takes in the coarser ones (transfer connection blocks): [B, width, h, w]."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(c, width, 3, padding=1) for c in channels)
        self.second = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.up = nn.ModuleList(nn.ConvTranspose2d(width, width, 2, 2) for _ in channels[1:])
        self.last = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        init_xavier(self)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        fused: list[Tensor] = []  # coarsest first
        for i in reversed(range(len(maps))):
            x = self.second[i](self.first[i](maps[i]).relu())
            if fused:
                x = x + self.up[i](fused[-1])
            fused.append(self.last[i](x.relu()).relu())
        return fused[::-1]
