"""torch's checkpoint formats read without running the code that a file may carry.

A pickle names functions and calls them. torch's weights_only reader allows those that make tensors. Training
checkpoints of the old frameworks also hold numpy scalars, mmengine's loss history and its settings, none of
which we need. Each of them gets a stand-in here that keeps plain values and can do nothing else; numpy's own
unpickling code is never entered.
"""

import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from relook.archives import CheckpointError, broken, check_torch_file, pickles


class _Dtype:
    """Stands in for numpy.dtype."""

    def __init__(self, code: str = "V", *_: object) -> None:
        self.code, self.endian = str(code), "|"

    def __setstate__(self, state: Sequence[Any]) -> None:
        if len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.endian = str(state[1])

    def numpy(self) -> "np.dtype[Any] | None":
        """The type itself where it is a plain number."""
        if not re.fullmatch(r"[bifu]\d{1,2}|b1", self.code):
            return None
        return np.dtype(self.endian + self.code)


class Array:
    """Stands in for numpy.ndarray; `value` is set where it holds plain numbers."""

    def __init__(self, *_: object) -> None:
        self.value: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Sequence[Any]) -> None:
        """state: version, shape, type, column-major?, bytes."""
        _, shape, kind, columns, data = state
        dtype = kind.numpy() if isinstance(kind, _Dtype) else None
        if dtype is not None and isinstance(data, bytes):
            flat = np.frombuffer(data, dtype)
            self.value = flat.reshape(shape, order="F" if columns else "C")


class _Opaque:
    """Stands in for an object whose content we do not need."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class _Settings:
    """Stands in for mmengine's dictionaries with attribute access: what comes out is a plain dictionary."""

    def __new__(cls, *parts: Any) -> Any:
        return OrderedDict[str, Any](*parts)


def _new_array(*_: object) -> Array:
    return Array()


def _scalar(kind: object, data: object = b"", *_: object) -> object:
    dtype = kind.numpy() if isinstance(kind, _Dtype) else None
    if dtype is None or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        return None
    return np.frombuffer(data, dtype)[0].item()


def _attribute(owner: object, _: object) -> type[_Opaque]:
    """Stands in for getattr, which mmengine's loss history uses to name its own methods."""
    if owner is not _Opaque:
        raise pickle.UnpicklingError("Unsupported global: GLOBAL getattr was used on something else")
    return _Opaque


STAND_INS: Final[dict[str, Any]] = {
    **{
        f"numpy.{core}.multiarray.{name}": value
        for core in ("core", "_core")
        for name, value in (("scalar", _scalar), ("_reconstruct", _new_array))
    },
    "numpy.dtype": _Dtype,
    "numpy.ndarray": Array,
    "mmengine.logging.history_buffer.HistoryBuffer": _Opaque,
    "mmengine.config.config.ConfigDict": _Settings,
    "mmengine.config.config.Config": _Opaque,
    "mmcv.utils.config.ConfigDict": _Settings,
    "builtins.getattr": _attribute,
    **{
        f"numpy.dtypes.{name}DType": _Dtype
        for name in ("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "Float16", "Float32", "Float64")
    },
}


def unpickle(path: Path) -> object:
    """The content of a file in one of torch's formats, of tensors, plain values and stand-ins.

    Raises:
        CheckpointError: when it is broken, a program, or would have to call functions.
    """
    check_torch_file(path)
    try:
        with _quiet(), torch.serialization.safe_globals([(value, name) for name, value in STAND_INS.items()]):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None
            )
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from None
    except RuntimeError as error:
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is a TorchScript program, not a checkpoint; give the checkpoint it was made from"
            ) from None
        raise CheckpointError(broken(path)) from None
    except (
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        AssertionError,
        OSError,
        MemoryError,
    ):
        raise CheckpointError(broken(path)) from None


@contextmanager
def _quiet() -> Generator[None]:
    """Without torch's remark on the protocol of a file: it is either read or refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _refusal(path: Path, words: str) -> CheckpointError:
    wanted = re.search(r"GLOBAL (\S+)", words) or re.search(r"(?:function|got) (<[^>]+>)", words)
    if wanted is None:
        return CheckpointError(broken(path))
    return CheckpointError(
        f"{path} is refused: to read it, Python would have to call {wanted[1]!r}, and a file that calls "
        "functions can run any code on this machine; nothing of it was run. Ask its author for a file with "
        "the state dict only, or, if you trust the author, load it in its own framework in a container, "
        "save its state_dict() and give that file"
    )


def named_globals(path: Path) -> set[str]:
    """The functions and classes that a checkpoint names, read without running it."""
    return {str(argument).replace(" ", ".").replace("__builtin__.", "builtins.") for argument in _named(path)}


def _named(path: Path) -> Iterator[object]:
    for pickled in pickles(path):
        for operation, argument, _ in pickletools.genops(pickled):
            if operation.name == "GLOBAL":
                yield argument
