"""MobileNetV2 (arXiv:1801.04381) from timm; nothing is frozen and statistics are those of the batch."""

from dataclasses import dataclass
from typing import Any, cast

import timm
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class MobileNetV2Config:
    name: str = "mobilenetv2_100"  # timm's name of the architecture; the number is the width in percent
    maps: tuple[int, ...] = (2, 3, 4)  # out of strides 2, 4, 8, 16, 32

    def build(self) -> "MobileNetV2":
        return MobileNetV2(self)


class MobileNetV2(nn.Module):
    """Maps of 32, 96 and 320 channels at strides 8, 16 and 32 (width 100 %)."""

    def __init__(self, config: MobileNetV2Config) -> None:
        super().__init__()
        self.config = config
        body: Any = timm.create_model(  # pyright: ignore[reportUnknownVariableType]
            config.name, features_only=True, out_indices=config.maps
        )
        self.channels: tuple[int, ...] = tuple(body.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(body.feature_info.reduction())
        self.body = cast("nn.Module", body)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.body(images)
