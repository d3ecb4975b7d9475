"""Adaptive training sample selection (arXiv:1912.02424, algorithm 1), on predicted boxes."""

import torch
from torch import Tensor

from relook.assign.assignment import Assignment
from relook.ops import boxes as B
from relook.ops.boxes import pairwise_iou
from relook.ops.levels import Grid, top_per_level
from relook.types import Targets

MARGIN = 0.01  # pixels a positive box's middle keeps from the border of its ground truth


def atss(boxes: Tensor, grid: Grid, valid: Tensor, targets: Targets, *, candidates: int) -> Assignment:
    """Each ground truth takes, of its nearest boxes on every level, those that overlap it unusually well.

    Unusually well: IoU at least the mean plus the standard deviation over all its candidates. A box
    positive for several goes to the one of highest IoU, the first on ties.

    Args:
        boxes: [B, P, 4], of any shape, also inverted (RepPoints V2 passes its initial boxes, not anchors).
        grid: which level each of the P boxes is from.
        valid: [B, P] bool; the others are ignored.
        targets: ground truth.
        candidates: per ground truth and level; a level with fewer valid boxes gives all it has.
    """
    iou = pairwise_iou(targets.boxes, boxes)  # [B, M, P]
    middle = B.center(boxes)  # [B, P, 2]
    away = middle[:, None] - B.center(targets.boxes)[:, :, None]
    distance = torch.where(valid[:, None], away.square().sum(-1).sqrt(), torch.inf)
    picks = top_per_level(distance, grid.lengths, candidates, largest=False)  # [B, M, 5 * candidates]

    real = distance.gather(-1, picks).isfinite()  # levels that are nearly all padding have fewer
    near = iou.gather(-1, picks)
    n = real.sum(-1, keepdim=True)
    mean = torch.where(real, near, 0).sum(-1, keepdim=True) / n.clamp(min=1)
    square = torch.where(real, near - mean, 0).square().sum(-1, keepdim=True)
    threshold = mean + (square / (n - 1).clamp(min=1)).sqrt()  # [B, M, 1], unbiased
    candidate = torch.zeros_like(iou, dtype=torch.bool).scatter(-1, picks, real)
    low, high = targets.boxes[:, :, None, :2], targets.boxes[:, :, None, 2:]
    within = torch.minimum(middle[:, None] - low, high - middle[:, None]).amin(-1) > MARGIN
    good = candidate & (iou >= threshold) & within & targets.valid[..., None]
    best, index = torch.where(good, iou, -1).max(1)  # [B, P]
    return Assignment(index, best >= 0, ~valid)
