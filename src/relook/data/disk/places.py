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
        for name, how in spellings(written):
            for root in self.roots:
                path = root / name
                if not is_regular(path):
                    continue
                if FOLDERS in how and self._taken.get(path, written) != written:
                    return None
                return self._found(path, written, how)
        for name, how in spellings(written):
            for root in self.roots:
                near = self._like(root / name)
                if near is not None:
                    return self._found(near, written, {*how, CASE})
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
        return path.parent / there[0] if len(there) == 1 else None

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
    """What a written name may mean, the likeliest first, each with what was changed."""
    seen: set[str] = set()
    plain = written.replace("\\", "/")
    decoded = unquote(plain)
    forms = [(written, set[str]())]
    if plain != written:
        forms.append((plain, {BACKSLASHES}))
    if decoded != plain:
        forms.append((decoded, {PERCENT} | ({BACKSLASHES} if plain != written else set())))
    for name, how in [*forms]:
        bare = re.sub(r"^([a-zA-Z][\w+.-]*:)?/+", "", name).split("?")[0] if "://" in name else name
        parts = [part for part in re.sub(r"^[a-zA-Z]:", "", bare).split("/") if part not in ("", ".", "..")]
        forms += [("/".join(parts[n:]), how | {FOLDERS}) for n in range(len(parts))]
    for name, how in forms:
        if name and name not in seen and "\0" not in name:
            seen.add(name)
            yield name, how


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
