"""Which model of the catalog a file holds, from names and shapes and what the file says of itself."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, cast

from relook.weights.compare import Contents, Difference, difference
from relook.weights.reading.checkpoint import Checkpoint
from relook.weights.shapes import Wiring, wiring
from relook.zoo.catalog import ENTRIES
from relook.zoo.entry import OURS, Entry, Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model of the catalog, with the number of classes at which a file comes nearest to it."""

    entry: Entry
    classes: int
    difference: Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a file may be."""

    exact: tuple[Candidate, ...] = ()  # all fits; what the file says of itself decided between them
    nearest: Candidate | None = None  # without an exact one: the model with the fewest differences
    hints: tuple[str, ...] = ()  # what decided, in words

    @property
    def certain(self) -> bool:
        """Whether the predictions of all exact candidates are the same, so that any of them will do."""
        return len({_seen_in_prediction(c.entry) for c in self.exact}) == 1


def identify(checkpoint: Checkpoint, among: Iterable[Entry] | None = None) -> Identity:
    """Which models of the catalog a file may hold, from its names, its shapes and what it says of itself.

    Args:
        checkpoint: from `read_checkpoint`.
        among: only these entries; without them the whole catalog.
    """
    theirs = Contents(checkpoint.state)
    candidates = [_candidate(theirs, entry) for entry in (ENTRIES.values() if among is None else among)]
    exact = [c for c in candidates if not len(c.difference)]
    if not exact:
        return Identity(nearest=min(candidates, key=lambda c: len(c.difference), default=None))
    said: list[str] = []
    for hint in (_by_name, _by_config):
        exact, words = hint(checkpoint, exact)
        said += words
    return Identity(exact=tuple(exact), hints=tuple(said))


def _candidate(theirs: Contents, entry: Entry) -> Candidate:
    """How near a file comes to a model, in its publisher's names or in ours."""
    known = wiring(entry)
    best: Candidate | None = None
    for layout in dict.fromkeys((entry.layout, OURS)):
        classes = _classes(theirs, known, layout) or entry.detector.num_classes
        found = difference(theirs, known.at(classes), layout)
        if best is None or len(found) < len(best.difference):
            best = Candidate(entry=entry, classes=classes, difference=found)
    return cast("Candidate", best)


def _classes(theirs: Contents, known: Wiring, layout: Layout) -> int | None:
    """The number of classes of a file, from the sides that grow when a model gets one more class.

    None where they say none or contradict each other.
    """
    given = theirs.renamed(layout)
    counts: set[int] = set()
    for one in known.growing:
        shape = given.get(one.name)
        if shape is not None and len(shape) > one.side:
            whole, rest = divmod(shape[one.side] - one.base, one.per_class)
            counts.add(whole if rest == 0 and whole > 0 else -1)
    return counts.pop() if len(counts) == 1 and -1 not in counts else None


def _seen_in_prediction(entry: Entry) -> str:
    """All settings that a prediction depends on, as text to compare."""
    recipe = {"pixels": asdict(entry.recipe.pixels), "size": asdict(entry.recipe.test_size)}
    return repr(
        (
            type(entry.detector).__name__,
            _without(asdict(cast("Any", entry.detector)), entry.family.training_only),
            recipe,
        )
    )


def _without(settings: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {
        name: _without(cast("dict[str, Any]", value), names) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name not in names
    }


# What a file says of itself: its name and the configuration that the old frameworks keep in it. Each hint is
# used only where it leaves a candidate.


def _by_name(checkpoint: Checkpoint, among: list[Candidate]) -> tuple[list[Candidate], list[str]]:
    """The name of the published configuration in the file's name or in its work_dir or exp_name."""
    said = [
        checkpoint.path.name,
        *re.findall(r"(?:work_dir|exp_name)\s*=\s*['\"]([^'\"]+)", checkpoint.config),
    ]
    text = " ".join(map(_plain, said))
    fitting = {
        c.entry.name: max(len(name) for name in _names(c.entry) if name in text or not name) for c in among
    }
    longest = max(fitting.values())
    # models that one published file may be stay together: a file called as one of them still may be the other
    files = {c.entry.config for c in among if fitting[c.entry.name] == longest and c.entry.doubt}
    chosen = [c for c in among if fitting[c.entry.name] == longest or c.entry.config in files]
    if longest == 0 or len(chosen) == len(among):
        return among, []
    return chosen, ["its name"]


def _names(entry: Entry) -> tuple[str, ...]:
    published = entry.config.rsplit("/", 1)[-1].removesuffix("_coco")
    return ("", _plain(entry.name), _plain(published)) if published else ("", _plain(entry.name))


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower())


def _by_config(checkpoint: Checkpoint, among: list[Candidate]) -> tuple[list[Candidate], list[str]]:
    """The facts that a family's files keep in their configuration."""
    said: list[str] = []
    families = {c.entry.family.name: c.entry.family for c in among}
    for hint in [hint for family in families.values() for hint in family.hints]:
        match = re.search(hint.pattern, checkpoint.config)
        if match is None:
            continue
        value = hint.words.get(match[1], match[1])
        chosen = [c for c in among if _setting(c.entry, hint.setting) in (value, None)]
        if chosen and len(chosen) < len(among):
            among = chosen
            said.append(f"{hint.setting.rpartition('.')[2]} {value} in its configuration")
    return among, said


def _setting(entry: Entry, dotted: str) -> str | None:
    value: Any = entry
    for name in dotted.split("."):
        value = getattr(value, name, None)
    return None if value is None else str(value)
