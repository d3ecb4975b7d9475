"""Files of weights before anything of them is read: what they are, whether they are whole and how large.

torch's files are zip archives. Each record in them carries a checksum that torch itself does not compare, and
a size that may be anything when somebody else wrote it.
"""

import codecs
import json
import pickletools
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Final

import torch
from torch import Tensor

from relook.data.disk.regular import why_not


class CheckpointError(ValueError):
    """A file that cannot be used as weights; the message says why and what to do."""


LARGEST: Final = 1 << 40  # bytes of a file
MOST_OPERATIONS: Final = 1_000_000  # of the pickle that says how tensors are made: a network needs thousands
CHECKSUM: Final = "crc32"  # key in the metadata of relook's safetensors files
_CHUNK: Final = 1 << 22

_HEADS: Final = {
    b"PK": "torch",
    b"\x80": "torch",  # the format before torch 1.6
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89PNG": "a PNG picture",
    b"GIF8": "a GIF picture",
    b"BM": "a BMP picture",
    b"RIFF": "a WebP picture or a sound",
    b"II*\x00": "a TIFF picture",
    b"MM\x00*": "a TIFF picture",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "a gzip archive (unpack it first)",
    b"version https://git-lfs": "a Git LFS pointer (fetch the file itself with `git lfs pull`)",
}


def kind(path: Path) -> str:
    """What the first bytes say: "torch", "safetensors", or words for a message.

    Raises:
        CheckpointError: when there is no such file, or it is a folder, a pipe or a device.
    """
    head = _head(path)
    if not head:
        return "an empty file (download or copy it again)"
    if head[4:9] == b"\0\0\0\0{" or path.suffix == ".safetensors":  # its length, then JSON
        return "safetensors"
    for start, words in _HEADS.items():
        if head.startswith(start):
            return words
    if head.lstrip()[:1] == b"<":
        return "a web page (the download went wrong; fetch the file again)"
    return "neither torch's format nor safetensors"


def _head(path: Path) -> bytes:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the checkpoint file in it")
    what = why_not(path, LARGEST)
    if what == "there is no such file":
        raise CheckpointError(f"there is no file {path}; check the path of the weights")
    if what:
        raise CheckpointError(f"{path} {what}; give a file of weights")
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def check_torch_file(path: Path) -> None:
    """Refuses a file in torch's format that is damaged, or that would fill far more memory than disk.

    A record's checksum (CRC-32) is compared; the format before torch 1.6 has none.

    Raises:
        CheckpointError: with the record that is wrong.
    """
    found = path.stat()
    _check_torch_file(path, (found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=8)  # several readers may ask for one file in a row
def _check_torch_file(path: Path, _version: tuple[int, ...]) -> None:
    if not _is_zip(path):
        for pickled in pickles(path):
            _count(path, pickled)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            _refuse_program(path, records)
            _refuse_growing(path, records)
            for record in records:
                if not record.is_dir():
                    _compare(archive, record)
                if record.filename.endswith(".pkl"):
                    _count(path, BytesIO(archive.read(record)))
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        RuntimeError,
        NotImplementedError,
        ValueError,
    ) as error:
        if isinstance(error, CheckpointError):
            raise
        without = (
            "; or torch was told to write no checksums (torch.serialization.set_crc32_options): save it again"
            if "CRC" in str(error)
            else ""
        )
        raise CheckpointError(f"{broken(path)}{without}") from None


def _refuse_program(path: Path, records: list[zipfile.ZipInfo]) -> None:
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise CheckpointError(
            f"{path} is a TorchScript program, not a checkpoint; give the checkpoint it was made from"
        )


def _refuse_growing(path: Path, records: list[zipfile.ZipInfo]) -> None:
    packed = [record for record in records if record.compress_type != zipfile.ZIP_STORED]
    declared, size = sum(record.file_size for record in records), path.stat().st_size
    if packed or declared > size:
        why = "is compressed" if packed else f"says that it holds {declared:,} bytes in its {size:,}"
        raise CheckpointError(
            f"{path} {why}, which torch's files are not: it could fill any amount of memory; ask its author "
            "for a file that torch.save wrote"
        )


