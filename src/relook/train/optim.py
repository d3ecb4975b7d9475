"""The published learning rates and optimisers, step by step."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from relook.recipe import Optimizer, Recipe, Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A schedule in steps, for one number of steps: what the learning rate does when.

    A step is one change of the weights, however many batches were accumulated for it.
    """

    schedule: Schedule
    total: int  # steps of the whole training
    warmup: int  # steps of warm-up, at most a tenth of all
    reach: float  # the step at which warm-up would end at the whole rate
    drops: tuple[int, ...]  # steps from which on the rate is `drop_factor` times smaller

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied with at `step` = 0, 1, ... total - 1."""
        s = self.schedule
        done = sum(step >= drop for drop in self.drops)
        fall = s.drop_factor**done
        if s.kind == "onecycle":
            along = min(max(step - self.warmup, 0) / max(self.total - self.warmup, 1), 1.0)
            fall = 0.5 * (1 + math.cos(math.pi * along))
        if step >= self.warmup:
            return fall
        return fall * (s.warmup_from + (1 - s.warmup_from) * step / self.reach)

    def describe(self, lr: float) -> str:
        """One sentence for the log."""
        warm = f"warm-up over {self.warmup} steps" if self.warmup else "no warm-up"
        if self.warmup < self.schedule.warmup_steps:
            warm += f" (not {self.schedule.warmup_steps}: at most a tenth of all)"
        if self.schedule.kind == "onecycle":
            return f"learning rate: {warm} to {lr:g}, then a cosine to 0 at step {self.total}"
        drops = ", ".join(map(str, self.drops)) or "never"
        factor = self.schedule.drop_factor
        return f"learning rate: {warm} to {lr:g}, x {factor:g} at steps {drops} of {self.total}"


def plan(schedule: Schedule, steps_per_epoch: int, epochs: int | None = None) -> Plan:
    """The schedule for `epochs` of `steps_per_epoch` steps; drops keep their place in proportion.

    Warm-up is the published one unless that were more than a tenth of all steps; then it takes a tenth.
    """
    epochs = schedule.epochs if epochs is None else epochs
    total = epochs * steps_per_epoch
    warmup = min(schedule.warmup_steps, total // 10)
    reach = schedule.warmup_reach - schedule.warmup_steps + warmup
    steps = schedule.kind == "steps"
    return Plan(
        schedule=schedule,
        total=total,
        warmup=warmup,
        reach=max(reach, 1),
        drops=tuple(round(d * total / schedule.epochs) for d in schedule.drops) if steps else (),
    )


def rate(schedule: Schedule, step: int, steps_per_epoch: int) -> float:
    """What the recipe's learning rate is multiplied with at `step`, counted from 0."""
    return plan(schedule, steps_per_epoch).factor(step)


def learning_rate(recipe: Recipe, total_batch: int, asked: float | None = None) -> tuple[float, str]:
    """The highest learning rate for `total_batch` images a step, and a sentence on where it comes from."""
    published = recipe.optimizer.lr
    if asked is not None:
        return asked, f"learning rate {asked:g} as asked, for {total_batch} images a step"
    lr = published * total_batch / recipe.batch
    if total_batch == recipe.batch:
        return lr, f"learning rate {lr:g} for {total_batch} images a step, as in the recipe"
    return lr, (
        f"learning rate {lr:g} = the recipe's {published:g} x {total_batch}/{recipe.batch}, "
        f"for {total_batch} images a step instead of {recipe.batch}; --lr sets another"
    )


def optimizer(
    parameters: Iterable[nn.Parameter], facts: Optimizer, lr: float, *, fused: bool = True
) -> torch.optim.Optimizer:
    """The recipe's optimiser over those parameters that are to be trained.

    Args:
        parameters: those that need no gradient are left out.
        facts: the recipe's.
        lr: the learning rate after warm-up.
        fused: one kernel for all parameters. Not together with fp16 and clipping: it would unscale the
            gradients after they have been clipped.
    """
    trained = [p for p in parameters if p.requires_grad]
    if facts.kind == "adamw":
        return torch.optim.AdamW(trained, lr=lr, weight_decay=facts.weight_decay, fused=fused)
    return torch.optim.SGD(
        trained, lr=lr, momentum=facts.momentum, weight_decay=facts.weight_decay, fused=fused
    )


def scheduler(over: torch.optim.Optimizer, how: Plan) -> LambdaLR:
    """Sets the rate of every step; to be stepped once after each change of the weights."""

    def factor(step: int) -> float:  # a plain function: of those LambdaLR keeps nothing in its state
        return how.factor(step)

    return LambdaLR(over, factor)
