"""Which files of a folder are meant: one rule for all that lists pictures or annotations.

Folders in folders count, links to folders too, each once. Hidden files and folders do not (._x.jpg of macOS,
.ipynb_checkpoints), nor what archives and servers leave (__MACOSX, @eaDir). A picture is a regular file whose
ending belongs to a format that Pillow reads. What is passed over is counted.
"""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from PIL import Image

SORTED: Final = 20_000
"""Names of a folder are sorted up to this many; beyond, they come as the disk lists them."""

_UNWANTED = frozenset({"__macosx", "@eadir", "$recycle.bin", "lost+found"})
UNREAD: Final = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF", "ICO", "CUR", "ICNS"})
"""Formats that Pillow names but cannot decode by itself, one that it hands to another program, and icons,
which it decodes before their size can be seen."""

_BESIDE = frozenset(  # what lies beside pictures and needs no word
    {".txt", ".xml", ".json", ".yaml", ".yml", ".csv", ".md", ".names", ".data", ".cache", ".html", ".log"}
)


@cache
def image_endings() -> frozenset[str]:
    """Endings of image files, in lower case with their dots: all that this Pillow reads."""
    Image.init()
    known = Image.registered_extensions()
    read = (ending for ending, kind in known.items() if kind in Image.OPEN and kind not in UNREAD)
    return frozenset({*read, ".mpo"})  # which JPEG's reader opens


def is_image_name(name: str) -> bool:
    """Whether a file name has such an ending."""
    return os.path.splitext(name)[1].lower() in image_endings()  # noqa: PTH122 (a Path for each is slow)


def is_unwanted(name: str) -> bool:
    """Whether a file or folder is one that nobody means."""
    return name.startswith(".") or name.lower() in _UNWANTED


@dataclass(slots=True)
class PassedOver:
    """What a listing left out."""

    kinds: Counter[str] = field(default_factory=Counter[str])  # by ending, or what else it is
    first: dict[str, str] = field(default_factory=dict[str, str])  # the first name of each kind

    def note(self, kind: str, name: str) -> None:
        """One more."""
        self.kinds[kind] += 1
        self.first.setdefault(kind, name)

    def sentence(self, place: Path | str) -> str:
        """How many of which kind, or nothing when nobody would miss them."""
        told = {kind: count for kind, count in self.kinds.most_common() if kind not in _BESIDE}
        if not told:
            return ""
        listed = [
            f"{count} {kind} ({self.first[kind]}{', ...' if count > 1 else ''})"
            for kind, count in told.items()
        ]
        more = f" and {len(listed) - 6} other kinds" if len(listed) > 6 else ""
        return f"passed over in {place}: {', '.join(listed[:6])}{more}"


def images_below(folder: Path, passed: PassedOver) -> Iterator[Path]:
    """All pictures of a folder by name, then those of the folders in it; lazily."""
    return files_below(folder, is_image_name, passed)


def files_below(folder: Path, wanted: Callable[[str], bool], passed: PassedOver) -> Iterator[Path]:
    """All files of a folder whose name is wanted, then those of the folders in it; lazily."""
    waiting, seen = [folder], set[tuple[int, int]]()
    while waiting:
        here = waiting.pop()
        try:
            facts = here.stat()
            there = entries(here)
            inner: list[Path] = []
            if (facts.st_dev, facts.st_ino) in seen:
                passed.note("link to a folder that was listed", here.name)
                continue
            seen.add((facts.st_dev, facts.st_ino))
            yield from _chosen(there, wanted, passed, inner)
            waiting.extend(reversed(inner))
        except OSError as error:
            passed.note(f"folder that cannot be read ({error.strerror})", here.name)


def _chosen(
    there: Iterator[os.DirEntry[str]], wanted: Callable[[str], bool], passed: PassedOver, inner: list[Path]
) -> Iterator[Path]:
    """The wanted files of one folder; the folders in it go to `inner`."""
    for entry in there:
        if is_unwanted(entry.name):
            passed.note("hidden", entry.name)
        elif answers(entry.is_dir):
            inner.append(Path(entry.path))
        elif not wanted(entry.name):
            ending = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
            passed.note(ending or "without an ending", entry.name)
        elif answers(entry.is_file):
            yield Path(entry.path)
        else:
            passed.note("pipe, device or link to nothing", entry.name)


def answers(question: Callable[[], bool]) -> bool:
    """Whether a question about a file is answered with yes; not so for a link to itself."""
    try:
        return question()
    except OSError:
        return False


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Sorted by name, unless there are too many to hold."""
    with os.scandir(folder) as listing:
        head = list(itertools.islice(listing, SORTED + 1))
        if len(head) <= SORTED:
            head.sort(key=lambda entry: entry.name)
        yield from head
        head.clear()
        yield from listing


def names_in(folder: Path) -> list[str]:
    """The names of all that lies in a folder and is not hidden, sorted; nothing when it cannot be read."""
    try:
        return sorted(name for name in os.listdir(folder) if not is_unwanted(name))  # noqa: PTH208 (names do)
    except OSError:
        return []


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden, by name."""
    try:
        with os.scandir(folder) as found:
            names = sorted(e.name for e in found if not is_unwanted(e.name) and answers(e.is_dir))
    except OSError:
        return []
    return [folder / name for name in names]


def child(folder: Path, *names: str) -> Path | None:
    """A folder in `folder` by one of several names, upper or lower case; the earliest of them."""
    exact = [folder / name for name in names]
    if exact[0].is_dir():
        return exact[0]
    there = {path.name.lower(): path for path in reversed(folders_in(folder))}
    for path in exact:
        if path.name.lower() in there:
            return path if path.is_dir() else there[path.name.lower()]
    return None


def like(path: Path) -> Path | None:
    """A folder or file by its path, whatever the case of its parts; None when there is none."""
    if os.path.lexists(path):
        return path
    parent = like(path.parent) if path.parent != path else None
    if parent is None or not path.name:
        return None
    return next((parent / name for name in names_in(parent) if name.lower() == path.name.lower()), None)
