"""Settings that cannot be are refused when they are made, with the name of the field."""

from dataclasses import fields
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints


def check_settings(config: Any, *, counts: str = "", shares: str = "") -> None:
    """Refuses a choice that is none of its words, and numbers out of range.

    Args:
        config: a dataclass of settings.
        counts: names of fields that are at least 1, with spaces between.
        shares: likewise of those in 0 .. 1.

    Raises:
        ValueError: for the first that cannot be.
    """
    hints = get_type_hints(cast("type[Any]", type(config)))
    for field in fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if get_origin(hint) is Literal and value not in get_args(hint):
            words = ", ".join(map(str, get_args(hint)))
            raise ValueError(f"{field.name}={value!r}: it must be one of {words}")
    for name in counts.split():
        if not getattr(config, name) >= 1:
            raise ValueError(f"{name}={getattr(config, name)}: it must be at least 1")
    for name in shares.split():
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name}={getattr(config, name)}: it must be in 0 .. 1")
