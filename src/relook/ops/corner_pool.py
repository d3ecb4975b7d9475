"""Corner pooling (CornerNet, arXiv:1808.01244, section 3.3): the largest value towards one border."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from relook.ops.lowering import exporting

Direction = Literal["top", "bottom", "left", "right"]


def corner_pool(x: Tensor, direction: Direction) -> Tensor:
    """The maximum over each cell and all cells on one side of it: [..., h, w] -> [..., h, w].

    top: over a cell and those below it, so that the maximum travels to the top; bottom: those above; left:
    those to its right; right: those to its left. Of equal values the one nearest to the cell gets the
    gradient.
    """
    if exporting():  # ONNX knows no running maximum
        return by_doubling(x, direction)
    dim = -2 if direction in ("top", "bottom") else -1
    if direction in ("top", "left"):
        return x.flip(dim).cummax(dim).values.flip(dim)
    return x.cummax(dim).values


def by_doubling(x: Tensor, direction: Direction) -> Tensor:
    """The same with operators that every exporter knows; slower, so for exported graphs alone.

    The window grows to 2, 4, 8, ... cells: log2(side) comparisons of whole maps, not one for each row.
    """
    side = x.shape[-2 if direction in ("top", "bottom") else -1]
    low, step = torch.finfo(x.dtype).min, 1
    while step < side:
        move = {  # what leaves at one border enters at the other as the lowest value there is
            "top": [0, 0, -step, step],
            "bottom": [0, 0, step, -step],
            "left": [-step, step],
            "right": [step, -step],
        }
        ahead = F.pad(x, move[direction], value=low)
        x = torch.where(ahead > x, ahead, x)
        step *= 2
    return x
