"""A feature pyramid as one long row of points: levels are concatenated, never iterated."""

from collections.abc import Sequence

import torch
from torch import Tensor

from relook.types import record


@record
class Grid:
    """Where the P points of a pyramid lie, level after level, row after row."""

    points: Tensor  # [P, 2] x, y in pixels
    stride: Tensor  # [P] pixels between neighbours
    level: Tensor  # [P] int64, 0 for the finest
    lengths: tuple[int, ...]  # points per level; sums to P


def grid(features: Sequence[Tensor], strides: Sequence[int], *, offset: float) -> Grid:
    """Points at (column + offset) * stride; offset 0 is the cell's corner, 0.5 its middle."""
    points: list[Tensor] = []
    stride: list[Tensor] = []
    level: list[Tensor] = []
    for i, (x, s) in enumerate(zip(features, strides, strict=True)):
        h, w = x.shape[-2:]
        ys = (torch.arange(h, device=x.device, dtype=x.dtype) + offset) * s
        xs = (torch.arange(w, device=x.device, dtype=x.dtype) + offset) * s
        yx = torch.cartesian_prod(ys, xs)
        points.append(yx.flip(-1))
        stride.append(yx.new_full((h * w,), float(s)))
        level.append(torch.full((h * w,), i, device=x.device))
    return Grid(torch.cat(points), torch.cat(stride), torch.cat(level), tuple(len(p) for p in points))


def join(maps: Sequence[Tensor]) -> Tensor:
    """Level maps [B, C, h, w] -> one tensor [B, P, C]."""
    return torch.cat([x.flatten(2).mT for x in maps], dim=1)


def top_per_level(score: Tensor, lengths: Sequence[int], k: int) -> Tensor:
    """Index [B, N] of the k best points of each level, by score [B, P]; small levels keep all."""
    picks: list[Tensor] = []
    start = 0
    for n in lengths:
        picks.append(start + score[:, start : start + n].topk(min(k, n)).indices)
        start += n
    return torch.cat(picks, dim=1)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows index [B, N] of x [B, P, ...] -> [B, N, ...]."""
    return torch.take_along_dim(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), dim=1)
