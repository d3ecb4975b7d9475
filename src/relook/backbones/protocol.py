"""What every backbone is: image -> feature maps, finest first."""

from collections.abc import Mapping
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
    """Settings, a frozen dataclass, that make a backbone with random weights and know its ImageNet files."""

    def build(self) -> nn.Module: ...

    def file_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of an ImageNet file by our parameters' names, in our shapes."""
        ...

    def starts_anew(self, name: str) -> bool:
        """Whether no ImageNet file has that parameter of ours."""
        ...
