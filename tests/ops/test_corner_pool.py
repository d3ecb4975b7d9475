"""Corner pooling against its slow twin: values, gradients, ties, compiled and exported."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from relook.ops.corner_pool import Direction, by_doubling, corner_pool

DIRECTIONS: tuple[Direction, ...] = ("top", "bottom", "left", "right")
FORMS = [corner_pool, by_doubling]


def twin(x: Tensor, direction: Direction) -> tuple[Tensor, Tensor]:
    """Maximum and the cell it comes from, cell by cell; of equal values the nearest."""
    best, source = x.clone(), torch.arange(x.numel()).reshape(x.shape)
    h, w = x.shape
    away = {"top": (1, 0), "bottom": (-1, 0), "left": (0, 1), "right": (0, -1)}[direction]
    for i in range(h):
        for j in range(w):
            a, b = i, j
            while 0 <= a < h and 0 <= b < w:
                if x[a, b] > best[i, j]:
                    best[i, j], source[i, j] = x[a, b], a * w + b
                a, b = a + away[0], b + away[1]
    return best, source


@pytest.mark.parametrize("form", FORMS, ids=["running", "doubling"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_values_and_gradients_are_the_twins(form, direction: Direction, h: int, w: int, seed: int) -> None:
    """Small whole numbers, so that many are equal: the nearest of equals gets the gradient."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, (h, w), generator=random).double().requires_grad_()
    sent = torch.randn(h, w, generator=random, dtype=torch.float64)
    best, source = twin(x.detach(), direction)
    answer = form(x, direction)
    assert torch.equal(answer, best)
    (answer * sent).sum().backward()
    expected = torch.zeros(h * w, dtype=torch.float64).index_add(0, source.flatten(), sent.flatten())
    torch.testing.assert_close(x.grad, expected.reshape(h, w))


@pytest.mark.parametrize("form", FORMS, ids=["running", "doubling"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradient_is_the_slope(form, direction: Direction) -> None:
    """Against finite differences in float64."""
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda y: form(y, direction), x.requires_grad_())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_every_precision_and_the_lowest_values(kind: torch.dtype) -> None:
    """Nothing is invented where all values are low, in channels-last layout too."""
    x = torch.full((1, 2, 3, 5), torch.finfo(kind).min, dtype=kind)
    assert torch.equal(by_doubling(x, "left"), x)
    y = torch.randn(1, 4, 6, 7).to(kind).contiguous(memory_format=torch.channels_last)
    for direction in DIRECTIONS:
        assert torch.equal(corner_pool(y, direction), by_doubling(y, direction))


class Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return corner_pool(corner_pool(x, "top"), "right")


@pytest.mark.export
def test_compiled_and_exported() -> None:
    """The same numbers; the exported graph holds no running maximum, which ONNX does not know."""
    x = torch.randn(1, 3, 11, 13, generator=torch.Generator().manual_seed(0))
    expected = Pool()(x)
    assert torch.equal(torch.compile(Pool(), fullgraph=True, backend="aot_eager")(x), expected)
    exported = torch.export.export(Pool(), (x,))
    assert torch.equal(exported.module()(x), expected)
    assert "cummax" not in str(exported.graph)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS, ids=["running", "doubling"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_gpu_gives_the_same(form, direction: Direction) -> None:
    """Values and gradients on CUDA are the CPU's, ties included."""
    random = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, (2, 3, 33, 41), generator=random).double()
    sent = torch.randn(x.shape, generator=random, dtype=torch.float64)
    here, there = x.clone().requires_grad_(), x.cuda().requires_grad_()
    form(here, direction).backward(sent)
    answer = form(there, direction)
    answer.backward(sent.cuda())
    assert torch.equal(answer.cpu(), corner_pool(x, direction))
    torch.testing.assert_close(there.grad.cpu(), here.grad)
