"""Names of strangers on a terminal: control characters are shown, not obeyed."""

import json
import re
from typing import Any, Final

LONGEST: Final = 4000  # characters of a line
_CONTROLS: Final = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, most: int = 1200) -> str:
    """A text that a terminal shows as it is: control characters are escaped, and it is not without end."""
    if len(text) > most:
        text = f"{text[: most - 120]} ... {text[-110:]}"
    return text if text.isprintable() else "".join(map(_shown, text))


def printable_lines(text: str) -> str:
    """The same line by line, each of bounded length."""
    return "\n".join(
        line if line.isprintable() and len(line) <= LONGEST else printable(line, LONGEST)
        for line in text.split("\n")
    )


def printable_json(value: Any, indent: int | None = None) -> str:
    """JSON with letters as they are and control characters escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _shown(sign: str) -> str:
    return sign if sign.isprintable() else sign.encode("unicode_escape").decode()


def can_be_a_name(text: str) -> bool:
    """Whether disks, terminals and text files can hold it: no control characters, no half of a character."""
    return not any(ord(sign) < 32 or "\ud800" <= sign <= "\udfff" for sign in text)
