"""Names of tensors in other people's files become ours by ordered rules."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")

Rules = tuple[tuple[str, str], ...]
"""A regular expression for a whole name and its replacement, each; the first that fits is used."""


def renamed(keys: Iterable[str], rules: Rules) -> dict[str, str]:
    """Their name -> ours, for every key. One that no rule fits stays, so that strict loading names it."""
    compiled = [(re.compile(pattern), new) for pattern, new in rules]
    return {key: _renamed(key, compiled) for key in keys}


def in_our_names(state: Mapping[str, T], rules: Rules) -> dict[str, T]:
    """The same values by our names."""
    return dict(zip(renamed(state, rules).values(), state.values(), strict=True))


def _renamed(key: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, new in rules:
        match = pattern.fullmatch(key)
        if match:
            return match.expand(new)
    return key
