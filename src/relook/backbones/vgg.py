"""VGG-16 (arXiv:1409.1556) as SSD and RefineDet use it: fully connected layers made into convolutions.

Of 4096 neurons of each such layer every fourth stays, and of the 7x7 places of the first every third, which
a dilated 3x3 convolution reads ("reduced fc", arXiv:1412.7062).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, cast

from torch import Tensor, nn

WIDTHS: Final = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # of five groups
MAPS: Final = {3: 4, 4: 8, 5: 16, 6: 32}  # groups whose last ReLU can be returned, and their strides
NEURONS: Final = 4096  # of a fully connected layer
LAST: Final = 1024  # channels of the two convolutions that were fully connected


@dataclass(frozen=True, slots=True, kw_only=True)
class VGGConfig:
    """Settings of a VGG-16 without its classifier."""

    maps: tuple[int, ...] = (4, 5, 6)  # the last ReLU of which groups: relu4_3, relu5_3 and relu7
    norm: bool = False  # batch normalisation behind each convolution, which keeps its bias
    dilation: int = 3  # of the first convolution that was fully connected

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise(self.maps))
        if not self.maps or not rising or not set(self.maps) <= set(MAPS):
            raise ValueError(f"maps={self.maps}: give rising numbers of groups, of 3, 4, 5 and 6")

    def build(self) -> "VGG":
        return VGG(self)

    def file_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An ImageNet file's tensors by our names: of the reduced-fc file, of torchvision's, or of timm's."""
        found: dict[str, Tensor] = {}
        last = [f"layers.{i}" for i, layer in enumerate(layers(self)) if isinstance(layer, nn.Conv2d)][-2:]
        fully = {
            "classifier.0": last[0],
            "classifier.3": last[1],
            "pre_logits.fc1": last[0],
            "pre_logits.fc2": last[1],
        }
        for key, value in state.items():
            module, _, kind = key.rpartition(".")
            wide = value.shape[:1] == (NEURONS,) and (
                value.ndim == 1 or value.numel() in (NEURONS * 25088, NEURONS**2)
            )
            if module in fully and wide:
                found[f"{fully[module]}.{kind}"] = reduced(value, first=fully[module] == last[0])
            else:
                found[re.sub(r"^(?:features\.)?(?=\d)", "layers.", key)] = value
        return found

    def starts_anew(self, name: str) -> bool:
        """Behind layers that were fully connected no ImageNet file has a normalisation."""
        return self.norm and name.startswith(("layers.45.", "layers.48."))


class VGG(nn.Module):
    """Maps of the chosen groups, finest first; `layers` is numbered as in the reduced-fc file."""

    def __init__(self, config: VGGConfig) -> None:
        super().__init__()
        self.config = config
        self.strides = tuple(MAPS[group] for group in config.maps)
        self.channels = tuple(LAST if group > 5 else WIDTHS[group - 1][-1] for group in config.maps)
        self.layers = nn.Sequential(*layers(config))
        # the last ReLU before each pool, and the very last
        pools = [i for i, layer in enumerate(self.layers) if isinstance(layer, nn.MaxPool2d)]
        ends = dict(enumerate(pools, start=1)) | {6: len(self.layers)}
        self.ends = tuple(ends[group] for group in config.maps)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(cast("Tensor", layer.bias))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] -> maps [B, C, h, w], finest first."""
        maps: list[Tensor] = []
        x, start = images, 0
        for end in self.ends:
            x = self.layers[start:end](x)
            maps.append(x)
            start = end
        return maps


def layers(config: VGGConfig) -> list[nn.Module]:
    """All layers in order; the place of each is its number in files."""
    made: list[nn.Module] = []
    channels = 3

    def add(conv: nn.Conv2d) -> None:
        made.append(conv)
        made.extend([nn.BatchNorm2d(conv.out_channels)] if config.norm else [])
        made.append(nn.ReLU())

    for group, widths in enumerate(WIDTHS, start=1):
        for width in widths:
            add(nn.Conv2d(channels, width, 3, padding=1))
            channels = width
        # the last pool halves the map too, where SSD keeps its size (docs/quirks.md, rd-12)
        made.append(nn.MaxPool2d(2, 2, ceil_mode=group == 3))
    add(nn.Conv2d(channels, LAST, 3, padding=config.dilation, dilation=config.dilation))
    add(nn.Conv2d(LAST, LAST, 1))
    return made


def reduced(value: Tensor, *, first: bool) -> Tensor:
    """Every fourth neuron of a fully connected layer's weight or bias, as a convolution's.

    Args:
        value: [4096] bias, or weight [4096, inputs] or [4096, channels, height, width].
        first: the layer sees 512 channels at 7 x 7 places, of which every third stays; otherwise 4096 values,
            of which every fourth stays.
    """
    if value.ndim == 1:
        return value[::4]
    if first:
        return value.reshape(-1, 512, 7, 7)[::4, :, ::3, ::3]
    return value.reshape(value.shape[0], -1, 1, 1)[::4, ::4]
