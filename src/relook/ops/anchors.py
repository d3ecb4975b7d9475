"""Anchors: boxes of a few sizes and ratios at every place of a pyramid (Faster R-CNN, arXiv:1506.01497)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from relook.ops.levels import Grid


class Anchors(nn.Module):
    """The same A boxes around every point of a grid, in units of its stride; no weights, no state to save.

    Args:
        ratios: heights over widths.
        scales: sides of the square ones, in strides.
    """

    def __init__(self, ratios: Sequence[float], scales: Sequence[float]) -> None:
        super().__init__()
        halves = [
            (scale / math.sqrt(ratio) / 2, scale * math.sqrt(ratio) / 2)
            for ratio in ratios
            for scale in scales
        ]
        self.boxes = tuple((-w, -h, w, h) for w, h in halves)
        self.count = len(self.boxes)
        self.unit: Tensor  # [A, 4] float32: kept, so that no step copies it to the device
        self.register_buffer("unit", torch.tensor(self.boxes), persistent=False)

    def forward(self, grid: Grid) -> Tensor:
        """P points -> [P * A, 4] pixels, all boxes of a point one after the other."""
        like = grid.points
        exact = like.dtype == torch.float64
        unit = like.new_tensor(self.boxes) if exact else self.unit.to(like.dtype)
        return (like.repeat(1, 2)[:, None] + grid.stride[:, None, None] * unit).flatten(0, 1)
