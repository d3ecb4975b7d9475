"""ResNet and ResNeXt (arXiv:1512.03385, 1611.05431) from timm, with frozen parts and deformable stages.

What detectors add to timm's network: a frozen stem and first stages, batch normalisation that keeps its
ImageNet statistics, and 3x3 convolutions that become deformable (arXiv:1703.06211, v2: 1811.11168).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import timm
from timm.models.resnet import (
    Bottleneck,
    downsample_conv,  # pyright: ignore[reportUnknownVariableType]
)
from torch import Tensor, nn

from relook.backbones import known
from relook.ops.deform_conv import deform_conv2d


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetConfig:
    """Settings of a ResNet from timm."""

    name: str = "resnet50"  # timm's name of the architecture: resnet101, resnext101_64x4d, resnet10t ...
    blocks: tuple[int, ...] = ()  # of each stage, for depths without a name of their own; (): as named
    maps: tuple[int, ...] = (2, 3, 4)  # stages whose output is returned; stage i has stride 2 ** (i + 1)
    frozen: int = 2  # parts without training: 1 the stem, 2 also stage 1, 3 also stage 2 ...; 0 none
    freeze_statistics: bool = True  # batch normalisation uses its running statistics in training too
    frozen_norms: bool = False  # and its weights and biases are constants (detectron2's FrozenBN)
    caffe_stride: bool = False  # strides are in the first 1x1 convolutions, not in the 3x3 (MSRA weights)
    deformable: tuple[int, ...] = ()  # stages whose 3x3 convolutions are deformable
    modulated: bool = False  # deformable with a mask (v2)

    def build(self) -> "ResNet":
        return ResNet(self)

    def file_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of torchvision's or timm's files by our parameters' names."""
        return {f"body.{key}": value for key, value in state.items()}

    def starts_anew(self, name: str) -> bool:
        """Offsets of deformable convolutions have no ImageNet weights: they start at zero, a plain one."""
        return ".conv_offset." in name


class ResNet(nn.Module):
    """Maps of the chosen stages, finest first; parameter names are torchvision's (`layer1.0.conv1`)."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        body: Any = _from_timm(config)
        self.channels: tuple[int, ...] = tuple(body.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(body.feature_info.reduction())
        for stage in config.deformable:
            for block in body[f"layer{stage}"]:
                block.conv2 = DeformableConv(block.conv2, modulated=config.modulated)
        self.body = cast("nn.ModuleDict", body)
        if config.caffe_stride:
            _stride_first(self.body)
        for part in (*self._frozen_parts(), *(_norms(self.body) if config.frozen_norms else ())):
            part.requires_grad_(requires_grad=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] -> maps [B, C, h, w], finest first."""
        return self.body(images)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 (torch's signature)
        """As torch's, but statistics that are frozen stay so."""
        super().train(mode)
        if mode:
            constant = self.config.freeze_statistics or self.config.frozen_norms
            parts = [self.body] if constant else self._frozen_parts()
            for norm in (norm for part in parts for norm in _norms(part)):
                norm.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        names: list[str] = []
        if self.config.frozen >= 1:
            names += ["conv1", "bn1"]
        names += [f"layer{stage}" for stage in range(1, self.config.frozen)]
        return [self.body[name] for name in names]


def _from_timm(config: ResNetConfig) -> Any:
    known(config.name)
    depths: Any = {"layers": config.blocks} if config.blocks else {}
    try:
        body: Any = timm.create_model(  # pyright: ignore[reportUnknownVariableType]
            config.name, features_only=True, out_indices=config.maps, **depths
        )
    except (AssertionError, IndexError, TypeError, AttributeError):
        body = None
    if not isinstance(body, nn.ModuleDict) or "layer1" not in body:
        raise ValueError(
            f"{config.name!r} with maps {config.maps} is no ResNet with such stages; name one such as "
            "resnet50 or resnext101_32x4d, and stages of 1 to 4"
        )
    return body


def bottleneck(channels: int, width: int, *, groups: int) -> nn.Module:
    """One more block, which halves a map [B, channels, H, W]: of ResNet, or with groups of ResNeXt."""
    return Bottleneck(
        channels,
        width // Bottleneck.expansion,
        stride=2,
        downsample=downsample_conv(channels, width, kernel_size=1, stride=2),
        cardinality=groups,
        base_width=64 if groups == 1 else 4,
    )


def _norms(part: nn.Module) -> list[nn.Module]:
    kind = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return [module for module in part.modules() if isinstance(module, kind)]


def _stride_first(body: nn.ModuleDict) -> None:
    """Moves the stride of each bottleneck from its 3x3 convolution to the 1x1 before it."""
    for block in body.modules():
        first, second = getattr(block, "conv1", None), getattr(block, "conv2", None)
        if isinstance(first, nn.Conv2d) and first.kernel_size == (1, 1):
            spatial = cast("nn.Conv2d", second)
            first.stride, spatial.stride = spatial.stride, first.stride


class DeformableConv(nn.Module):
    """A 3x3 convolution that first asks an ordinary one where (v1), and how much (v2), to look.

    Offsets start at zero, so that pre-trained weights see at first what they were trained on.
    """

    def __init__(self, like: nn.Conv2d, *, modulated: bool) -> None:
        super().__init__()
        self.weight = like.weight  # [out, in / groups, 3, 3]
        kernel = _pair(like.kernel_size)
        self.stride, self.padding, self.dilation = (
            _pair(like.stride),
            _pair(like.padding),
            _pair(like.dilation),
        )
        self.modulated, self.taps = modulated, kernel[0] * kernel[1]
        self.conv_offset = nn.Conv2d(
            like.in_channels, (3 if modulated else 2) * self.taps, kernel, self.stride, self.padding
        )
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(cast("Tensor", self.conv_offset.bias))

    def forward(self, x: Tensor) -> Tensor:
        where = self.conv_offset(x)  # [B, 18 or 27, h, w]
        offset, mask = where, None
        if self.modulated:
            # published: the mask is a plain sigmoid, without v2's factor 2; see docs/quirks.md, rp-16
            offset, mask = where[:, : 2 * self.taps], where[:, 2 * self.taps :].sigmoid()
        return deform_conv2d(
            x,
            offset,
            self.weight,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=mask,
        )


def _pair(value: tuple[int, ...] | str) -> tuple[int, int]:
    if isinstance(value, str):
        raise TypeError(f"a deformable convolution needs its padding in numbers, not {value!r}")
    return (value[0], value[1])
