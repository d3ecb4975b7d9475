"""What SSD and RefineDet make of a backbone: scaled maps, coarser levels (arXiv:1512.02325, section 2.1).

Small constants are made on the device: a list copied there would make every training step wait.
"""

import torch
from torch import Tensor, nn

from relook.backbones.resnet import bottleneck
from relook.parts.point_sets import init_kaiming
from relook.types import to_float32


def anchor_shapes(like: Tensor) -> Tensor:
    """Width and height of a square, a wide and a tall box of area 1, sides 1 : 2: [3, 2]."""
    long, short = 2**0.5, 0.5**0.5
    sides = (1.0, 1.0, long, short, short, long)
    return torch.stack([like.new_full((), side) for side in sides]).reshape(3, 2)


def taps(like: Tensor) -> Tensor:
    """Where a plain 3 x 3 kernel reads, in cells: [9, 2] x, y, row by row."""
    side = torch.arange(-1, 2, dtype=like.dtype, device=like.device)
    return torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).reshape(9, 2)


def at_most(pairs: Tensor, size: tuple[int, int]) -> Tensor:
    """Pairs [..., 2] of x and y, each held at or below `size`."""
    return torch.stack([pairs[..., i].clamp(max=side) for i, side in enumerate(size)], -1)


class L2Norm(nn.Module):
    """Every cell [B, C, h, w] has one length, then each channel a learnt scale (ParseNet, 1506.04579)."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        exact = to_float32(x)
        square = exact.square().sum(1, keepdim=True)
        length = torch.where(
            square > 0, square, 1
        ).sqrt()  # a cell of zeros stays so, and its gradient finite
        return (exact / (length + 1e-10) * self.weight[:, None, None]).to(x.dtype)


def extra_convs(channels: int, width: int, *, norm: bool) -> nn.Sequential:
    """A coarser level as VGG has it: a 1x1 convolution, then a 3x3 one with stride 2.

    Args:
        channels: of the map before.
        width: of the new one.
        norm: batch normalisation behind each convolution.
    """
    parts: list[nn.Module] = []
    for cin, cout, kernel, stride in ((channels, width // 2, 1, 1), (width // 2, width, 3, 2)):
        parts.append(nn.Conv2d(cin, cout, kernel, stride, kernel // 2))
        parts.extend([nn.BatchNorm2d(cout)] if norm else [])
        parts.append(nn.ReLU())
    made = nn.Sequential(*parts)
    init_xavier(made)
    return made


def extra_bottleneck(channels: int, width: int, *, groups: int) -> nn.Module:
    """A coarser level as ResNet and ResNeXt (groups 32) have it.

    While the backbone keeps its statistics, these are the batch's (docs/quirks.md, rd-11).
    """
    made = bottleneck(channels, width, groups=groups)
    init_kaiming(made)
    return made


def init_xavier(module: nn.Module) -> None:
    """Every convolution of a module starts Xavier-uniform with zero bias."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