def _compare(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    """Reads a record to its end, where zipfile compares its checksum."""
    with archive.open(record) as file:
        while file.read(_CHUNK):
            pass


def _count(path: Path, pickled: IO[bytes]) -> None:
    """Refuses a pickle of more operations than weights have, or of tuples that are huge unfolded."""
    try:
        large = any(max(number, size) > MOST_OPERATIONS for number, size in enumerate(_sizes(pickled)))
    except (ValueError, LookupError, OverflowError, MemoryError):
        raise CheckpointError(broken(path)) from None
    if large:
        raise CheckpointError(
            f"{path} needs more than {MOST_OPERATIONS:,} operations to be read, and weights need thousands; "
            "save the state dict only"
        )


def _sizes(pickled: IO[bytes]) -> Iterator[int]:
    """Operation by operation, how many things the value on top of the stack holds if it is a tuple.

    Tuples can be put into each other again and again, so that few operations make one whose hash takes for
    ever. Nothing is built here: the stack holds sizes, and marks as zeros.
    """
    stack: list[int] = []
    kept: dict[object, int] = {}
    encodes = False
    for operation, argument, _ in pickletools.genops(pickled):
        name = operation.name
        if name in ("GLOBAL", "STACK_GLOBAL") and argument is not None:
            _refuse_growth(str(argument))
            encodes = encodes or str(argument) == "_codecs encode"
        elif encodes and isinstance(argument, str) and len(argument) < 40 and argument.isidentifier():
            _refuse_encoding(argument)
        if name in _READ:
            stack.append(kept[argument])
        elif name in _KEPT:
            kept[len(kept) if name == "MEMOIZE" else argument] = stack[-1]
        else:
            to_mark, below, above = _EFFECT[name]
            taken: list[int] = []
            if to_mark:
                mark = len(stack) - 1 - stack[::-1].index(0)
                taken = stack[mark + 1 :]
                del stack[mark:]
            if below:
                taken += stack[-below:]
                del stack[-below:]
            stack += (1 + sum(taken),) if name in _TUPLES else above
        yield stack[-1] if stack else 0


def _refuse_growth(named: str) -> None:
    """torch lets a file make byte arrays of any length; weights have none."""
    if named.endswith(" bytearray"):
        raise ValueError(named)


def _refuse_encoding(name: str) -> None:
    """Old pickles of bytes encode them as latin1; other codecs multiply them or take for ever."""
    try:
        known = codecs.lookup(name).name
    except LookupError:
        return
    if known not in ("iso8859-1", "ascii", "utf-8"):
        raise ValueError(name)


_READ: Final = frozenset({"GET", "BINGET", "LONG_BINGET"})
_KEPT: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_TUPLES: Final = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})


def _effect(operation: pickletools.OpcodeInfo) -> tuple[bool, int, tuple[int, ...]]:
    """What an operation takes from the stack (all to a mark? how many below?) and what it puts there."""
    before = list(operation.stack_before)
    to_mark = pickletools.markobject in before
    below = before.index(pickletools.markobject) if to_mark else len(before)
    return to_mark, below, tuple(int(one is not pickletools.markobject) for one in operation.stack_after)


_EFFECT: Final = {operation.name: _effect(operation) for operation in pickletools.opcodes}


def checksum(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """CRC-32 of all that a safetensors file of relook says: metadata, names, shapes and numbers."""
    said = {name: text for name, text in metadata.items() if name != CHECKSUM}
    total = zlib.crc32(json.dumps(said, sort_keys=True).encode())
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        total = zlib.crc32(f"{name} {value.dtype} {list(value.shape)}".encode(), total)
        total = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().tobytes(), total)
    return f"{total:08x}"


def broken(path: Path) -> str:
    """What to say of a file that is damaged."""
    return (
        f"{path} is broken or cut short ({path.stat().st_size} bytes) or no checkpoint at all; "
        "compare its size with the original and copy or download it again"
    )


def pickles(path: Path) -> Iterator[IO[bytes]]:
    """The pickles of a file in torch's format, one after the other."""
    if _is_zip(path):
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            yield BytesIO(archive.read(name))
        return
    with path.open("rb") as file:
        for _ in range(4):  # a magic number, the protocol, the machine, and then the content itself
            yield file


def _is_zip(path: Path) -> bool:
    """As torch decides: by the first bytes, whatever may follow."""
    return _head(path).startswith(b"PK")
