"""Reads the losses of every step before they reach the weights, and hears when somebody wants to stop."""

import logging
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from relook.data.loading.batches import Batch
from relook.training.records.checkpoint import save_batch
from relook.types import Losses

log = logging.getLogger("relook.training")


SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none
STOPPING = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, SIGHUP)))


class NonFiniteLoss(ArithmeticError):  # noqa: N818 (said as people say it)
    """A loss was NaN or infinite; training stopped before it could reach the weights."""


class LossMonitor:
    """Reads the loss terms of each batch on the host, before the weights change.

    On a GPU the copy to the host is queued behind the forward pass and waited for when the backward pass has
    been queued as well. So the host waits for the forward pass only, while the GPU has yet to do the backward
    pass and never runs dry. Several processes average the terms first; the same message tells all of them,
    at the same step, of a loss that is not finite or of a wish to stop.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: tuple[str, ...] = ()
        self.terms: tuple[float, ...] = ()  # of the batch checked last, mean over the processes
        self.stopped_by: int | None = None  # the signal that asked this process to stop
        self.stop = False  # all processes agree to stop
        self._process = os.getpid()
        self._noted: tuple[Tensor, Tensor, Batch] | None = None
        self._arrived: torch.cuda.Event | None = None

    # -- losses ----------------------------------------------------------------------------------------

    def note(self, losses: Losses, batch: Batch) -> None:
        """Starts to read the terms of a batch."""
        self.names = tuple(losses)
        mine = torch.stack([term.detach().float() for term in losses.values()])
        everybodys = torch.cat([mine, mine.new_full((1,), float(self.stopped_by is not None))])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(everybodys)
            everybodys /= dist.get_world_size()
        if everybodys.is_cuda:
            everybodys = everybodys.to("cpu", non_blocking=True)  # torch lends page-locked memory for this
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        self._noted = (mine, everybodys, batch)

    def check(self, step: int) -> None:
        """Waits for the terms of the batch that was noted last; it is part of `step`, counted from 1.

        Raises:
            NonFiniteLoss: when one is NaN or infinite, here or in another process.
        """
        if self._noted is None:
            return
        mine, everybodys, batch = self._noted
        self._noted = None
        if self._arrived is not None:
            self._arrived.synchronize()
        *terms, stop = (float(value) for value in everybodys)
        self.terms, self.stop = tuple(terms), stop > 0
        if not everybodys.isfinite().all():
            self._report(tuple(float(value) for value in mine.cpu()), batch, step)

    def _report(self, terms: tuple[float, ...], batch: Batch, step: int) -> None:
        """Saves the batch and says what happened."""
        values = dict(zip(self.names, terms, strict=True))
        bad = [name for name, value in values.items() if not -float("inf") < value < float("inf")]
        if not bad:
            raise NonFiniteLoss(f"a loss of another process was not finite at step {step}; see its message")
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        folder = self.folder / "nonfinite" / f"step-{step:08d}-process-{rank}"
        facts: dict[str, Any] = {
            "step": step,
            "losses": {name: str(value) for name, value in values.items()},  # JSON knows no NaN
            "not_finite": bad,
            "ids": [int(i) for i in batch.ids],
            "paths": list(batch.paths),
        }
        save_batch(folder, batch.images, batch.targets, facts)
        named = ", ".join(f"{name} is {values[name]}" for name in bad)
        raise NonFiniteLoss(
            f"loss {named} at step {step}, images {_few(batch.paths)}. The weights were not touched. "
            f"The batch is in {folder}; relook.training.records.checkpoint.read_batch reads it. "
            "Usual causes: a high learning rate (--lr), too short numbers (--precision bf16 or 32), "
            "a wrong box (relook doctor)"
        )

    # -- the wish to stop ------------------------------------------------------------------------------

    def listen(self) -> None:
        """From now on Ctrl-C, SIGTERM and SIGHUP ask to stop after the step; a second Ctrl-C stops at once.

        SIGHUP comes when a terminal closes; where it is ignored, as under nohup, it stays so.
        """
        self._process = os.getpid()
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOPPING:
            if number != SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._asked)

    def _asked(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a process that reads images: the one that trains has heard it too
        if self.stopped_by is not None and number != signal.SIGINT:
            return  # once is enough
        self.stopped_by = number
        log.warning("stopping after this step; Ctrl-C again stops at once, without saving it")
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _few(paths: tuple[str, ...]) -> str:
    more = f" and {len(paths) - 8} more" if len(paths) > 8 else ""
    return ", ".join(paths[:8]) + more
