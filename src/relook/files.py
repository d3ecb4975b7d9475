"""Files that are either whole or not there: written beside their place, then renamed."""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path | str) -> Generator[Path]:
    """Gives a temporary path beside `path`; on success it takes the place of `path`, on an error it goes.

        with whole_file("metrics.json") as beside:
            beside.write_text(text)

    A reader of `path` sees the old file or the new one, never a part, even if the machine stops.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o666 & ~umask)  # mkstemp makes private files; a result is as public as any other file
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
