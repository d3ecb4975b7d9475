"""Assignment of SSD (arXiv:1512.02325, section 2.2): each ground truth's best box, others by overlap."""

import torch
from torch import Tensor

from relook.assign.assignment import Assignment
from relook.ops.boxes import pairwise_iou
from relook.types import Targets


def best_prior(boxes: Tensor, targets: Targets, *, positive: float) -> Assignment:
    """Boxes [B, P, 4] with IoU >= positive, and the best box of each ground truth, are positive.

    Of several boxes that overlap a ground truth alike the first is its best, and of several ground truths
    that have one best box the last in annotation order keeps it: the others go without
    (docs/quirks.md, rd-05). Nothing is ignored.

    Args:
        boxes: [B or 1, P, 4] what is assigned.
        targets: ground truth.
        positive: IoU.
    """
    iou = pairwise_iou(targets.boxes, boxes)  # [B, M, P]
    iou = torch.where(targets.valid[..., None] & iou.isfinite(), iou, -1)
    index = iou.argmax(1)  # the first of equals, which max does not promise
    hit = iou.gather(1, index[:, None]).squeeze(1) >= positive
    rank = torch.arange(1, iou.shape[1] + 1, device=iou.device) * targets.valid  # [B, M], 0 for padding
    taker = torch.zeros_like(index).scatter_reduce(1, iou.argmax(2), rank, "amax")  # [B, P], 0 = nobody
    index = torch.where(taker > 0, taker - 1, index)
    return Assignment(index, hit | (taker > 0), torch.zeros_like(hit))
