"""The training as Lightning sees it: where it runs, what a step is, and in which order batches come."""

import atexit
import logging
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, cast

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from typing_extensions import override

from relook.data.loading.batches import Batch
from relook.data.loading.loader import Loader, train_loader
from relook.data.sample import Source
from relook.detector import Detector
from relook.recipe import Recipe
from relook.train_settings import TrainSettings
from relook.training.optim import Plan, learning_rate, optimizer, plan, scheduler
from relook.training.processes.machines import Machines
from relook.training.records.loss_monitor import LossMonitor
from relook.training.records.origin import KEY as ORIGIN
from relook.training.step import Step

log = logging.getLogger("relook.training")


# -- in which order ------------------------------------------------------------------------------------


class Epochs:
    """A loader that knows the epoch it is asked for, and where in it a stopped training goes on."""

    def __init__(self, loader: Loader, epoch: Callable[[], int]) -> None:
        self.loader = loader
        self.epoch = epoch
        self.given = 0  # batches of this epoch that were handed out

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        skip = self.given if self.given < len(self) else 0
        if skip:
            log.info("goes on in the epoch after %d of its %d batches", skip, len(self))
        self.loader.sampler.set_epoch(self.epoch(), skip)
        self.given = skip
        for batch in self.loader:
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Called by Lightning when it saves."""
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Called by Lightning before it iterates again."""
        self.given = state["given"]


# -- what a step is ------------------------------------------------------------------------------------


class Training(LightningModule):
    """A detector, its recipe and its data, ready for `Trainer.fit`."""

    def __init__(
        self,
        detector: Detector[Any],
        recipe: Recipe,
        source: Source,
        settings: TrainSettings,
        where: Machines,
    ) -> None:
        super().__init__()
        self.step = Step(detector)
        self.recipe = recipe
        self.source = source
        self.settings = settings
        self.where = where
        self.monitor = LossMonitor(settings.folder())
        self.origin: dict[str, Any] = {}  # what the run is trained on and how, for its last.ckpt
        self.gradient_norm: Tensor | None = None  # of the last step, before clipping
        self.broken: dict[str, str] = {}  # training images that could not be read: path -> why
        self.batch = settings.batch or max(1, recipe.batch // (where.world * settings.accumulate))
        self.total_batch = self.batch * where.world * settings.accumulate
        self.lr, self.lr_origin = learning_rate(recipe, self.total_batch, settings.lr)

    @property
    def detector(self) -> Detector[Any]:
        return self.step.detector

    @property
    def epochs(self) -> int:
        """Of the whole schedule; one that counts iterations ends within the last of them."""
        if self.last_step is not None:
            return -(-self.last_step // self.steps_per_epoch)
        return self.settings.epochs or self.recipe.schedule.epochs

    @property
    def last_step(self) -> int | None:
        """Where a schedule that counts iterations ends; None for one that counts epochs."""
        return None if self.settings.epochs is not None else self.recipe.schedule.iterations

    @cached_property
    def steps_per_epoch(self) -> int:
        """Changes of the weights in one pass over the images."""
        return -(-len(self.batches(rank=0, world=self.where.world)) // self.settings.accumulate)

    def batches(self, *, rank: int, world: int) -> Loader:
        """The training images of one process."""
        return train_loader(
            self.source,
            self.recipe,
            batch=self.batch,
            workers=self.settings.workers,
            seed=self.settings.seed,
            stride=self.detector.stride,
            rank=rank,
            world=world,
            masks=self.detector.has_masks,
        )

    @override
    def setup(self, stage: str) -> None:
        """Makes the loader, now that the processes know each other."""
        self.loader = self.batches(rank=self.trainer.global_rank, world=self.trainer.world_size)
        if (
            dist.is_initialized()
        ):  # Lightning sees to NCCL alone; gloo's threads could end the program by abort
            atexit.register(_leave_the_others)
        if self.settings.compile:
            self.step.compile()

    def plan(self) -> Plan:
        """The learning rate over all steps."""
        return plan(self.recipe.schedule, self.steps_per_epoch, self.settings.epochs, lr=self.lr)

    def rate(self) -> float:
        """The learning rate of the last step."""
        return self.lr * self.plan().factor(max(self.trainer.global_step - 1, 0))

    @override
    def train_dataloader(self) -> Any:
        progress = cast("Any", self.trainer.fit_loop.epoch_progress)  # Lightning's types stop here
        return Epochs(self.loader, lambda: int(progress.current.processed))

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        facts = self.recipe.optimizer
        unscaled = not (self.settings.precision == "fp16" and facts.clip is not None)
        over = optimizer(self.detector, facts, self.lr, fused=unscaled)
        return {
            "optimizer": over,
            "lr_scheduler": {"scheduler": scheduler(over, self.plan()), "interval": "step"},
        }

    @override
    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[ORIGIN] = self.origin

    @override
    def on_train_start(self) -> None:
        self.step.train()
        self.monitor.listen()  # here, because Lightning has set its own handlers before
        if self.trainer.is_global_zero:
            log.info("%s", self.plan().describe(self.lr))

    @override
    def on_train_end(self) -> None:
        """Collects what the loaders of all processes could not read."""
        everybodys: list[Any] = [self.loader.broken]
        if dist.is_available() and dist.is_initialized():
            everybodys = [None] * dist.get_world_size()
            dist.all_gather_object(everybodys, self.loader.broken)
        self.broken = {path: why for broken in everybodys for path, why in broken.items()}

    @override
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # what a step draws depends on seed, step and process only, so that a resumed run draws the same
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed((self.settings.seed * 1_000_003 + step) * 65_537 + self.trainer.global_rank)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.step(batch.images, batch.targets)
        self.monitor.note(losses, batch)
        return torch.stack([*losses.values()]).sum()

    @override
    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the L2 norm of all gradients together, or each value; Lightning refuses fused optimisers."""
        if gradient_clip_val is None:
            return
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(trained, gradient_clip_val)
        else:
            self.gradient_norm = torch.nn.utils.clip_grad_norm_(trained, gradient_clip_val)

    @override
    def on_after_backward(self) -> None:
        self.monitor.check(self.trainer.global_step + 1)


def _leave_the_others() -> None:
    """At the end of the program: the processes part while Python still runs."""
    if dist.is_initialized():
        dist.destroy_process_group()
