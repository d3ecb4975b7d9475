"""Trains a detector: one call from a recipe and data to weights on disk.

The order of a step, and who does what; a test records it. The backward pass and the step are Lightning's.

    seed        lightning.Training.on_train_batch_start
    forward     step.Step.forward, the detector's `forward` and `loss`
    note        records.loss_monitor.LossMonitor.note, the loss terms start on their way to the host
    backward
    finite?     records.loss_monitor.LossMonitor.check, raises before the weights are touched
    clip        lightning.Training.configure_gradient_clipping
    step        optim.optimizer's, then optim.scheduler's
    log         reporter.Reporter.on_train_batch_end
    average     callbacks.Ema.on_train_batch_end
    save        callbacks.ValidateAndSave.on_train_batch_end, validates at the end of an epoch
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy
from rich.console import Console

from relook.data.sample import Source
from relook.detector import Detector
from relook.evaluation import evaluate
from relook.files import whole_file
from relook.metrics.metric import Report
from relook.metrics.named import metric_named
from relook.recipe import Recipe
from relook.train_settings import TrainSettings, resume_file
from relook.training.callbacks import Ema, Stopped, ValidateAndSave
from relook.training.lightning import Training, machines
from relook.training.records.checkpoint import WholeCheckpoints
from relook.training.records.metrics_log import MetricsLog, log_to_run
from relook.training.reporter import Reporter
from relook.views import recipe_view

log = logging.getLogger("relook.training")

_RESULTS = (
    "last.ckpt",
    "last.safetensors",
    "best.safetensors",
    "metrics.jsonl",
    "metrics.csv",
    "settings.yaml",
    "train.log",
    "live.html",
    "tensorboard",
    "nonfinite",
)
_COPIED_WHEN_RESUMED = ("best.safetensors", "metrics.jsonl")  # by a run that goes on in another folder


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training has left behind."""

    folder: Path
    last: Path  # weights at the end
    best: Path | None  # weights with the best AP; None without validation
    best_ap: float | None  # the metric's headline number, AP for COCO
    best_epoch: int  # counted from 1; 0 without validation
    report: Report | None  # of the last validation in this sitting
    epochs: int  # done, earlier sittings included
    steps: int
    ended_early: bool  # no better AP for `early_stop` validations
    broken: dict[str, str]  # training images that could not be read in this sitting: path -> why


def fit(
    detector: Detector[Any],
    recipe: Recipe,
    train: Source,
    val: Source | None,
    settings: TrainSettings,
    describe: Mapping[str, str],
) -> TrainResult:
    """Trains `detector` in place, by `recipe`, and writes everything into `settings.folder()`.

    In the end it holds the weights of last.safetensors; with `settings.ema` these are the averaged ones.

    Args:
        detector: with its starting weights.
        recipe: optimiser, schedule, sizes, augmentation.
        train: what is learnt.
        val: what is validated on at the end of epochs; None trains without.
        settings: how it is carried out.
        describe: metadata of the weights files (who they are), as `relook.weights` writes it.

    Raises:
        FileExistsError: when the folder holds another run.
        NonFiniteLoss: when a loss is NaN or infinite.
        KeyboardInterrupt: after Ctrl-C, when the state has been saved.
        ValueError: when detector and data do not fit, or a setting cannot be.
    """
    _check(detector, train, val)
    headline = metric_named(recipe.metric).headline  # a wrong name is no business of the first validation
    recipe_view(recipe.test_size)
    if val is None and settings.early_stop is not None:
        raise ValueError(f"early_stop={settings.early_stop} needs validation images, and there are none")
    where = machines(settings)
    module = Training(detector, recipe, train, settings, where)
    folder, is_main = settings.folder(), is_first()
    step = _step(settings.resume)
    if is_main:
        _prepare_folder(folder, settings)
    console = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        if is_main:
            stack.enter_context(log_to_run(folder, console=console, quiet=not settings.progress))
        else:
            nobody = logging.NullHandler()  # what all processes know, the first one says
            log.addHandler(nobody)
            stack.callback(log.removeHandler, nobody)
        stack.enter_context(_quiet_lightning())
        ema = Ema(detector, settings.ema) if settings.ema is not None else None
        saver = ValidateAndSave(module, None if val is None else _validation(module, val), ema, describe)
        callbacks: list[Callback] = [saver] if ema is None else [ema, saver]
        if is_main:
            _log_settings(module, folder, describe)
            saver.metrics = MetricsLog(folder, after=step, tensorboard=settings.tensorboard)
            stack.callback(saver.metrics.close)
            callbacks.insert(0, Reporter(module, saver.metrics, console))
        trainer = _trainer(module, callbacks)
        _run(trainer, module, settings)
        if ema is not None and ema.average is not None:
            detector.load_state_dict(ema.average.state_dict())
        if module.broken:
            log.warning("%d training images are broken and were left out, see above", len(module.broken))
        log.info("%s; weights and metrics are in %s", _ending(saver, trainer.current_epoch, headline), folder)
    return TrainResult(
        folder=folder,
        last=folder / "last.safetensors",
        best=None if saver.best_ap is None else folder / "best.safetensors",
        best_ap=saver.best_ap,
        best_epoch=saver.best_epoch,
        report=saver.report,
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        ended_early=saver.ended_early,
        broken=module.broken,
    )


