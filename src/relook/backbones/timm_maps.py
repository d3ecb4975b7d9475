"""Any backbone of timm that gives feature maps; nothing is frozen, statistics are those of the batch.

MobileNetV2 (arXiv:1801.04381), as published with RepPoints, is timm's `mobilenetv2_100`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import timm
from torch import Tensor, nn

from relook.backbones import known
from relook.renaming import Rules, in_our_names

MOBILENET_RULES: Rules = (  # tonylins/pytorch-mobilenet-v2 -> timm
    (r"features\.0\.0\.(.*)", r"body.conv_stem.\1"),
    (r"features\.0\.1\.(.*)", r"body.bn1.\1"),
    (r"features\.1\.conv\.0\.(.*)", r"body.blocks.0.0.conv_dw.\1"),
    (r"features\.1\.conv\.1\.(.*)", r"body.blocks.0.0.bn1.\1"),
    (r"features\.1\.conv\.3\.(.*)", r"body.blocks.0.0.conv_pw.\1"),
    (r"features\.1\.conv\.4\.(.*)", r"body.blocks.0.0.bn2.\1"),
    *(
        (rf"features\.{i}\.conv\.{j}\.(.*)", rf"body.blocks.{stage}.{block}.{name}.\1")
        for i, (stage, block) in enumerate(
            (
                (stage, block)
                for stage, depth in enumerate((2, 3, 4, 3, 3, 1), start=1)
                for block in range(depth)
            ),
            start=2,
        )
        for j, name in ((0, "conv_pw"), (1, "bn1"), (3, "conv_dw"), (4, "bn2"), (6, "conv_pwl"), (7, "bn3"))
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimmMapsConfig:
    """Settings of any convolutional network of timm."""

    name: str  # timm's name of the architecture: mobilenetv2_100, regnetx_002 ...
    strides: tuple[int, ...] = (8, 16, 32)  # of the maps that are returned

    def build(self) -> "TimmMaps":
        return TimmMaps(self)

    def file_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of timm's files, or of tonylins' MobileNetV2, by our parameters' names."""
        return in_our_names(state, (*MOBILENET_RULES, (r"(.*)", r"body.\1")))

    def starts_anew(self, name: str) -> bool:  # noqa: ARG002 (every backbone is asked)
        """Every parameter has ImageNet weights."""
        return False


class TimmMaps(nn.Module):
    """Maps at the chosen strides, finest first.

    Raises:
        ValueError: when the architecture has no map at one of the strides.
    """

    def __init__(self, config: TimmMapsConfig) -> None:
        super().__init__()
        self.config, self.strides = config, config.strides
        known(config.name)
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
        """Images [B, 3, H, W] -> maps [B, C, h, w], finest first."""
        return self.body(images)
