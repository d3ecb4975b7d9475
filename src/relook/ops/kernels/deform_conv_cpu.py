"""Deformable convolution for the CPU: sums of bags, then matrix products; several times torchvision's speed.

Letters: B images, C input channels, O output channels, G offset groups, K taps of the kernel, S = Ho * Wo
places of the output.

A deformable convolution reads the map at S * K points off the grid, each a weighted sum of four neighbours,
and multiplies what it read with the weight. This file writes that down almost word for word:

1. The map becomes a table: one row per pixel, its channels side by side, with a border of zeros.
2. Every point becomes four rows of the table and four shares, a "bag". `embedding_bag` sums bags with vector
   instructions and without ever copying the four neighbours.
3. Places are taken in chunks that stay in cache: bags -> columns [n, K * C] -> one matrix product.

The backward pass reads the columns again instead of keeping them, so it needs little memory. The gradient of
the map is the transposed sum, and again a sum of bags: an integer sort finds the points that read a pixel.
Nothing is scattered, so the answer is the same bit for bit in every run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

_BORDER = 2  # pixels: a clamped point lies at most two outside
# How much is done at once. Columns should stay in a large cache between the bags and the matrix product,
# and an eighth of all columns is enough where that is less, so that small maps too need less memory than
# columns kept whole. Up to 32768 points torch's elementwise operators stay on one thread: on a busy machine
# each operator that is shared out is a place where threads wait for each other, which costs more than the
# work.
_LEAST_BYTES, _MOST_BYTES = 4 << 20, 16 << 20
_MOST_POINTS = 32768
_FEWEST = 64  # places in a chunk: enough to be worth a matrix product


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """Places done together: which rows of the table their points read, and how much of each."""

    images: slice  # part of one image, or several small images whole
    places: slice
    index: Tensor  # [n, K, G, 4] rows: upper left, upper right, lower left, lower right
    share: Tensor  # [n, K, G, 4] what is taken of each: bilinear share times mask
    down: Tensor  # [n, K, G] how far the point lies below the upper row, 0..1
    right: Tensor  # [n, K, G] how far the point lies right of the left column, 0..1
    mask: Tensor | None  # [n, K, G]


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


# -- operators -----------------------------------------------------------------------------------------------
# Opaque to compilers on purpose: how many chunks there are and which rows they touch depends on the values.
@torch.library.custom_op("relook::deform_conv2d", mutates_args=())
def deform_conv2d_cpu(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, geometry: list[int]
) -> Tensor:
    """The convolution on checked float32 or float64 tensors; arguments as in `deform_conv2d`."""
    groups, taps = x.shape[1] // weight.shape[1], weight.shape[2] * weight.shape[3]
    table = _table(x, offset, taps=taps)
    # [groups, K * C / groups, O / groups], contiguous, by a single copy: on small maps two are felt
    matrix = weight.reshape(groups, -1, weight.shape[1], taps).permute(0, 3, 2, 1).flatten(1, 2)
    answer = _empty_answer(x, offset, weight, bias, mask, geometry)
    for chunk in _chunks(x, offset, weight, mask, geometry):
        columns = _columns(table, chunk, groups)
        product = _product(columns, matrix).transpose(1, 2)  # [groups, O / groups, n]
        if bias is not None:
            product += bias.view(groups, -1, 1)
        part = _by_group(answer, chunk, groups)
        part.copy_(product.view(part.shape))
        del columns, product  # before the next chunk's are made
    return answer


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
    groups, taps = x.shape[1] // weight.shape[1], weight.shape[2] * weight.shape[3]
    table, matrix = _table(x, offset, taps=taps), _matrix(weight, groups)
    of_x, of_offset, of_weight, of_mask = _empty_gradients(grad, x, offset, weight, mask, geometry, needed)
    grad_table = torch.zeros_like(table if needed[0] else x[:0])
    grad_matrix = torch.zeros_like(matrix if needed[2] else x[:0])
    for chunk in _chunks(x, offset, weight, mask, geometry):
        grad_rows = _by_group(grad, chunk, groups).flatten(2)  # [groups, O / groups, n]
        if needed[2]:
            grad_matrix += _product(grad_rows, _columns(table, chunk, groups))
        if not (needed[0] or needed[1] or needed[3]):
            continue
        read = _product(grad_rows.transpose(1, 2).contiguous(), matrix)  # gradient of the columns
        read = read.view(*read.shape[:2], taps, -1).permute(1, 2, 0, 3).reshape(-1, table.shape[1])
        if needed[1] or needed[3]:
            _grad_points(of_offset, of_mask, read, table, chunk)
        if needed[0]:
            _collect(grad_table, read, chunk)
        del read  # before the next chunk's is made
    if needed[0]:  # the way back from the table, without its border
        _, channels, height, width = x.shape
        rows = grad_table.view(-1, height + 2 * _BORDER, width + 2 * _BORDER, channels)
        of_x.copy_(rows[:, _BORDER:-_BORDER, _BORDER:-_BORDER].permute(0, 3, 1, 2))
    if needed[2]:  # and from the matrix
        out, per_group = weight.shape[:2]
        rows = grad_matrix.view(out, taps, per_group)
        of_weight.view(out, per_group, taps).copy_(rows.transpose(1, 2))
    return [of_x, of_offset, of_weight, of_mask]


def _empty_answer(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    _bias: Tensor | None,
    _mask: Tensor | None,
    _geometry: list[int],
) -> Tensor:
    """Laid out like the map, as `conv2d` does it."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    shape = (x.shape[0], weight.shape[0], *offset.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _empty_gradients(
    _grad: Tensor,
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    _geometry: list[int],
    needed: list[bool],
) -> list[Tensor]:
    return [
        torch.empty_like(x) if needed[0] else x.new_empty(0),
        offset.new_empty(offset.shape) if needed[1] else x.new_empty(0),
        weight.new_empty(weight.shape) if needed[2] else x.new_empty(0),
        mask.new_empty(mask.shape) if needed[3] and mask is not None else x.new_empty(0),
    ]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 (torch calls it so)
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


