"""Patches that move: where a patch lies and how large it is, and what is read there (DPT, arXiv:2107.14467).

Coordinates are parts of the whole map, 0 .. 1 from border to border, so they hold for a map of any size.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def patch_boxes(codes: Tensor, shape: tuple[int, int]) -> Tensor:
    """What the network says of each patch -> where it lies: section 3.2.

    A centre moves by at most one cell; a half side is at most one cell long, and nothing where its code is
    not positive. Boxes are cut at the map's border.

    Args:
        codes: [B, N, 4] x, y, width, height, of a grid of patches row by row.
        shape: (rows, columns) of that grid, N patches together.

    Returns:
        [B, N, 4] x1, y1, x2, y2 in parts of the map.
    """
    rows, columns = shape
    y = (torch.arange(rows, device=codes.device, dtype=codes.dtype) + 0.5) / rows
    x = (torch.arange(columns, device=codes.device, dtype=codes.dtype) + 0.5) / columns
    at_y, at_x = torch.cartesian_prod(y, x).unbind(-1)
    code_x, code_y, code_w, code_h = codes.unbind(-1)
    middle_x, middle_y = at_x + code_x.tanh() / columns, at_y + code_y.tanh() / rows
    half_w, half_h = code_w.tanh().relu() / columns, code_h.tanh().relu() / rows
    corners = [middle_x - half_w, middle_y - half_h, middle_x + half_w, middle_y + half_h]
    return torch.stack(corners, dim=-1).clamp(0, 1)


def patch_points(boxes: Tensor) -> Tensor:
    """Nine points of each box [B, N, 4], edges included -> [B, N, 9, 2] x, y, column by column (dp-02)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    x, y = torch.stack([low, (low + high) / 2, high], dim=-1).unbind(-2)  # [B, N, 3] each
    return torch.stack([x.repeat_interleave(3, dim=-1), y.repeat(1, 1, 3)], dim=-1)


def read_points(x: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of a map [B, C, H, W] at points [B, N, K, 2] -> [B, N, K, C]; zeros beyond the border.

    Points are parts of the map: 0 is the outer edge of the first pixel, 1 that of the last.
    """
    return F.grid_sample(x, 2 * points - 1, align_corners=False).permute(0, 2, 3, 1)
