"""Folders of results: relook replaces what it wrote there itself, and nothing else unless it is told to."""

from pathlib import Path
from typing import Final

from relook.files import room_for

MARK: Final = ".relook"
"""A file in each folder of results, which names what relook wrote there."""


class Folder:
    """A folder that results go to."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self.path, self.overwrite = path, overwrite
        self._mark = path / MARK
        self._written = self._read()

    def claim(self, *names: str) -> None:
        """Makes the folder, if all of these may be written.

        Raises:
            FileExistsError: when one of them is there and is not relook's.
        """
        taken = [name for name in names if not self.may(name)]
        if taken:
            raise FileExistsError(
                f"{self.path / taken[0]} is there already and was not written by relook; choose another "
                "folder by --out, or say --overwrite to replace it"
            )
        for name in names:
            self.note(name)

    def may(self, name: str) -> bool:
        """Whether a file or folder may be written, and what is there by that name replaced."""
        return self.overwrite or self.owns(name) or not (self.path / name).exists()

    def owns(self, name: str) -> bool:
        """Whether relook wrote what is there by that name."""
        return name in self._written

    def note(self, name: str) -> None:
        """Remembers that a file or folder is relook's."""
        if name in self._written:
            return
        self._written.add(name)
        self.path.mkdir(parents=True, exist_ok=True)
        with room_for(self._mark), self._mark.open("a", encoding="utf-8", errors="backslashreplace") as mark:
            mark.write(f"{name}\n")

    def _read(self) -> set[str]:
        try:
            return set(self._mark.read_text(encoding="utf-8", errors="replace").split("\n")) - {""}
        except OSError:
            return set()
