"""What Python code sees of relook: models by name, weights, prediction, training."""

import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast

import torch

from relook.archives import CheckpointError
from relook.detector import Detector
from relook.inference import Precision
from relook.predictor import Predictor
from relook.views import Views, parse
from relook.weights.loading import LoadReport, load_published, load_start
from relook.weights.models import Loaded, Model, by_name, open_weights
from relook.weights.pretrained import load_backbone
from relook.weights.published import published
from relook.zoo import catalog
from relook.zoo.entry import Entry
from relook.zoo.limits import check

log = logging.getLogger("relook.api")

PUBLISHED = "published"  # as `start`: the published file of the model

__all__ = [
    "CheckpointError",
    "LoadReport",
    "create_model",
    "entry",
    "evaluate",
    "list_models",
    "load",
    "load_published",
    "train",
]


def list_models(pattern: str = "*") -> list[str]:
    """Names of the catalog that fit a pattern: `list_models("reppoints_v1*")`."""
    return catalog.names(pattern)


def entry(name: str) -> Entry:
    """What is known of a model: paper, settings, recipe, published figures.

    Raises:
        ValueError: when there is none of that name; the message has the nearest names.
    """
    return by_name(name).entry


def create_model(name: str, *, num_classes: int | None = None, **settings: Any) -> Detector[Any]:
    """A model of the catalog with random weights, a plain `nn.Module`.

        detector = relook.create_model("reppoints_nano", num_classes=4, keep=50)

    Args:
        name: see `list_models`, or "module:NAME" for an `Entry` of your own.
        num_classes: without it as published.
        settings: fields of the model's configuration (`relook.entry(name).detector`), or of its backbone's;
            `backbone` may be timm's name of a network of the same kind.

    Raises:
        ValueError: for an unknown name or setting; the message has the nearest.
    """
    config: Any = entry(name).detector
    own = [f.name for f in fields(config)]
    below = [f.name for f in fields(config.backbone)] if hasattr(config, "backbone") else []
    for key in settings:
        if key not in (*own, *below):
            near = get_close_matches(key, [*own, *below], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(own)}"
            raise ValueError(f"{name} has no setting {key!r}; {hint}")
    if num_classes is not None:
        settings["num_classes"] = num_classes
    if isinstance(settings.get("backbone"), str):
        if "name" not in below:
            raise ValueError(f"{name} has a backbone of one kind; of it can be set: {', '.join(below)}")
        settings["backbone"] = replace(config.backbone, name=settings["backbone"])
    deeper = {key: settings.pop(key) for key in below if key in settings and key not in own}
    if deeper:
        settings["backbone"] = replace(settings.get("backbone", config.backbone), **deeper)
    changed = replace(config, **settings)
    if ":" not in name:
        check(changed, name)
    return changed.build()


def load(  # noqa: PLR0913 - all by keyword but one
    model: Path | str,
    *,
    weights: Path | str | None = None,
    settings: Mapping[str, str] | None = None,
    device: str | torch.device = "auto",
    batch: int = 1,
    precision: Precision = "32",
    views: str | Views | None = None,
    size: int | None = None,
) -> Predictor:
    """A trained detector, ready for images.

        look = relook.load("mine.safetensors")
        look = relook.load("reppoints_v1_r50_fpn_1x", weights="published.pth")

    Args:
        model: a weights file that says what it is or whose names and shapes do; or a name, with `weights` or
            of a model whose published file is fetched (once, into torch.hub's folder; see `relook models`).
        weights: a weights file or published checkpoint of that model.
        settings: dotted changes that keep the shapes of the weights: {"detector.score": "0.3"}.
        device: "auto" takes a GPU where there is one.
        batch: images a step. Those of one shape give the same results as alone, to rounding; others are
            padded to a common size, which the network sees: scores then move, by hundredths on small images.
        precision: arithmetic of the network; "bf16" and "fp16" are for GPUs.
        views: look at each image several times, at sizes of their own: "flip", "scales", "600,800+flip";
            see `relook.views.parse`.
        size: how large the network sees images: the length of the shorter side, or of a stretched image.

    Raises:
        CheckpointError: a ValueError; when the file cannot be used or fetched.
        ValueError: when `views` is no such text.
    """
    loaded = _opened(model, weights, settings, size)
    recipe = loaded.model.entry.recipe
    return Predictor(
        loaded.detector,
        recipe,
        loaded.model.classes,
        device=device,
        batch=batch,
        precision=precision,
        views=parse(views, recipe.test_size) if isinstance(views, str) else views,
    )


