"""What happens around the steps: averaging the weights, validating, saving, reporting."""

import copy
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, Checkpoint
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from typing_extensions import override

from relook.detector import Detector
from relook.evaluate.coco_ap import ApReport
from relook.train.checkpoint import save_weights
from relook.train.journal import Metrics
from relook.train.lightning import Training

log = logging.getLogger("relook.train")

Validate = Callable[[Detector[Any]], ApReport]


class Stopped(Exception):  # noqa: N818 (no error: somebody asked for it)
    """Training was asked to stop and has saved where it is."""


# -- averaged weights ----------------------------------------------------------------------------------


class Ema(Callback):
    """An exponential moving average of the weights and of the floating-point buffers.

    Early on the average forgets faster, decay = min(decay, (1 + n) / (10 + n)) after n updates, so that a
    short training is not dominated by its random start.
    """

    def __init__(self, detector: Detector[Any], decay: float) -> None:
        self.detector = detector
        self.decay = decay
        self.updates = 0
        self.average: Detector[Any] | None = None
        self._loaded: dict[str, Tensor] | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.average = copy.deepcopy(self.detector).requires_grad_(requires_grad=False)
        if self._loaded is not None:
            self.average.load_state_dict(self._loaded)
            self._loaded = None

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.average is None or trainer.global_step <= self.updates:
            return  # gradients are still being accumulated
        self.updates = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        get_ema_multi_avg_fn(decay)(_floats(self.average), _floats(self.detector), None)
        for mine, theirs in zip(self.average.buffers(), self.detector.buffers(), strict=True):
            if not mine.is_floating_point():
                mine.copy_(theirs)

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
    """Validates at the end of an epoch; keeps the best and last weights and the state to resume.

    The state is saved before a validation and after it. A run that was stopped in between validates first
    when it goes on, so that nothing is trained twice and no validation is lost.
    """

    def __init__(
        self, module: Training, validate: Validate | None, ema: Ema | None, metadata: Mapping[str, str]
    ) -> None:
        self.module = module
        self.settings = module.settings
        self.folder = module.settings.folder()
        self.validate = validate
        self.ema = ema
        self.metadata = metadata
        self.metrics: Metrics | None = None  # only in the first process
        self.report: ApReport | None = None  # of the last validation in this sitting
        self.ended_early = False
        # what a resumed run must know
        self.best_ap: float | None = None
        self.best_epoch = 0
        self.worse = 0  # validations in a row without a better AP
        self.owed: tuple[int, int] | None = None  # (epoch, step) of a validation that is still to be done

    def detector(self) -> Detector[Any]:
        """Who is validated and saved."""
        if self.ema is not None and self.ema.average is not None:
            return self.ema.average
        return self.module.detector

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.owed is not None and self.validate is not None:
            self._judge(trainer, self.validate, *self.owed)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == trainer.num_training_batches:
            return  # the end of the epoch saves
        if (batch_idx + 1) % self.settings.accumulate:
            return  # gradients are not saved
        every, stop = self.settings.save_every, self.module.watch.stop
        if stop or (every is not None and trainer.global_step % every == 0):
            trainer.save_checkpoint(self.folder / "last.ckpt")
        if stop:
            raise Stopped(f"stopped after step {trainer.global_step}, in epoch {trainer.current_epoch + 1}")

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch, step = trainer.current_epoch + 1, trainer.global_step
        due = epoch == self.module.epochs or epoch % self.settings.validate_every == 0
        self.owed = (epoch, step) if due and self.validate is not None else None
        self._save(trainer, "last.safetensors", {"epoch": str(epoch)})
        trainer.save_checkpoint(self.folder / "last.ckpt")
        if self.module.watch.stop:
            raise Stopped(f"stopped after step {step}, at the end of epoch {epoch}")
        if self.owed is not None and self.validate is not None:
            self._judge(trainer, self.validate, epoch, step)
            trainer.save_checkpoint(self.folder / "last.ckpt")

    def _judge(self, trainer: Trainer, validate: Validate, epoch: int, step: int) -> None:
        report = self.report = validate(self.detector())
        self.owed = None
        better = self.best_ap is None or report.ap > self.best_ap
        self.worse = 0 if better else self.worse + 1
        if better:
            self.best_ap, self.best_epoch = report.ap, epoch
            self._save(trainer, "best.safetensors", {"epoch": str(epoch), "AP": repr(report.ap)})
        if self.metrics is not None:
            self.metrics.write("validation", {"step": step, "epoch": epoch, **report.numbers})
        numbers = "  ".join(f"{name} {report.numbers[name]:.4f}" for name in ("AP", "AP50", "AP75"))
        rank = "best so far" if better else f"best: {self.best_ap:.4f} after epoch {self.best_epoch}"
        place = f"epoch {epoch}/{self.module.epochs}"
        log.info("%s validated on %d images: %s  (%s)", place, report.images, numbers, rank)
        patience = self.settings.early_stop
        if patience is not None and self.worse >= patience:
            log.info("ends early: no better AP in %d validations", self.worse)
            self.ended_early = trainer.should_stop = True

    def _save(self, trainer: Trainer, name: str, facts: dict[str, str]) -> None:
        if trainer.is_global_zero:
            save_weights(self.folder / name, self.detector().state_dict(), {**self.metadata, **facts})

    @override
    def state_dict(self) -> dict[str, Any]:
        names = ("best_ap", "best_epoch", "worse", "owed")
        return {name: getattr(self, name) for name in names}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)


# -- reporting -----------------------------------------------------------------------------------------


class Reporter(Callback):
    """Tells how it goes, in the first process: a bar in a terminal, lines elsewhere, rows of metrics."""

    def __init__(self, module: Training, metrics: Metrics, console: Console) -> None:
        self.module = module
        self.metrics = metrics
        self.console = console
        self.show = module.settings.progress and console.is_terminal
        self.bar: Progress | None = None
        self.started = time.monotonic()
        self.told = 0  # the step that was told last
        self._forget(0)

    def _forget(self, step: int) -> None:
        """Begins to average anew after `step`."""
        self.since, self.told = time.monotonic(), step
        self.images = self.batches = 0
        self.sums: list[float] = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget(trainer.global_step)  # a resumed run may begin within an epoch

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
        self.bar.start()
        epoch = f"{trainer.current_epoch + 1}/{self.module.epochs}"
        self.bar.add_task("", total=trainer.num_training_batches, epoch=epoch, text="")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        terms = self.module.watch.terms
        self.sums = [a + b for a, b in zip(self.sums, terms, strict=True)] if self.sums else list(terms)
        self.images += len(batch.paths) * trainer.world_size
        self.batches += 1
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=batch_idx + 1)
        last = batch_idx + 1 == trainer.num_training_batches
        stepped = last or (batch_idx + 1) % self.module.settings.accumulate == 0
        if stepped and (last or trainer.global_step % self.module.settings.log_every == 0):
            self._tell(trainer)

    def _tell(self, trainer: Trainer) -> None:
        seconds, step = max(time.monotonic() - self.since, 1e-9), trainer.global_step
        names = self.module.watch.names
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
        self.metrics.write("train", row)
        total = self.module.plan().total
        left = (total - step) * seconds / max(step - self.told, 1)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in terms.items())
        text = (
            f"loss {row['loss']:.4f} ({shown})  {row['images_per_second']:.1f} images/s  {_clock(left)} left"
        )
        place = f"epoch {row['epoch']}/{self.module.epochs} step {step}/{total}"
        log.debug("%s  %s  lr %.3g", place, text, row["lr"])
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], text=text)
        self._forget(step)

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
