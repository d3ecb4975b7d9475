"""Feature Pyramid Network (arXiv:1612.03144) with extra coarse levels (arXiv:1708.02002, RetinaNet)."""

from collections.abc import Sequence
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F


class FPN(nn.Module):
    """Maps of `channels` in, finest first -> len(channels) + extra maps of `width` channels out.

    Args:
        channels: of the incoming maps.
        width: of every outgoing map.
        extra: how many coarser levels follow, each half as large as the one before.
        source: of the first extra level: the coarsest incoming map, or the coarsest outgoing one.
        norm_groups: of the group normalisation behind every convolution; 0: a bias and no norm.
        relu_before_extra: a ReLU between one extra level and the next (RetinaNet has it, RepPoints not).
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        *,
        extra: int,
        source: Literal["input", "output"],
        norm_groups: int,
        relu_before_extra: bool,
    ) -> None:
        super().__init__()
        self.source, self.relu_before_extra = source, relu_before_extra
        self.lateral = nn.ModuleList(_conv(c, width, 1, norm_groups) for c in channels)
        self.smooth = nn.ModuleList(_conv(width, width, 3, norm_groups) for _ in channels)
        first = channels[-1] if source == "input" else width
        inputs = [first, *[width] * (extra - 1)][:extra]
        self.extra = nn.ModuleList(_conv(c, width, 3, norm_groups, stride=2) for c in inputs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, C_i, h_i, w_i] -> pyramid [B, width, h_j, w_j], finest first."""
        merged = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for i in reversed(range(len(merged) - 1)):
            # published: nearest neighbour to the finer map's exact size, also where it is odd
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest")
        out: list[Tensor] = [smooth(x) for smooth, x in zip(self.smooth, merged, strict=True)]
        x = maps[-1] if self.source == "input" else out[-1]
        for i, conv in enumerate(self.extra):
            x = conv(F.relu(x) if i and self.relu_before_extra else x)
            out.append(x)
        return out


def _conv(cin: int, cout: int, kernel: int, groups: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution and norm, without activation (docs/quirks.md, rp-15), Xavier-uniform as published."""
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=groups == 0)
    nn.init.xavier_uniform_(conv.weight)
    if groups == 0:
        nn.init.zeros_(cast("Tensor", conv.bias))
        return nn.Sequential(conv)
    return nn.Sequential(conv, nn.GroupNorm(groups, cout))