def _refuse(*_: Any) -> None:
    raise RuntimeError("deform_conv2d has no second derivative; take its gradient without create_graph=True")


deform_conv2d_cpu.register_fake(_empty_answer)
_backward.register_fake(_empty_gradients)
deform_conv2d_cpu.register_autograd(_differentiate, setup_context=_remember)
_backward.register_autograd(_refuse)


# -- 1. the table --------------------------------------------------------------------------------------------
def _table(x: Tensor, offset: Tensor, *, taps: int) -> Tensor:
    """Map [B, C, H, W] -> rows [B * (H + 4) * (W + 4) * G, C / G] with a border of zeros."""
    batch, channels, height, width = x.shape
    table = x.new_zeros(batch, height + 2 * _BORDER, width + 2 * _BORDER, channels)
    table[:, _BORDER:-_BORDER, _BORDER:-_BORDER] = x.permute(0, 2, 3, 1)
    return table.view(-1, channels * 2 * taps // offset.shape[1])


# -- 2. the bags ---------------------------------------------------------------------------------------------
def _chunks(
    x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, geometry: list[int]
) -> Iterator[_Chunk]:
    kernel, (batch, both, out_y, out_x) = (weight.shape[2], weight.shape[3]), offset.shape
    start = torch.stack(
        [a.expand(*kernel, out_y, out_x).flatten() for a in anchors(offset, kernel, geometry)]
    )
    taps, total = kernel[0] * kernel[1], out_y * out_x
    groups = both // (2 * taps)
    moved = offset.reshape(batch, groups, taps, 2, total)
    masks = None if mask is None else mask.reshape(batch, groups, taps, total).permute(0, 3, 2, 1)
    tap_y, tap_x = start.view(2, taps, total, 1).transpose(1, 2)  # [S, K, 1]
    per_place = taps * x.shape[1] * x.element_size()  # bytes of columns
    fit = min(max(_LEAST_BYTES, batch * total * per_place // 8), _MOST_BYTES) // per_place
    fit = max(_FEWEST, min(fit, _MOST_POINTS // (taps * groups)))
    for images, places in _parts(batch, total, fit):
        part = moved[images, ..., places].permute(0, 4, 2, 1, 3)  # [images, places, K, G, 2]
        down = (part[..., 0] + tap_y[places]).contiguous()
        right = (part[..., 1] + tap_x[places]).contiguous()
        factor = None if masks is None else masks[images, places].reshape(-1, taps, groups)
        yield _chunk(x, down, right, factor, images, places)


def _parts(batch: int, total: int, fit: int) -> Iterator[tuple[slice, slice]]:
    """Cut `batch` images of `total` places into parts of about `fit` places."""
    if fit < total:
        even = -(-total // -(-total // fit))  # parts of one size, up to rounding
        step = -(-even // _FEWEST) * _FEWEST
        for image in range(batch):
            for start in range(0, total, step):
                yield slice(image, image + 1), slice(start, min(start + step, total))
        return
    several = fit // max(1, total)
    for image in range(0, batch if total else 0, several):
        yield slice(image, min(image + several, batch)), slice(0, total)


def _chunk(
    x: Tensor, down: Tensor, right: Tensor, mask: Tensor | None, images: slice, places: slice
) -> _Chunk:
    """Points [images, places, K, G] in pixels, which it overwrites -> rows of the table and shares."""
    # Beyond these limits all four neighbours lie in the border: value and slope are zero, as in torchvision.
    down.clamp_(-_BORDER, x.shape[2])
    right.clamp_(-_BORDER, x.shape[3])
    groups, pitch, height = down.shape[3], x.shape[3] + 2 * _BORDER, x.shape[2] + 2 * _BORDER
    whole = torch.int32 if x.shape[0] * height * pitch * groups < 2**31 else torch.int64  # int32 sorts faster
    upper, left = down.to(whole), right.to(whole)
    upper.sub_((upper > down).to(whole))  # conversion rounds to zero: one too high where a point is negative
    left.sub_((left > right).to(whole))
    down -= upper
    right -= left
    # What is not a number became some integer; clamped again, no offset leads outside the table.
    first = upper.clamp_(-_BORDER, x.shape[2]).mul_(pitch).add_(left.clamp_(-_BORDER, x.shape[3]))
    image = torch.arange(images.start, images.stop, dtype=whole) * (height * pitch) + _BORDER * (pitch + 1)
    first += image[:, None, None, None]
    if groups > 1:  # each offset group has rows of its own
        first.mul_(groups).add_(torch.arange(groups, dtype=whole))
    index = first.new_empty(*first.shape, 4)
    for corner, step in enumerate((0, 1, pitch, pitch + 1)):
        torch.add(first, step * groups, out=index[..., corner])
    index, down, right = index.flatten(0, 1), down.flatten(0, 1), right.flatten(0, 1)
    share = down.new_empty(index.shape)
    low = down if mask is None else down * mask
    high = (1 if mask is None else mask) - low
    torch.mul(low, right, out=share[..., 3])
    torch.sub(low, share[..., 3], out=share[..., 2])
    torch.mul(high, right, out=share[..., 1])
    torch.sub(high, share[..., 1], out=share[..., 0])
    return _Chunk(images=images, places=places, index=index, share=share, down=down, right=right, mask=mask)


def _columns(table: Tensor, chunk: _Chunk, groups: int) -> Tensor:
    """Read the map at the points of a chunk: [groups, n, K * C / groups]."""
    places, taps = chunk.index.shape[:2]
    index, share = chunk.index.view(-1, 4), chunk.share.view(-1, 4)
    read = F.embedding_bag(index, table, mode="sum", per_sample_weights=share)
    return read.view(places, taps, groups, -1).permute(2, 0, 1, 3).flatten(2)


def _grad_points(of_offset: Tensor, of_mask: Tensor, read: Tensor, table: Tensor, chunk: _Chunk) -> None:
    """Gradients of a chunk's columns -> its part of the gradients of offset and mask, where wanted."""
    # of each share: its row of the table times the gradient of the column it went into
    bag = torch.arange(len(read), dtype=chunk.index.dtype)
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(  # noqa: SLF001 (its only name)
        read, table, chunk.index.flatten(), bag * 4, bag.repeat_interleave(4), 0
    )
    upper_left, upper_right, lower_left, lower_right = cast("Tensor", dots).view(chunk.index.shape).unbind(-1)
    taps, groups = chunk.index.shape[1:3]
    if of_offset.numel():
        down = torch.lerp(lower_left - upper_left, lower_right - upper_right, chunk.right)
        right = torch.lerp(upper_right - upper_left, lower_right - lower_left, chunk.down)
        grad = of_offset.view(len(of_offset), groups, taps, 2, -1)[chunk.images, ..., chunk.places]
        for axis, slope in enumerate((down, right)):
            slopes = slope if chunk.mask is None else slope * chunk.mask
            part = grad[:, :, :, axis].permute(0, 3, 2, 1)  # [images, places, K, G]
            part.copy_(slopes.view(part.shape))
    if of_mask.numel():
        upper = torch.lerp(upper_left, upper_right, chunk.right)
        lower = torch.lerp(lower_left, lower_right, chunk.right)
        grad = of_mask.view(len(of_mask), groups, taps, -1)[chunk.images, ..., chunk.places]
        part = grad.permute(0, 3, 2, 1)
        part.copy_(torch.lerp(upper, lower, chunk.down).view(part.shape))


def _collect(grad_table: Tensor, read: Tensor, chunk: _Chunk) -> None:
    """Add to every row of the table what its readers send back: the transposed sum, as bags again.

    The rows a chunk reads lie close together, so only the range from the first to the last is touched.
    """
    rows, order = chunk.index.flatten().sort(stable=True)
    first, last = int(rows[0]), int(rows[-1])
    starts = torch.searchsorted(rows, torch.arange(first, last + 1, dtype=rows.dtype))
    share = chunk.share.flatten()[order]
    grad_table[first : last + 1] += F.embedding_bag(
        order >> 2, read, starts, mode="sum", per_sample_weights=share
    )


# -- 3. the matrix products ----------------------------------------------------------------------------------
def _product(left: Tensor, right: Tensor) -> Tensor:
    """Groups of products [g, n, k] @ [g, k, m] -> [g, n, m]; `right` had better be contiguous.

    A single float32 product goes to oneDNN where there is one: the library behind convolutions is an eighth
    faster here than the one behind `bmm`, and its threads meet once. PyTorch has only a private name for it.
    """
    if left.shape[0] == 1 and left.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        linear = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 (its only name)
        return cast("Tensor", linear(left[0], right[0].t(), None, "none", [], "")).unsqueeze(0)
    return torch.bmm(left, right)


def _by_group(maps: Tensor, chunk: _Chunk, groups: int) -> Tensor:
    """The chunk's part of maps [B, O, Ho, Wo]: [groups, O / groups, images, places], a view if possible."""
    part = maps[chunk.images].flatten(2)[:, :, chunk.places]
    return part.view(part.shape[0], groups, -1, part.shape[2]).permute(1, 2, 0, 3)


def _matrix(weight: Tensor, groups: int) -> Tensor:
    """Weight [O, C / groups, kh, kw] -> [groups, O / groups, K * C / groups], in the order of the columns."""
    out, per_group = weight.shape[:2]
    return weight.reshape(out, per_group, -1).transpose(1, 2).reshape(groups, out // groups, -1)