def _trainer(module: Training, callbacks: list[Callback]) -> Trainer:
    settings, where = module.settings, module.where
    alone = where.world == 1
    plugins: list[Any] = [WholeCheckpoints()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # it would save and resume in its own place
    precision: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    return Trainer(
        accelerator=where.accelerator,
        devices=where.devices,
        num_nodes=where.nodes,
        strategy="auto" if alone else DDPStrategy(gradient_as_bucket_view=True),
        sync_batchnorm=module.recipe.sync_bn and not alone and where.accelerator == "gpu",
        precision=precision[settings.precision],
        max_epochs=min(module.epochs, settings.stop_after or module.epochs),
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=module.recipe.optimizer.clip,
        gradient_clip_algorithm=module.recipe.optimizer.clip_by,
        callbacks=callbacks,
        plugins=plugins,
        default_root_dir=settings.folder(),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _run(trainer: Trainer, module: Training, settings: TrainSettings) -> None:
    """Lightning's loop, and what a person needs to know when it ends before its end."""
    resume = None if settings.resume is None else resume_file(settings.resume)
    try:
        trainer.fit(module, ckpt_path=resume, weights_only=True)
    except Stopped as stopped:
        log.warning("%s; go on with --resume %s", stopped, settings.folder())
        if module.monitor.stopped_by == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM) from None
        raise KeyboardInterrupt from None
    except (
        SystemExit
    ):  # Lightning's answer to a Ctrl-C that it hears: the second, or one before the first step
        log.warning("interrupted at once; %s", _where_to_resume(settings))
        raise KeyboardInterrupt from None
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"{module.batch} images a step do not fit into the memory of the GPU; "
            f"use --batch {max(1, module.batch // 2)} --accumulate {settings.accumulate * 2}"
        ) from error
    except ValueError as error:
        if resume is None or "parameter group" not in str(error):  # of torch, when the optimizer is restored
            raise
        raise ValueError(
            f"{resume} was trained with another `no_decay`; "
            "go on with the same --set recipe.optimizer.no_decay"
        ) from None
    except ArithmeticError as error:
        log.critical("%s", error, extra={"file_only": True})  # whoever called shows the error itself
        log.critical("training ended; %s", _where_to_resume(settings))
        raise


def _where_to_resume(settings: TrainSettings) -> str:
    last = settings.folder() / "last.ckpt"
    if not last.exists():
        return "nothing was saved yet"
    return f"{last} holds the last state that was saved; go on with --resume {settings.folder()}"


def _validation(module: Training, val: Source) -> Callable[[Detector[Any]], Report]:
    """Validation, in the precision of the training."""

    def validate(detector: Detector[Any]) -> Report:
        settings = module.settings
        return evaluate(
            detector,
            module.recipe,
            val,
            batch=module.batch,
            workers=settings.workers,
            device=module.device,
            precision=settings.precision,
            progress=settings.progress,
        ).report

    return validate


# -- before the first step -----------------------------------------------------------------------------


def _check(detector: Detector[Any], train: Source, val: Source | None) -> None:
    for source in (train, val):
        if source is not None and len(source.classes) != detector.num_classes:
            raise ValueError(
                f"{source.file or source.name} has {len(source.classes)} classes but the detector "
                f"{detector.num_classes}; make it with num_classes={len(source.classes)}"
            )
    if val is not None and val.classes != train.classes:
        raise ValueError(
            f"training and validation name different classes: {train.classes[:5]}... in "
            f"{train.file or train.name}, {val.classes[:5]}... in {val.file or val.name}"
        )


def is_first() -> bool:
    """Whether this is the process that writes; asked before the processes know each other."""
    return cast("Any", rank_zero_only).rank == 0 and os.environ.get("NODE_RANK", "0") == "0"


