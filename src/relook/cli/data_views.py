"""What `relook doctor` shows of data: the sizes of objects for a model, pictures of what is annotated."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from relook.cli.printing import table
from relook.ownership import Folder

if TYPE_CHECKING:
    from relook.data.checks.sizes import ClassSizes
    from relook.data.sample import Source
    from relook.recipe import Size


DRAWN: Final = 24  # pictures of --draw, all splits together


def input_of(model: str | None) -> "Size | None":
    """How large a model sees images in tests."""
    if model is None:
        return None
    from relook.weights.models import by_name  # noqa: PLC0415

    return by_name(model).entry.recipe.test_size


def sizes_of(sources: "Mapping[str, Source]", rule: "Size | None") -> "tuple[ClassSizes, ...]":
    """The objects of each class as a model sees them; nothing without a model."""
    from relook.data.checks.sizes import class_sizes  # noqa: PLC0415

    return () if rule is None else class_sizes(sources.values(), rule)


def size_lines(model: "str | None", path: str, sizes: "Sequence[ClassSizes]", rule: "Size") -> list[str]:
    """How many objects of each class are too small for a model, and the size that keeps them."""
    from relook.recipe import side_of  # noqa: PLC0415

    rows = [
        (s.name, *map(str, (s.objects, s.median, s.below, s.hard)), str(s.wanted), str(s.easy)) for s in sizes
    ]
    head = ("class", "objects", "median side", "below 8 pixels", "below 16", "--size for 8", "for 16")
    lines = [
        f"Objects as {model} sees them (--size {side_of(rule)}): below 8 pixels they are mostly",
        "lost, below 16 hard to find; the last columns say which --size lifts 95 % of a class above.",
        table(head, rows),
    ]
    wanted = max((s.easy if s.hard > s.objects / 2 else s.wanted for s in sizes), default=0)
    if wanted > side_of(rule):
        command = f"relook train --model {model} --data {path} --size {wanted}"
        lines.append(f"Suggested: {command}")
    return [*lines, ""]


def draw(folder: Path | None, sources: "Mapping[str, Source]") -> list[Path]:
    """Writes some pictures of each split and a contact sheet, in place of earlier ones; their paths."""
    if folder is None:
        return []
    from relook.results.annotated.pictures import write_pictures  # noqa: PLC0415

    own = Folder(folder, overwrite=False)
    own.claim("00-contact-sheet.jpg")
    for path in folder.glob("[0-9][0-9]-*.jpg"):
        if own.owns(path.name):
            path.unlink()
    written = write_pictures(folder, sources, DRAWN)
    for path in written:
        own.note(path.name)
    return written
