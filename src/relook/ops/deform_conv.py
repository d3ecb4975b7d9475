"""Deformable convolution (v1, and v2 with a mask): exactly torchvision's, on the fastest way the device has.

Three paths give the same numbers: `fast` on a CPU (`kernels/deform_conv_cpu.py`), torchvision's kernel on
CUDA and in exported graphs, and `portable`, made of operators every device and every exporter knows.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from relook.ops.kernels.deform_conv_cpu import anchors, deform_conv2d_cpu
from relook.ops.lowering import deform_conv_way


def deform_conv2d(  # noqa: PLR0913 (torchvision's signature)
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
    """Deformable convolution with the meaning of `torchvision.ops.deform_conv2d`.

    K is the number of taps of the kernel, G that of the offset groups: channels that move together.

    Args:
        x: map [B, C, H, W].
        offset: [B, G * K * 2, Ho, Wo], (dy, dx) in pixels for each offset group and tap, taps row by row.
        weight: [O, C / groups, kernel height, kernel width]; the number of groups follows from its shape.
        bias: [O] or None.
        stride: step between output places in pixels, one number or (y, x).
        padding: zeros around the map in pixels, one number or (y, x).
        dilation: step between taps in pixels, one number or (y, x).
        mask: [B, G * K, Ho, Wo], a factor for each sample (v2), or None (v1).

    Returns:
        [B, O, Ho, Wo] in the type of `x`. Half precision is computed in float32, as torchvision does under
        autocast: eight bits cannot say where in a map of a hundred pixels a sample lies.

    Raises:
        ValueError: the shapes do not belong together.
    """
    geometry = [n for v in (stride, padding, dilation) for n in ((v, v) if isinstance(v, int) else v)]
    _check(x, offset, weight, mask, geometry)
    given, exact = x.dtype, torch.promote_types(x.dtype, torch.float32)
    x, offset, weight = x.to(exact), offset.to(exact), weight.to(exact)
    bias = None if bias is None else bias.to(exact)
    mask = None if mask is None else mask.to(exact)
    device, path = x.device.type, deform_conv_way(x.device.type)
    # Entered only where needed: an exported graph would hide the operator inside an autocast region.
    # The device meta has no autocast to ask.
    narrow = device != "meta" and torch.is_autocast_enabled(device)
    widened = torch.autocast(device, enabled=False) if narrow else nullcontext()
    with widened:
        if path == "fast":
            out = deform_conv2d_cpu(x, offset, weight, bias, mask, geometry)
        elif path == "portable":
            out = _portable(x, offset, weight, bias, mask, geometry)
        else:
            pairs = [(geometry[i], geometry[i + 1]) for i in (0, 2, 4)]
            out = torchvision.ops.deform_conv2d(x, offset, weight, bias, *pairs, mask=mask)
    return out.to(given)


def _check(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, geometry: list[int]) -> None:
    for name, tensor in (("x", x), ("offset", offset), ("weight", weight)):
        if tensor.dim() != 4:
            raise ValueError(f"{name} of deform_conv2d has {tensor.dim()} dimensions and must have 4")
    channels, (out, per_group, *kernel) = x.shape[1], weight.shape
    if channels % per_group or out % (channels // per_group):
        raise ValueError(
            f"weight {list(weight.shape)} does not divide the {channels} channels of x into groups"
        )
    both = 2 * kernel[0] * kernel[1]
    if offset.shape[1] == 0 or offset.shape[1] % both or channels % (offset.shape[1] // both):
        raise ValueError(
            f"offset has {offset.shape[1]} channels; a {kernel[0]}x{kernel[1]} kernel needs {both} for each "
            f"offset group, and the groups must divide the {channels} channels of x"
        )
    sides = [
        (x.shape[2 + i] + 2 * geometry[2 + i] - geometry[4 + i] * (kernel[i] - 1) - 1) // geometry[i] + 1
        for i in (0, 1)
    ]
    if (offset.shape[0], *offset.shape[2:]) != (x.shape[0], *sides):
        raise ValueError(
            f"offset is {list(offset.shape)}, but the output is {sides[0]}x{sides[1]} for {x.shape[0]} "
            f"images: make the offsets with the same kernel, stride, padding and dilation"
        )
    if mask is not None and mask.shape != (offset.shape[0], offset.shape[1] // 2, *sides):
        raise ValueError(
            f"mask is {list(mask.shape)}; for offset {list(offset.shape)} it needs half the channels"
        )


def _portable(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    geometry: list[int],
) -> Tensor:
    """One `grid_sample` with a grid K outputs tall, then a 1x1 convolution over channels and taps.

    The bilinear surface has kinks at whole pixels; rounding may give the slope of the other side there.
    """
    batch, channels, height, width = x.shape
    kernel = (weight.shape[2], weight.shape[3])
    taps = kernel[0] * kernel[1]
    groups = offset.shape[1] // (2 * taps)
    out_y, out_x = offset.shape[2:]
    rows, columns = anchors(offset, kernel, geometry)
    moved = offset.reshape(batch * groups, *kernel, 2, out_y, out_x)
    # A pixel and more outside everything is zero; clamping there keeps infinity out of the arithmetic.
    y = (moved[:, :, :, 0] + rows).clamp(-2, height + 1)
    x_ = (moved[:, :, :, 1] + columns).clamp(-2, width + 1)
    grid = torch.stack([(2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    samples = F.grid_sample(
        x.reshape(batch * groups, channels // groups, height, width),
        grid.reshape(batch * groups, taps * out_y, out_x, 2),
        align_corners=False,
    )
    if mask is not None:
        samples = samples * mask.reshape(batch * groups, 1, taps * out_y, out_x)
    return F.conv2d(
        samples.reshape(
            batch, channels * taps, out_y, out_x
        ),  # channels outside, taps inside, as in the weight
        weight.reshape(weight.shape[0], -1, 1, 1),
        bias,
        groups=channels // weight.shape[1],
    )
