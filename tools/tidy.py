"""Checks files for what editors leave behind: no final newline, trailing blanks, merge marks, great size.

python tools/tidy.py             all files that git knows or would add
python tools/tidy.py FILE...     only these (pre-commit calls it so)
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

LARGEST = 4_000_000  # bytes; what is larger belongs to a release, not to the history
MERGE_MARKS = ("<<<<<<< ", ">>>>>>> ")
AS_THEY_ARE = {".svg", ".json"}  # written by programs


def faults(file: Path) -> Iterator[str]:
    """One line a fault; a file with a zero byte counts as binary and is only measured."""
    raw = file.read_bytes()
    if len(raw) > LARGEST:
        yield f"{file}: {len(raw) / 1e6:.1f} MB, too large for the history; attach it to a release"
    if not raw or b"\0" in raw[:8000] or file.suffix in AS_THEY_ARE:
        return
    if not raw.endswith(b"\n") or raw.endswith(b"\n\n"):
        yield f"{file}: must end with one newline"
    for number, line in enumerate(raw.decode("utf-8", errors="replace").splitlines(), 1):
        if line != line.rstrip():
            yield f"{file}:{number}: blanks at the end of the line"
        if line.startswith(MERGE_MARKS):
            yield f"{file}:{number}: a merge was left unfinished"


def known() -> list[Path]:
    """Every file git tracks or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in listed.split("\0") if name]


def main(names: Sequence[str]) -> int:
    """Prints the faults of the named files, or of all; 1 when there is any."""
    files = [Path(name) for name in names] or known()
    found = [fault for file in files if file.is_file() for fault in faults(file)]
    for fault in found:
        print(fault)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
