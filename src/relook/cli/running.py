"""Runs a verb: reads its arguments, and turns whatever goes wrong into one sentence and an exit status."""

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from relook.cli.arguments import Wrong, parse
from relook.escaping import printable_lines

FAILED, WRONG, INTERRUPTED = 1, 2, 130


def run(verb: str, given: Sequence[str]) -> int:
    """The exit status of `relook VERB ...`."""
    if not _somewhere():
        print("relook: the folder you are in was removed; cd to another one", file=sys.stderr)
        return WRONG
    try:
        module = importlib.import_module(f"relook.cli.verbs.{verb}")
        options = parse(module.VERB, given)
        return 0 if options is None else _speak(module, options)
    except KeyboardInterrupt:
        print("relook: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # somebody like `head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Wrong as error:
        print(printable_lines(f"relook {verb}: {error}"), file=sys.stderr)
        return WRONG
    except Exception as error:  # noqa: BLE001 (this is the place that answers for all of them)
        return _explain(verb, error)


class _Escaped(logging.Formatter):
    """Lines in which names of files and classes can do nothing to a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def _somewhere() -> bool:
    try:
        return bool(Path.cwd())
    except OSError:
        return False


def _speak(module: ModuleType, options: object) -> int:
    """Runs the verb; what relook's rooms have to say meanwhile goes to stderr."""
    screen = logging.StreamHandler(sys.stderr)
    screen.setFormatter(_Escaped("relook: %(message)s"))
    ours = logging.getLogger("relook")
    screen.addFilter(lambda _: ours.handlers == [screen])  # training has a voice of its own while it runs
    logging.getLogger("relook.api").setLevel(logging.INFO)
    ours.addHandler(screen)
    try:
        return int(module.VERB.run(options))
    finally:
        ours.removeHandler(screen)


def _explain(verb: str, error: Exception) -> int:
    """Mistakes that a person can fix end with 2, others with 1; neither shows a traceback unasked."""
    if os.environ.get("RELOOK_TRACEBACK"):
        traceback.print_exception(error)
    fixable = isinstance(error, (ValueError, OSError, ImportError, TypeError)) and not _inside(error)
    words = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        words = f"{error.filename}: {error.strerror}"
    if fixable:
        print(printable_lines(f"relook {verb}: {words}"), file=sys.stderr)
        return WRONG
    if not isinstance(error, (ArithmeticError, MemoryError)) and not type(error).__name__.startswith(
        "OutOfMem"
    ):
        words = f"{type(error).__name__}: {words}; RELOOK_TRACEBACK=1 relook {verb} ... shows where"
    print(printable_lines(f"relook {verb}: {words}"), file=sys.stderr)
    return FAILED


def _inside(error: BaseException) -> bool:
    """Whether a mistake was raised by somebody else's code, which does not speak to people."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = "" if last is None else last.tb_frame.f_code.co_filename
    return isinstance(error, TypeError | ValueError) and f"{os.sep}relook{os.sep}" not in place
