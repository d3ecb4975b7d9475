"""From a name as a file writes it to the picture that it means.

Names come with backslashes from Windows, percent-encoded from web tools, with folders of another machine, in
another case or another normal form of Unicode. A name is first taken as it stands; what had to be changed to
find it is counted, so that it can be said.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from relook.data.disk.listing import is_image_name, is_unwanted
from relook.data.disk.regular import is_regular

BACKSLASHES = "with backslashes"
PERCENT = "percent-encoded"
FOLDERS = "with folders that are not here"
CASE = "in another case or spelling of letters"
ENDING = "without their endings"

_LONGEST = 4096  # characters of a name that a disk may hold, folders included
_DEEPEST = 32  # folders of a name that are tried


@dataclass(slots=True)
class Places:
    """Where pictures may lie, the likeliest folder first."""

    roots: Sequence[Path]
    changed: Counter[str] = field(default_factory=Counter[str])  # how names had to be changed
    first: dict[str, str] = field(default_factory=dict[str, str])  # an example of each
    _taken: dict[Path, str] = field(default_factory=dict[Path, str])  # picture -> the name that found it
    _seen: set[str] = field(default_factory=set[str])
    _listed: dict[Path, dict[str, list[str]]] = field(default_factory=dict[Path, dict[str, list[str]]])

    def find(self, written: str) -> Path | None:
        """The picture of a name, or None.

        Without its folders a name finds a picture only if no other name has found it.
        """
        exact = self._exactly(written)
        if exact is not None or len(written) > _LONGEST:
            return exact
        for name, how in spellings(written):
            for root in self.roots:
                near = self._like(root / name)
                if near is not None and (FOLDERS not in how or self._taken.get(near, written) == written):
                    return self._found(near, written, {*how, CASE})
        bare = [one for one in self.named_as(written) if is_regular(one)]
        return self._found(bare[0], written, {ENDING}) if len(bare) == 1 else None

    def _exactly(self, written: str) -> Path | None:
        """The first spelling that is the name of a file."""
        for name, how in spellings(written):
            for path in (root / name for root in self.roots):
                if is_regular(path):
                    taken = FOLDERS in how and self._taken.get(path, written) != written
                    return None if taken else self._found(path, written, how)
        return None

    def named_as(self, stem: str) -> list[Path]:
        """The pictures in all roots whose name without ending is `stem`, which may have folders."""
        pure = PurePosixPath(stem)
        return [
            root / pure.parent / name
            for root in dict.fromkeys(self.roots)
            for name in self._names(root / pure.parent).get(f"/{_folded(pure.name)}", ())
        ]

    def sentences(self) -> list[str]:
        """What was changed, one sentence for each kind."""
        return [
            f"{count} {'name is' if count == 1 else 'names are'} written {how}, such as {self.first[how]}; "
            "the pictures were found all the same"
            for how, count in self.changed.items()
        ]

    def _found(self, path: Path, written: str, how: set[str]) -> Path:
        known = self._taken.setdefault(path, written) == written and written in self._seen
        self._seen.add(written)
        for one in how if not known else ():
            self.changed[one] += 1
            self.first.setdefault(one, written)
        return path

    def _like(self, path: Path) -> Path | None:
        """The one picture in that folder whose name differs only by case, ending's case or normal form."""
        there = self._names(path.parent).get(_folded(path.name), [])
        near = path.parent / there[0] if len(there) == 1 else None
        return near if near is not None and is_regular(near) else None

    def _names(self, folder: Path) -> dict[str, list[str]]:
        """Names of the pictures in a folder by their folded form, and by "/" and their folded stem."""
        if folder not in self._listed:
            table: dict[str, list[str]] = {}
            try:
                names = sorted(os.listdir(folder))  # noqa: PTH208 (names are enough)
            except (OSError, ValueError):
                names = []
            for name in names:
                if is_image_name(name) and not is_unwanted(name):
                    table.setdefault(_folded(name), []).append(name)
                    table.setdefault(f"/{_folded(PurePosixPath(name).stem)}", []).append(name)
            self._listed[folder] = table
        return self._listed[folder]


def spellings(written: str) -> Iterator[tuple[str, set[str]]]:
    """What a written name may mean, the likeliest first, each with what was changed; lazily."""
    seen: set[str] = set()
    for name, how in _forms(written):
        if name and name not in seen and "\0" not in name:
            seen.add(name)
            yield name, how


def _forms(written: str) -> Iterator[tuple[str, set[str]]]:
    yield written, set()
    if len(written) > _LONGEST:
        return
    plain = written.replace("\\", "/")
    slashes = {BACKSLASHES} if plain != written else set[str]()
    decoded = unquote(plain)
    whole = [(written, set[str]()), (plain, slashes)]
    whole += [(name, {PERCENT, *slashes}) for name in (decoded, unquote(decoded), decoded.replace("+", " "))]
    whole = [one for n, one in enumerate(whole) if one[0] not in {other[0] for other in whole[:n]}]
    yield from whole
    for name, how in whole:
        bare = re.sub(r"^([a-zA-Z][\w+.-]*:)?/+", "", name).split("?")[0] if "://" in name else name
        parts = [part for part in re.sub(r"^[a-zA-Z]:", "", bare).split("/") if part not in ("", ".", "..")]
        for n in range(max(0, len(parts) - _DEEPEST), len(parts)):
            yield "/".join(parts[n:]), how | {FOLDERS}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