def _opened(
    model: Path | str, weights: Path | str | None, settings: Mapping[str, str] | None, size: int | None
) -> Loaded:
    """A model with its weights, from a file alone or from a name and a file."""
    if weights is not None:
        return open_weights(weights, str(model), settings, size=size)
    named = str(model) in catalog.ENTRIES or not Path(model).suffix
    if not named or Path(model).is_file():  # a file may have any name
        return open_weights(model, settings=settings, size=size)
    if ":" in str(model):
        raise ValueError(
            f"{model} is a model, not weights; give a file: relook.load({str(model)!r}, weights=...)"
        )
    if not Path(model).exists() and not Path(model).is_absolute():
        try:
            by_name(str(model))
        except ValueError as error:  # which says what is near
            raise CheckpointError(f"there is no file {model}, and {error}") from None
    elif str(model) not in catalog.ENTRIES:
        return open_weights(model, settings=settings, size=size)
    return open_weights(published(str(model)), str(model), settings, size=size)


def evaluate(  # noqa: PLR0913 - all by keyword but one
    model: Path | str,
    *,
    data: Path | str,
    split: Literal["train", "val", "test"] = "val",
    classes_by: Literal["name", "order"] = "name",
    weights: Path | str | None = None,
    settings: Mapping[str, str] | None = None,
    device: str | torch.device = "auto",
    batch: int = 1,
    workers: int = 2,
    precision: Precision = "32",
    views: str | Views | None = None,
    size: int | None = None,
    progress: bool = True,
) -> Any:
    """Measures trained weights on a data set.

        done = relook.evaluate("runs/mine/best.safetensors", data="mine/")
        print(done.report.numbers["AP"], done.report.per_class)

    Args:
        model: as `load` takes it, and the next five as well.
        data: a folder or file in COCO, Pascal VOC, YOLO or Roboflow's layout, or "shapes".
        split: which part of the data; a single COCO file is taken whole.
        classes_by: how classes of weights and data are brought together: by their names, or by their order,
            for which both must have as many.
        weights: a weights file, when `model` is a name.
        settings: dotted changes that keep the shapes of the weights.
        device: "auto" takes a GPU where there is one.
        batch: images a step and process.
        workers: processes that read images.
        precision: arithmetic of the network; "bf16" and "fp16" are for GPUs.
        views: look at each image several times; see `relook.views.parse`.
        size: as `load` takes it.
        progress: show a bar, in a terminal only.

    Returns:
        A `relook.evaluation.Evaluation`: the report with its numbers, the detections, the speed.

    Raises:
        CheckpointError: a ValueError; when the file cannot be used.
        ValueError: for data that cannot be used, or whose classes the weights do not know.
    """
    from relook.data.formats.detect import read_measured  # noqa: PLC0415 (so that this alone pays)
    from relook.evaluation import evaluate as run  # noqa: PLC0415

    loaded = _opened(model, weights, settings, size)
    masks = loaded.detector.has_masks
    source = read_measured(data, split, loaded.model.classes, classes_by, masks=masks)
    recipe = loaded.model.entry.recipe
    return run(
        loaded.detector,
        recipe,
        source,
        batch=batch,
        workers=workers,
        device=device,
        precision=precision,
        progress=progress,
        views=parse(views, recipe.test_size) if isinstance(views, str) else views,
    )


class TrainOptions(TypedDict, total=False):
    """The fields of `relook.train_settings.TrainSettings`, which explains them."""

    out: Path | str | None
    epochs: int | None
    batch: int | None
    accumulate: int
    lr: float | None
    devices: str | int
    nodes: int
    precision: Literal["32", "bf16", "fp16"]
    workers: int
    seed: int
    resume: Path | str | None
    force: bool
    overwrite: bool
    stop_after: int | None
    validate_every: int
    early_stop: int | None
    save_every: int | None
    ema: float | None
    log_every: int
    tensorboard: bool
    compile: bool
    progress: bool


def train(  # noqa: PLR0913 - all by keyword
    *,
    model: str,
    data: Path | str,
    val_data: Path | str | None = None,
    settings: Mapping[str, str] | None = None,
    backbone_weights: str = "auto",
    start: Path | str | None = None,
    size: int | None = None,
    allow_empty: bool = False,
    **options: Unpack[TrainOptions],
) -> Any:
    """Trains a model on your data and leaves weights, metrics and a log in a folder.

        result = relook.train(model="reppoints_nano", data="shapes", epochs=2, out="runs/first")
        look = relook.load(result.best)

    Args:
        model: see `list_models`, or "module:NAME" for an `Entry` of your own.
        data: a folder or file in COCO, Pascal VOC, YOLO or Roboflow's layout, or "shapes".
        val_data: what is validated on, where it lies elsewhere; then nothing is kept back of `data` that has
            no parts of its own.
        settings: dotted changes: {"recipe.schedule.epochs": "24", "detector.keep": "300"}. The number of
            classes is taken from the data.
        backbone_weights: "auto" takes those of the recipe, "none" random ones; or a file, or timm's name.
        start: start from these weights instead: a file, of other classes or another model too, or
            "published".
        size: how large the network sees images: the length of the shorter side in tests, or of a stretched
            image; the recipe's other lengths grow or shrink with it.
        allow_empty: train though training or validation has no object.
        options: how it is carried out: out, epochs, batch, lr, devices, precision, resume ...; see
            `relook.train_settings.TrainSettings`.

    Returns:
        A `relook.training.fit.TrainResult`: the folder, the best and last weights, the last validation.
        Several devices are several processes, each of which runs the script from its beginning; those beside
        the first end here, so that what follows happens once.

    Raises:
        ValueError: for unknown names and settings, and data that cannot be used.
        ImportError: when the extra `train` is not installed.
    """
    # the training loop is an extra: only here is it needed
    from relook.train_settings import TrainSettings  # noqa: PLC0415

    known = [f.name for f in fields(TrainSettings)]
    for key in options:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            raise ValueError(f"train() has no {key!r}; " + (f"did you mean {near[0]!r}?" if near else ""))
    given = cast("dict[str, Any]", options)
    for key in ("out", "resume"):
        if given.get(key) is not None:
            given[key] = Path(given[key])
    return run_training(
        by_name(model).sized(size).change(settings or {}),
        data,
        TrainSettings(**given),
        backbone_weights,
        start,
        val_data=val_data,
        allow_empty=allow_empty,
    )


