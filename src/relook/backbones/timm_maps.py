"""Any backbone of timm that gives feature maps; nothing is frozen, statistics are those of the batch.

MobileNetV2 (arXiv:1801.04381), as published with RepPoints, is timm's `mobilenetv2_100`.
"""

from dataclasses import dataclass
from typing import Any, cast

import timm
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmMapsConfig:
    name: str  # timm's name of the architecture: mobilenetv2_100, regnetx_002 ...
    strides: tuple[int, ...] = (8, 16, 32)  # of the maps that are returned

    def build(self) -> "TimmMaps":
        return TimmMaps(self)


class TimmMaps(nn.Module):
    """Maps at the chosen strides, finest first.

    Raises:
        ValueError: when the architecture has no map at one of the strides.
    """

    def __init__(self, config: TimmMapsConfig) -> None:
        super().__init__()
        self.config, self.strides = config, config.strides
        every: Any = timm.create_model(config.name, features_only=True)  # pyright: ignore[reportUnknownVariableType]
        offered: list[int] = list(every.feature_info.reduction())
        if missing := [s for s in config.strides if s not in offered]:
            raise ValueError(f"{config.name} has maps at strides {offered}, none at {missing[0]}")
        indices = [offered.index(s) for s in config.strides]
        body: Any = timm.create_model(  # pyright: ignore[reportUnknownVariableType]
            config.name, features_only=True, out_indices=indices
        )
        self.channels: tuple[int, ...] = tuple(body.feature_info.channels())
        self.body = cast("nn.Module", body)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.body(images)
