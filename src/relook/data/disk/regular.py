"""Only regular files are read, and none without a limit: pipes and devices would wait or never end."""

import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

MEGABYTE: Final = 1 << 20
LARGEST_LABELS: Final = 8 * MEGABYTE  # the labels of one image, in text or XML
LARGEST_LIST: Final = 512 * MEGABYTE  # a text file that lists images or names
LARGEST_SETTINGS: Final = 3 * MEGABYTE // 8  # a YAML file: seconds for the reader without libyaml
LARGEST_JSON: Final = 8192 * MEGABYTE
LARGEST_IMAGE: Final = 2048 * MEGABYTE

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Unusable(ValueError):  # noqa: N818 - says what the file is, as a report of it would
    """A file that cannot be used: what is wrong with it, and how to fix it."""

    def __init__(self, path: Path | str, what: str, fix: str) -> None:
        super().__init__(f"{path}: {what}; {fix}")
        self.path, self.what, self.fix = Path(path), what, fix


def is_regular(path: Path) -> bool:
    """Whether there is a regular file, or a link to one; a name that no disk can hold is none."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return False


def why_not(path: Path | str, most: int) -> str:
    """Why a file is not to be read, in words; empty when it is a regular file of at most `most` bytes."""
    try:
        found = os.stat(path)  # noqa: PTH116 (a name with a zero byte is no Path)
    except FileNotFoundError:
        return "there is no such file"
    except ValueError:
        return "its name holds a zero byte"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    for is_kind, kind in _KINDS:
        if is_kind(found.st_mode):
            return f"is {kind}, not a file"
    if found.st_size > most:
        return f"holds {_size(found.st_size)}, more than the {_size(most)} that are read"
    return ""


def _size(count: int) -> str:
    return f"{count / MEGABYTE:,.0f} MB" if count >= MEGABYTE else f"{count / 1024:,.0f} kB"


def read_bytes(path: Path, most: int) -> bytes:
    """All of a regular file.

    Raises:
        Unusable: when it is none, holds more than `most` bytes, or cannot be read.
    """
    with _opened(path, most) as file:
        return file.read(min(most, os.fstat(file.fileno()).st_size + 1))


def read_ends(path: Path, most: int, length: int = 4096) -> tuple[bytes, bytes]:
    """The first and the last bytes of a regular file; they overlap when it is short.

    Raises:
        Unusable: as `read_bytes`.
    """
    with _opened(path, most) as file:
        head = file.read(length)
        file.seek(max(0, file.seek(0, os.SEEK_END) - length))
        return head, file.read(length)


@contextmanager
def _opened(path: Path, most: int) -> Generator[IO[bytes]]:
    what = why_not(path, most)
    if what:
        raise Unusable(path, what, "split it up" if what.startswith("holds") else "put the file in its place")
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        fix = "see that it may be read"
        raise Unusable(path, f"cannot be read ({error.strerror or error})", fix) from error
