"""What DPT's patches saw: where each of them moved to, and how large it became."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from relook.backbones.dpt import DPT
from relook.types import Look, to_float32

FIRST = 2  # of the stages that are shown, counted from 0: those before have too many patches to see any


def patch_looks(backbone: nn.Module, maps: Sequence[Tensor]) -> tuple[Look, ...]:
    """Looks at the patches of the last stages, in pixels of the network input; none for other backbones.

    Args:
        backbone: of a detector.
        maps: what it gave for a batch, finest first.
    """
    if not isinstance(backbone, DPT):
        return ()
    looks: list[Look] = []
    for number in range(FIRST, len(backbone.stages)):
        if number not in backbone.config.maps:  # the map that this stage reads, counted from 1
            continue
        place = backbone.config.maps.index(number)
        x, stride = to_float32(maps[place]), backbone.strides[place]
        boxes = backbone.patches(x, number)
        sides = torch.tensor([x.shape[3] * stride, x.shape[2] * stride] * 2, device=x.device)
        looks.append(
            Look(
                title=f"patches of stage {number + 1}",
                caption="Where each patch moved to and how large it became; a dot is one of no size.",
                patches=boxes * sides,
            )
        )
    return tuple(looks)
