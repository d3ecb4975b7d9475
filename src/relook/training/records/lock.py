"""One training in a folder at a time."""

import errno
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from relook.escaping import printable
from relook.files import room_for

try:
    import fcntl
except ImportError:  # Windows: there the folder is not locked
    fcntl = None

NAME: Final = ".relook.lock"
_TAKEN: Final = (errno.EACCES, errno.EAGAIN)


class Occupied(FileExistsError):  # noqa: N818 (what was met)
    """Another training is writing into the folder."""


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Holds a folder for this process; the system lets go of it when the process ends, however it ends.

    Raises:
        Occupied: when another process holds it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder / NAME) as file:
        with room_for(folder / NAME):
            file.seek(0)
            file.truncate()
            file.write(f"{os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        try:
            yield
        finally:
            (folder / NAME).unlink(missing_ok=True)  # while held, so that nobody holds one without a name
            with suppress(OSError):  # not empty
                if made:
                    folder.rmdir()


@contextmanager
def _held(path: Path) -> Generator[IO[str]]:
    """The lock file, opened and held; once more where its last holder removed it in between."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        with os.fdopen(number, "r+", encoding="utf-8", errors="replace") as file:
            _lock(path, file)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file
                return


def _lock(path: Path, file: IO[str]) -> None:
    """A record lock: workers that outlive a killed training do not inherit it, as they would flock's."""
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _TAKEN:
            return  # of a disk without locks
        file.seek(0)
        holder = printable(file.readline().strip(), 200)
        who = f"process {holder}" if holder else "another process"
        raise Occupied(
            f"{path.parent} is in use: {who} is training there; wait for its end, or choose another folder "
            "by --out"
        ) from None
