"""Names of strangers on a terminal: control characters are shown, not obeyed."""


def printable(text: str, most: int = 1200) -> str:
    """A text that a terminal shows as it is: control characters are escaped, and it is not without end."""
    if len(text) > most:
        text = f"{text[: most - 120]} ... {text[-110:]}"
    return text if text.isprintable() else "".join(map(_shown, text))


def printable_lines(text: str) -> str:
    """The same line by line; tabs and ends of lines stay."""
    return "\n".join(
        printable(line, 100_000) if not line.isprintable() else line for line in text.split("\n")
    )


def _shown(sign: str) -> str:
    return sign if sign.isprintable() else sign.encode("unicode_escape").decode()


def can_be_a_name(text: str) -> bool:
    """Whether disks, terminals and text files can hold it: no control characters, no half of a character."""
    return not any(ord(sign) < 32 or "\ud800" <= sign <= "\udfff" for sign in text)
