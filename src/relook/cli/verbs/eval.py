"""`relook eval`: the 12 COCO numbers of a trained model on a data set, and AP and AP50 of each class."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from relook.cli.arguments import (
    MAX_PIXELS,
    MODEL,
    OVERWRITE,
    SIZE,
    WEIGHTS,
    Verb,
    changes,
    limit_pixels,
    named_weights,
    option,
    settings_option,
)
from relook.cli.printing import remark, say, say_json, table
from relook.ownership import Folder

if TYPE_CHECKING:
    from relook.data.sample import Source
    from relook.evaluation import Evaluation
    from relook.metrics.metric import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    weights: str | None = option(WEIGHTS, default=None)
    data: str = option("a folder or file in COCO, VOC, YOLO or Roboflow's layout, or `shapes`")
    model: str | None = option(MODEL, default=None)
    split: Literal["val", "train", "test"] = option(
        "which part of the data; a single COCO file is taken whole", default="val"
    )
    val_data: str | None = option(
        "measure on these instead of --data: their --split, or all where they have no parts", default=None
    )
    classes_by: Literal["name", "order"] = option(
        "how the classes of weights and data are brought together; order needs as many of both",
        default="name",
    )
    size: int | None = option(SIZE, default=None)
    max_pixels: int | None = option(MAX_PIXELS, default=None)
    out: str = option("folder for metrics.json and detections.json", default="runs/eval")
    overwrite: bool = option(OVERWRITE, default=False)
    views: str | None = option(
        "look several times at each picture and merge: flip, scales, authors, or sizes such as 600,800+flip",
        default=None,
    )
    batch: int = option("pictures a step", default=1)
    workers: int = option("processes that read pictures", default=2)
    device: str = option("auto, cpu, cuda, cuda:1 ...", default="auto")
    precision: Literal["32", "bf16", "fp16"] = option("arithmetic of the network", default="32")
    metrics: tuple[Literal["bbox", "segm", "coco", "voc07", "voc"], ...] = option(
        "bbox (or coco) and segm: COCO's numbers of boxes and masks; voc07, voc: Pascal VOC's mean AP at 11 "
        "recalls, or under the curve; several as you like, the first counts; without it the model's own",
        default=(),
    )
    curves: bool = option(
        "also write precision over recall of each class and overlap, and what was found wrongly or missed: "
        "curves.html, curves/ (pictures), curves.csv",
        default=False,
    )
    backend: Literal["hotcoco", "pycocotools"] = option(
        "who computes; the numbers are the same", default="hotcoco"
    )
    set: tuple[str, ...] = settings_option()
    json: bool = option("print JSON", default=False)


def run(options: Options) -> int:
    """Measures weights on data and saves the numbers; gives the exit status."""
    from relook.data.formats.detect import read_measured  # noqa: PLC0415 (torch, which --help does without)
    from relook.evaluation import evaluate  # noqa: PLC0415
    from relook.views import parse  # noqa: PLC0415
    from relook.weights.models import open_weights  # noqa: PLC0415
    from relook.weights.published import published  # noqa: PLC0415

    limit_pixels(options.max_pixels)
    if int(os.environ.get("RANK", "0")) == 0:
        curves = ("curves.html", "curves.csv", "curves") if options.curves else ()
        Folder(Path(options.out), overwrite=options.overwrite).claim(
            "metrics.json", "detections.json", *curves
        )
    file = options.weights or published(named_weights(options.weights, options.model))
    loaded = open_weights(file, options.model, changes(options.set), size=options.size)
    recipe = loaded.model.entry.recipe
    metric = _metric(options, recipe.metric, masks=loaded.detector.has_masks)
    source = read_measured(
        options.val_data or options.data,
        options.split,
        loaded.model.classes,
        options.classes_by,
        masks="coco_segm" in metric.name.split("+"),
        whole=options.val_data is not None,
    )
    views = None if options.views is None else parse(options.views, recipe.test_size)
    done = evaluate(
        loaded.detector,
        recipe,
        source,
        batch=options.batch,
        workers=options.workers,
        device=options.device,
        precision=options.precision,
        progress=not options.json,
        views=views,
        metric=metric,
    )
    if int(os.environ.get("RANK", "0")) != 0:
        return 0
    done.save(options.out)
    if options.curves:
        _draw(Path(options.out), source, done)
    _tell(options, done, loaded.model.name)
    return 0


def _metric(options: Options, own: str, *, masks: bool) -> "Metric":
    """What was asked for, or the model's own; the first of several counts."""
    from relook.metrics.coco import CocoBoxes, CocoMasks  # noqa: PLC0415
    from relook.metrics.named import Several, metric_named  # noqa: PLC0415

    default = {"coco": ("bbox",), "coco_segm": ("bbox", "segm")}.get(own, (own,))
    asked = list(dict.fromkeys("bbox" if name == "coco" else name for name in options.metrics or default))
    if "segm" in asked and not masks:
        raise ValueError("--metrics segm: this model finds boxes, no masks; leave it out")
    both = {"bbox", "segm"} <= set(asked)
    chosen: list[Metric] = []
    for name in asked:
        if name == "segm":
            chosen.append(CocoMasks(backend=options.backend, boxes=both))
        elif name == "bbox":
            chosen += [] if both else [CocoBoxes(backend=options.backend)]
        else:
            chosen.append(metric_named(name))
    return chosen[0] if len(chosen) == 1 else Several(chosen)


