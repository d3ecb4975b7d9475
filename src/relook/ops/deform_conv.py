"""Deformable convolution (v1, and v2 with a mask): exactly torchvision's, several times faster on the CPU.

Letters: B images, C input channels, O output channels, G offset groups (channels that move together), K taps of
the kernel, Ho Wo the output's sides, N = B * Ho * Wo output locations of the whole batch.

A deformable convolution reads the map at N * K places off the grid, each a weighted sum of four neighbours, and
multiplies what it read with the weight. The fast path writes that down almost word for word:

1. the map becomes a table of rows, one per pixel, channels side by side, with a border of zeros two pixels wide;
2. every place becomes four rows of the table and four weights: a "bag", which is what `embedding_bag` sums, with
   vector instructions and without a temporary for the four corners;
3. locations are taken in chunks that stay in cache: bags -> columns [n, K * C] -> one matrix product.

The backward pass repeats 1 to 3 instead of keeping the columns, which is what makes its memory small. The gradient
of the map is the transposed sum; it is again a sum of bags (each pixel collects the places that read it), found by
one integer sort, so that nothing is scattered and the answer is the same bit for bit on every run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

Path = Literal["auto", "fast", "portable", "torchvision"]
_BORDER = 2  # zeros around the map: a place is at most two pixels outside once it is clamped
_CHUNK_BYTES = 8 << 20  # columns made at once: they stay in the last-level cache between bag and matrix product


class _Choice:
    path: Path = "auto"


@contextmanager
def deform_conv_path(path: Path) -> Iterator[None]:
    """Force the path of `deform_conv2d` inside a `with` block, in this process; meant for tests and benchmarks."""
    if path not in {"auto", "fast", "portable", "torchvision"}:
        raise ValueError(f"path {path!r} is not one of 'auto', 'fast', 'portable', 'torchvision'")
    before, _Choice.path = _Choice.path, path
    try:
        yield
    finally:
        _Choice.path = before


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
    """Deformable convolution with the meaning of `torchvision.ops.deform_conv2d`.

    Args:
        x: map [B, C, H, W].
        offset: [B, G * K * 2, Ho, Wo], (dy, dx) in pixels for each offset group and tap, taps row by row.
        weight: [O, C / groups, kernel height, kernel width]; the number of groups follows from its shape.
        bias: [O] or None.
        stride: step between output locations, one number or (y, x).
        padding: zeros around the map, one number or (y, x).
        dilation: step between taps, one number or (y, x).
        mask: [B, G * K, Ho, Wo], a factor for each sample (v2), or None (v1).

    Returns:
        [B, O, Ho, Wo] in the type of `x`. As in torchvision under autocast, half precision is computed in float32.

    Raises:
        ValueError: shapes that do not belong together.
    """
    pairs = [(v, v) if isinstance(v, int) else v for v in (stride, padding, dilation)]
    given = x.dtype
    exact = torch.promote_types(given, torch.float32)
    x, offset, weight = x.to(exact), offset.to(exact), weight.to(exact)
    bias = None if bias is None else bias.to(exact)
    mask = None if mask is None else mask.to(exact)
    _check(x, offset, weight, mask, pairs)
    path = _choose(x)
    with torch.autocast(x.device.type, enabled=False):
        if path == "fast":
            out = _fast(x, offset, weight, bias, mask, [n for pair in pairs for n in pair])
        elif path == "portable":
            out = _portable(x, offset, weight, bias, mask, pairs)
        else:
            out = torchvision.ops.deform_conv2d(x, offset, weight, bias, *pairs, mask=mask)
    return out.to(given)


def _choose(x: Tensor) -> Path:
    """The path for this map: ours on a CPU, torchvision's kernel on CUDA and in exported graphs."""
    if _Choice.path != "auto":
        return _Choice.path
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return "torchvision"  # exporters know torchvision::deform_conv2d (ONNX: DeformConv), not our operator
    if x.device.type == "cpu":
        return "fast"
    return "torchvision" if x.device.type in {"cuda", "meta"} else "portable"


