"""What happens around the steps: watching losses, averaging weights, validating, saving, reporting."""

import copy
import logging
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, Checkpoint
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from typing_extensions import override

from relook.data.batches import Batch
from relook.detector import Detector
from relook.evaluate.coco_ap import ApReport
from relook.train.checkpoint import save_batch, save_weights
from relook.train.journal import Metrics
from relook.types import Losses

log = logging.getLogger("relook.train")

Validate = Callable[[Detector[Any]], ApReport]


class NonFiniteLoss(ArithmeticError):  # noqa: N818 (said as people say it)
    """A loss was NaN or infinite; training stopped before it could reach the weights."""


class Stopped(Exception):  # noqa: N818 (no error: somebody asked for it)
    """Training was asked to stop and has saved where it is."""


# -- losses --------------------------------------------------------------------------------------------


class LossWatch:
    """Reads the losses of each batch on the host before they can change the weights.

    On a GPU the copy starts when the forward pass is queued, and is waited for when the backward pass is
    queued: the host waits for the forward pass only, while the GPU has the whole backward pass to do, so it
    never runs dry. With several processes the terms are averaged over them first, which also tells all of
    them of a loss that is not finite, or of a wish to stop, at the same step.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stopped_by: int | None = None  # the signal that asked to stop
        self.names: tuple[str, ...] = ()
        self.terms: list[float] = []  # of the last checked batch, mean over processes
        self.stop_agreed = False
        self._pending: tuple[Tensor, Tensor, Batch] | None = None
        self._ready: torch.cuda.Event | None = None

    def note(self, losses: Losses, batch: Batch) -> None:
        """Starts to read the terms of one batch."""
        self.names = tuple(losses)
        mine = torch.stack([term.detach().float() for term in losses.values()])
        all_of_us = torch.cat([mine, mine.new_full((1,), float(self.stopped_by is not None))])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(all_of_us)
            all_of_us /= dist.get_world_size()
        if all_of_us.is_cuda:
            all_of_us = all_of_us.to("cpu", non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()
        self._pending = (mine, all_of_us, batch)

    def check(self, step: int) -> None:
        """Waits for the terms.

        Raises:
            NonFiniteLoss: when one is NaN or infinite, here or in another process.
        """
        if self._pending is None:
            return
        mine, all_of_us, batch = self._pending
        self._pending = None
        if self._ready is not None:
            self._ready.synchronize()
        values: list[float] = all_of_us.tolist()
        self.terms, self.stop_agreed = values[:-1], values[-1] > 0
        if not torch.isfinite(all_of_us).all():
            self._report(mine.cpu(), batch, step)

    def listen(self) -> None:
        """From now on Ctrl-C and SIGTERM ask to stop after the step; the second Ctrl-C stops at once."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._asked)

    def _asked(self, number: int, _frame: FrameType | None) -> None:
        self.stopped_by = number
        log.warning("stopping after this step and saving; Ctrl-C again stops at once")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _report(self, mine: Tensor, batch: Batch, step: int) -> None:
        read: list[float] = mine.tolist()
        values = dict(zip(self.names, read, strict=True))
        bad = [name for name, value in zip(self.names, mine, strict=True) if not value.isfinite()]
        if not bad:
            raise NonFiniteLoss(
                f"a loss of another process was not finite at step {step}; its message says more"
            )
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        folder = self.folder / "nonfinite" / f"step-{step:08d}-process-{rank}"
        facts: dict[str, Any] = {
            "step": step,
            "losses": {name: str(value) for name, value in values.items()},
            "not_finite": bad,
            "ids": batch.ids.tolist(),
            "paths": list(batch.paths),
        }
        save_batch(folder, batch.images, batch.targets, facts)
        named = ", ".join(f"{name} is {values[name]}" for name in bad)
        shown = ", ".join(batch.paths[:4]) + (
            f" and {len(batch.paths) - 4} more" if len(batch.paths) > 4 else ""
        )
        raise NonFiniteLoss(
            f"at step {step} the loss {named}; images: {shown}. The weights were not touched. "
            f"The batch is in {folder}; look at it with relook.train.checkpoint.read_batch. "
            f"Usual causes: a learning rate too high (--lr), precision fp16 (--precision bf16), a broken box"
        )


