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
import signal
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy
from rich.console import Console

from relook.archives import CheckpointError
from relook.data.sample import Source
from relook.detector import Detector
from relook.evaluation import evaluate
from relook.metrics.metric import Report
from relook.metrics.named import metric_named
from relook.recipe import Recipe
from relook.train_settings import TrainSettings, resume_file
from relook.training.callbacks import Ema, Stopped, ValidateAndSave
from relook.training.lightning import Training
from relook.training.processes.machines import is_first, machines
from relook.training.records.checkpoint import WholeCheckpoints, network_difference, read_state
from relook.training.records.ending import told, where_to_resume
from relook.training.records.lock import locked
from relook.training.records.metrics_log import MetricsLog, log_to_run
from relook.training.records.origin import differences, origin, plain, record_of
from relook.training.records.run_folder import from_the_start, prepare, refuse_taken, write_settings
from relook.training.reporter import Reporter
from relook.views import recipe_view

log = logging.getLogger("relook.training")


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
    said: Sequence[str] = (),
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
        said: lines to begin the log with, such as what `detector` starts from.

    Raises:
        FileExistsError: when the folder holds another run.
        Occupied: a FileExistsError; when another training is writing into the folder.
        CheckpointError: a ValueError; when the state to go on from is damaged or of another network.
        DiskFull: an OSError; when a file could not be written. What was saved before is whole.
        NonFiniteLoss: when a loss is NaN or infinite.
        KeyboardInterrupt: after Ctrl-C, when the state has been saved.
        ValueError: when detector and data do not fit, or a setting cannot be.
    """
    headline = _check(detector, recipe, train, val, settings)
    settings = from_the_start(settings)
    module = Training(detector, recipe, train, settings, machines(settings))
    folder = settings.folder()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet_lightning())
        if is_first():
            stack.enter_context(locked(folder))
        _ = module.steps_per_epoch  # images that cannot be trained on are told here
        module.origin = origin(train, val, recipe, _resolved(module), describe)
        goes_on = _goes_on(module)  # all is checked before anything is written
        if is_first():
            refuse_taken(folder, goes_on.file, overwrite=settings.overwrite)
        ema = Ema(detector, settings.ema) if settings.ema is not None else None
        saver = ValidateAndSave(module, None if val is None else _validation(module, val), ema, describe)
        saver.resumed_step = goes_on.step
        reporter = Reporter(module, Console(stderr=True))
        callbacks = [reporter if is_first() else None, ema, saver]
        trainer = _trainer(module, [one for one in callbacks if one is not None])
        if is_first():
            reporter.metrics = saver.metrics = _opened(stack, module, reporter.console, goes_on)
            for line in said:
                log.info("%s", line)
            reporter.begins = partial(write_settings, folder, _document(module, describe))
        else:
            nobody = logging.NullHandler()  # what all processes know, the first one says
            log.addHandler(nobody)
            stack.callback(log.removeHandler, nobody)
        _run(trainer, module, settings)
        if ema is not None and ema.average is not None:
            detector.load_state_dict(ema.average.state_dict())
        best = _what_is_there(reporter, saver, folder)
        if module.broken:
            log.warning("%d training images are broken and were left out, see above", len(module.broken))
        log.info("%s; weights and metrics are in %s", _ending(saver, trainer.current_epoch, headline), folder)
    return TrainResult(
        folder=folder,
        last=folder / "last.safetensors",
        best=best,
        best_ap=saver.best_ap,
        best_epoch=saver.best_epoch,
        report=saver.report,
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        ended_early=saver.ended_early,
        broken=module.broken,
    )


def _what_is_there(reporter: Reporter, saver: ValidateAndSave, folder: Path) -> Path | None:
    """The best weights, if they are there; the settings are written of a run that had ended already."""
    if reporter.metrics is not None and not (folder / "settings.yaml").exists():
        reporter.begins()
    best = folder / "best.safetensors"
    if saver.best_ap is None:
        return None
    if not best.exists():
        log.warning("%s, of epoch %d, is not there any more", best, saver.best_epoch)
        return None
    return best


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
        with told(settings, module.batch):
            trainer.fit(module, ckpt_path=resume, weights_only=True)
    except Stopped as stopped:
        log.warning("%s; go on with the same command and --resume %s", stopped, settings.folder())
        heard = module.monitor.stopped_by
        if heard is not None and heard != signal.SIGINT:
            raise SystemExit(128 + heard) from None
        raise KeyboardInterrupt from None
    except SystemExit:  # Lightning's answer to a Ctrl-C that it hears: the second, or before the first step
        log.warning("interrupted at once; %s", where_to_resume(settings))
        raise KeyboardInterrupt from None


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


def _check(
    detector: Detector[Any], recipe: Recipe, train: Source, val: Source | None, settings: TrainSettings
) -> str:
    """Refuses what does not fit together; the name of the number that chooses the best weights."""
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
    if val is None and settings.early_stop is not None:
        raise ValueError(f"early_stop={settings.early_stop} needs validation images, and there are none")
    recipe_view(recipe.test_size)
    return metric_named(recipe.metric).headline  # a wrong name is no business of the first validation


@dataclass(frozen=True, slots=True, kw_only=True)
class _GoesOn:
    """Where a run goes on."""

    step: int = 0
    file: Path | None = None  # the state; None for a new run
    different: tuple[str, ...] = ()  # in words, what is not as it was


def _goes_on(module: Training) -> _GoesOn:
    """Reads the state to go on from, and refuses it where it cannot go on here.

    Raises:
        CheckpointError: when it is damaged or of another network.
        ValueError: when classes, images or settings differ, unless `force` was said.
    """
    if module.settings.resume is None:
        return _GoesOn()
    file = resume_file(module.settings.resume)
    state = read_state(file, mapped=True)
    before = record_of(state)
    different = differences(before, module.origin) if before else []
    misfit = network_difference(state, module.state_dict())
    if different and not module.settings.force:
        more = f"; and {len(different) - 8} more" if len(different) > 8 else ""
        forced = "" if misfit else ", or say --force to go on all the same"
        raise ValueError(
            f"{file}: this run began otherwise: {'; '.join(different[:8])}{more}. Give what it began with "
            f"({file.parent / 'settings.yaml'}), or begin a new run without --resume{forced}"
        )
    if misfit:
        raise CheckpointError(
            f"{file} is of a run with another model or other classes ({misfit}); go on with the --model and "
            f"--data that it began with, or begin a new run with its weights by --start {file}"
        )
    if not before:
        different.append("it was saved by an older relook, which noted no classes and images")
    return _GoesOn(step=int(state["global_step"]), file=file, different=tuple(different))


def _opened(stack: contextlib.ExitStack, module: Training, console: Console, goes_on: _GoesOn) -> MetricsLog:
    """Takes the folder, and opens what is written in it while the run goes."""
    settings, folder = module.settings, module.settings.folder()
    prepare(folder, goes_on.file, overwrite=settings.overwrite)
    stack.enter_context(log_to_run(folder, console=console, quiet=not settings.progress))
    _say_settings(module, goes_on)
    metrics = MetricsLog(folder, after=goes_on.step, tensorboard=settings.tensorboard)
    stack.callback(metrics.close)
    return metrics


def _resolved(module: Training) -> dict[str, Any]:
    """What the settings came to."""
    settings = module.settings
    return {
        "epochs": module.epochs,
        "batch": module.batch,
        "accumulate": settings.accumulate,
        "total_batch": module.total_batch,
        "lr": module.lr,
        "precision": settings.precision,
        "seed": settings.seed,
        "ema": settings.ema,
        "devices": module.where.describe(),
    }


def _say_settings(module: Training, goes_on: _GoesOn) -> None:
    settings, where, steps = module.settings, module.where, module.recipe.schedule
    if settings.resume is not None:
        log.info("goes on from %s, after step %d", settings.resume, goes_on.step)
    for words in goes_on.different:
        log.warning("not as the run began: %s; the result is not that of one run", words)
    trained = [p for p in module.detector.parameters() if p.requires_grad]
    log.info("training on %s, images from %s", where.describe(), module.source.name)
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


def _document(module: Training, describe: Mapping[str, str]) -> dict[str, Any]:
    return {
        "settings": plain(asdict(module.settings)),
        "resolved": _resolved(module),
        "recipe": plain(asdict(module.recipe)),
        "model": {name: _parsed(text) for name, text in describe.items()},
    }


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _ending(saver: ValidateAndSave, done: int, headline: str) -> str:
    module = saver.module
    if done < module.epochs and not saver.ended_early:  # only --stop-after ends so
        way = f"go on with the same command and --resume {module.settings.folder()}"
        text = f"stopped after epoch {done} of {module.epochs}, {way}"
    elif saver.resumed_step == module.trainer.global_step:
        text = "this run was complete already, and nothing was trained"
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
