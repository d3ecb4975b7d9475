"""`relook train`: a model, data, and every option of the training loop."""

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from relook.cli.arguments import MAX_PIXELS, SIZE, Verb, changes, limit_pixels, option, settings_option
from relook.cli.printing import say, say_json
from relook.train_settings import TrainSettings

if TYPE_CHECKING:
    from relook.training.fit import TrainResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(TrainSettings):
    model: str = option("a name of `relook models`, or module:NAME for an Entry of your own")
    data: str = option("a folder or file in COCO, VOC, YOLO or Roboflow's layout, or `shapes`")
    val_data: str | None = option(
        "what is validated on, where it lies elsewhere; --data need not have two parts then",
        default=None,
    )
    allow_empty: bool = option("train though training or validation has no object", default=False)
    size: int | None = option(SIZE, default=None)
    max_pixels: int | None = option(MAX_PIXELS, default=None)
    backbone_weights: str = option(
        "where the backbone starts: auto (the recipe's ImageNet weights), none, a file, or a name of timm's",
        default="auto",
    )
    start: str | None = option(
        "start from these weights, made for other classes too; of another model what fits is taken; "
        "`published` fetches the model's own",
        default=None,
    )
    set: tuple[str, ...] = settings_option()
    json: bool = option("print the result as JSON", default=False)


def run(options: Options) -> int:
    """Trains a model and says where its weights are; gives the exit status."""
    from relook.api import run_training  # noqa: PLC0415 (torch, which --help does without)
    from relook.weights.models import by_name  # noqa: PLC0415

    limit_pixels(options.max_pixels)
    plain: dict[str, Any] = {f.name: getattr(options, f.name) for f in fields(TrainSettings)}
    if isinstance(plain["devices"], str) and plain["devices"].isdigit():
        plain["devices"] = int(plain["devices"])
    result: TrainResult = run_training(
        by_name(options.model).sized(options.size).change(changes(options.set)),
        options.data,
        TrainSettings(**plain),
        options.backbone_weights,
        options.start,
        val_data=options.val_data,
        allow_empty=options.allow_empty,
    )
    from relook.training.processes.machines import is_first  # noqa: PLC0415 (an extra)

    if is_first():
        _tell(options, result)
    return 0


def _tell(options: Options, result: "TrainResult") -> None:
    best = result.best or result.last
    if options.json:
        say_json(json.loads(json.dumps(asdict(result), default=str)))
        return
    if result.best_ap is not None:
        name = result.report.headline if result.report else "AP"
        say(f"best {name} {result.best_ap:.4f} after epoch {result.best_epoch}")
    say(f"weights, metrics and log are in {result.folder}")
    say(f"Try: relook predict photo.jpg --weights {best}")


VERB = Verb(
    name="train",
    does="Trains a model. The number of classes comes from the data, everything else from the recipe of the\n"
    "model, unless an option or --set says otherwise.",
    example="  relook train --model reppoints_nano --data shapes --epochs 2\n"
    "  relook train --model reppoints_v2_r50_fpn_giou_1x --data mine/ --batch 8 --out runs/mine\n"
    "  relook train --config mine.yaml --resume runs/mine",
    options=Options,
    run=run,
)
