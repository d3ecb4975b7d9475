"""Refuses whatever makes the host wait for the device: values read, and shapes that depend on values.

On a CPU nothing waits, so both layers are watched: Python's calls, where `.tolist()` or `.cpu()` are seen,
and torch's operators, where their like inside of other functions are.
"""

import sys
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = {  # of a tensor, by Python
    *("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__"),
    *("equal", "allclose", "is_nonzero", "nonzero", "unique", "unique_consecutive", "masked_select"),
    *("bincount", "histc"),
}
OPERATORS = {  # whose result must be known on the host before the next can start
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "_to_cpu"),
    *("nonzero", "masked_select", "unique", "unique_consecutive", "unique_dim", "_unique", "_unique2"),
    *("bincount", "repeat_interleave", "nms"),
}


def declared(name: str, allowed: frozenset[str]) -> bool:
    """Whether a wait is one that a detector declares: by its name, or inside of `relook.ops` of that name."""
    if name in allowed:
        return True
    files = tuple(f"relook/ops/{one}.py" for one in allowed)
    frame = sys._getframe(1)
    while files and frame is not None:
        if frame.f_code.co_filename.replace("\\", "/").endswith(files):
            return True
        frame = frame.f_back
    return False


class NoWaiting:
    """While open, a wait raises AssertionError, unless it is one of those that a detector declares."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self.allowed = frozenset(allowed)
        self._modes = (_Calls(self.allowed), _Operators(self.allowed))

    def __enter__(self) -> Self:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Calls(TorchFunctionMode):
    def __init__(self, allowed: frozenset[str]) -> None:
        super().__init__()
        self.allowed = allowed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        if declared(name, self.allowed):  # what happens inside of a declared wait is its own affair
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        assert name not in READS, f"{name} makes the host wait"
        if name == "to" and any(str(given) == "cpu" for given in (*args[1:], *kwargs.values())):
            raise AssertionError("to('cpu') makes the host wait")
        if name == "repeat_interleave" and len(args) > 1 and isinstance(args[1], Tensor):
            raise AssertionError("repeat_interleave by a tensor makes the host wait")
        return func(*args, **kwargs)


class _Operators(TorchDispatchMode):
    def __init__(self, allowed: frozenset[str]) -> None:
        super().__init__()
        self.allowed = allowed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if declared(name, self.allowed):
            return func(*args, **(kwargs or {}))
        assert name not in OPERATORS, f"{name} makes the host wait"
        if name in ("index", "index_put", "index_put_"):
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            assert not masks, "boolean indexing makes the host wait"
        return func(*args, **(kwargs or {}))
