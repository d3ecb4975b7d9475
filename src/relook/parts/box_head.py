"""The second look of two-stage detectors (arXiv:1506.01497): what is in a region, and where exactly."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relook.assign.max_iou import max_iou
from relook.ops.box_coder import encode
from relook.ops.levels import gather_rows
from relook.ops.losses import smooth_l1
from relook.ops.sampling import Budget, balanced_sample
from relook.types import Targets, record, to_float32


class BoxHead(nn.Module):
    """Features of N regions [N, channels, side, side] -> logits [N, C + 1], background last, and deltas.

    Args:
        channels: of the features.
        side: of the features.
        hidden: width of the two hidden layers.
        num_classes: C.
        per_class: deltas are [N, 4 * C], four for each class; otherwise [N, 4], the same for all.
        start: initial weights: Xavier-normal everywhere (mmdetection's CenterNet2), or small normal outputs
            behind hidden layers that are Kaiming-uniform (detectron2) or Xavier-uniform (mmdetection).
    """

    def __init__(
        self,
        channels: int,
        side: int,
        hidden: int,
        num_classes: int,
        *,
        per_class: bool,
        start: Literal["xavier", "detectron2", "mmdet"],
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.hidden = nn.ModuleList([nn.Linear(channels * side * side, hidden), nn.Linear(hidden, hidden)])
        self.cls = nn.Linear(hidden, num_classes + 1)
        self.box = nn.Linear(hidden, 4 * num_classes if per_class else 4)
        for layer in (*self.hidden, self.cls, self.box):
            assert isinstance(layer, nn.Linear)  # noqa: S101 (for the type checker)
            nn.init.zeros_(layer.bias)
            if start == "xavier":
                nn.init.xavier_normal_(layer.weight)
            elif layer in (self.cls, self.box):
                nn.init.normal_(layer.weight, std=0.01 if layer is self.cls else 0.001)
            elif start == "mmdet":
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.kaiming_uniform_(layer.weight, a=1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        x = features.flatten(1).to(self.cls.weight.dtype)  # channel, row, column
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.cls(x), self.box(x)


@record
class Proposals:
    """N places of each image that may hold an object, likeliest first."""

    boxes: Tensor  # [B, N, 4] pixels, not clipped
    scores: Tensor  # [B, N]; 0 where an image has fewer
    rows: Tensor  # [B, N] int64, the rows of the detector's outputs that say so
    truncated: Tensor  # [B] bool, a compiled graph left some out


@record
class Regions:
    """What the second look is trained on: S regions of each image."""

    index: Tensor  # [B, S] int64, which of the boxes they were chosen from
    boxes: Tensor  # [B, S, 4] pixels
    owner: Tensor  # [B, S] int64, the object that a positive one stands for, a row of Targets
    wanted: Tensor  # [B, S, 4] pixels, its box
    labels: Tensor  # [B, S] int64, its class
    positive: Tensor  # [B, S] bool
    chosen: Tensor  # [B, S] bool; the others fill up and count for nothing


def training_regions(
    boxes: Tensor,
    valid: Tensor,
    targets: Targets,
    *,
    iou: float,
    forced: float | None = None,
    own: int = 0,
    budget: Budget | None = None,
) -> Regions:
    """Which of boxes [B, N, 4] are trained on, and as what: positive from an overlap of `iou` on.

    Args:
        boxes: pixels; gradients flow through them.
        valid: [B, N] bool; others fill up.
        targets: ground truth, of M objects.
        iou: of positive ones; all others are background.
        forced: as in `max_iou`; the objects themselves, if they are among the boxes, do not count there.
        own: 0, or M where the first M boxes are the objects and each stands for itself.
        budget: of regions drawn by lot; None: all of them.
    """
    others, real = boxes[:, own:].detach(), valid[:, own:]
    assigned = max_iou(others, real, targets, positive=iou, negative=iou, forced=forced)
    itself = torch.arange(own, device=boxes.device).expand(len(boxes), -1)
    owner = torch.cat([itself, assigned.index], dim=1)
    positive = torch.cat([valid[:, :own], assigned.positive], dim=1)
    taken = balanced_sample(positive, valid & ~positive, budget or Budget(boxes.shape[1], 1.0))
    owner = owner.gather(1, taken.index)
    return Regions(
        index=taken.index,
        boxes=gather_rows(boxes, taken.index),
        owner=owner,
        wanted=gather_rows(targets.boxes, owner).to(boxes.dtype),
        labels=targets.labels.gather(1, owner),
        positive=positive.gather(1, taken.index) & taken.chosen,
        chosen=taken.chosen,
    )


def of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """Deltas [..., 4 * C] or [..., 4], labels [...] -> [..., 4] those of that class."""
    if deltas.shape[-1] == 4:
        return deltas
    each = deltas.reshape(*labels.shape, -1, 4)
    return torch.take_along_dim(each, labels[..., None, None], dim=-2).squeeze(-2)


def box_head_loss(
    logits: Tensor, deltas: Tensor, regions: Regions, *, center_std: float, size_std: float, beta: float
) -> tuple[Tensor, Tensor]:
    """Logits [B, S, C + 1], deltas [B, S, 4 (* C)] -> cross entropy and smooth L1, per chosen region.

    Gradients also flow into the boxes of positive regions, by way of what they should have become; detach
    them where that is not wanted.
    """
    logits, deltas = to_float32(logits), to_float32(of_class(deltas, regions.labels))
    count = regions.chosen.sum().clamp(min=1)
    target = torch.where(regions.positive, regions.labels, logits.shape[-1] - 1)
    error = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    cls = torch.where(regions.chosen.flatten(), error, 0).sum() / count
    # elsewhere the region is what it should be, so that nothing odd flows back through the mask
    start = torch.where(regions.positive[..., None], regions.boxes, regions.wanted)
    change = encode(start, regions.wanted, center_std=center_std, size_std=size_std)
    away = smooth_l1(deltas - change, beta=beta).sum(-1)
    return cls, torch.where(regions.positive, away, 0).sum() / count
