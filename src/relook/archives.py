"""Files of weights before anything of them is read: what they are, whether they are whole and how large.

torch's files are zip archives. Each record in them carries a checksum that torch itself does not compare, and
a size that may be anything when somebody else wrote it.
"""

import pickletools
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import IO, Final

import torch
from torch import Tensor

from relook.data.disk.regular import why_not


class CheckpointError(ValueError):
    """A file that cannot be used as weights; the message says why and what to do."""


LARGEST: Final = 1 << 40  # bytes of a file
MOST_OPERATIONS: Final = 2_000_000  # of the pickle that says how tensors are made: a network needs thousands
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
    if path.open("rb").read(2) != b"PK":
        with path.open("rb") as file:
            for _ in range(4):  # a magic number, the protocol, the machine, and then the content itself
                _count(path, file)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
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
        raise CheckpointError(broken(path)) from None


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
    """Refuses a pickle of more operations than weights have."""
    try:
        more = next(islice(pickletools.genops(pickled), MOST_OPERATIONS, None), None)
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError, MemoryError):
        raise CheckpointError(broken(path)) from None
    if more is not None:
        raise CheckpointError(
            f"{path} needs more than {MOST_OPERATIONS:,} operations to be read, and weights need thousands; "
            "save the state dict only"
        )


def checksum(state: Mapping[str, Tensor]) -> str:
    """CRC-32 of all numbers, by the names of their tensors: in the metadata of relook's safetensors files."""
    total = 0
    for name in sorted(state):
        numbers = state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        total = zlib.crc32(numbers.numpy().tobytes(), total)
    return f"{total:08x}"


def broken(path: Path) -> str:
    """What to say of a file that is damaged."""
    return (
        f"{path} is broken or cut short ({path.stat().st_size} bytes) or no checkpoint at all; "
        "compare its size with the original and copy or download it again"
    )


def pickles(path: Path) -> Iterator[IO[bytes]]:
    """The pickles of a file in torch's format, one after the other."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            yield BytesIO(archive.read(name))
        return
    with path.open("rb") as file:
        for _ in range(4):
            yield file
