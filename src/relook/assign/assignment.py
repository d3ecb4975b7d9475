"""The answer of every assigner."""

from torch import Tensor

from relook.ops.levels import take
from relook.types import record
from relook.types import Targets


@record
class Assignment:
    """Which ground truth each of P points stands for."""

    index: Tensor  # [B, P] int64, row of Targets; meaningless where not positive
    positive: Tensor  # [B, P] bool
    ignored: Tensor  # [B, P] bool, neither positive nor negative

    def boxes(self, targets: Targets) -> Tensor:
        return take(targets.boxes, self.index)  # [B, P, 4]

    def labels(self, targets: Targets) -> Tensor:
        return take(targets.labels, self.index)  # [B, P]

    def count(self) -> Tensor:
        """Positives, at least one per image, summed over the batch: the loss normaliser."""
        return self.positive.sum(1).clamp(min=1).sum()