def run_training(
    model: Model,
    data: Path | str,
    settings: Any,
    backbone_weights: str = "auto",
    start: Path | str | None = None,
    *,
    val_data: Path | str | None = None,
    allow_empty: bool = False,
) -> Any:
    """What `train` does once its arguments are understood; `settings` is a `TrainSettings`."""
    from relook.data.formats.detect import read_pair  # noqa: PLC0415 (so that `train` alone pays)

    try:
        from relook.training.fit import fit  # noqa: PLC0415
        from relook.training.processes.machines import started_by_lightning  # noqa: PLC0415
        from relook.training.records.run_folder import from_the_start, settings_of  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(f"training needs an extra ({error}); `pip install 'relook[train]'`") from error

    with torch.device("meta"):  # segmentations fill much memory: only those read them who learn from them
        masks = model.entry.detector.build().has_masks
    settings = from_the_start(settings)
    source, val = read_pair(data, val_data, masks=masks, allow_empty=allow_empty)
    asked = model.settings.get("detector.num_classes")
    if asked is not None and int(asked) != len(source.classes):
        raise ValueError(
            f"detector.num_classes={asked}, but {data} has {len(source.classes)} classes; "
            "leave the setting out"
        )
    model = model.with_classes(source.classes)
    said: list[str] = []
    if settings.resume is None:
        free = frozen_for_nothing(model, backbone_weights, start)
        if free:
            model = model.change(free)
            words = ", ".join(f"{name}={value}" for name, value in free.items())
            said.append(
                f"nothing was learnt before, so all of the backbone learns: {words} (--set says otherwise)"
            )
    else:  # as it began: what it began from need not be said again
        kept = settings_of(settings.resume, (f"detector.backbone.{name}" for name in _FREE))
        model = model.change({name: value for name, value in kept.items() if name not in model.settings})
        if start is not None:
            said.append(f"{start} is what a new run would start from; this one goes on from its own state")
    torch.manual_seed(settings.seed)
    detector = model.entry.detector.build()
    if settings.resume is None:
        said.insert(0, f"starting from {begin(detector, model, backbone_weights, start)}")
    describe = model.describe().metadata()
    result = fit(detector, model.entry.recipe, source, val, settings, describe, said)
    if started_by_lightning():  # what follows in a script is the business of its first process alone
        raise SystemExit(0)
    return result


_FREE = {"frozen": "0", "freeze_statistics": "false", "frozen_norms": "false"}


def frozen_for_nothing(model: Model, backbone_weights: str, start: Path | str | None) -> dict[str, str]:
    """Changes with which all of a backbone learns, where it starts from random weights and parts would not.

    What `model` was told by its settings stays as it was told.
    """
    wanted = model.entry.recipe.backbone_weights if backbone_weights == "auto" else backbone_weights
    if start is not None or wanted not in (None, "none"):
        return {}
    backbone = getattr(model.entry.detector, "backbone", None)
    free = {f"detector.backbone.{name}": value for name, value in _FREE.items() if getattr(backbone, name, 0)}
    return {name: value for name, value in free.items() if name not in model.settings}


def begin(detector: Detector[Any], model: Model, backbone_weights: str, start: Path | str | None) -> str:
    """Loads what training starts from; says what it was."""
    if start is not None:
        wants = str(start) == PUBLISHED and not Path(start).exists()
        file = published(model.name, "give it as --start FILE") if wants else start
        return load_start(detector, model.entry.detector, file, model.classes)
    wanted = model.entry.recipe.backbone_weights if backbone_weights == "auto" else backbone_weights
    if wanted is None or wanted == "none":
        kept = [p for p in detector.parameters() if not p.requires_grad and p.ndim > 1]
        never = (
            "; parts of it are frozen and will never learn: start from a file (--start, --backbone-weights), "
        )
        never += "or train all of it (--set detector.backbone.frozen=0)"
        return f"random weights{never if kept else ''}"
    return f"{load_backbone(detector, wanted)} tensors of the backbone from {wanted}"
