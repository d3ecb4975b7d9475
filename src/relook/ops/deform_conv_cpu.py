"""Deformable convolution for the CPU: sums of bags and one matrix product a chunk, several times torchvision's speed.

Letters: B images, C input channels, O output channels, G offset groups, K taps of the kernel, Ho Wo sides of the
output, N = B * Ho * Wo places of the whole batch.

A deformable convolution reads the map at N * K points off the grid, each a weighted sum of four neighbours, and
multiplies what it read with the weight. This file writes that down almost word for word:

1. the map becomes a table: one row per pixel, its channels side by side, with a border of zeros two pixels wide;
2. every point becomes four rows of the table and four shares: a "bag", which is what `embedding_bag` sums, with
   vector instructions and without a copy of the four neighbours;
3. places are taken in chunks that stay in cache: bags -> columns [n, K * C] -> one matrix product.

The backward pass reads the columns again instead of keeping them, which makes its memory small. The gradient of
the map is the transposed sum, and again a sum of bags: an integer sort finds, for each pixel, the points that read
it. Nothing is scattered, so the answer is the same bit for bit in every run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

_BORDER = 2  # pixels: a clamped point is at most two pixels outside
_CHUNK_BYTES = 8 << 20  # columns made at once: they stay in cache between the bags and the matrix product


@dataclass(frozen=True, slots=True, kw_only=True)
class _Samples:
    """Which rows of the table each point reads, and how much of each."""

    index: Tensor  # [N, K, G, 4] rows: upper left, upper right, lower left, lower right
    share: Tensor  # [N, K, G, 4] what is taken of each: bilinear share times mask
    bilinear: Tensor  # [N, K, G, 2, 2] bilinear share alone
    sides: Tensor  # [N, K, G, 2, 2] for y and x: share of the lower and of the higher neighbour
    mask: Tensor | None  # [N, K, G]


def anchors(offset: Tensor, kernel: tuple[int, int], geometry: list[int]) -> tuple[Tensor, Tensor]:
    """Where the taps lie before they move: rows [kh, 1, Ho, 1] and columns [1, kw, 1, Wo] in pixels.

    `geometry` is stride, padding and dilation, each y then x.
    """
    like: Any = {"dtype": offset.dtype, "device": offset.device}
    step_y, step_x, pad_y, pad_x, dilate_y, dilate_x = geometry
    out_y, out_x = (torch.arange(side, **like) for side in offset.shape[2:])
    tap_y, tap_x = (torch.arange(side, **like) for side in kernel)
    rows = (out_y * step_y - pad_y) + (tap_y * dilate_y)[:, None]
    columns = (out_x * step_x - pad_x) + (tap_x * dilate_x)[:, None]
    return rows[:, None, :, None], columns[None, :, None, :]


# -- operators ---------------------------------------------------------------------------------------------
# Opaque to compilers on purpose: how many chunks there are and which rows they touch depends on the values.
@torch.library.custom_op("relook::deform_conv2d", mutates_args=())
def deform_conv2d_cpu(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, geometry: list[int]
) -> Tensor:
    """The convolution on checked float32 or float64 tensors; arguments as in `deform_conv2d`."""
    channels, out = x.shape[1], weight.shape[0]
    groups = channels // weight.shape[1]
    samples = _samples(x, offset, mask, (weight.shape[2], weight.shape[3]), geometry)
    table = _table(x, samples.index.shape[2])
    matrix = _matrix(weight, groups).transpose(1, 2)
    rows = x.new_empty(samples.index.shape[0], groups, out // groups)
    for part in _chunks(samples, channels * x.element_size()):
        torch.bmm(_columns(table, samples, part, groups), matrix, out=rows[part].transpose(0, 1))
    if bias is not None:
        rows += bias.view(groups, -1)
    answer = _output(x, offset, weight, bias, mask, geometry)
    return answer.copy_(rows.view(x.shape[0], *offset.shape[2:], out).permute(0, 3, 1, 2))


@torch.library.custom_op("relook::deform_conv2d_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    geometry: list[int],
    needed: list[bool],
) -> list[Tensor]:
    """Gradients of x, offset, weight, mask in this order; empty where not `needed`."""
    channels, out = x.shape[1], weight.shape[0]
    groups = channels // weight.shape[1]
    samples = _samples(x, offset, mask, (weight.shape[2], weight.shape[3]), geometry)
    taps, offset_groups = samples.index.shape[1:3]
    table, matrix = _table(x, offset_groups), _matrix(weight, groups)
    rows = grad.permute(0, 2, 3, 1).reshape(-1, groups, out // groups)
    grad_table = torch.zeros_like(table if needed[0] else x[:0])
    grad_share = torch.empty_like(samples.share if needed[1] or needed[3] else x[:0])
    grad_matrix = torch.zeros_like(matrix if needed[2] else x[:0])
    for part in _chunks(samples, channels * x.element_size()):
        grad_rows = rows[part].transpose(0, 1)  # [groups, n, O / groups]
        if needed[2]:
            grad_matrix.baddbmm_(grad_rows.transpose(1, 2), _columns(table, samples, part, groups))
        if not (needed[0] or needed[1] or needed[3]):
            continue
        read = torch.bmm(grad_rows, matrix).view(groups, -1, taps, channels // groups)
        read = read.permute(1, 2, 0, 3).reshape(-1, channels // offset_groups)  # gradient of the columns
        if needed[1] or needed[3]:
            grad_share[part] = _grad_share(read, table, samples.index[part])
        if needed[0]:
            _collect(grad_table, read, samples.index[part], samples.share[part])
    return [
        _map(grad_table, x) if needed[0] else grad_table,
        _grad_offset(grad_share, samples, offset) if needed[1] else x.new_empty(0),
        _weight(grad_matrix, weight) if needed[2] else grad_matrix,
        _grad_mask(grad_share, samples, mask) if needed[3] and mask is not None else x.new_empty(0),
    ]


@deform_conv2d_cpu.register_fake
def _output(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    _bias: Tensor | None,
    _mask: Tensor | None,
    _geometry: list[int],
) -> Tensor:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    shape = (x.shape[0], weight.shape[0], *offset.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


@_backward.register_fake
def _gradients(
    _grad: Tensor,
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    _geometry: list[int],
    needed: list[bool],
) -> list[Tensor]:
    inputs = zip((x, offset, weight, mask), needed, strict=True)
    return [x.new_empty(0) if t is None or not need else torch.empty_like(t) for t, need in inputs]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 (torch names it so)
    x, offset, weight, _, mask, geometry = inputs
    ctx.save_for_backward(x, offset, weight, mask)
    ctx.geometry = geometry


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, offset, weight, mask = ctx.saved_tensors
    need_x, need_offset, need_weight, need_bias, need_mask, _ = ctx.needs_input_grad
    needed = [need_x, need_offset, need_weight, need_mask]
    with torch.autocast("cpu", enabled=False):  # a backward pass run under autocast would inherit it
        grads = _backward(grad, x, offset, weight, mask, ctx.geometry, needed)
    bias = grad.sum((0, 2, 3)) if need_bias else None
    of_x, of_offset, of_weight, of_mask = (g if n else None for g, n in zip(grads, needed, strict=True))
    return of_x, of_offset, of_weight, bias, of_mask, None


deform_conv2d_cpu.register_autograd(_differentiate, setup_context=_remember)


# -- 1. the table ------------------------------------------------------------------------------------------
def _table(x: Tensor, groups: int) -> Tensor:
    """Map [B, C, H, W] -> rows [B * (H + 4) * (W + 4) * G, C / G] with a border of zeros."""
    batch, channels, height, width = x.shape
    table = x.new_zeros(batch, height + 2 * _BORDER, width + 2 * _BORDER, channels)
    table[:, _BORDER:-_BORDER, _BORDER:-_BORDER] = x.permute(0, 2, 3, 1)
    return table.view(-1, channels // groups)


def _map(table: Tensor, x: Tensor) -> Tensor:
    """The way back: rows -> map without the border, shaped and laid out like `x`."""
    batch, channels, height, width = x.shape
    rows = table.view(batch, height + 2 * _BORDER, width + 2 * _BORDER, channels)
    return torch.empty_like(x).copy_(rows[:, _BORDER:-_BORDER, _BORDER:-_BORDER].permute(0, 3, 1, 2))


# -- 2. the bags -------------------------------------------------------------------------------------------
def _samples(
    x: Tensor, offset: Tensor, mask: Tensor | None, kernel: tuple[int, int], geometry: list[int]
) -> _Samples:
    batch, _, height, width = x.shape
    out_y, out_x = offset.shape[2:]
    taps, area = kernel[0] * kernel[1], out_y * out_x
    groups = offset.shape[1] // (2 * taps)
    rows, columns = anchors(offset, kernel, geometry)
    start = torch.stack([rows.expand(*kernel, out_y, out_x), columns.expand(*kernel, out_y, out_x)], -1)
    points = offset.reshape(batch, groups, taps, 2, area).permute(0, 4, 2, 1, 3).contiguous()
    # A new tensor: where one location has one offset group, `contiguous` returns the caller's own memory.
    points = points + start.permute(2, 3, 0, 1, 4).reshape(area, taps, 1, 2)  # [B, Ho * Wo, K, G, 2] pixels
    # Beyond these limits all four neighbours lie in the border: value and slope are zero, as in torchvision.
    points = torch.minimum(points.clamp_(min=-_BORDER), points.new_tensor([height, width]))
    low = points.floor()
    high = points - low  # share of the higher neighbour; what is not a number stays so
    sides = torch.stack([1 - high, high], -1)
    bilinear = sides[..., 0, :, None] * sides[..., 1, None, :]
    share = bilinear
    if mask is not None:
        mask = mask.reshape(batch, groups, taps, area).permute(0, 3, 2, 1).reshape(-1, taps, groups)
        share = bilinear * mask.view(bilinear.shape[:-2])[..., None, None]
    return _Samples(
        index=_rows(low, height + 2 * _BORDER, width + 2 * _BORDER),
        share=share.view(-1, taps, groups, 4),
        bilinear=bilinear.view(-1, taps, groups, 2, 2),
        sides=sides.view(-1, taps, groups, 2, 2),
        mask=mask,
    )


def _rows(low: Tensor, height: int, pitch: int) -> Tensor:
    """Upper left pixels [B, Ho * Wo, K, G, 2] -> rows of the table of all four neighbours [N, K, G, 4]."""
    batch, _, taps, groups, _ = low.shape
    whole = torch.int32 if batch * height * pitch * groups < 2**31 else torch.int64  # int32 sorts faster
    corner = low.nan_to_num_(-_BORDER).to(whole) + _BORDER  # inside the table, whatever the offset was
    first = corner[..., 0] * pitch + corner[..., 1]
    first += torch.arange(batch, dtype=whole)[:, None, None, None] * (height * pitch)
    first = first * groups + torch.arange(groups, dtype=whole)  # each offset group has rows of its own
    step = torch.tensor([0, 1, pitch, pitch + 1], dtype=whole) * groups
    return (first[..., None] + step).view(-1, taps, groups, 4)


def _grad_share(read: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Gradient of each share: its row of the table times the gradient of the column it went into."""
    bags = torch.arange(len(read), dtype=index.dtype)
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(  # noqa: SLF001 (only its private name)
        read, table, index.view(-1), bags * 4, bags.repeat_interleave(4), 0
    )
    return cast("Tensor", dots).view_as(index)


