"""Where objects are and how large: the first stage of CenterNet2 (arXiv:2103.07461, section 5).

Every object is a peak on the map of likelihood; the cells around its centre, on the levels of its size, tell
how far its four sides are.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import torch
from torch import Tensor

from relook.assign.assignment import Assignment
from relook.ops import boxes as B
from relook.ops.levels import Grid
from relook.types import Targets, record

FAINT: Final = 1e-4  # heat below this is none


@record
class CenterTargets:
    """What every point should know of centres, and which points tell boxes."""

    heat: Tensor  # [B, P] how near the centre of an object is, 0 .. 1
    row: Tensor  # [B, M * L] int64, the point at the centre of each object on each level ...
    positive: Tensor  # [B, M * L] bool, ... and whether the object belongs to that level
    region: Assignment  # the points around centres and the objects whose sides they tell


def center_targets(
    grid: Grid,
    targets: Targets,
    *,
    strides: Sequence[int],
    size_from: Sequence[float],
    size_to: Sequence[float],
    overlap: float,
    radius: float,
) -> CenterTargets:
    """Heat is drawn on every level, positives only on those of an object's size (docs/quirks.md, cn-06).

    Of two objects that want one point the one whose centre is nearer, in units of its radius, has it; the
    first at equal distance.

    Args:
        grid: P points, in the middle of their cells.
        targets: ground truth.
        strides: of the L levels, in pixels.
        size_from: half diagonals in pixels from which an object belongs to a level, which may be several ...
        size_to: ... and up to which, both inclusive.
        overlap: the IoU that decides how far heat reaches.
        radius: in pixels, that it reaches at least.
    """
    middle, wh = B.center(targets.boxes), B.size(targets.boxes)
    half = wh.square().sum(-1).sqrt() / 2  # [B, M]
    bounds = zip(size_from, size_to, strict=True)
    level = torch.stack([(low <= half) & (half <= high) for low, high in bounds], -1)
    level &= targets.valid[..., None]  # [B, M, L]
    delta = (1 - overlap) / (1 + overlap)
    reach = (2 * delta**2 * wh.prod(-1)).clamp(min=radius**2)  # [B, M] squared radius

    centers: list[Tensor] = []  # of each level: [B, M]
    rows: list[Tensor] = []  # [B, M, 9]
    distances: list[Tensor] = []  # [B, M, 9] infinite where the point does not tell the box
    starts = accumulate(grid.lengths, initial=0)
    for i, ((h, w), stride, start) in enumerate(zip(grid.shapes, strides, starts, strict=False)):
        cell, near = _around(middle, stride, h, w)
        points = (near + 0.5) * stride  # [B, M, 9, 2]
        distance = (points - middle[..., None, :]).square().sum(-1) / reach[..., None]
        distance[..., 4] = 0  # at the centre's own cell: docs/quirks.md, cn-07
        low, high = targets.boxes[..., None, :2], targets.boxes[..., None, 2:]
        tells = ((points > low) & (points < high)).all(-1) & level[..., i, None]
        y, x = near[..., 1], near[..., 0]
        tells &= (y >= 0) & (y < h) & (x >= 0) & (x < w)
        centers.append(start + cell[..., 1] * w + cell[..., 0])
        rows.append(start + y.clamp(0, h - 1) * w + x.clamp(0, w - 1))
        distances.append(torch.where(tells, distance, torch.inf))
    row = torch.stack(centers, -1)  # [B, M, L]
    return CenterTargets(
        heat=_heat(grid, targets, middle, reach, row),
        row=row.flatten(1),
        positive=level.flatten(1),
        region=_region(torch.cat(rows, -1), torch.cat(distances, -1), len(grid.points)),
    )


def _around(middle: Tensor, stride: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Centres [B, M, 2] -> x, y of their cell on a map [B, M, 2], and of the nine around it [B, M, 9, 2]."""
    cell = (middle / stride).long()
    x, y = cell[..., 0].clamp(0, w - 1), cell[..., 1].clamp(0, h - 1)  # a centre may lie on the far border
    cell = torch.stack([x, y], -1)
    nine = torch.arange(9, device=cell.device)
    return cell, cell[..., None, :] + torch.stack([nine % 3 - 1, nine // 3 - 1], -1)


def _heat(grid: Grid, targets: Targets, middle: Tensor, reach: Tensor, row: Tensor) -> Tensor:
    """[B, P] how near the nearest centre is, in units of its radius: exactly 1 in its cell on every level."""
    square = (grid.points[:, 0] - middle[..., :1]).square_()  # [B, M, P], the largest table: reused in place
    square.add_((grid.points[:, 1] - middle[..., 1:]).square_()).div_(reach[..., None])
    square.scatter_(-1, row, 0).masked_fill_(~targets.valid[..., None], torch.inf)
    heat = (-square.amin(1)).exp()
    return torch.where(heat < FAINT, 0, heat)


def _region(rows: Tensor, distances: Tensor, points: int) -> Assignment:
    """Candidates [B, M, n], points and distances -> each point's nearest object, the first of equal ones."""
    images, objects, each = rows.shape
    order = torch.arange(objects, device=rows.device).repeat_interleave(each).expand(images, -1)
    rows, distances = rows.flatten(1), distances.flatten(1)
    nearest = distances.new_full((images, points), torch.inf).scatter_reduce(1, rows, distances, "amin")
    wins = distances.isfinite() & (distances == nearest.gather(1, rows))
    index = torch.full_like(nearest, objects, dtype=torch.int64)
    index = index.scatter_reduce(1, rows, torch.where(wins, order, objects), "amin")
    positive = index < objects
    return Assignment(index.clamp(max=objects - 1), positive, torch.zeros_like(positive))
