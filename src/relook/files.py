"""Files that are either whole or not there: written beside their place, then renamed."""

import errno
import os
import re
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Final


class DiskFull(OSError):  # noqa: N818 (what was met)
    """A file that there was no room for; the message says which one and what is still whole."""


NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def whole_file(path: Path | str) -> Generator[Path]:
    """Gives a temporary path beside `path`; on success it takes the place of `path`, on an error it goes.

        with whole_file("metrics.json") as beside:
            beside.write_text(text)

    A reader of `path` sees the old file or the new one, never a part, even if the machine stops.

    Raises:
        DiskFull: when there is no room for it.
    """
    path = Path(path)
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        beside = Path(name)
        try:
            yield beside
            with beside.open("rb") as written:
                os.fsync(written.fileno())
            umask = os.umask(0)
            os.umask(umask)
            beside.chmod(0o666 & ~umask)  # mkstemp makes it private
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Removes what killed writes of these files left beside them; nobody may be writing them."""
    ours = [rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}{re.escape(Path(name).suffix)}" for name in names]
    for path in folder.iterdir():
        if not path.is_file():
            continue
        if any(re.fullmatch(one, path.name) for one in ours) or _safetensors_wrote(path):
            path.unlink()


def _safetensors_wrote(path: Path) -> bool:
    """Whether it is a file beside, as safetensors makes one itself: its length, then JSON, or nothing yet."""
    if not re.fullmatch(r"\.tmp[A-Za-z0-9]{6}", path.name):
        return False
    with path.open("rb") as file:
        return file.read(9)[8:] in (b"", b"{")


@contextmanager
def room_for(path: Path) -> Generator[None]:
    """Says in one sentence when there was no room to write `path`.

    torch and safetensors hide the cause, the one as a cause of its error, the other in its words.

    Raises:
        DiskFull: instead of what the writer raised.
    """
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        number = _no_room(error)
        if number is None:
            raise
        kept = "what it held before is whole" if path.exists() else "nothing of it was left there"
        full = DiskFull(f"{path} could not be written: {os.strerror(number).lower()}; {kept}")
        full.errno = number
        raise full from error


def _no_room(error: BaseException | None) -> int | None:
    """The system's number of the cause, when it is that there was no room."""
    while error is not None:
        said = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(said[1]) if said else None
        if number in NO_ROOM:
            return number
        error = error.__cause__ or error.__context__
    return None
