"""What a run says while it goes: train.log, metrics.jsonl and .csv, live.html, TensorBoard, the console."""

import csv
import importlib
import json
import logging
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from relook.escaping import printable_lines
from relook.files import room_for, whole_file
from relook.report.live import SECONDS, write_live

log = logging.getLogger("relook.training")

Row = dict[str, float | int | str]


class MetricsLog:
    """One row per report, in three formats. A resumed run goes on in the same files."""

    def __init__(self, folder: Path, *, after: int, tensorboard: bool) -> None:
        """Opens the files of `folder`; rows of steps beyond `after` are dropped: they will come again."""
        self.jsonl, self.csv = folder / "metrics.jsonl", folder / "metrics.csv"
        self.rows = [row for row in _read(self.jsonl) if int(row["step"]) <= after]
        self.columns: list[str] = []
        self._rewrite()
        self.page, self.drawn = folder / "live.html", 0.0
        self._draw(running=True)
        self.board = _board(folder / "tensorboard", after) if tensorboard else None

    def write(self, kind: Literal["train", "validation"], row: Mapping[str, float]) -> None:
        """Adds a row; it must hold "step"."""
        full: Row = {"kind": kind, **row}
        last = self.rows[-2:]  # a row and a validation may be of one step
        again = [old for old in last if (old["kind"], old["step"]) == (kind, full["step"])]
        for old in again:  # of a sitting that was killed between this row and the next save
            self.rows.remove(old)
        self.rows.append(full)
        if not again and set(full) <= set(self.columns):
            with room_for(self.jsonl), self.jsonl.open("a", encoding="utf-8") as file:
                file.write(json.dumps(full) + "\n")
            with room_for(self.csv), self.csv.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(full)
        else:
            self._rewrite()
        if kind == "validation" or time.monotonic() - self.drawn > SECONDS:
            self._draw(running=True)
        if self.board is not None:
            for name, value in row.items():
                if name not in {"step", "epoch"}:
                    self.board.add_scalar(f"{kind}/{name}", value, int(row["step"]))

    def close(self) -> None:
        """Closes TensorBoard's file, and says on the page that all is over; the others are always closed."""
        with suppress(OSError):  # on a full disk: what ended the training is told, not this
            self._draw(running=False)
            if self.board is not None:
                self.board.close()

    def _draw(self, *, running: bool) -> None:
        self.drawn = time.monotonic()
        write_live(self.page, self.rows, running=running)

    def _rewrite(self) -> None:
        """Writes both files from scratch, with a column for every name there is."""
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with whole_file(self.jsonl) as beside:
            beside.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        with whole_file(self.csv) as beside, beside.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)


def _read(jsonl: Path) -> Iterator[Row]:
    """Rows of an earlier sitting; a last line that was cut off is no row."""
    if not jsonl.exists():
        return
    for line in jsonl.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            log.warning("a line of %s was cut off and is left out", jsonl)


def _board(folder: Path, after: int) -> Any:
    """TensorBoard's writer, or None where it is not installed."""
    try:
        tensorboard = importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        log.info("no TensorBoard files, because tensorboard is not installed; pip install tensorboard")
        return None
    return tensorboard.SummaryWriter(str(folder), purge_step=after + 1 if after else None)


@contextmanager
def log_to_run(folder: Path, *, console: Console, quiet: bool) -> Generator[None]:
    """While open, what relook says goes to `folder`/train.log and to the console.

    Step lines (DEBUG) go to the console only where no progress bar can be drawn.
    """
    ours = logging.getLogger("relook")
    file = _File(folder / "train.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%Y-%m-%d %H:%M:%S"))
    handlers: list[logging.Handler] = [file]
    if not quiet and not logging.getLogger().handlers:
        screen = _Screen(console, alone=not ours.handlers)
        screen.setLevel(logging.INFO if console.is_terminal else logging.DEBUG)
        handlers.append(screen)
    level = ours.level
    ours.setLevel(logging.DEBUG)
    for handler in handlers:
        ours.addHandler(handler)
    try:
        yield
    finally:
        ours.setLevel(level)
        for handler in handlers:
            ours.removeHandler(handler)
            handler.close()


class _File(logging.FileHandler):
    """A log that goes without a line rather than end what it tells of, as on a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass


class _Screen(logging.Handler):
    """Lines on the console, above a progress bar if there is one."""

    def __init__(self, console: Console, *, alone: bool) -> None:
        """Speaks for all of relook when `alone`; else somebody speaks for the other rooms already."""
        super().__init__()
        self.console = console
        self.room = "relook" if alone else "relook.training"

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name.startswith(self.room) and not hasattr(record, "file_only")

    def emit(self, record: logging.LogRecord) -> None:
        style = "bold red" if record.levelno >= logging.WARNING else None
        with suppress(OSError):  # of a terminal that is gone
            self.console.print(
                printable_lines(self.format(record)),
                style=style,
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
