"""Which of many candidates are trained on: a random choice of fixed size (Faster R-CNN, section 3.1.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from relook.ops.lowering import in_graph
from relook.types import record


@dataclass(frozen=True, slots=True)
class Budget:
    """How many of an image's candidates are trained on, and how many of them may be positive."""

    count: int
    fraction: float  # of the count


@record
class Sample:
    """S of N candidates, in the order in which they stood."""

    index: Tensor  # [B, S] int64, which candidates
    chosen: Tensor  # [B, S] bool; False fills up where an image has fewer


def balanced_sample(positive: Tensor, negative: Tensor, budget: Budget) -> Sample:
    """As many candidates of each image as the budget says: positives, as far as it goes, then negatives.

    The shape depends on shapes alone, so no device waits: S is the budget's count, or N where that is less. A
    budget so large that nothing can be left out draws nothing at random.

    Args:
        positive: [B, N] bool.
        negative: [B, N] bool; what is neither is never chosen.
        budget: of each image.
    """
    total, most = positive.shape[1], int(budget.count * budget.fraction)
    most = max(most, 1) if budget.fraction > 0 else 0
    if min(budget.count, most) >= total:
        every = torch.arange(total, device=positive.device).expand_as(positive)
        return Sample(every, positive | negative)
    lot = torch.rand(positive.shape, device=positive.device)
    hit = positive & (_rank(positive, lot) < most)
    rest = budget.count - hit.sum(1, keepdim=True)
    chosen = hit | (negative & (_rank(negative, lot) < rest))
    front = (~chosen).long().sort(dim=1, stable=True)  # the chosen ones first
    size = min(budget.count, total)
    return Sample(front.indices[:, :size], front.values[:, :size] == 0)


def chosen_first(chosen: Tensor, most: int) -> Sample:
    """Those that are chosen [B, N] bool, in their order, as many as the image with the most has.

    In compiled and exported graphs, whose shapes are fixed, and where an image has more, `most`. Otherwise
    the host waits for the number, since what is computed for each costs more.
    """
    front = (~chosen).long().sort(dim=1, stable=True)
    size = min(most, chosen.shape[1])
    if not in_graph():
        size = max(1, min(size, int(chosen.sum(1).max())))
    return Sample(front.indices[:, :size], front.values[:, :size] == 0)


def hardest(error: Tensor, count: Tensor) -> Tensor:
    """The `count` [B] candidates of each image with the largest error [B, N], but never all: [B, N] bool.

    Hard negative mining (SSD, arXiv:1512.02325, section 2.2). Equal errors are taken in their order.
    """
    order = error.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(error.shape[1], device=error.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    return rank < count.clamp(max=error.shape[1] - 1)[:, None]


def _rank(among: Tensor, lot: Tensor) -> Tensor:
    """The place of each candidate when those `among` [B, N] bool are ordered by lot, others last: [B, N]."""
    return torch.where(among, lot, 2).argsort(1).argsort(1)
