"""What can be verified at a point: RepPoints V2 (arXiv:2007.08508), section 4.1. Are corners near, and which
classes cover the ground?
"""

from itertools import accumulate

import torch
from torch import Tensor

from relook.ops import boxes as B
from relook.ops.levels import Grid, gather_rows
from relook.types import Targets, record

CELL = 8  # pixels of a cell of the map of classes, which every level resamples


@record
class Corners:
    """What every point should know of corners; the two kinds are top left and bottom right."""

    heat: Tensor  # [B, P, 2] how near a corner of each kind is, 0 .. 1
    positive: Tensor  # [B, P, 2] bool, heat is 1
    offset: Tensor  # [B, P, 2, 2] from the point to its corner as x, y in strides; meaningless elsewhere


def corners(grid: Grid, valid: Tensor, targets: Targets, *, overlap: float) -> Corners:
    """Every corner is a target on every level (docs/quirks.md, rp-10).

    Around it the heat falls like a Gaussian until a box drawn from there to the other corner overlaps too
    little. On each level the nearest valid point is 1, however far; where several boxes share it, the last
    of them in the order of annotation gives the offset.

    Args:
        grid: P points.
        valid: [B, P] bool; the others stay 0.
        targets: ground truth.
        overlap: the IoU that decides how far the heat reaches.
    """
    reach = gaussian_radius(B.size(targets.boxes), overlap)[..., None]  # [B, M, 1] pixels
    order = torch.arange(1, reach.shape[1] + 1, device=reach.device)
    order = torch.where(targets.valid, order, 0)[..., None].expand(-1, -1, len(grid.shapes))
    starts = list(accumulate(grid.lengths, initial=0))[:-1]
    heats: list[Tensor] = []
    owners: list[Tensor] = []
    offsets: list[Tensor] = []
    for corner in (targets.boxes[..., :2], targets.boxes[..., 2:]):
        away = grid.points[:, 0] - corner[..., :1]  # [B, M, P], the largest tables there are: reused in place
        square = away.square_().add_((grid.points[:, 1] - corner[..., 1:]).square_())
        square = square.masked_fill_(~(valid[:, None] & targets.valid[..., None]), torch.inf)
        # the last of several boxes: the largest number, counted from 1; 0 is nobody's
        levels = zip(starts, torch.split(square, list(grid.lengths), -1), strict=True)
        nearest = torch.stack([start + level.argmin(-1) for start, level in levels], -1)  # [B, M, L]
        owner = torch.zeros_like(valid, dtype=torch.int64)
        owner = owner.scatter_reduce(1, nearest.flatten(1), order.flatten(1), "amax")
        near = square < reach.square()
        heat = square.div_(-2 * ((2 * reach + 1) / 6).square()).exp_().masked_fill_(~near, 0).amax(1)
        heats.append(torch.where(owner > 0, 1, heat))
        owners.append(owner)
        offsets.append((gather_rows(corner, (owner - 1).clamp(min=0)) - grid.points) / grid.stride[:, None])
    return Corners(torch.stack(heats, -1), torch.stack(owners, -1) > 0, torch.stack(offsets, 2))


def gaussian_radius(wh: Tensor, overlap: float) -> Tensor:
    """[..., 2] -> [...]: how far a corner may move so that the box still overlaps its old self by `overlap`.

    The least of three: one corner moves in and the other out, both move in, both move out.
    """
    o, total, area = overlap, wh.sum(-1), wh.prod(-1)
    along = (total - (total**2 - 4 * area * (1 - o) / (1 + o)).sqrt()) / 2
    inwards = (2 * total - (4 * total**2 - 16 * (1 - o) * area).sqrt()) / 8
    outwards = (-2 * o * total + (4 * o**2 * total**2 + 16 * o * (1 - o) * area).sqrt()) / (8 * o)
    return torch.minimum(torch.minimum(along, inwards), outwards)


def semantic(grid: Grid, targets: Targets, *, classes: int, multiple: int) -> Tensor:
    """[B, P, C] one over the area in pixels of the smallest box of that class that covers the point, or 0.

    The published code draws the boxes of an image into one map at an eighth of its size, the last row and
    column of a box included, and every level takes its nearest cells from it. Here each point looks at the
    cell it would have taken; nothing is drawn.

    Args:
        grid: P points; the first level's cells have 8 pixels.
        targets: ground truth.
        classes: C.
        multiple: an image's own map ends where its size, rounded up to this, ends.
    """
    (h, w), device = grid.shapes[0], grid.points.device
    cells: list[Tensor] = []  # of each level [h * w, 2] y, x
    for rows, columns in grid.shapes:
        y, x = torch.arange(rows, device=device), torch.arange(columns, device=device)
        cells.append(torch.cartesian_prod(y * h // rows, x * w // columns))
    cell = torch.cat(cells).flip(-1)  # [P, 2] x, y
    low, high = (targets.boxes / CELL).long()[:, :, None].chunk(2, -1)  # [B, M, 1, 2]
    own = ((targets.sizes + multiple - 1) // multiple * multiple // CELL).flip(-1)  # [B, 2] w, h
    inside = ((cell >= low) & (cell <= high)).all(-1)  # [B, M, P]
    inside &= (cell < own[:, None]).all(-1)[:, None] & targets.valid[..., None]
    # a box without area weighs much rather than infinitely
    weight = 1 / B.area(targets.boxes).clamp(min=1e-6)
    table = weight.new_zeros(len(weight), classes, len(cell))
    label = targets.labels[..., None].expand_as(inside)
    return table.scatter_reduce(1, label, weight[..., None] * inside, "amax").mT
