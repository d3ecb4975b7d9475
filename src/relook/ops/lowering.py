"""What an operator is being turned into, asked in one place: run as it is, compiled, or exported.

An operator with several equal ways to compute itself asks here which one fits. Tests and benchmarks choose
with `lowering`.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Path = Literal["auto", "fast", "portable", "torchvision"]


class _Chosen:
    deform_conv: Path = "auto"


def exporting() -> bool:
    """Whether a graph is being made for others, who know torchvision's operators and ONNX's, not ours."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] (documented by torch)


def in_graph() -> bool:
    """Whether a graph is being made, compiled or exported, so that nothing may depend on values."""
    return torch.compiler.is_compiling()


def deform_conv_way(device: str) -> Path:
    """How a deformable convolution is computed on a type of device: "fast", "portable" or "torchvision"."""
    if _Chosen.deform_conv != "auto":
        return _Chosen.deform_conv
    if exporting():
        return "torchvision"  # ONNX: DeformConv
    if device == "cpu":
        return "fast"
    return "torchvision" if device in {"cuda", "meta"} else "portable"


@contextmanager
def lowering(*, deform_conv: Path) -> Generator[None]:
    """Inside a `with` block operators are computed in a given way; for tests and benchmarks, one a process.

    Raises:
        ValueError: there is no such way.
    """
    if deform_conv not in get_args(Path):
        ways = ", ".join(map(repr, get_args(Path)))
        raise ValueError(f"deform_conv={deform_conv!r} is not one of {ways}")
    before, _Chosen.deform_conv = _Chosen.deform_conv, deform_conv
    try:
        yield
    finally:
        _Chosen.deform_conv = before
