"""Which of many candidates are trained on: a random choice of fixed size (Faster R-CNN, section 3.1.3)."""

import torch
from torch import Tensor

from relook.types import record


@record
class Sample:
    """S of N candidates, in the order in which they stood."""

    index: Tensor  # [B, S] int64, which candidates
    chosen: Tensor  # [B, S] bool; False fills up where an image has fewer


def balanced_sample(positive: Tensor, negative: Tensor, *, budget: int, fraction: float) -> Sample:
    """At most `budget` candidates an image: positives, at most `fraction` of the budget, then negatives.

    The shape depends on shapes alone, so no device waits: S is `budget`, or N where that is less. A budget so
    large that nothing can be left out draws nothing at random.

    Args:
        positive: [B, N] bool.
        negative: [B, N] bool; what is neither is never chosen.
        budget: per image.
        fraction: of the budget.
    """
    total, most = positive.shape[1], int(budget * fraction)
    if min(budget, most) >= total:
        every = torch.arange(total, device=positive.device).expand_as(positive)
        return Sample(every, positive | negative)
    lot = torch.rand(positive.shape, device=positive.device)
    hit = positive & (_rank(positive, lot) < most)
    rest = budget - hit.sum(1, keepdim=True)
    chosen = hit | (negative & (_rank(negative, lot) < rest))
    front = (~chosen).long().sort(dim=1, stable=True)  # the chosen ones first
    size = min(budget, total)
    return Sample(front.indices[:, :size], front.values[:, :size] == 0)


def _rank(among: Tensor, lot: Tensor) -> Tensor:
    """The place of each candidate when those `among` [B, N] bool are ordered by lot, others last: [B, N]."""
    return torch.where(among, lot, 2).argsort(1).argsort(1)