def _prepare_folder(folder: Path, settings: TrainSettings) -> None:
    """Makes the folder of a run, or finds that it is taken."""
    before = None if settings.resume is None else resume_file(settings.resume).parent
    folder.mkdir(parents=True, exist_ok=True)
    if before is not None and before.samefile(folder):
        return
    held = [folder / name for name in _RESULTS if (folder / name).exists()]
    if held and not settings.overwrite:
        raise FileExistsError(
            f"{folder} already holds a run; go on with it by --resume {folder}, "
            f"choose another folder by --out, or start anew by --overwrite"
        )
    for path in held:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    if before is not None:
        for name in _COPIED_WHEN_RESUMED:
            if (before / name).exists():
                shutil.copy2(before / name, folder / name)


def _step(resume: Path | None) -> int:
    """The step at which a stopped run goes on; 0 for a new one."""
    if resume is None:
        return 0
    state = torch.load(resume_file(resume), map_location="cpu", weights_only=True, mmap=True)
    return int(state["global_step"])


def _log_settings(module: Training, folder: Path, describe: Mapping[str, str]) -> None:
    """Says and writes what was asked for and what came of it; compares with the earlier sitting."""
    settings, where, steps = module.settings, module.where, module.recipe.schedule
    facts: dict[str, Any] = {
        "epochs": module.epochs,
        "batch": module.batch,
        "accumulate": settings.accumulate,
        "total_batch": module.total_batch,
        "lr": module.lr,
        "precision": settings.precision,
        "seed": settings.seed,
        "ema": settings.ema,
        "devices": where.describe(),
    }
    if settings.resume is not None:
        log.info("goes on from %s, after step %d", settings.resume, _step(settings.resume))
        _compare(resume_file(settings.resume).parent / "settings.yaml", facts)
    trained = [p for p in module.detector.parameters() if p.requires_grad]
    log.info("training on %s, images from %s", facts["devices"], module.source.name)
    log.info("%s trained parameters in %d tensors", f"{sum(p.numel() for p in trained):,}", len(trained))
    log.info("%s", module.lr_origin)
    if steps.iterations is not None and settings.epochs is None:
        log.info("iterations: %d, which end in epoch %d", steps.iterations, module.epochs)
        if steps.kind == "steps" and max(steps.drops, default=steps.iterations) <= steps.warmup_steps:
            drops = ", ".join(map(str, steps.drops))
            log.warning("the learning rate drops at iterations %s; set recipe.schedule.drops as well", drops)
    elif module.epochs != steps.epochs:
        log.info("epochs: %d instead of the recipe's %d", module.epochs, steps.epochs)
    if module.recipe.sync_bn and where.world > 1 and where.accelerator == "cpu":
        log.warning("batch statistics are not shared between CPU processes, torch cannot; they are on GPUs")
    document = {
        "settings": _plain(asdict(settings)),
        "resolved": facts,
        "recipe": _plain(asdict(module.recipe)),
        "model": {name: _parsed(text) for name, text in describe.items()},
    }
    with whole_file(folder / "settings.yaml") as beside:
        beside.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _compare(file: Path, facts: Mapping[str, Any]) -> None:
    """Warns when a run goes on under other settings than it began with."""
    if not file.exists():
        return
    before = yaml.safe_load(file.read_text(encoding="utf-8"))["resolved"]
    for name, value in facts.items():
        if name in before and before[name] != value and name not in {"devices", "batch", "accumulate"}:
            log.warning(
                "this run began with %s=%s and goes on with %s: the result is not that of one run",
                *(name, before[name], value),
            )


def _plain(value: Any) -> Any:
    """Values that YAML knows."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in cast("Sequence[Any]", value)]
    return str(value) if isinstance(value, Path) else value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _ending(saver: ValidateAndSave, done: int, headline: str) -> str:
    module = saver.module
    if done < module.epochs and not saver.ended_early:  # only --stop-after ends so
        text = (
            f"stopped after epoch {done} of {module.epochs}, go on with --resume {module.settings.folder()}"
        )
    else:
        text = "training is complete"
    if saver.best_ap is None:
        return text
    return f"{text}, best {headline} {saver.best_ap:.4f} after epoch {saver.best_epoch}"


@contextlib.contextmanager
def _quiet_lightning() -> Generator[None]:
    """Keeps Lightning's advice on loaders and hardware off the console; its errors stay."""
    names = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\b")
            warnings.filterwarnings("ignore", message=r".*(lr_scheduler\.step|isinstance\(treespec)")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