def _draw(out: Path, source: "Source", done: "Evaluation") -> None:
    """Writes the curves of boxes, and pictures of mistakes."""
    from relook.metrics.curves import curves  # noqa: PLC0415
    from relook.report.curves import write_curves  # noqa: PLC0415

    samples = {sample.id: sample for sample in source.samples}
    write_curves(out, curves(source, done.rows), lambda key: samples[key].image())


def _tell(options: Options, done: "Evaluation", model: str) -> None:
    files = {"metrics": f"{options.out}/metrics.json", "detections": f"{options.out}/detections.json"}
    files |= {"curves": f"{options.out}/curves.html"} if options.curves else {}
    if options.json:
        told = {"model": model, "data": options.val_data or options.data, "split": options.split}
        say_json({**told, **done.to_json(), "files": files})
        return
    report = done.report
    rate = report.images / max(done.seconds, 1e-9)
    path = options.val_data or options.data
    measured = path if path.endswith(".json") else f"{path} ({options.split})"
    say(f"{model} on {measured}: {report.images} pictures, {report.objects} objects")
    if not report.objects:
        remark("relook eval: no picture has an object to be found, look with `relook doctor`")
    say(table(("", "value"), report.table()))
    if report.per_class:
        say()
        head = ("class", report.headline, *(("AP50",) if report.per_class_ap50 else ()))
        say(table(head, [row for row in report.classes() if set(row[1:]) != {"-"}]))
        empty = [row[0] for row in report.classes() if set(row[1:]) == {"-"}]
        more = ", ..." if len(empty) > 8 else ""
        if empty:
            say(f"without objects in these data: {', '.join(empty[:8])}{more}")
    seen = f", each looked at {done.views} times" if done.views > 1 else ""
    say(f"{rate:.1f} pictures a second{seen}; metrics.json and detections.json in {options.out}")
    if options.curves:
        say(f"precision over recall, and mistakes: {options.out}/curves.html")
    for broken in done.broken:
        remark(f"could not be read: {broken}")


VERB = Verb(
    name="eval",
    does="Detects in all pictures of a data set and prints COCO's 12 numbers, AP and AP50 of each class;\n"
    "saves them, and the detections in COCO's format. Under torchrun all processes share the work.",
    example="  relook eval --weights runs/train/best.safetensors --data mine/\n"
    "  relook eval --weights runs/train/best.safetensors --data mine/ --views scales\n"
    "  relook eval --weights published.pth --model reppoints_v2_r50_fpn_giou_1x --data coco/ --batch 4",
    options=Options,
    run=run,
)
