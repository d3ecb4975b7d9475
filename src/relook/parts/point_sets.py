"""What RepPoints V1 and V2 share: towers, nine points as channels, and the convolution that looks at them."""

from typing import cast

import torch
from torch import Tensor, nn

from relook.ops.deform_conv import deform_conv2d

POINTS = 9  # a 3 x 3 deformable kernel samples nine places
PRIOR = -4.59512  # bias of a logit whose score starts at 0.01


def tower(width: int, depth: int, groups: int) -> nn.Sequential:
    """3x3 convolutions [B, width, h, w], each with group normalisation (groups 0: a bias) and ReLU."""
    return nn.Sequential(*(conv_norm_relu(width, width, 3, groups) for _ in range(depth)))


def conv_norm_relu(cin: int, cout: int, kernel: int, groups: int) -> nn.Sequential:
    """Convolution that keeps the size, group normalisation (groups 0: a bias instead), ReLU."""
    conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=groups == 0)
    norm = [nn.GroupNorm(groups, cout)] if groups else []
    return nn.Sequential(conv, *norm, nn.ReLU())


def plain_kernel() -> Tensor:
    """Where a plain 3 x 3 kernel looks, as [1, 18, 1, 1] of y, x pairs."""
    side = torch.tensor([-1.0, 0.0, 1.0])
    return torch.cartesian_prod(side, side).reshape(1, -1, 1, 1)


def look(x: Tensor, where: Tensor, conv: nn.Conv2d) -> Tensor:
    """The convolution at its nine taps, each moved by `where` [B, 18, h, w] (y, x pairs, in cells)."""
    return deform_conv2d(x, where, conv.weight, padding=1)


def point_rows(x: Tensor) -> Tensor:
    """[B, P, 18] of y, x pairs (the deformable convolution's order) -> [B, P, 9, 2] of x, y."""
    return x.reshape(*x.shape[:-1], POINTS, 2).flip(-1)


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """x itself, whose gradient is multiplied by scale."""
    return scale * x + (1 - scale) * x.detach()


def start_normal(module: nn.Module, std: float = 0.01) -> None:
    """Every convolution of a module starts normal with zero bias."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def start_rare(conv: nn.Conv2d) -> None:
    """The convolution's logits start where a score is 0.01 (arXiv:1708.02002, section 4.1)."""
    nn.init.constant_(cast("Tensor", conv.bias), PRIOR)
