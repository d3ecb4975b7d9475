"""The answer of every assigner."""

from torch import Tensor

from relook.ops.levels import gather_rows
from relook.types import Targets, record


@record
class Assignment:
    """Which ground truth each of P points stands for; every other point is negative."""

    index: Tensor  # [B, P] int64, row of Targets; meaningless where not positive
    positive: Tensor  # [B, P] bool
    ignored: Tensor  # [B, P] bool, neither positive nor negative

    def boxes(self, targets: Targets) -> Tensor:
        """[B, P, 4] each point's ground-truth box."""
        return gather_rows(targets.boxes, self.index)

    def labels(self, targets: Targets) -> Tensor:
        """[B, P] each point's ground-truth class."""
        return gather_rows(targets.labels, self.index)

    def count(self) -> Tensor:
        """Positives, at least one per image, summed over the batch: the loss normaliser."""
        return self.positive.sum(1).clamp(min=1).sum()
