"""What every backbone is: image -> feature maps, finest first."""

from typing import Protocol

from torch import Tensor, nn


class Backbone(Protocol):
    """A module with maps of `channels` at `strides`, finest first."""

    @property
    def channels(self) -> tuple[int, ...]: ...  # per returned map

    @property
    def strides(self) -> tuple[int, ...]: ...  # pixels per cell, per returned map

    def __call__(self, images: Tensor) -> list[Tensor]: ...  # [B, 3, H, W] -> maps [B, C_i, H / s_i, W / s_i]


class BackboneConfig(Protocol):
    """Settings, a frozen dataclass, that make a backbone with random weights."""

    def build(self) -> nn.Module: ...
