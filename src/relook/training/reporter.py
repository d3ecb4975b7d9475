"""Tells how a training goes, in the first process: a bar in a terminal, lines elsewhere, rows of metrics."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from typing_extensions import override

from relook.training.lightning import Training
from relook.training.records.metrics_log import MetricsLog

log = logging.getLogger("relook.training")

SECONDS = 10.0  # between two lines, at most, where steps are slow


class Reporter(Callback):
    """Tells how it goes, in the first process: a bar in a terminal, lines elsewhere, rows of metrics."""

    def __init__(self, module: Training, console: Console) -> None:
        self.module = module
        self.metrics: MetricsLog | None = None
        self.begins: Callable[[], None] = lambda: None  # called when all is ready for the first step
        self.console = console
        self.show = module.settings.progress and console.is_terminal
        self.bar: Progress | None = None
        self.started = time.monotonic()
        self.told = 0  # the step that was told last
        self._kept: dict[str, Any] = {}
        self._forget(0)

    def _forget(self, step: int) -> None:
        """Begins to average anew after `step`."""
        self.since, self.told = time.monotonic(), step
        self.said = self.since  # when a line was last written
        self.images = self.batches = 0
        self.sums: list[float] = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget(trainer.global_step)  # a resumed run may begin within an epoch, and between two rows
        self.sums, self.batches = list(self._kept.get("sums", [])), int(self._kept.get("batches", 0))
        self.begins()

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:  # not to count a validation
            self._forget(trainer.global_step)
        if self.show and self.bar is None:
            self._open(trainer)

    def _open(self, trainer: Trainer) -> None:
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
        )
        with suppress(OSError):  # here and below: of a terminal that is gone
            self.bar.start()
        epoch = f"{trainer.current_epoch + 1}/{self.module.epochs}"
        self.bar.add_task("", total=trainer.num_training_batches, epoch=epoch, text="")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        terms = self.module.monitor.terms
        self.sums = [a + b for a, b in zip(self.sums, terms, strict=True)] if self.sums else list(terms)
        self.images += len(batch.paths) * trainer.world_size
        self.batches += 1
        if self.bar is not None:
            with suppress(OSError):
                self.bar.update(self.bar.task_ids[0], completed=batch_idx + 1)
        ended = (
            trainer.global_step == self.module.plan().total
        )  # within an epoch, where iterations are counted
        last = ended or batch_idx + 1 == trainer.num_training_batches
        stepped = last or (batch_idx + 1) % self.module.settings.accumulate == 0
        if stepped and (last or trainer.global_step % self.module.settings.log_every == 0):
            row = self._row(trainer)
            if self.metrics is not None:
                self.metrics.write("train", row)
            self._say(trainer, row)
            self._forget(trainer.global_step)
        elif time.monotonic() - self.said > SECONDS:
            self._say(trainer, self._row(trainer))
            self.said = time.monotonic()

    def _row(self, trainer: Trainer) -> dict[str, float]:
        """Numbers of the steps since the last row."""
        seconds, step = max(time.monotonic() - self.since, 1e-9), trainer.global_step
        names = self.module.monitor.names
        terms = {name: value / self.batches for name, value in zip(names, self.sums, strict=True)}
        row = {
            "step": step,
            "epoch": trainer.current_epoch + 1,
            "seconds": round(time.monotonic() - self.started, 3),
            "lr": self.module.rate(),
            "images_per_second": round(self.images / seconds, 3),
            "loss": sum(terms.values()),
            **{f"loss_{name}": value for name, value in terms.items()},
        }
        if self.module.gradient_norm is not None:
            row["gradient_norm"] = float(self.module.gradient_norm)
        return row

    def _say(self, trainer: Trainer, row: Mapping[str, float]) -> None:
        """A line of the log, and the text behind the bar."""
        seconds, step = max(time.monotonic() - self.since, 1e-9), trainer.global_step
        total = self.module.plan().total
        left = (total - step) * seconds / max(step - self.told, 1)
        terms = {name.removeprefix("loss_"): value for name, value in row.items() if name.startswith("loss_")}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in terms.items())
        text = (
            f"loss {row['loss']:.4f} ({shown})  {row['images_per_second']:.1f} images/s  {_clock(left)} left"
        )
        place = f"epoch {row['epoch']}/{self.module.epochs} step {step}/{total}"
        log.debug("%s  %s  lr %.3g", place, text, row["lr"])
        if self.bar is not None:
            with suppress(OSError):
                self.bar.update(self.bar.task_ids[0], text=text)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "batches": self.batches}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._kept = state_dict

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            with suppress(OSError):
                self.bar.stop()
            self.bar = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
