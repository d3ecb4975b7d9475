"""A feature pyramid as one long row of points: levels are concatenated once, never iterated again."""

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
    shapes: tuple[tuple[int, int], ...]  # (rows, columns) of each level
    lengths: tuple[int, ...]  # points of each level; they sum to P


def grid(features: Sequence[Tensor], strides: Sequence[int], *, offset: float) -> Grid:
    """Points at (column + offset) * stride; offset 0 is the cell's corner, 0.5 its middle.

    Coordinates are at least float32, whatever the features are: bfloat16 cannot count to 300.
    """
    points: list[Tensor] = []
    stride: list[Tensor] = []
    level: list[Tensor] = []
    for i, (x, s) in enumerate(zip(features, strides, strict=True)):
        h, w = x.shape[-2:]
        dtype = torch.promote_types(x.dtype, torch.float32)
        ys = (torch.arange(h, device=x.device, dtype=dtype) + offset) * s
        xs = (torch.arange(w, device=x.device, dtype=dtype) + offset) * s
        points.append(torch.cartesian_prod(ys, xs).flip(-1))
        stride.append(torch.full((h * w,), float(s), device=x.device, dtype=dtype))
        level.append(torch.full((h * w,), i, device=x.device))
    shapes = tuple((x.shape[-2], x.shape[-1]) for x in features)
    lengths = tuple(h * w for h, w in shapes)
    return Grid(torch.cat(points), torch.cat(stride), torch.cat(level), shapes, lengths)


def join(maps: Sequence[Tensor]) -> Tensor:
    """Level maps [B, C, h, w] -> one tensor [B, P, C]."""
    return torch.cat([x.flatten(2).mT for x in maps], dim=1)


def inside(points: Tensor, sizes: Tensor, *, multiple: int) -> Tensor:
    """Points [P, 2] that lie in an image of sizes [B, 2] (h, w) rounded up to `multiple` -> [B, P] bool.

    A batch is padded to its largest image; what lies beyond an image's own padding is not its own.
    """
    padded = ((sizes + multiple - 1) // multiple * multiple).flip(-1)  # [B, 2] w, h
    return (points < padded[:, None].to(points.dtype)).all(-1)


def top_per_level(score: Tensor, lengths: Sequence[int], k: int, *, largest: bool = True) -> Tensor:
    """Index [..., N] of the k best of each level, by score [..., P], best first; small levels keep all."""
    picks: list[Tensor] = []
    start = 0
    for n in lengths:
        picks.append(start + score[..., start : start + n].topk(min(k, n), largest=largest).indices)
        start += n
    return torch.cat(picks, dim=-1)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows index [B, N] of x [B, P, ...] -> [B, N, ...]."""
    # gather and expand, not take_along_dim: a compiled graph of that holds for one number of rows alone
    wide = index.reshape(*index.shape, *[1] * (x.ndim - 2))
    return x.gather(1, wide.expand(*index.shape, *x.shape[2:]))


def whole_log2(x: Tensor) -> Tensor:
    """log2 of [...] floats, made whole where it is a whole number but for rounding.

    A device need not give log2(8) as exactly 3: CUDA's double log2 may be one unit in the last place off.
    What is compared with a level, or rounded down to one, must not depend on that.
    """
    return snap(x.log2())


def snap(x: Tensor) -> Tensor:
    """[...] floats, each made whole where it is within four units in the last place of a whole number."""
    whole = x.round()
    near = (x - whole).abs() <= 4 * torch.finfo(x.dtype).eps * whole.abs().clamp(min=1)
    return torch.where(near, whole, x)
