"""Suppression with caps for each class, as SSD and RefineDet test (arXiv:1512.02325)."""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from relook.ops.lowering import in_graph
from relook.ops.nms import COMPILED, TOGETHER, Kept, class_nms, class_pairs, grouped_nms, kept_boxes


def per_class_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    score: float,
    iou: float,
    top: int,
    keep: int,
    plus_one: bool = False,
) -> Kept:
    """Suppression with caps for each class rather than for the image, as SSD and RefineDet test.

    Of each class the `top` best that score more than `score` are suppressed, and `keep` of the survivors
    stay. Memory grows with what passes the threshold, not with boxes times classes. A batch waits a few
    times for the device - how many pass, how many are looked at, how many the fullest image has - and once
    for every 20,000 boxes that are compared.

    Args:
        boxes: [B, N, 4] pixels, within +-2 ** 22.
        scores: [B, N, C].
        score: candidates must score more than this.
        iou: a box goes when it overlaps a better one of its class by more than this.
        top: candidates of each class before suppression.
        keep: of each class after suppression.
        plus_one: sides count the last pixel, x2 - x1 + 1, when overlaps are measured.

    Returns:
        All classes together, best first; K is the number of the image with the most. Equal scores are in the
        order of classes, then of boxes. In compiled and exported graphs the COMPILED best of all classes are
        looked at, whatever their class.
    """
    if in_graph():  # whose shapes are fixed: no caps, and the best of all classes
        compared = boxes + boxes.new_tensor([0, 0, 1, 1]) if plus_one else boxes
        pairs = class_pairs(scores.double())
        most = min(keep * scores.shape[2], pairs[0].shape[1], COMPILED)
        # in float64, so that classes lie apart without rounding
        kept = class_nms(compared.double(), pairs, score=score, iou=iou, keep=most)
        return replace(kept, score=kept.score.to(scores.dtype))
    images, _, classes = scores.shape
    image, label, row = (scores > score).permute(0, 2, 1).nonzero().unbind(1)  # sorted by image, class, row
    group = image * classes + label
    value = scores[image, row, label]
    order = value.sort(descending=True, stable=True).indices
    order = order[group[order].sort(stable=True).indices]  # by group, best first within each
    group, row, value = group[order], row[order], value[order]
    found = boxes[group // classes, row]
    if plus_one:
        found = found + found.new_tensor([0, 0, 1, 1])
    candidate = _rank(group) < top
    group, row, value, found = (x[candidate] for x in (group, row, value, found))
    survives = _grouped(found, value, group, iou)
    stays = survives & (_rank_among(survives, group) < keep)
    return _padded(group // classes, group % classes, row, torch.where(stays, value, 0), stays, images)


def _grouped(boxes: Tensor, scores: Tensor, group: Tensor, iou: float) -> Tensor:
    """`grouped_nms` of sorted groups; on CPUs, where nothing waits, group by group, which compares less.

    On GPUs as many groups together as one call can compare in little memory.
    """
    if not len(boxes):
        return torch.zeros_like(scores, dtype=torch.bool)
    sizes = cast("list[int]", torch.unique_consecutive(group, return_counts=True)[1].tolist())
    if boxes.is_cuda:
        sizes = together(sizes, TOGETHER)
        b, s, g = (torch.split(x, sizes) for x in (boxes, scores, group))
        # counted anew in each part, so that boxes are moved apart no further than needed
        return torch.cat([grouped_nms(b[i], s[i], g[i] - g[i][0], iou) for i in range(len(sizes))])
    parts = zip(torch.split(boxes, sizes), torch.split(scores, sizes), strict=True)
    return torch.cat([kept_boxes(*part, iou) for part in parts])


def together(sizes: list[int], most: int) -> list[int]:
    """Neighbouring sizes added up, as far as the sums stay at or below `most`."""
    sums = [0]
    for size in sizes:
        if sums[-1] and sums[-1] + size > most:
            sums.append(0)
        sums[-1] += size
    return sums


def _rank(group: Tensor) -> Tensor:
    """The place of each row within its group, counted from 0; equal groups lie together: [N] -> [N]."""
    place = torch.arange(len(group), device=group.device)
    first = torch.ones_like(group, dtype=torch.bool)
    first[1:] = group[1:] != group[:-1]
    return place - torch.where(first, place, 0).cummax(0).values


def _rank_among(chosen: Tensor, group: Tensor) -> Tensor:
    """How many chosen ones [N] bool come before each row within its group: [N]."""
    before = chosen.long().cumsum(0) - chosen.long()
    first = torch.ones_like(group, dtype=torch.bool)
    first[1:] = group[1:] != group[:-1]
    return before - torch.where(first, before, 0).cummax(0).values


def _padded(image: Tensor, label: Tensor, row: Tensor, score: Tensor, stays: Tensor, images: int) -> Kept:
    """Rows of all images -> those that stay, best first within each image, padded to the most."""
    order = score.sort(descending=True, stable=True).indices
    order = order[image[order].sort(stable=True).indices]
    image, stays = image[order], stays[order]
    count = torch.zeros(images, dtype=torch.int64, device=image.device).scatter_add(0, image, stays.long())
    most = int(count.max()) if images else 0
    place = torch.where(stays, _rank(image), most)  # those that go lie behind all that stay: one column more

    def spread(values: Tensor) -> Tensor:
        wide = values.new_zeros(images, most + 1).index_put((image, place), values[order])
        return wide[:, :most]

    return Kept(spread(row), spread(label), spread(score), count, torch.zeros_like(count, dtype=torch.bool))
