"""Published files at one command: fetched once into the cache that torch.hub uses, and verified."""

import errno
import hashlib
import logging
import os
import re
import socket
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.error import HTTPError
from urllib.parse import urlsplit

import torch.hub

from relook.archives import CheckpointError
from relook.files import NO_ROOM, room_for
from relook.zoo.catalog import find
from relook.zoo.entry import Entry

log = logging.getLogger("relook.api")

SECONDS: Final = 20.0  # without an answer


def offline() -> bool:
    """Whether nothing may be fetched: RELOOK_OFFLINE=1."""
    return os.environ.get("RELOOK_OFFLINE", "") not in ("", "0")


def published(name: str, then: str = "give the file as --weights FILE") -> Path:
    """The published file of a model of the catalog, fetched if it is not on this machine yet.

    Args:
        name: of the model.
        then: what to do with a file that a person has to fetch, for messages.

    Raises:
        CheckpointError: when it has none that a program may fetch, or it cannot be fetched, or is not the one
            that was published.
        DiskFull: when there is no room for it.
    """
    entry = find(name)
    if not entry.weights:
        raise CheckpointError(_by_hand(entry, then))
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / urlsplit(entry.weights).path.rpartition("/")[2]
    wanted = file.stem.rpartition("-")[2]  # of its SHA-256, the first eight digits
    if file.is_file():
        if _digest(file).startswith(wanted):
            return file
        log.warning("%s is not whole and is fetched again", file)
    with room_for(file):
        folder.mkdir(parents=True, exist_ok=True)
        _fetch(entry, file, wanted)
    return file


def _by_hand(entry: Entry, then: str) -> str:
    if not entry.page:
        return f"nobody has published weights of {entry.name}; train it, or {then} if you have one"
    return (
        f"the published file of {entry.name} is behind a page that a program cannot fetch; download it by "
        f"hand from {entry.page} and {then}"
    )


def _fetch(entry: Entry, file: Path, wanted: str) -> None:
    why = "RELOOK_OFFLINE is set"
    if not offline():
        log.info("fetching %s into %s", entry.weights, file.parent)
        try:
            with _impatient():
                torch.hub.download_url_to_file(entry.weights, str(file), wanted)
        except RuntimeError as error:
            got = re.search(r'invalid hash value .*got "(\w+)"', str(error))
            if got is None:
                raise
            raise CheckpointError(
                f"what {entry.weights} gave is cut short or not the published file: its SHA-256 begins with "
                f"{got[1][:8]}, not {wanted}; try again, or {_put(entry, file)}"
            ) from None
        except (OSError, HTTPException, ValueError) as error:  # the latter two of answers that are none
            if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                raise
            code = isinstance(error, HTTPError)
            why = str(error if code else getattr(error, "reason", error)).strip() or type(error).__name__
        else:
            return
    raise CheckpointError(
        f"the published file of {entry.name} is not on this machine and could not be fetched ({why}); "
        f"{_put(entry, file)}"
    )


_OF_THE_DISK: Final = NO_ROOM | {errno.EACCES, errno.EROFS}


def _put(entry: Entry, file: Path) -> str:
    return f"download {entry.weights} where there is a network and put it into {file.parent}"


@contextmanager
def _impatient() -> Generator[None]:
    """Gives up on an address that does not answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
