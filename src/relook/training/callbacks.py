"""What happens around the steps: averaging the weights, validating, saving, reporting."""

import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, Checkpoint
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from typing_extensions import override

from relook.detector import Detector
from relook.metrics.metric import MISSING, Report
from relook.training.lightning import Training
from relook.training.records.checkpoint import write_safetensors
from relook.training.records.metrics_log import MetricsLog

log = logging.getLogger("relook.training")

Validate = Callable[[Detector[Any]], Report]


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


class ValidateAndSave(Checkpoint):
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
        self.metrics: MetricsLog | None = None  # only in the first process
        self.report: Report | None = None  # of the last validation in this sitting
        self.ended_early = False
        # what a resumed run must know
        self.best_ap: float | None = None
        self.best_epoch = 0
        self.epochs_without_gain = 0  # validations in a row without a better AP
        self.pending_validation: tuple[int, int] | None = (
            None  # (epoch, step) of a validation that is still to be done
        )
        self.weights_of: tuple[int, int] | None = None  # (epoch, step) that last.safetensors is of
        self.resumed_step = 0  # of the state that this sitting goes on from

    def detector(self) -> Detector[Any]:
        """Who is validated and saved."""
        if self.ema is not None and self.ema.average is not None:
            return self.ema.average
        return self.module.detector

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.weights_of is not None and self.weights_of[1] == self.resumed_step:
            # the last sitting may have been killed between the state and the weights
            self._save(trainer, "last.safetensors", {"epoch": str(self.weights_of[0])})
        if self.pending_validation is not None and self.validate is not None:
            self._validate_now(trainer, self.validate, *self.pending_validation)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == trainer.num_training_batches or self._end(trainer):
            return  # the end of the epoch saves
        if (batch_idx + 1) % self.settings.accumulate:
            return  # gradients are not saved
        every, stop = self.settings.save_every, self.module.monitor.stop
        if stop or (every is not None and trainer.global_step % every == 0):
            trainer.save_checkpoint(self.folder / "last.ckpt")
        if stop:
            raise Stopped(f"stopped after step {trainer.global_step}, in epoch {trainer.current_epoch + 1}")

    def _end(self, trainer: Trainer) -> bool:
        """Whether the schedule ends here, within an epoch.

        Lightning's own `max_steps` is not asked: with it a run that stopped at the end of an epoch is resumed
        as if a batch of that epoch were still missing.
        """
        last = self.module.last_step
        if last is None or trainer.global_step < last:
            return False
        trainer.should_stop = True
        return True

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch, step = trainer.current_epoch + 1, trainer.global_step
        due = epoch == self.module.epochs or epoch % self.settings.validate_every == 0
        self.pending_validation = (epoch, step) if due and self.validate is not None else None
        self.weights_of = (epoch, step)
        trainer.save_checkpoint(self.folder / "last.ckpt")  # first: without it nobody can go on
        self._save(trainer, "last.safetensors", {"epoch": str(epoch)})
        if self.module.monitor.stop:
            raise Stopped(f"stopped after step {step}, at the end of epoch {epoch}")
        if self.pending_validation is not None and self.validate is not None:
            self._validate_now(trainer, self.validate, epoch, step)
            trainer.save_checkpoint(self.folder / "last.ckpt")

    def _validate_now(self, trainer: Trainer, validate: Validate, epoch: int, step: int) -> None:
        report = self.report = validate(self.detector())
        self.pending_validation = None
        measured = report.value != MISSING  # else there was nothing to be found
        better = measured and (self.best_ap is None or report.value > self.best_ap)
        self.epochs_without_gain = 0 if better else self.epochs_without_gain + 1
        if better:
            self.best_ap, self.best_epoch = report.value, epoch
            self._save(
                trainer, "best.safetensors", {"epoch": str(epoch), report.headline: repr(report.value)}
            )
        if self.metrics is not None:
            self.metrics.write("validation", {"step": step, "epoch": epoch, **report.numbers})
        numbers = "  ".join(f"{name} {value}" for name, value in _headlines(report))
        rank = "best so far" if better else f"best: {self.best_ap or 0:.4f} after epoch {self.best_epoch}"
        rank = rank if self.best_ap is not None else "nothing to be found in them"
        place = f"epoch {epoch}/{self.module.epochs}"
        log.info("%s validated on %d images: %s  (%s)", place, report.images, numbers, rank)
        patience = self.settings.early_stop
        if patience is not None and self.epochs_without_gain >= patience:
            log.info("ends early: no better %s in %d validations", report.headline, self.epochs_without_gain)
            self.ended_early = trainer.should_stop = True

    def _save(self, trainer: Trainer, name: str, facts: dict[str, str]) -> None:
        if trainer.is_global_zero:
            write_safetensors(self.folder / name, self.detector().state_dict(), {**self.metadata, **facts})

    @override
    def state_dict(self) -> dict[str, Any]:
        names = ("best_ap", "best_epoch", "epochs_without_gain", "pending_validation", "weights_of")
        return {name: getattr(self, name) for name in names}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)


def _headlines(report: Report) -> list[tuple[str, str]]:
    """The first numbers of a report, and the one that weights are chosen by."""
    shown = report.table()
    first = shown[:3]
    return first + [row for row in shown[3:] if row[0] == report.headline]
