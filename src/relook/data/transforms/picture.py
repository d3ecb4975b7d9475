"""What augmentation works on: an image with its objects."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """An image and what is known of it, on its way through the steps."""

    image: Tensor  # [3, h, w] uint8, or float in 0 .. 255 and beyond once colours have changed
    boxes: Tensor  # [N, 4] x1 y1 x2 y2 in pixels of `image`; float64 before the resize, float32 after it
    labels: Tensor  # [N] int64, in step with the boxes: a step that drops a box drops its label and mask
    masks: Tensor | None = None  # [N, h, w] bool

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[1], self.image.shape[2]


def picture(
    image: NDArray[np.uint8],
    boxes: NDArray[np.float64],
    labels: NDArray[np.int64] | None = None,
    masks: Tensor | None = None,
) -> Picture:
    """An upright RGB image [H, W, 3] with boxes [N, 4], labels [N] and masks [N, H, W], before any step."""
    # a copy only of what torch cannot share: read-only arrays and channels turned by a negative stride
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
    named = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.from_numpy(labels)
    return Picture(image=pixels, boxes=torch.from_numpy(boxes), labels=named, masks=masks)
