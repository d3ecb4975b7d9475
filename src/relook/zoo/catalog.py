"""Every name that the command line knows."""

from difflib import get_close_matches
from fnmatch import fnmatchcase

from relook.zoo.entry import Entry, Family
from relook.zoo.families import centernet2, dpt, refinedet, reppoints, reppoints_v2

ENTRIES: dict[str, Entry] = {
    e.name: e
    for e in (
        *reppoints.ENTRIES,
        *reppoints_v2.ENTRIES,
        *centernet2.ENTRIES,
        *refinedet.ENTRIES,
        *dpt.ENTRIES,
    )
}

FAMILIES: tuple[Family, ...] = tuple({e.family.name: e.family for e in ENTRIES.values()}.values())


def find(name: str) -> Entry:
    """The entry of that name.

    Raises:
        ValueError: when there is none; the message has the nearest names.
    """
    if name in ENTRIES:
        return ENTRIES[name]
    near = get_close_matches(name, ENTRIES, n=3, cutoff=0.4)
    raise ValueError(
        f"no model is called {name!r}; "
        + (f"near it: {', '.join(near)}; " if near else "")
        + "`relook models` shows all"
    )


def names(pattern: str = "*") -> list[str]:
    """Names that fit a pattern as of file names, in the catalog's order: "reppoints_v1*"."""
    return [name for name in ENTRIES if fnmatchcase(name, pattern)]
