"""How the tensors of a file differ from those of a detector, by name and shape, whoever named them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from relook.escaping import printable
from relook.zoo.catalog import FAMILIES
from relook.zoo.entry import OURS, Layout

Shape = tuple[int, ...]
COUNTER: Final = "num_batches_tracked"  # of batch normalisation; some files lack it and nothing depends on it
SHOWN: Final = 5  # names in a message, of each kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How the tensors of a file differ from those of a detector."""

    layout: str  # whose names the file's keys carry
    missing: tuple[str, ...] = ()  # of the detector, not in the file
    unexpected: tuple[str, ...] = ()  # in the file (by its own name), not in the detector
    mismatched: tuple[str, ...] = ()  # "name: file [20, 256], detector [80, 256]"

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.mismatched)

    def sentence(self) -> str:
        """All kinds of differences, the first few of each by name."""
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.mismatched),
        )
        return "; ".join(f"{len(names)} {kind} ({_few(names)})" for kind, names in kinds if names)


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(printable(name, 300) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


class Contents:
    """Names and shapes of a file; the names as each layout reads them, worked out once."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.shapes = shapes(state)
        self._named: dict[Layout, dict[str, str]] = {}
        self._renamed: dict[Layout, dict[str, Shape]] = {}

    def named(self, layout: Layout) -> dict[str, str]:
        """Key of the file -> our name."""
        if layout not in self._named:
            self._named[layout] = layout.rename(self.shapes)
        return self._named[layout]

    def renamed(self, layout: Layout) -> dict[str, Shape]:
        """Our name -> shape."""
        if layout not in self._renamed:
            named = self.named(layout)
            self._renamed[layout] = {named[key]: shape for key, shape in self.shapes.items()}
        return self._renamed[layout]


def difference(theirs: Contents, ours: Mapping[str, Shape], layout: Layout) -> Difference:
    """A file's tensors, named as `layout` says, beside a detector's."""
    named, given = theirs.named(layout), theirs.renamed(layout)
    return Difference(
        layout=layout.name,
        missing=tuple(name for name in ours if name not in given and not name.endswith(COUNTER)),
        unexpected=tuple(
            key
            for key, name in named.items()
            if name not in ours and not name.endswith(COUNTER) and layout.needs(key)
        ),
        mismatched=tuple(
            f"{name}: file {list(given[name])}, detector {list(shape)}"
            for name, shape in ours.items()
            if name in given and not alike(given[name], shape)
        ),
    )


def alike(theirs: Shape, ours: Shape) -> bool:
    """Whether a tensor of one shape can be loaded as the other: one number alone may be [1] or []."""
    return theirs == ours or {theirs, ours} == {(), (1,)}


def shapes(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Name -> shape."""
    return {name: tuple(value.shape) for name, value in state.items()}


def all_layouts() -> tuple[Layout, ...]:
    """Every way to name tensors that some family's files have, and our own."""
    return (*(layout for family in FAMILIES for layout in family.layouts), OURS)