def _check(
    x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, pairs: list[tuple[int, int]]
) -> None:
    if x.dim() != 4 or weight.dim() != 4 or offset.dim() != 4:
        raise ValueError("deform_conv2d needs x, offset and weight with four dimensions")
    taps = weight.shape[2] * weight.shape[3]
    if x.shape[1] % weight.shape[1] or weight.shape[0] % (x.shape[1] // weight.shape[1]):
        raise ValueError(f"weight {list(weight.shape)} does not divide the {x.shape[1]} channels of x into groups")
    if offset.shape[1] == 0 or offset.shape[1] % (2 * taps) or x.shape[1] % (offset.shape[1] // (2 * taps)):
        raise ValueError(
            f"offset has {offset.shape[1]} channels; a {weight.shape[2]}x{weight.shape[3]} kernel needs {2 * taps} "
            f"for each offset group, and the groups must divide the {x.shape[1]} channels of x"
        )
    sides = [
        (size + 2 * pad - dil * (kernel - 1) - 1) // step + 1
        for size, kernel, step, pad, dil in zip(x.shape[2:], weight.shape[2:], *pairs, strict=True)
    ]
    places = (x.shape[0], *sides)
    if (offset.shape[0], *offset.shape[2:]) != places:
        raise ValueError(f"offset {list(offset.shape)} does not fit the output, which is {sides} for {list(x.shape)}")
    if mask is not None and mask.shape != (x.shape[0], offset.shape[1] // 2, *sides):
        raise ValueError(f"mask {list(mask.shape)} does not fit offset {list(offset.shape)}: half its channels")


# -- the portable path: only operators every exporter knows --------------------------------------------------------
def _anchors(offset: Tensor, kernel: tuple[int, int], numbers: list[int]) -> tuple[Tensor, Tensor]:
    """Where the taps lie before they move: rows [kh, 1, Ho, 1] and columns [1, kw, 1, Wo], in pixels."""
    step_y, step_x, pad_y, pad_x, dilate_y, dilate_x = numbers
    like: Any = {"dtype": offset.dtype, "device": offset.device}
    out_y, out_x = (torch.arange(side, **like) for side in offset.shape[2:])
    tap_y, tap_x = (torch.arange(side, **like) for side in kernel)
    rows = (out_y * step_y - pad_y) + (tap_y * dilate_y)[:, None]
    columns = (out_x * step_x - pad_x) + (tap_x * dilate_x)[:, None]
    return rows[:, None, :, None], columns[None, :, None, :]


def _portable(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    pairs: list[tuple[int, int]],
) -> Tensor:
    """One `grid_sample` of a grid K times as tall as the output, then a 1x1 convolution over channels and taps."""
    batch, channels, height, width = x.shape
    kernel = (weight.shape[2], weight.shape[3])
    taps = kernel[0] * kernel[1]
    groups = offset.shape[1] // (2 * taps)
    out_y, out_x = offset.shape[2:]
    rows, columns = _anchors(offset, kernel, [n for pair in pairs for n in pair])
    moved = offset.reshape(batch * groups, *kernel, 2, out_y, out_x)
    y = (moved[:, :, :, 0] + rows).clamp(-2, height + 1)  # beyond, everything is zero, infinity included
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
        samples.reshape(batch, channels * taps, out_y, out_x),
        weight.reshape(weight.shape[0], -1, 1, 1),
        bias,
        groups=channels // weight.shape[1],
    )


# -- the fast path ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class _Samples:
    """Which rows of the table each place reads, and how much of each."""

    index: Tensor  # [N, K, G, 4] rows of the table: upper left, upper right, lower left, lower right
    share: Tensor  # [N, K, G, 4] what is taken of each: bilinear share times mask
    bilinear: Tensor  # [N, K, G, 2, 2] bilinear share alone
    sides: Tensor  # [N, K, G, 2, 2] for y and x: share of the lower and of the higher neighbour
    mask: Tensor | None  # [N, K, G]


def _samples(x: Tensor, offset: Tensor, mask: Tensor | None, kernel: tuple[int, int], numbers: list[int]) -> _Samples:
    batch, _, height, width = x.shape
    taps = kernel[0] * kernel[1]
    groups = offset.shape[1] // (2 * taps)
    rows, columns = _anchors(offset, kernel, numbers)
    out_y, out_x = offset.shape[2:]
    anchors = torch.stack(torch.broadcast_tensors(rows, columns), -1)  # [kh, kw, Ho, Wo, 2]
    anchors = anchors.permute(2, 3, 0, 1, 4).reshape(out_y * out_x, taps, 1, 2)
    places = offset.reshape(batch, groups, taps, 2, out_y * out_x).permute(0, 4, 2, 1, 3).contiguous()
    places += anchors  # [B, Ho * Wo, K, G, 2] pixels
    # Beyond these limits all four neighbours lie in the border: value and gradient are zero, as torchvision has it.
    places = torch.minimum(places.clamp_(min=-_BORDER), places.new_tensor([height, width]))
    low = places.floor()
    high = places - low  # share of the higher neighbour; not a number stays not a number
    pitch, area = width + 2 * _BORDER, (height + 2 * _BORDER) * (width + 2 * _BORDER)
    whole = torch.int32 if batch * area * groups < 2**31 else torch.int64  # int32 sorts twice as fast
    corner = low.nan_to_num_(-_BORDER).to(whole) + _BORDER  # never outside the table, whatever the offset
    first = corner[..., 0] * pitch + corner[..., 1]
    first += torch.arange(batch, dtype=whole)[:, None, None, None] * area
    first = first * groups + torch.arange(groups, dtype=whole)  # each group's channels are rows of their own
    index = first[..., None] + torch.tensor([0, 1, pitch, pitch + 1], dtype=whole) * groups
    sides = torch.stack([1 - high, high], -1)
    bilinear = sides[..., 0, :, None] * sides[..., 1, None, :]
    if mask is not None:
        mask = mask.reshape(batch, groups, taps, out_y * out_x).permute(0, 3, 2, 1).contiguous()
    share = bilinear if mask is None else bilinear * mask[..., None, None]
    return _Samples(
        index=index.reshape(-1, taps, groups, 4),
        share=share.reshape(-1, taps, groups, 4),
        bilinear=bilinear.reshape(-1, taps, groups, 2, 2),
        sides=sides.reshape(-1, taps, groups, 2, 2),
        mask=None if mask is None else mask.reshape(-1, taps, groups),
    )


def _table(x: Tensor, groups: int) -> Tensor:
    """Map [B, C, H, W] -> rows [B * (H + 4) * (W + 4) * G, C / G] with a border of zeros."""
    batch, channels, height, width = x.shape
    table = x.new_zeros(batch, height + 2 * _BORDER, width + 2 * _BORDER, channels)
    table[:, _BORDER:-_BORDER, _BORDER:-_BORDER] = x.permute(0, 2, 3, 1)
    return table.view(-1, channels // groups)


def _untable(table: Tensor, x: Tensor) -> Tensor:
    """The way back: rows -> map, shaped and laid out like `x`, without the border."""
    batch, channels, height, width = x.shape
    rows = table.view(batch, height + 2 * _BORDER, width + 2 * _BORDER, channels)
    return torch.empty_like(x).copy_(rows[:, _BORDER:-_BORDER, _BORDER:-_BORDER].permute(0, 3, 1, 2))


def _matrix(weight: Tensor, groups: int) -> Tensor:
    """Weight [O, C / groups, kh, kw] -> [groups, O / groups, K * C / groups], columns in the order they are read."""
    out, channels = weight.shape[:2]
    taps = weight.flatten(2).transpose(1, 2)  # [O, K, C / groups]
    return taps.reshape(groups, out // groups, -1 if weight.numel() else channels)


def _chunks(samples: _Samples, channels: int, itemsize: int) -> Iterator[slice]:
    count, taps = samples.index.shape[:2]
    step = max(64, _CHUNK_BYTES // (taps * channels * itemsize))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _columns(table: Tensor, samples: _Samples, part: slice, groups: int) -> Tensor:
    """Read the map at the places of a chunk: [groups, n, K * C / groups]."""
    index, share = samples.index[part], samples.share[part]
    count, taps = index.shape[:2]
    read = F.embedding_bag(index.view(-1, 4), table, mode="sum", per_sample_weights=share.view(-1, 4))
    return read.view(count, taps, groups, -1).permute(2, 0, 1, 3).reshape(groups, count, -1)


def _laid_out_like(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return x.new_empty(shape, memory_format=torch.channels_last if last else torch.contiguous_format)


@torch.library.custom_op("relook::deform_conv2d", mutates_args=())
def _fast(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, numbers: list[int]
) -> Tensor:
    batch, channels = x.shape[:2]
    out, groups = weight.shape[0], channels // weight.shape[1]
    samples = _samples(x, offset, mask, (weight.shape[2], weight.shape[3]), numbers)
    table = _table(x, samples.index.shape[2])
    matrix = _matrix(weight, groups).transpose(1, 2)
    rows = x.new_empty(samples.index.shape[0], groups, out // groups)
    for part in _chunks(samples, channels, x.element_size()):
        columns = _columns(table, samples, part, groups)
        torch.bmm(columns, matrix, out=rows[part].transpose(0, 1))
    if bias is not None:
        rows += bias.view(groups, -1)
    answer = _fast_shape(x, offset, weight, bias, mask, numbers)
    return answer.copy_(rows.view(batch, *offset.shape[2:], out).permute(0, 3, 1, 2))


@_fast.register_fake
def _fast_shape(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, numbers: list[int]
) -> Tensor:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    shape = (x.shape[0], weight.shape[0], *offset.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


@torch.library.custom_op("relook::deform_conv2d_backward", mutates_args=())
def _fast_backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    numbers: list[int],
    needed: list[bool],
) -> list[Tensor]:
    """Gradients of x, offset, weight, mask, in this order; empty where not needed."""
    channels = x.shape[1]
    out, groups = weight.shape[0], channels // weight.shape[1]
    samples = _samples(x, offset, mask, (weight.shape[2], weight.shape[3]), numbers)
    taps, offset_groups = samples.index.shape[1:3]
    table, matrix = _table(x, offset_groups), _matrix(weight, groups)
    rows = grad.permute(0, 2, 3, 1).reshape(-1, groups, out // groups)
    grad_table = torch.zeros_like(table) if needed[0] else None
    grad_share = torch.empty_like(samples.share) if needed[1] or needed[3] else None
    grad_matrix = torch.zeros_like(matrix)
    for part in _chunks(samples, channels, x.element_size()):
        grad_rows = rows[part].transpose(0, 1)  # [groups, n, O / groups]
        if needed[2]:
            grad_matrix.baddbmm_(grad_rows.transpose(1, 2), _columns(table, samples, part, groups))
        if grad_table is None and grad_share is None:
            continue
        read = torch.bmm(grad_rows, matrix).view(groups, -1, taps, channels // groups)
        read = read.permute(1, 2, 0, 3).reshape(-1, channels // offset_groups)  # gradient of the columns
        if grad_share is not None:
            grad_share[part] = _grad_share(read, table, samples.index[part])
        if grad_table is not None:
            _collect(grad_table, read, samples.index[part], samples.share[part])
    grad_x = x.new_empty(0) if grad_table is None else _untable(grad_table, x)
    grad_weight = weight.new_empty(0)
    if needed[2]:
        grad_weight = grad_matrix.view(out, taps, -1).transpose(1, 2).reshape(weight.shape).contiguous()
    grad_offset, grad_mask = x.new_empty(0), x.new_empty(0)
    if grad_share is not None:
        grad_offset, grad_mask = _grad_places(grad_share, samples, offset, mask)
    return [grad_x, grad_offset, grad_weight, grad_mask]


def _grad_share(read: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Gradient of each share: its row of the table times the gradient of the column it went into."""
    bags = torch.arange(len(read), dtype=index.dtype)
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(  # noqa: SLF001
        read, table, index.view(-1), bags * 4, bags.repeat_interleave(4), 0
    )
    return cast("Tensor", dots).view_as(index)


def _collect(grad_table: Tensor, read: Tensor, index: Tensor, share: Tensor) -> None:
    """Add to every row of the table what its readers send back: the transposed sum, as bags again.

    The rows a chunk reads lie close together, so only the range from the first to the last is touched.
    """
    rows, order = index.view(-1).sort(stable=True)
    first, last = int(rows[0]), int(rows[-1])
    starts = torch.searchsorted(rows, torch.arange(first, last + 1, dtype=rows.dtype))
    grad_table[first : last + 1] += F.embedding_bag(
        order >> 2, read, starts, mode="sum", per_sample_weights=share.view(-1)[order]
    )


def _grad_places(
    grad_share: Tensor, samples: _Samples, offset: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the shares [N, K, G, 4] -> gradients of offset and mask."""
    corners = grad_share.view_as(samples.bilinear)
    batch, _, out_y, out_x = offset.shape
    taps, groups = samples.index.shape[1:3]
    grad_mask = offset.new_empty(0)
    if mask is not None and samples.mask is not None:
        grad_mask = (corners * samples.bilinear).sum((-2, -1))
        grad_mask = grad_mask.view(batch, -1, taps, groups).permute(0, 3, 2, 1).reshape(mask.shape).contiguous()
        corners = corners * samples.mask[..., None, None]
    down = ((corners[..., 1, :] - corners[..., 0, :]) * samples.sides[..., 1, :]).sum(-1)
    right = ((corners[..., :, 1] - corners[..., :, 0]) * samples.sides[..., 0, :]).sum(-1)
    moved = torch.stack([down, right], -1).view(batch, out_y * out_x, taps, groups, 2)
    return moved.permute(0, 3, 2, 4, 1).reshape(offset.shape).contiguous(), grad_mask


@_fast_backward.register_fake
def _fast_backward_shape(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    numbers: list[int],
    needed: list[bool],
) -> list[Tensor]:
    none = x.new_empty(0)
    return [
        torch.empty_like(x) if needed[0] else none,
        torch.empty_like(offset) if needed[1] or needed[3] else none,
        torch.empty_like(weight) if needed[2] else none,
        torch.empty_like(mask) if mask is not None and (needed[1] or needed[3]) else none,
    ]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, offset, weight, _, mask, numbers = inputs
    ctx.save_for_backward(x, offset, weight, mask)
    ctx.numbers = numbers


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, offset, weight, mask = ctx.saved_tensors
    need_x, need_offset, need_weight, need_bias, need_mask, _ = ctx.needs_input_grad
    needed = [need_x, need_offset, need_weight, need_mask]
    grads = _fast_backward(grad, x, offset, weight, mask, ctx.numbers, needed)
    bias = grad.sum((0, 2, 3)) if need_bias else None
    grad_x, grad_offset, grad_weight, grad_mask = (
        g if need else None for g, need in zip(grads, needed, strict=True)
    )
    return grad_x, grad_offset, grad_weight, bias, grad_mask, None


_fast.register_autograd(_differentiate, setup_context=_remember)
