"""Deformable convolution (v1, and v2 with a mask): exactly torchvision's, in forward and backward."""

import torchvision
from torch import Tensor


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Deformable convolution with the meaning of `torchvision.ops.deform_conv2d`."""
    pairs = [(v, v) if isinstance(v, int) else v for v in (stride, padding, dilation)]
    return torchvision.ops.deform_conv2d(x, offset, weight, bias, *pairs, mask=mask)
