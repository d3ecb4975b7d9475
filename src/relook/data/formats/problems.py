"""Mistakes in data: collected all at once, each with file, record, what is wrong and how to fix it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from relook.data.sample import DataError, Source


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake."""

    file: str
    record: str  # which image, annotation or line
    what: str
    fix: str
    fatal: bool = True  # False: training goes on without this record

    def __str__(self) -> str:
        return f"{self.file}: {self.record}: {self.what}; {self.fix}"


@dataclass(slots=True)
class Problems:
    """Where readers put what they find, and how much of it they are to look at.

    A reader goes on after a mistake and leaves the record out, so that one look finds all of them.
    """

    thorough: bool = False  # look at what training does not need, too (`relook doctor`)
    masks: bool = False  # carry segmentations
    found: list[Problem] = field(default_factory=list[Problem])
    notes: list[str] = field(default_factory=list[str])  # choices a reader made, one sentence each

    def fatal(self, file: Path | str, record: str, what: str, fix: str) -> None:
        """A mistake that must be fixed before the data can be used."""
        self.found.append(Problem(str(file), record, what, fix))

    def tolerable(self, file: Path | str, record: str, what: str, fix: str) -> None:
        """A mistake whose record training leaves out or puts right."""
        self.found.append(Problem(str(file), record, what, fix, fatal=False))

    def refuse(self, path: Path | str) -> None:
        """Raises one DataError for all fatal mistakes, if there are any; it lists the first five."""
        fatal = [problem for problem in self.found if problem.fatal]
        if not fatal:
            return
        listed = "".join(f"\n  {problem}" for problem in fatal[:5])
        more = f"\n  and {len(fatal) - 5} more" if len(fatal) > 5 else ""
        mistakes = "1 mistake that prevents" if len(fatal) == 1 else f"{len(fatal)} mistakes that prevent"
        raise DataError(f"{path} has {mistakes} its use; see all with `relook doctor {path}`{listed}{more}")

    def all_notes(self) -> tuple[str, ...]:
        """The notes, and how many records are left out or put right."""
        skipped = sum(not problem.fatal for problem in self.found)
        if not skipped:
            return tuple(self.notes)
        records = "1 record is" if skipped == 1 else f"{skipped} records are"
        return (*self.notes, f"{records} left out of training or put right; `relook doctor` lists them")


Part = Callable[[Problems], Source]
"""Reads one split; mistakes go to the problems."""

Parts = dict[str, Part]
"""What a folder holds: "train" and "val", or "all" when it is not split."""
