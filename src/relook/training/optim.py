"""The published learning rates and optimisers, step by step."""

import math
from dataclasses import dataclass
from typing import Any

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
    wanted: int  # steps of warm-up by the schedule
    warmup: int  # those that are done, at most a tenth of all
    warmup_from: float  # of the learning rate at step 0
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
        return fall * (self.warmup_from + (1 - self.warmup_from) * step / self.reach)

    def describe(self, lr: float) -> str:
        """One sentence for the log."""
        warm = f"warm-up over {self.warmup} steps" if self.warmup else "no warm-up"
        if self.warmup < self.wanted:
            warm += f" (not {self.wanted}: at most a tenth of all)"
        if self.schedule.kind == "onecycle":
            return f"learning rate: {warm} to {lr:g}, then a cosine to 0 at step {self.total}"
        drops = ", ".join(map(str, self.drops)) or "never"
        factor = self.schedule.drop_factor
        return f"learning rate: {warm} to {lr:g}, x {factor:g} at steps {drops} of {self.total}"


def plan(schedule: Schedule, steps_per_epoch: int, epochs: int | None = None, *, lr: float = 1.0) -> Plan:
    """The schedule in steps; drops keep their place in proportion.

    Warm-up is the published one unless that were more than a tenth of all steps; then it takes a tenth.

    Args:
        schedule: of the recipe.
        steps_per_epoch: changes of the weights in one pass over the images.
        epochs: of the whole training, instead of the schedule's own length.
        lr: the learning rate after warm-up, which an absolute start of the warm-up is a part of.
    """
    counted = schedule.iterations
    if epochs is None and counted is not None:
        total = counted
    else:
        total = (schedule.epochs if epochs is None else epochs) * steps_per_epoch
    length = schedule.epochs if counted is None else counted  # in the unit of `drops`
    wanted, reach = schedule.warmup_steps, schedule.warmup_reach
    if schedule.warmup_epochs is not None:
        wanted = reach = round(schedule.warmup_epochs * steps_per_epoch)
    warmup = min(wanted, total // 10)
    reach += warmup - wanted
    steps = schedule.kind == "steps"
    start = schedule.warmup_from if schedule.warmup_lr is None else schedule.warmup_lr / lr
    return Plan(
        schedule=schedule,
        total=total,
        wanted=wanted,
        warmup=warmup,
        warmup_from=start,
        reach=max(reach, 1),
        drops=tuple(round(d * total / length) for d in schedule.drops) if steps else (),
    )


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


def optimizer(model: nn.Module, facts: Optimizer, lr: float, *, fused: bool = True) -> torch.optim.Optimizer:
    """The recipe's optimiser over those parameters that are to be trained.

    Args:
        model: its parameters that need no gradient are left out.
        facts: the recipe's.
        lr: the learning rate after warm-up.
        fused: one kernel for all parameters. Not together with fp16 and clipping: it would unscale the
            gradients after they have been clipped.
    """
    spared = _without_decay(model, facts)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [p for p in trained if p not in spared]}]
    if spared:
        groups.append({"params": [p for p in trained if p in spared], "weight_decay": 0.0})
    if facts.kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr, weight_decay=facts.weight_decay, fused=fused)
    return torch.optim.SGD(
        groups, lr=lr, momentum=facts.momentum, weight_decay=facts.weight_decay, fused=fused
    )


def _without_decay(model: nn.Module, facts: Optimizer) -> set[nn.Parameter]:
    """The trained parameters that weight decay spares."""
    spared: set[nn.Parameter] = set()
    for module in model.modules():
        norm = isinstance(module, _NORMS)
        for name, parameter in module.named_parameters(recurse=False):
            kinds = {
                "norms": norm,
                "norm_weights": norm and name == "weight",
                "biases": name == "bias",
                "embeddings": isinstance(module, nn.Embedding) or name.startswith(_EMBEDDINGS),
            }
            if parameter.requires_grad and any(kinds[kind] for kind in facts.no_decay):
                spared.add(parameter)
    return spared


_EMBEDDINGS = ("pos_embed", "cls_token")  # parameters by these names that belong to no module of their own
_NORMS = (
    nn.modules.batchnorm._BatchNorm,  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
)


def scheduler(over: torch.optim.Optimizer, how: Plan) -> LambdaLR:
    """Sets the rate of every step; to be stepped once after each change of the weights."""

    def factor(step: int) -> float:  # a plain function: of those LambdaLR keeps nothing in its state
        return how.factor(step)

    return LambdaLR(over, factor)
