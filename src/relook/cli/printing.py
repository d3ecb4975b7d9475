"""Lines for people and JSON for programs, both on stdout; progress goes to stderr."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from relook.escaping import printable_json, printable_lines


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned with spaces; a column of numbers to the right."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    right = [all(_number(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def _number(text: str) -> bool:
    return text in ("", "-") or text.replace(".", "", 1).replace("-", "", 1).isdigit()


def say(text: str = "") -> None:
    """A result, for people."""
    print(printable_lines(text))


def remark(text: str) -> None:
    """What is going on; not a result."""
    print(printable_lines(text), file=sys.stderr)


def say_json(value: Any) -> None:
    """A result, for programs: one line when it is one of many, else with indentation."""
    print(printable_json(value, indent=2))


class Counter:
    """Says how far a long work is: one line, rewritten, in a terminal; a line now and then elsewhere."""

    EVERY = 0.2, 15.0  # seconds between two signs of life in a terminal, elsewhere

    def __init__(self, what: str) -> None:
        self.what, self.count = what, 0
        self.terminal = sys.stderr.isatty()
        self.began = self.said = time.monotonic()

    def step(self) -> None:
        """One more is done."""
        self.count += 1
        now = time.monotonic()
        if now - self.said > self.EVERY[0 if self.terminal else 1]:
            self.said = now
            self._write("\r" if self.terminal else "\n")

    def done(self) -> None:
        """All are done: the line goes away."""
        if self.terminal:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def rate(self) -> float:
        """A second."""
        return self.count / max(time.monotonic() - self.began, 1e-9)

    def _write(self, end: str) -> None:
        sys.stderr.write(f"{self.count} {self.what}, {self.rate():.1f} a second   {end}")
        sys.stderr.flush()