def _grad_offset(grad_share: Tensor, samples: _Samples, offset: Tensor) -> Tensor:
    corners = grad_share.view_as(samples.bilinear)
    if samples.mask is not None:
        corners = corners * samples.mask[..., None, None]
    down = ((corners[..., 1, :] - corners[..., 0, :]) * samples.sides[..., 1, :]).sum(-1)
    right = ((corners[..., :, 1] - corners[..., :, 0]) * samples.sides[..., 0, :]).sum(-1)
    moved = torch.stack([down, right], -1)  # [N, K, G, 2]
    moved = moved.view(offset.shape[0], -1, *moved.shape[1:]).permute(0, 3, 2, 4, 1)
    return torch.empty_like(offset).copy_(moved.reshape(offset.shape))


def _grad_mask(grad_share: Tensor, samples: _Samples, mask: Tensor) -> Tensor:
    grad = (grad_share.view_as(samples.bilinear) * samples.bilinear).sum((-2, -1))  # [N, K, G]
    grad = grad.view(mask.shape[0], -1, *grad.shape[1:]).permute(0, 3, 2, 1)
    return torch.empty_like(mask).copy_(grad.reshape(mask.shape))


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


# -- 3. the matrix products --------------------------------------------------------------------------------
def _chunks(samples: _Samples, pixel_bytes: int) -> Iterator[slice]:
    places, taps = samples.index.shape[:2]
    step = max(64, _CHUNK_BYTES // (taps * pixel_bytes))
    for start in range(0, places, step):
        yield slice(start, min(start + step, places))


def _columns(table: Tensor, samples: _Samples, part: slice, groups: int) -> Tensor:
    """Read the map at the points of a chunk: [groups, n, K * C / groups]."""
    index, share = samples.index[part], samples.share[part]
    places, taps = index.shape[:2]
    read = F.embedding_bag(index.view(-1, 4), table, mode="sum", per_sample_weights=share.view(-1, 4))
    return read.view(places, taps, groups, -1).permute(2, 0, 1, 3).reshape(groups, places, -1)


def _matrix(weight: Tensor, groups: int) -> Tensor:
    """Weight [O, C / groups, kh, kw] -> [groups, O / groups, K * C / groups], in the order columns are read."""
    out, per_group = weight.shape[:2]
    return weight.reshape(out, per_group, -1).transpose(1, 2).reshape(groups, out // groups, -1)


def _weight(matrix: Tensor, weight: Tensor) -> Tensor:
    """The way back: matrix -> weight, shaped and laid out like `weight`."""
    out, per_group = weight.shape[:2]
    flat = matrix.view(out, -1, per_group).transpose(1, 2)
    return torch.empty_like(weight).copy_(flat.reshape(weight.shape))