# -- averaged weights ----------------------------------------------------------------------------------


class Ema(Callback):
    """An exponential moving average of the weights and of the floating-point buffers.

    Early on the average forgets faster, decay = min(decay, (1 + n) / (10 + n)) after n updates, so that a
    short training is not dominated by its random start.
    """

    def __init__(self, detector: Detector[Any], decay: float) -> None:
        self.source = detector
        self.decay = decay
        self.updates = 0
        self.average: Detector[Any] | None = None
        self._loaded: dict[str, Tensor] | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.average = copy.deepcopy(self.source).requires_grad_(requires_grad=False)
        if self._loaded is not None:
            self.average.load_state_dict(self._loaded)
            self._loaded = None

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step <= self.updates or self.average is None:
            return  # gradients are still being accumulated
        self.updates = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averaged, current = _floats(self.average), _floats(self.source)
        get_ema_multi_avg_fn(decay)(averaged, current, None)
        for mine, other in zip(self.average.buffers(), self.source.buffers(), strict=True):
            if not mine.is_floating_point():
                mine.copy_(other)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": {} if self.average is None else self.average.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates, self._loaded = state_dict["updates"], state_dict["weights"]


def _floats(module: nn.Module) -> tuple[Tensor, ...]:
    tensors = [*module.parameters(), *module.buffers()]
    return tuple(t.detach() for t in tensors if t.is_floating_point())


# -- validation and saving -----------------------------------------------------------------------------


class Keeper(Checkpoint):
    """Validates at the end of an epoch; keeps the best and last weights and the state to resume."""

    def __init__(
        self,
        *,
        folder: Path,
        validate: Validate | None,
        every: int,
        patience: int | None,
        save_every: int | None,
        ema: Ema | None,
        metadata: dict[str, str],
    ) -> None:
        self.folder = folder
        self.validate = validate
        self.every = every
        self.patience = patience
        self.save_every = save_every
        self.ema = ema
        self.metadata = metadata
        self.metrics: Metrics | None = None  # only in the first process
        self.report: ApReport | None = None  # of the last validation in this sitting
        self.best_ap: float | None = None
        self.best_epoch = 0
        self.worse = 0  # validations in a row without a better AP
        self.ended_early = False

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        watch: LossWatch = pl_module.watch  # pyright: ignore[reportAssignmentType] (ours, see lightning.py)
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        last = batch_idx + 1 == trainer.num_training_batches  # then the end of the epoch saves
        due = self.save_every is not None and trainer.global_step % self.save_every == 0
        if whole and not last and (due or watch.stop_agreed):
            trainer.save_checkpoint(self.folder / "last.ckpt")
        if watch.stop_agreed and whole and not last:
            raise Stopped(f"stopped after step {trainer.global_step}, in epoch {trainer.current_epoch + 1}")

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        watch: LossWatch = pl_module.watch  # pyright: ignore[reportAssignmentType] (ours, see lightning.py)
        epoch = trainer.current_epoch + 1
        detector: Detector[Any] = pl_module.detector  # pyright: ignore[reportAssignmentType] (ours)
        if self.ema is not None and self.ema.average is not None:
            detector = self.ema.average
        final = epoch == trainer.max_epochs
        if self.validate is not None and not watch.stop_agreed and (final or epoch % self.every == 0):
            self._judge(trainer, detector, self.validate)
        if trainer.is_global_zero:
            self._save(detector, "last.safetensors", epoch)
        trainer.save_checkpoint(self.folder / "last.ckpt")
        if watch.stop_agreed:
            raise Stopped(f"stopped after step {trainer.global_step}, at the end of epoch {epoch}")

    def _judge(self, trainer: Trainer, detector: Detector[Any], validate: Validate) -> None:
        epoch = trainer.current_epoch + 1
        report = self.report = validate(detector)
        better = self.best_ap is None or report.ap > self.best_ap
        self.worse = 0 if better else self.worse + 1
        if self.metrics is not None:
            self.metrics.write("validation", {"step": trainer.global_step, "epoch": epoch, **report.numbers})
        log.info(
            "epoch %d/%s validated on %d images: AP %.4f  AP50 %.4f  AP75 %.4f%s",
            *(epoch, trainer.max_epochs, report.images),
            *(report.ap, report.numbers["AP50"], report.numbers["AP75"]),
            "  (best so far)" if better else f"  (best: {self.best_ap:.4f} after epoch {self.best_epoch})",
        )
        if better:
            self.best_ap, self.best_epoch = report.ap, epoch
            if trainer.is_global_zero:
                self._save(detector, "best.safetensors", epoch)
        if self.patience is not None and self.worse >= self.patience:
            log.info("ends early: %d validations in a row brought no better AP", self.worse)
            self.ended_early = trainer.should_stop = True

    def _save(self, detector: Detector[Any], name: str, epoch: int) -> None:
        facts = {**self.metadata, "epoch": str(epoch)}
        if self.report is not None:
            facts["AP"] = repr(self.report.ap)
        save_weights(self.folder / name, detector.state_dict(), facts)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best_ap": self.best_ap, "best_epoch": self.best_epoch, "worse": self.worse}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_ap, self.best_epoch = state_dict["best_ap"], state_dict["best_epoch"]
        self.worse = state_dict["worse"]


