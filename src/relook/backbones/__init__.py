"""Networks that turn an image into feature maps, each in one file."""

from difflib import get_close_matches

import timm


def known(name: str) -> None:
    """Refuses what is no network of timm's own: other names would make it ask a hub, or read a folder.

    Raises:
        ValueError: with the nearest name.
    """
    if not all(sign.isalnum() or sign in "_.-" for sign in name) or not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=1)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType, reportUnknownArgumentType]
        hint = f"did you mean {near[0]!r}?" if near else "see timm.list_models()"
        raise ValueError(f"timm has no network {name!r:.80}; {hint}")
