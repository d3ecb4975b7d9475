"""A published model: its name, its settings, its recipe, its figures, and the family it belongs to."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from relook.detector import Detector
from relook.recipe import Recipe
from relook.renaming import Rules, renamed


class DetectorConfig(Protocol):
    """Any frozen dataclass that can build its detector."""

    @property
    def num_classes(self) -> int: ...

    def build(self) -> Detector[Any]: ...


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that somebody published. It is theirs until relook has measured it again."""

    dataset: str  # "coco/val2017"
    metric: str  # "AP"
    value: float
    source: str  # who published it


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Whose names the keys of a published file carry, and how they become ours."""

    name: str  # the publisher's framework
    rules: Rules = ()  # from its names to ours; none: they are ours
    ignored: tuple[str, ...] = ()  # regular expressions of its names that no detector needs

    def rename(self, keys: Iterable[str]) -> dict[str, str]:
        """Key of the file -> our parameter's name, for every key."""
        return renamed(keys, self.rules)

    def needs(self, key: str) -> bool:
        """Whether a detector has a place for that key of the file, or should have."""
        return not any(re.fullmatch(pattern, key) for pattern in self.ignored)


OURS = Layout(name="relook")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """A fact that old frameworks keep in a checkpoint's configuration, as text, and our setting for it."""

    setting: str  # dotted, from the entry: "detector.nms"
    pattern: str  # a regular expression whose group is the value
    words: Mapping[str, str] = field(default_factory=dict[str, str])  # their value -> ours, where they differ


EPOCHS = Hint(setting="recipe.schedule.epochs", pattern=r"(?:total_epochs|max_epochs)\s*=\s*(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the models of one paper have in common beside their code."""

    name: str
    layouts: tuple[Layout, ...]  # of published files, ours left out
    training_only: frozenset[str]  # settings that say how to train; predictions do not see them
    hints: tuple[Hint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A model of the catalog."""

    name: str
    paper: str  # arXiv number
    detector: DetectorConfig
    recipe: Recipe
    family: Family
    layout: Layout  # of the published file
    config: str = ""  # the published configuration's own name
    publisher: str = "relook"
    figures: tuple[Figure, ...] = ()
    licence: str = "Apache-2.0"  # of the publisher's code and weights
    weights: str = ""  # address of the published file, where a program may fetch it; its name ends in a hash
    page: str = ""  # address of the publisher's page, where only a person can fetch it
    note: str = ""  # about the figures, in a sentence
    doubt: str = ""  # what the published file leaves open, and how to find out, in a sentence
    input: tuple[int, int] = (800, 1333)  # height, width of a typical test image, for counting operations

    def figure(self, metric: str, dataset: str) -> float | None:
        """The published value, or None where none was published."""
        found = [f.value for f in self.figures if (f.metric, f.dataset) == (metric, dataset)]
        return found[0] if found else None
