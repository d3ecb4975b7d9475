"""Classes of two parties brought together by name: weights and data, training and validation."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Literal

from relook.data.columnar import with_labels
from relook.data.sample import DataError, Source

By = Literal["name", "order"]

_NO_NAME = re.compile(r"(class )?\d+")


def by_name(source: Source, classes: Sequence[str], owner: str, way_out: str) -> Source:
    """The same images and objects, whose labels count in `classes`, found by their names.

    Names that differ only by case or blanks are taken for the same where that leaves no choice. Classes
    without objects that are unknown are dropped. The data set keeps its own category ids; a class that it
    does not have gets one beyond them. What was done stands in the notes.

    Args:
        source: the data.
        classes: the names to count in.
        owner: whose names these are, for the message: "the weights".
        way_out: what to do about other names, for the message.

    Raises:
        DataError: when a class with objects has no name among `classes`.
    """
    labels, liked = _labels(source.classes, classes)
    unknown = [name for name, label in zip(source.classes, labels, strict=True) if label is None]
    if unknown:
        used = {label for sample in source.samples for label in sample.labels.tolist()}
        wrong = [source.classes[n] for n, label in enumerate(labels) if label is None and n in used]
        if wrong:
            raise DataError(_refusal(source, wrong, classes, owner, way_out))
    ids = _category_ids(source, labels, len(classes))
    notes = _told(source, labels, classes, owner)
    notes += [f"{source.name}: the class {a!r} is taken for {b!r} of {owner}" for a, b in liked]
    if unknown:
        left = ", ".join(unknown[:5])
        notes.append(f"{source.name}: {left}, without objects, are not among the classes of {owner}")
    places = [0 if label is None else label for label in labels]
    matched = with_labels(source, places, classes, ids)
    return replace(matched, notes=(*source.notes, *notes))


def matched(source: Source, classes: Sequence[str], by: By = "name") -> Source:
    """The data whose labels count in the classes of weights, by name or by order.

    Classes that weights call by numbers only are taken in order.

    Raises:
        DataError: when they cannot be brought together.
    """
    nameless = all(_NO_NAME.fullmatch(name) for name in classes) and not set(source.classes) <= set(classes)
    if by == "name" and not (nameless and len(classes) == len(source.classes)):
        way_out = "rename them in the data, or, if both have the same order, write --classes-by order"
        return replace(by_name(source, classes, "the weights", way_out), classes_by="name")
    if len(classes) != len(source.classes):
        raise DataError(
            f"the weights know {len(classes)} classes and {source.file or source.name} has "
            f"{len(source.classes)}: {_some(source.classes)}; only as many can be compared by their order"
        )
    if tuple(classes) == source.classes:
        return replace(source, classes_by=by)
    first = next((a, b) for a, b in zip(classes, source.classes, strict=True) if a != b)
    note = f"classes are compared by their order: {first[0]!r} of the weights with {first[1]!r} of the data"
    return replace(source, notes=(*source.notes, note), classes_by="order")


def _labels(theirs: Sequence[str], ours: Sequence[str]) -> tuple[list[int | None], list[tuple[str, str]]]:
    """The place of each of their names among ours; and the pairs that are not written alike."""
    exact = {name: label for label, name in enumerate(ours)}
    strange = Counter(_folded(name) for name in theirs if name not in exact)
    known = set(theirs)
    free: dict[str, list[int]] = {}
    for name, label in exact.items():
        if name not in known:
            free.setdefault(_folded(name), []).append(label)
    labels: list[int | None] = []
    liked: list[tuple[str, str]] = []
    for name in theirs:
        near = free.get(_folded(name), [])
        if name in exact:
            labels.append(exact[name])
        elif len(near) == 1 and strange[_folded(name)] == 1:
            labels.append(near[0])
            liked.append((name, ours[near[0]]))
        else:
            labels.append(None)
    return labels, liked


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()


def _category_ids(source: Source, labels: Sequence[int | None], count: int) -> tuple[int, ...]:
    """For each of our classes the data's own id; for those that the data do not have, ids beyond."""
    own = {label: key for label, key in zip(labels, source.category_ids, strict=True) if label is not None}
    beyond = max(source.category_ids, default=0)
    missing = [label for label in range(count) if label not in own]
    return tuple(
        {**own, **{label: beyond + n for n, label in enumerate(missing, 1)}}[i] for i in range(count)
    )


def _told(source: Source, labels: Sequence[int | None], classes: Sequence[str], owner: str) -> list[str]:
    """What is worth a word about the order and number of classes."""
    known = [label for label in labels if label is not None]
    listed = set(known)
    notes: list[str] = []
    if known != sorted(known):
        notes.append(
            f"{source.name} lists its classes in another order than {owner}; they are matched by name"
        )
    missing = [name for label, name in enumerate(classes) if label not in listed]
    if missing:
        notes.append(
            f"{source.name} does not list {len(missing)} of the {len(classes)} classes of {owner}: "
            f"{_some(missing)}"
        )
    return notes


def _refusal(source: Source, wrong: Sequence[str], classes: Sequence[str], owner: str, way_out: str) -> str:
    near = [(name, get_close_matches(name, classes, 1)) for name in wrong[:5]]
    hints = "".join(f"; is {name!r} what {owner} call {found[0]!r}?" for name, found in near if found)
    return (
        f"{source.file or source.name} has other classes than {owner}: {_some(wrong)} "
        f"{'is' if len(wrong) == 1 else 'are'} not among {_some(classes)}{hints}; {way_out}"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f", ... ({len(names)})" if len(names) > 6 else "")
