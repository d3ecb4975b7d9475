"""What a person needs to know when a training ends before its end."""

import logging
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import torch

from relook.files import DiskFull
from relook.train_settings import TrainSettings

log = logging.getLogger("relook.training")

_KILLED: Final = re.compile(r"DataLoader worker .*(is killed by signal|exited unexpectedly)")


@contextmanager
def told(settings: TrainSettings, batch: int) -> Generator[None]:
    """Turns what ends a training into one sentence, with where to go on."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"{batch} images a step do not fit into the memory of the GPU; "
            f"use --batch {max(1, batch // 2)} --accumulate {settings.accumulate * 2}"
        ) from error
    except ValueError as error:
        if settings.resume is None or "parameter group" not in str(error):  # torch's words
            raise
        raise ValueError(
            f"{settings.resume} was trained with another `no_decay` or other frozen parts, which --force "
            "cannot change; go on with the same settings"
        ) from None
    except DiskFull as error:
        log.critical("%s", error, extra={"file_only": True})  # whoever called shows the error itself
        raise DiskFull(f"{error}; {where_to_resume(settings)}") from None
    except ArithmeticError as error:
        log.critical("%s", error, extra={"file_only": True})
        log.critical("training ended; %s", where_to_resume(settings))
        raise
    except RuntimeError as error:
        killed = _KILLED.search(str(error))
        if killed is None:
            raise
        raise ChildProcessError(
            f"a process that reads images was ended from outside, as the system does when "
            f"memory runs out: try --workers {settings.workers // 2}; {where_to_resume(settings)}"
        ) from error


def where_to_resume(settings: TrainSettings) -> str:
    """How to go on, in words."""
    last = settings.folder() / "last.ckpt"
    if not last.exists():
        return "nothing was saved yet: the same command begins anew"
    way = f"go on with the same command and --resume {settings.folder()}"
    return f"{last} holds the last state that was saved; {way}"
