"""Every path of deformable convolution against torchvision's operator and against plain loops."""

import math
from dataclasses import dataclass

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from relook.ops.deform_conv import deform_conv2d
from relook.ops.kernels import deform_conv_cpu
from relook.ops.lowering import lowering

PATHS = ("fast", "portable", "torchvision")
LAYOUTS = ("contiguous", "channels_last", "strided")


@dataclass(frozen=True)
class Case:
    """Inputs of one convolution: x, offset, weight, bias, mask, and how it steps."""

    tensors: tuple[Tensor | None, ...]
    geometry: dict[str, tuple[int, int]]

    def leaves(self) -> list[Tensor | None]:
        return [None if t is None else t.detach().requires_grad_() for t in self.tensors]

    def run(self, path: str, inputs: list[Tensor | None]) -> Tensor:
        x, offset, weight, bias, mask = inputs
        with lowering(deform_conv=path):
            return deform_conv2d(x, offset, weight, bias, mask=mask, **self.geometry)

    def oracle(self, inputs: list[Tensor | None]) -> Tensor:
        x, offset, weight, bias, mask = inputs
        return torchvision.ops.deform_conv2d(x, offset, weight, bias, mask=mask, **self.geometry)


@st.composite
def cases(draw: st.DrawFn, *, whole: bool | None = None) -> Case:
    """Small convolutions of every kind; `whole` decides if points lie on whole pixels."""
    one_two_three = st.integers(1, 3)
    offset_groups, groups, batch = draw(one_two_three), draw(one_two_three), draw(st.integers(0, 3))
    channels = offset_groups * groups * draw(st.sampled_from([1, 2, 5]))
    out = groups * draw(one_two_three)
    kernel = draw(st.tuples(one_two_three, st.sampled_from([1, 2, 3, 5])))
    stride, padding = draw(st.tuples(one_two_three, one_two_three)), draw(st.tuples(*[st.integers(0, 3)] * 2))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    size = [low + draw(st.integers(0, 8)) for low in least]
    steps = zip(size, padding, dilation, kernel, stride, strict=True)
    sides = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in steps]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    taps = offset_groups * kernel[0] * kernel[1]
    offset = normal(batch, 2 * taps, *sides) * draw(st.sampled_from([0.3, 2.0, 30.0]))
    if draw(st.booleans()) if whole is None else whole:
        offset = offset.round()
    bias = normal(out) if draw(st.booleans()) else None
    mask = normal(batch, taps, *sides) if draw(st.booleans()) else None
    x = lay_out(normal(batch, channels, *size), draw(st.sampled_from(LAYOUTS)))
    tensors = (x, offset, normal(out, channels // groups, *kernel), bias, mask)
    return Case(tensors, {"stride": stride, "padding": padding, "dilation": dilation})


def lay_out(x: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x.repeat_interleave(2, 3)[..., ::2] if layout == "strided" else x


def close(mine: Tensor, theirs: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance * scale(theirs))


def scale(values: Tensor) -> float:
    return max(1.0, float(values.detach().abs().max())) if values.numel() else 1.0


def compare(case: Case, path: str) -> None:
    mine, theirs = case.leaves(), case.leaves()
    answer, expected = case.run(path, mine), case.oracle(theirs)
    close(answer, expected)
    grad = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    answer.backward(grad)
    expected.backward(grad)
    for a, b in zip(mine, theirs, strict=True):
        if a is not None and b is not None:
            close(a.grad, b.grad)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_fast_path_equals_torchvision(case: Case) -> None:
    """Answer and all gradients agree to 1e-12, on and off whole pixels, near and far outside."""
    compare(case, "fast")


@settings(max_examples=30, deadline=None)
@given(cases())
def test_fast_path_in_small_chunks_equals_torchvision(case: Case) -> None:
    """Where the places are cut changes nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deform_conv_cpu, "_MOST_POINTS", 1)
        patch.setattr(deform_conv_cpu, "_FEWEST", 7)
        compare(case, "fast")


@settings(max_examples=80, deadline=None)
@given(cases(whole=False))
def test_portable_path_equals_torchvision(case: Case) -> None:
    """Answer and all gradients agree to 1e-12 off whole pixels, where the slope is defined."""
    compare(case, "portable")


@settings(max_examples=20, deadline=None)
@given(cases(whole=True))
def test_portable_answer_equals_torchvision_on_whole_pixels(case: Case) -> None:
    """On whole pixels the portable answer agrees too."""
    inputs = list(case.tensors)
    close(case.run("portable", inputs), case.oracle(inputs))


@settings(max_examples=10, deadline=None)
@given(cases())
def test_torchvision_path_is_torchvision(case: Case) -> None:
    """The third path passes everything on."""
    assert torch.equal(case.run("torchvision", list(case.tensors)), case.oracle(list(case.tensors)))


def loops(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor, padding: int) -> Tensor:
    """Slow twin: one image, stride 1, one group, written as the paper's sum."""
    out = torch.zeros(1, weight.shape[0], *offset.shape[2:], dtype=x.dtype)
    height, width = x.shape[2:]
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            for tap in range(weight.shape[2] * weight.shape[3]):
                row, column = divmod(tap, weight.shape[3])
                y = i - padding + row + float(offset[0, 2 * tap, i, j])
                left = j - padding + column + float(offset[0, 2 * tap + 1, i, j])
                value = torch.zeros(x.shape[1], dtype=x.dtype)
                for p in range(height):
                    for q in range(width):
                        value += max(0, 1 - abs(y - p)) * max(0, 1 - abs(left - q)) * x[0, :, p, q]
                out[0, :, i, j] += weight[:, :, row, column] @ value * mask[0, tap, i, j]
    return out


@pytest.mark.parametrize("path", PATHS)
def test_equals_plain_loops(path: str) -> None:
    """The sum of the paper, written with loops, is what every path computes."""
    torch.manual_seed(1)
    x, weight = torch.randn(1, 3, 5, 4).double(), torch.randn(2, 3, 3, 2).double()
    offset, mask = 2 * torch.randn(1, 12, 5, 5).double(), torch.rand(1, 6, 5, 5).double()
    with lowering(deform_conv=path):
        close(deform_conv2d(x, offset, weight, padding=1, mask=mask), loops(x, offset, weight, mask, 1))


@pytest.mark.parametrize("path", PATHS)
def test_gradcheck(path: str) -> None:
    """Gradients are those of finite differences."""
    torch.manual_seed(2)
    shapes = ((2, 4, 4, 5), (2, 36, 4, 5), (2, 2, 3, 3), (2,), (2, 18, 4, 5))
    tensors = [torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in shapes]

    def convolve(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        return deform_conv2d(x, offset, weight, bias, padding=1, mask=mask)

    with lowering(deform_conv=path):
        assert torch.autograd.gradcheck(convolve, tensors, fast_mode=True)


def plain(channels: int = 6, side: int = 9, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    x, weight = torch.randn(2, channels, side, side + 2), torch.randn(4, channels, 3, 3)
    return [x, torch.randn(2, 18, side, side + 2), weight, torch.randn(4), torch.rand(2, 9, side, side + 2)]


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_float32_in_many_chunks_equals_torchvision(
    layout: str, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, where another library multiplies, answer and gradients agree to rounding."""
    monkeypatch.setattr(deform_conv_cpu, "_MOST_POINTS", 9 * 100)
    x, offset, _, bias, mask = plain(32, 20)
    tensors = (lay_out(x, layout), offset, torch.randn(12, 32 // groups, 3, 3), bias.repeat(3), mask)
    case = Case(tensors, {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)})
    mine, theirs = case.leaves(), case.leaves()
    answer, expected = case.run("fast", mine), case.oracle(theirs)
    close(answer, expected, 1e-5)
    answer.sum().backward()
    expected.sum().backward()
    for a, b in zip(mine, theirs, strict=True):
        close(a.grad, b.grad, 1e-5)


@pytest.mark.parametrize("wanted", range(5))
def test_gradient_of_one_input_only(wanted: int) -> None:
    """Each gradient asked for alone is the same as asked for together, and the others stay None."""
    every, one = ([t.clone() for t in plain()] for _ in range(2))
    for tensor in every:
        tensor.requires_grad_()
    one[wanted].requires_grad_()
    for x, offset, weight, bias, mask in (every, one):
        deform_conv2d(x, offset, weight, bias, padding=1, mask=mask).square().sum().backward()
    assert torch.equal(one[wanted].grad, every[wanted].grad)
    assert [t.grad is not None for t in one] == [i == wanted for i in range(5)]


@pytest.mark.parametrize("path", PATHS[:2])
@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e30, -1e30, 3e9])
def test_far_offsets_read_zero(path: str, value: float) -> None:
    """However far outside a point lies it reads zero and sends back no gradient."""
    x, offset, weight, _, _ = plain()
    offset = torch.full_like(offset, value).requires_grad_()
    x.requires_grad_()
    with lowering(deform_conv=path):
        answer = deform_conv2d(x, offset, weight, padding=1)
    answer.sum().backward()
    assert not answer.any()
    assert not x.grad.any()
    assert not offset.grad.any()


def test_not_a_number_is_said_not_crashed_on() -> None:
    """A NaN offset gives NaN where it is read and nowhere else, forward and backward."""
    x, offset, weight, _, _ = plain()
    offset[1, 4, 3, 2] = math.nan
    offset.requires_grad_()
    answer = deform_conv2d(x, offset, weight, padding=1)
    answer.sum().backward()
    assert answer.isnan().sum() == 4
    assert answer[1, :, 3, 2].isnan().all()
    assert offset.grad[0].isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_follows_the_map(layout: str) -> None:
    """The answer is laid out as conv2d lays it out, and its values do not depend on it."""
    x, offset, weight, bias, mask = plain()
    answer = deform_conv2d(lay_out(x, layout), offset, weight, bias, padding=1, mask=mask)
    assert answer.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
    torch.testing.assert_close(answer, deform_conv2d(x, offset, weight, bias, padding=1, mask=mask))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(path: str, dtype: torch.dtype) -> None:
    """A half map gives a half answer: that of the same numbers in float32, rounded once."""
    x, offset, weight, bias, mask = plain()
    x = x.to(dtype).requires_grad_()
    with lowering(deform_conv=path):
        wide = deform_conv2d(x.float(), offset, weight, bias, padding=1, mask=mask)
        with torch.autocast("cpu", torch.bfloat16):
            answer = deform_conv2d(x, offset, weight, bias, padding=1, mask=mask)
            answer.sum().backward()
    assert answer.dtype == x.grad.dtype == dtype
    assert torch.equal(answer, wide.to(dtype))


def test_every_run_is_the_same() -> None:
    """Forward and backward are equal bit for bit from run to run."""

    def run() -> list[Tensor]:
        x, offset, weight, bias, mask = (t.requires_grad_() for t in plain(32, 20))
        answer = deform_conv2d(x, offset, weight, bias, padding=1, mask=mask)
        return [answer, *torch.autograd.grad(answer.sin().sum(), (x, offset, weight, bias, mask))]

    first = run()
    for _ in range(3):
        assert all(map(torch.equal, first, run()))


def test_second_derivative_is_refused() -> None:
    """As in torchvision, and the message says what to do."""
    x, offset, weight, _, _ = plain()
    x.requires_grad_()
    answer = deform_conv2d(x, offset, weight, padding=1)
    (grad,) = torch.autograd.grad(answer.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


class Layer(nn.Module):
    """A deformable layer as detectors use it: offsets and mask come from a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.moves = nn.Conv2d(6, 27, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        moves = self.moves(x)
        offset, mask = moves[:, :18], moves[:, 18:].sigmoid()
        return deform_conv2d(x, offset, self.weight, self.bias, padding=1, mask=mask)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("path", PATHS[:2])
def test_compiles_whole(path: str, layout: str) -> None:
    """One graph, forward and backward, with the eager answer and layout, at two sizes."""
    layer = Layer()
    torch.compiler.reset()
    with lowering(deform_conv=path):
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for side in (9, 12):
            x = lay_out(plain(6, side)[0], layout)
            answer, expected = compiled(x), layer(x)
            assert answer.stride() == expected.stride()
            torch.testing.assert_close(answer, expected)
            mine = torch.autograd.grad(answer.square().sum(), list(layer.parameters()))
            theirs = torch.autograd.grad(expected.square().sum(), list(layer.parameters()))
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("op", ["forward", "backward"])
def test_operators_are_well_formed(op: str) -> None:
    """Schema, shapes, strides and aliasing are what the compiler is told."""
    x, offset, weight, bias, mask = (t.requires_grad_(op == "forward") for t in plain())
    x = lay_out(x, "channels_last").detach().requires_grad_(op == "forward")
    geometry = [1, 1, 1, 1, 1, 1]
    if op == "forward":
        torch.library.opcheck(torch.ops.relook.deform_conv2d, (x, offset, weight, bias, mask, geometry))
    else:
        grad = torch.randn(2, 4, 9, 11)
        for needed in ([True] * 4, [False, True, False, False], [True, False, True, False]):
            arguments = (grad, x, offset, weight, mask, geometry, needed)
            torch.library.opcheck(torch.ops.relook.deform_conv2d_backward, arguments)


@pytest.mark.export
@pytest.mark.parametrize(
    ("path", "operator"),
    [
        ("auto", "torchvision.deform_conv2d"),
        ("portable", "aten.grid_sampler"),
        ("fast", "relook.deform_conv2d"),
    ],
)
def test_exports(path: str, operator: str) -> None:
    """By default an exported graph holds the operator exporters know; the answer stays."""
    layer, x = Layer(), plain()[0]
    height, width = torch.export.Dim("height", min=4, max=64), torch.export.Dim("width", min=4, max=64)
    with lowering(deform_conv=path), torch.no_grad():
        program = torch.export.export(layer, (x,), dynamic_shapes=({2: height, 3: width},))
        assert any(str(node.target).startswith(operator) for node in program.graph.nodes)
        for side in (9, 14):
            torch.testing.assert_close(program.module()(plain(6, side)[0]), layer(plain(6, side)[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: (2, 6, 9)}, "x of deform_conv2d has 3 dimensions"),
        ({2: (4, 4, 3, 3)}, "does not divide the 6 channels"),
        ({1: (2, 17, 9, 11)}, "offset has 17 channels"),
        ({1: (2, 18 * 4, 9, 11)}, "must divide the 6 channels"),
        ({1: (2, 18, 9, 10)}, "the output is 9x11"),
        ({1: (1, 18, 9, 11)}, "the output is 9x11 for 2 images"),
        ({4: (2, 8, 9, 11)}, "mask is"),
    ],
)
def test_wrong_shapes_are_named(change: dict[int, tuple[int, ...]], message: str) -> None:
    """An error says which tensor does not fit and what would."""
    tensors = plain()
    for place, shape in change.items():
        tensors[place] = torch.zeros(shape)
    x, offset, weight, bias, mask = tensors
    with pytest.raises(ValueError, match=message):
        deform_conv2d(x, offset, weight, bias, padding=1, mask=mask)


def test_unknown_path_is_refused() -> None:
    """And a path forced inside a block is forgotten after it, even after an error."""
    with pytest.raises(ValueError, match="'quick' is not one of"), lowering(deform_conv="quick"):
        pass
    x, offset, weight, _, _ = plain()
    with pytest.raises(KeyError), lowering(deform_conv="torchvision"):
        raise KeyError
    answer = deform_conv2d(x.requires_grad_(), offset, weight, padding=1)
    assert "relook" in answer.grad_fn.name()
