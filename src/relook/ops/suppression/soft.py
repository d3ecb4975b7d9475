"""Soft suppression (Soft-NMS, arXiv:1704.04503, linear form) within classes, after a hard one."""

from typing import cast

import torch
from torch import Tensor

from relook.ops.boxes import pairwise_iou
from relook.ops.levels import gather_rows
from relook.ops.lowering import in_graph
from relook.ops.nms import Kept


def soft_nms(boxes: Tensor, kept: Kept, *, iou: float, least: float, plus_one: bool) -> Kept:
    """Of each class the best is taken, what overlaps it loses score, and so on with the rest.

    All classes of all images go together, one choice of each at a time: as many turns as the fullest class
    has boxes. Memory grows with classes that have any box times the boxes of the fullest.

    Args:
        boxes: [B, N, 4] pixels.
        kept: of them, best first.
        iou: a box that overlaps a taken one by more than this has its score times (1 - overlap).
        least: a box whose score falls below this is gone.
        plus_one: sides count the last pixel, x2 - x1 + 1, when overlaps are measured.

    Returns:
        The same boxes with their new scores, best first; equal ones in the order of classes.

    Raises:
        ValueError: in compiled and exported graphs, whose shapes are fixed.
    """
    if in_graph():
        raise ValueError("soft suppression cannot be exported; set soft_nms=False")
    images, size = kept.score.shape
    if not size:
        return kept
    image = torch.arange(images, device=kept.row.device).unsqueeze(1)
    group = torch.where(kept.score > 0, image * (kept.label.max() + 1) + kept.label, -1).flatten()
    order = group.argsort(dim=0, stable=True)  # by class, best first within each; padding before all
    order = order[group[order] >= 0]
    _, lane, counts = cast(
        "tuple[Tensor, Tensor, Tensor]",
        torch.unique_consecutive(group[order], return_inverse=True, return_counts=True),
    )
    place = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[lane]
    box = gather_rows(boxes, kept.row).flatten(0, 1)[order]
    table = box.new_zeros(len(counts), int(counts.max()) if len(counts) else 0, 4)
    table = table.index_put((lane, place), box + box.new_tensor([0, 0, 1, 1]) if plus_one else box)
    score = kept.score.new_zeros(table.shape[:2]).index_put((lane, place), kept.score.flatten()[order])
    score = _decayed(table, score, iou, least)
    flat = kept.score.new_zeros(images * size).index_put((order,), score[lane, place])
    return _sorted(kept, flat.reshape(images, size))


def _decayed(boxes: Tensor, scores: Tensor, iou: float, least: float) -> Tensor:
    """G lists of n boxes [G, n, 4] with scores [G, n], 0 for padding -> what each scores when it is taken."""
    left, final = scores, torch.zeros_like(scores)
    for _ in range(scores.shape[1]):
        best, index = left.max(1, keepdim=True)  # [G, 1]
        final = final.scatter_reduce(1, index, best, "amax")  # where none is left, what was taken stays
        left = left.scatter(1, index, 0)
        overlap = pairwise_iou(gather_rows(boxes, index), boxes).squeeze(1)
        left = torch.where(overlap > iou, left * (1 - overlap), left)
        left = torch.where(left < least, 0, left)
    return final


def _sorted(kept: Kept, score: Tensor) -> Kept:
    """With these scores [B, K], best first and, of equal ones, in the order of classes, then of boxes."""
    order = kept.row.argsort(dim=1, stable=True)
    order = order.gather(1, kept.label.gather(1, order).argsort(dim=1, stable=True))
    order = order.gather(1, score.gather(1, order).argsort(dim=1, descending=True, stable=True))
    row, label, score = (x.gather(1, order) for x in (kept.row, kept.label, score))
    count = (score > 0).sum(1)
    most = int(count.max()) if len(count) else 0
    return Kept(row[:, :most], label[:, :most], score[:, :most], count, kept.truncated)
