"""Mistakes in data: collected all at once, each with file, record, what is wrong and how to fix it."""

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from relook.data.disk.regular import Unusable
from relook.data.sample import DataError, Source, Split
from relook.escaping import printable

MOST_CLASSES = 20_000
"""More are no classes but a mistake: a file of words, or a number with too many digits."""

_KEPT = 2000  # mistakes of one file with one fix

_PARTICULAR = re.compile(
    r"\[[^\]]*\]|\"[^\"]*\"|'[^']*'|\d+%|(?<![\w.])-?\d+([.,]\d+)*(e[+-]?\d+)?(?![\w])|\d+x\d+"
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake."""

    file: str
    record: str  # which image, annotation or line
    what: str
    fix: str
    fatal: bool = True  # False: training goes on without this record
    count: int = 1  # of mistakes like it; more than one when there are too many to keep

    def __str__(self) -> str:
        return printable(f"{self.file}: {self.record}: {self.what}; {self.fix}")

    @property
    def kind(self) -> tuple[str, str, str]:
        """Equal for mistakes that differ in file, record and numbers only."""
        bare = (self.record.split("[")[0].split(" ")[0], self.what, self.fix)
        return tuple(_PARTICULAR.sub("...", part[:300]) for part in bare)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True, slots=True)
class Group:
    """Mistakes of one kind."""

    members: Sequence[Problem]

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(member.count for member in self.members)

    def __str__(self) -> str:
        first = self.members[0]
        if self.count == 1:
            return str(first)
        noun, what, _ = first.kind
        place = printable(f"{first.file}: {first.record}")
        same = what == first.what
        shown = f"first: {place}" if same else f"first: {place}: {printable(first.what)}"
        return f"{self.count:,} {_plural(noun)}: {printable(what)}; {printable(first.fix)}; {shown}"


def _plural(noun: str) -> str:
    if noun.endswith(("ss", "x", "ch")):
        return f"{noun}es"
    return noun if noun.endswith("s") else f"{noun}s"


def grouped(problems: Sequence[Problem]) -> list[Group]:
    """By kind, in the order in which kinds first appear."""
    kinds: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    return [Group(members) for members in kinds.values()]


@dataclass(slots=True)
class Problems:
    """Where readers put what they find, and how much of it they are to look at.

    A reader goes on after a mistake and leaves the record out, so that one look finds all of them.
    """

    thorough: bool = False  # look at what training does not need, too (`relook doctor`)
    masks: bool = False  # carry segmentations
    found: list[Problem] = field(default_factory=list[Problem])
    notes: list[str] = field(default_factory=list[str])  # choices a reader made, one sentence each
    _told: set[tuple[str, str, str]] = field(default_factory=set[tuple[str, str, str]])
    _kept: dict[tuple[str, str], list[int]] = field(default_factory=dict[tuple[str, str], list[int]])

    def fatal(self, file: Path | str, record: str, what: str, fix: str) -> None:
        """A mistake that must be fixed before the data can be used."""
        self._add(Problem(str(file), record, what, fix))

    def tolerable(self, file: Path | str, record: str, what: str, fix: str) -> None:
        """A mistake whose record training leaves out or puts right."""
        self._add(Problem(str(file), record, what, fix, fatal=False))

    def unusable(self, error: Unusable, record: str = "file") -> None:
        """A file that cannot be read."""
        self.fatal(error.path, record, error.what, error.fix)

    @contextmanager
    def going_on(self, file: Path | str, record: str) -> Generator[None]:
        """What goes wrong inside is a mistake of this record, and reading goes on behind it."""
        try:
            yield
        except Unusable as error:
            self.unusable(error)
        except DataError as error:
            self.fatal(file, record, " ".join(str(error).removeprefix(f"{file}: ").split()), "fix this first")
        except Exception as error:  # noqa: BLE001 (data of strangers find what nobody thought of)
            words = f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            self.fatal(file, record, words, "write it again from its origin or remove it")

    def refuse(self, path: Path | str) -> None:
        """Raises one DataError for all fatal mistakes, if there are any; it lists the first five kinds."""
        fatal = [problem for problem in self.found if problem.fatal]
        if not fatal:
            return
        kinds = grouped(fatal)
        listed = "".join(f"\n  {kind}" for kind in kinds[:5])
        more = f"\n  and {sum(kind.count for kind in kinds[5:])} more" if len(kinds) > 5 else ""
        count = sum(kind.count for kind in kinds)
        mistakes = "1 mistake that prevents" if count == 1 else f"{count:,} mistakes that prevent"
        raise DataError(f"{path} has {mistakes} its use; see all with `relook doctor {path}`{listed}{more}")

    def all_notes(self) -> tuple[str, ...]:
        """The notes, and how many records are left out or put right."""
        skipped = sum(problem.count for problem in self.found if not problem.fatal)
        if not skipped:
            return tuple(self.notes)
        records = "1 record is" if skipped == 1 else f"{skipped} records are"
        return (*self.notes, f"{records} left out of training or put right; `relook doctor` lists them")

    def _add(self, problem: Problem) -> None:
        """Each mistake once, whichever split meets it; of thousands alike in a file only the number."""
        kept = self._kept.setdefault((problem.file, problem.fix), [0, len(self.found)])
        if kept[0] >= _KEPT:
            last = self.found[kept[1]]
            self.found[kept[1]] = replace(last, count=last.count + 1)
            return
        key = (problem.file, problem.record, problem.what)
        if key not in self._told:
            self._told.add(key)
            kept[:] = kept[0] + 1, len(self.found)
            self.found.append(problem)


Part = Callable[[Problems], Source]
"""Reads one split; mistakes go to the problems."""

Parts = dict[str, Part]
"""What a folder holds: "train", "val" and "test", or "all" when it is not split."""


SPLIT_NAMES: Final[Mapping[Split, tuple[str, ...]]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""What tools call a split: its folder, list or key, in lower case; the earliest wins."""


def with_stand_in(parts: Parts) -> Parts:
    """The same; where only training and test parts are there, tests are validated on, too."""
    if "val" not in parts and "test" in parts:
        return {**parts, "val": parts["test"]}
    return parts


def ambiguous(folder: Path, split: str, files: Sequence[Path]) -> Part:
    """A split that several files claim: reading it raises, with the way out."""
    listed = ", ".join(file.name for file in files[:6]) + (", ..." if len(files) > 6 else "")

    def refuse(problems: Problems) -> Source:  # noqa: ARG001 (a Part)
        raise DataError(
            f"{folder}: {listed} could all be the {split} split; name one of them as the data, or the one to "
            f"validate on with --val-data, such as --val-data {files[0]}"
        )

    return refuse


def distinct(names: Sequence[str], keys: Sequence[object], file: Path, problems: Problems) -> tuple[str, ...]:
    """Class names of which no two are equal: a later one of the same name is followed by its key.

    Tells of equal names, and of those that differ only by case or blanks.
    """
    found: dict[str, str] = {}  # what a name is at last -> as it was written
    folded: dict[str, str] = {}
    for name, key in zip(names, keys, strict=True):
        own = name
        while own in found:
            own = f"{own} (number {key})"
        if own != name:
            what = f'"{name}" is the name of several classes; this one is called "{own}" here'
            problems.tolerable(file, f"class {key}", what, "give each a name of its own, or join them")
        like = folded.setdefault(" ".join(name.split()).casefold(), name)
        if like != name:
            what = f'"{name}" and "{like}" differ only by case or blanks'
            problems.tolerable(file, f"class {key}", what, "if they are one class, write one name")
        found[own] = name
    return tuple(found)


def too_many_classes(count: int, file: Path, problems: Problems) -> bool:
    """Whether a data set has more classes than can be meant; it then is a mistake."""
    if count <= MOST_CLASSES:
        return False
    what = f"there are {count:,} classes, more than the {MOST_CLASSES:,} that relook takes"
    problems.fatal(file, "classes", what, "list those that are meant")
    return True