# -- reporting -----------------------------------------------------------------------------------------


class Reporter(Callback):
    """Tells how it goes, in the first process: a bar in a terminal, lines elsewhere, rows of metrics."""

    def __init__(self, *, metrics: Metrics, console: Console, every: int, bar: bool) -> None:
        self.metrics = metrics
        self.console = console
        self.every = every
        self.show = bar and console.is_terminal
        self.bar: Progress | None = None
        self.started = time.monotonic()
        self._forget()

    def _forget(self) -> None:
        """Begins a new window of steps to average over."""
        self.since = time.monotonic()
        self.images = self.steps = self.batches = 0
        self.sums: list[float] = []

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget()
        self.step_before = trainer.global_step
        if self.show:
            self.bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                console=self.console,
            )
            self.bar.start()
            self.bar.add_task(
                "",
                total=trainer.num_training_batches,
                epoch=f"{trainer.current_epoch + 1}/{trainer.max_epochs}",
                text="",
            )

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        watch: LossWatch = pl_module.watch  # pyright: ignore[reportAssignmentType] (ours, see lightning.py)
        self.images += len(batch.ids) * trainer.world_size
        self.batches += 1
        self.sums = [a + b for a, b in zip(self.sums or [0.0] * len(watch.terms), watch.terms, strict=True)]
        stepped = trainer.global_step > self.step_before
        self.step_before = trainer.global_step
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=batch_idx + 1)
        last = batch_idx + 1 == trainer.num_training_batches
        if stepped:
            self.steps += 1
            if trainer.global_step % self.every == 0 or (last and trainer.global_step < self.every):
                self._tell(trainer, watch.names)

    def _tell(self, trainer: Trainer, names: tuple[str, ...]) -> None:
        seconds = max(time.monotonic() - self.since, 1e-9)
        terms = {name: value / self.batches for name, value in zip(names, self.sums, strict=True)}
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        row = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch + 1,
            "seconds": round(time.monotonic() - self.started, 3),
            "lr": rate,
            "images_per_second": round(self.images / seconds, 3),
            "loss": sum(terms.values()),
            **{f"loss_{name}": value for name, value in terms.items()},
        }
        self.metrics.write("train", row)
        steps = int(trainer.estimated_stepping_batches)
        left = _clock((steps - trainer.global_step) * seconds / self.steps)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in terms.items())
        text = f"loss {row['loss']:.4f} ({shown})  {row['images_per_second']:.1f} images/s  {left} left"
        log.debug(
            "epoch %d/%s step %d/%d  %s  lr %.3g",
            row["epoch"],
            trainer.max_epochs,
            row["step"],
            steps,
            text,
            rate,
        )
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], text=text)
        self._forget()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
