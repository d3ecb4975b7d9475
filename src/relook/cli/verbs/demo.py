"""`relook demo`: generated pictures, a model trained on them from nothing, a page that shows what it sees."""

import json
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from relook.cli.arguments import OVERWRITE, Verb, option
from relook.cli.printing import remark, say, say_json
from relook.ownership import Folder
from relook.train_settings import TrainSettings

if TYPE_CHECKING:
    from relook.data.sample import Sample, Source
    from relook.evaluation import Evaluation
    from relook.report.page import Report, Row
    from relook.results.drawing import Rectangle
    from relook.results.result import Result
    from relook.training.fit import TrainResult
    from relook.weights.models import Loaded

MODEL = "reppoints_nano"
WORKERS = 0  # small pictures load in no time: a process of their own takes more from two cores than it gives
SIDE = 512  # of the pictures on the page, in pixels
THICK = 1.5  # pictures are shown smaller than they are


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much the demo does."""

    train: int  # pictures
    val: int
    epochs: int
    shown: int  # pictures on the page


NAMES = ("data", "run", "pictures", "index.html", "metrics.json", "detections.json")  # of what it writes
FULL = Plan(train=2000, val=200, epochs=3, shown=8)
SHORT = Plan(train=160, val=32, epochs=2, shown=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    out: str = option(
        "folder for all results; those of an earlier demo in it are replaced, files of yours are not",
        default="runs/demo",
    )
    short: bool = option("half a minute instead of five: all steps, poor accuracy", default=False)
    overwrite: bool = option(OVERWRITE, default=False)
    seed: int = option("of the pictures and of the training", default=0)
    json: bool = option("print JSON", default=False)


def run(options: Options) -> int:
    """Data, training, numbers, pictures and the page; gives the exit status."""
    from relook.data.shapes import write_shapes  # noqa: PLC0415 (numpy and torch, which --help does without)

    plan, out, began = SHORT if options.short else FULL, Path(options.out), time.monotonic()
    Folder(out, overwrite=options.overwrite).claim(*NAMES)
    _clear(out)
    remark(f"1 of 4: {plan.train + plan.val} pictures of shapes -> {out / 'data'}")
    data = write_shapes(out / "data", train=plan.train, val=plan.val, seed=options.seed)
    remark(f"2 of 4: {MODEL} learns from nothing -> {out / 'run'}")
    result = _train(options, plan, data)
    minutes = (time.monotonic() - began) / 60
    remark("3 of 4: what it finds in pictures it has never seen")
    loaded, source, done = _judge(result, data)
    done.save(out)
    remark(f"4 of 4: pictures and page -> {out}")
    rows = _pictures(loaded, source, plan, _sure(done), out / "pictures")
    _write_page(_report(options, plan, result, loaded, done, rows, minutes), out / "index.html")
    _tell(options, done, time.monotonic() - began)
    return 0


def _clear(out: Path) -> None:
    """Removes what an earlier demo left, and nothing else."""
    for name in ("data", "run", "pictures"):
        if (out / name).is_dir():
            shutil.rmtree(out / name)


def _train(options: Options, plan: Plan, data: Path) -> "TrainResult":
    from relook.api import run_training  # noqa: PLC0415
    from relook.weights.models import by_name  # noqa: PLC0415

    settings = TrainSettings(
        out=Path(options.out) / "run",
        epochs=plan.epochs,
        seed=options.seed,
        workers=WORKERS,
        log_every=10,
        tensorboard=False,
    )
    return run_training(by_name(MODEL), data, settings)


def _judge(result: "TrainResult", data: Path) -> "tuple[Loaded, Source, Evaluation]":
    from relook.data.formats.detect import read  # noqa: PLC0415
    from relook.evaluation import evaluate  # noqa: PLC0415
    from relook.weights.models import open_weights  # noqa: PLC0415

    loaded, source = open_weights(result.best or result.last), read(data, "val")
    recipe = loaded.model.entry.recipe
    return loaded, source, evaluate(loaded.detector, recipe, source, batch=8, workers=WORKERS)


def _sure(done: "Evaluation") -> float:
    """The score above which there are as many detections as there are objects: what is worth drawing."""
    scores = sorted(done.rows.score.tolist(), reverse=True)
    return scores[min(done.report.objects, len(scores) - 1)] if scores else 0.0


# -- pictures --------------------------------------------------------------------------------------------


def _pictures(
    loaded: "Loaded", source: "Source", plan: Plan, score: float, folder: Path
) -> "tuple[Row, ...]":
    from relook.predictor import Predictor  # noqa: PLC0415
    from relook.results.result import save_picture  # noqa: PLC0415

    look = Predictor(loaded.detector, loaded.model.entry.recipe, loaded.model.classes)
    rows: list[Row] = []
    samples = [source.samples[i] for i in range(min(plan.shown, len(source.samples)))]
    for sample, found in zip(samples, look([s.path for s in samples], looks=True), strict=True):
        row = _row(sample, found.above(score), source.classes)
        for view, what in zip(row.views, ("truth", "found", "points"), strict=True):
            save_picture(view.image, folder / f"{sample.path.stem}_{what}.png")
        rows.append(row)
    return tuple(rows)


def _row(sample: "Sample", found: "Result", classes: Sequence[str]) -> "Row":
    from relook.report.page import Row, View  # noqa: PLC0415
    from relook.results.drawing import Annotation, draw, enlarged  # noqa: PLC0415

    picture, zoom = enlarged(found.pixels(), SIDE)
    labels = cast("list[int]", sample.labels.tolist())
    boxes = cast("list[Rectangle]", (sample.boxes * zoom).tolist())
    truth = [Annotation(box=box, color=i, tag=classes[i]) for box, i in zip(boxes, labels, strict=True)]
    pointed = [replace(one, tag="") for one in found.annotations(points=True, zoom=zoom)]
    names, seen = _listed(one.tag for one in truth), _listed(found.names)
    surely = "what it found, and how sure it is" if len(found) else "what it found: nothing"
    return Row(
        name=sample.path.name,
        views=(
            View(
                image=draw(picture, truth, thick=THICK),
                caption="what is there",
                alt=f"Shapes with true boxes: {names}",
            ),
            View(
                image=draw(picture, found.annotations(zoom=zoom), thick=THICK),
                caption=surely,
                alt=f"The same with detected boxes and scores: {seen}",
            ),
            View(
                image=draw(picture, pointed, legend=False, thick=THICK),
                caption="where it looked: first (hollow), then (filled)",
                alt=f"The same with nine first and nine second points on each of: {seen}",
            ),
        ),
    )


def _listed(seen: Iterable[str]) -> str:
    names = list(seen)
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"


# -- the page --------------------------------------------------------------------------------------------


def _report(
    options: Options,
    plan: Plan,
    result: "TrainResult",
    loaded: "Loaded",
    done: "Evaluation",
    rows: "tuple[Row, ...]",
    minutes: float,
) -> "Report":
    from relook.report.page import Headline, Report  # noqa: PLC0415

    long = f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{60 * minutes:.0f} seconds"

    numbers = done.report.numbers
    weights = result.best or result.last
    parameters = sum(p.numel() for p in loaded.detector.parameters())
    return Report(
        title="A detector that looks twice",
        summary=(
            f"{MODEL} knew nothing {long} before this page was written. It has since learnt "
            f"from {plan.train} generated pictures, and was then shown {plan.val} new ones."
        ),
        headlines=(
            Headline(name="AP50", value=f"{numbers['AP50']:.2f}", means="right class, box overlaps by half"),
            Headline(name="AP75", value=f"{numbers['AP75']:.2f}", means="box overlaps by three quarters"),
            Headline(name="AP", value=f"{numbers['AP']:.2f}", means="COCO's mean over all overlaps"),
            Headline(
                name="Training", value=f"{minutes:.1f} min", means=f"{result.steps} steps on this machine"
            ),
        ),
        legend=(
            "RepPoints sees an object as nine points. The first look proposes them from one place in the "
            "picture (hollow). The second look reads the picture exactly there, says what it is, and moves "
            "the points once more (filled); the box is read off them. Drawn are the surest of all "
            f"finds, as many as there are objects: those with a score above {_sure(done):.2f}."
        ),
        rows=rows,
        curves=_curves(result.folder / "metrics.jsonl"),
        per_class=done.report.per_class,
        per_class_ap50=done.report.per_class_ap50,
        numbers=numbers,
        facts={
            "Model": f"{MODEL}, {parameters / 1e6:.1f} million parameters, random start",
            "Training pictures": f"{plan.train} of 128 x 128 pixels, seed {options.seed}",
            "Validation pictures": f"{plan.val} others, {done.report.objects} objects",
            "Steps": f"{result.steps} in {result.epochs} epochs",
            "Processors": f"{os.cpu_count()} CPU cores",
            "Speed": f"{done.report.images / max(done.seconds, 1e-9):.0f} pictures a second in evaluation",
            "Weights": str(weights),
        },
        commands={
            "Find shapes in a picture, with the points": (
                f"relook predict {options.out}/data/val2017 --weights {weights} --points"
            ),
            "Train on your own pictures (COCO, VOC, YOLO or Roboflow layout)": (
                f"relook doctor my_pictures/\nrelook train --model {MODEL} --data my_pictures/"
            ),
            "See the larger models": "relook models",
        },
    )


def _curves(metrics: Path) -> "tuple[Any, ...]":
    from relook.report.page import Curve  # noqa: PLC0415

    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    val = [row for row in rows if row["kind"] == "validation"]
    names = {"cls": "class", "pts_init": "first look", "pts_refine": "second look"}
    loss = {words: [(r["step"], r[f"loss_{name}"]) for r in train] for name, words in names.items()}
    ap = {name: [(row["step"], row[name]) for row in val] for name in ("AP50", "AP", "AP75")}
    return (
        Curve(title="Loss, by what it measures", x="step", lines=loss, low=0.0),
        Curve(title="Accuracy on new pictures", x="step", lines=ap, low=0.0, high=1.0),
    )


def _write_page(report: "Report", path: Path) -> None:
    from relook.report.page import write  # noqa: PLC0415

    write(report, path)


def _tell(options: Options, done: "Evaluation", seconds: float) -> None:
    out = Path(options.out)
    numbers = done.report.numbers
    if options.json:
        say_json({"seconds": round(seconds, 1), **done.to_json(), "page": str(out / "index.html")})
        return
    short = " (--short: only a taste)" if options.short else ""
    say(f"AP50 {numbers['AP50']:.3f}, AP {numbers['AP']:.3f} after {seconds / 60:.1f} minutes{short}")
    say(f"Look at {(out / 'index.html').resolve().as_uri()}")
    say(f"All results: {out}/ (index.html, metrics.json, detections.json, pictures/, run/, data/)")


VERB = Verb(
    name="demo",
    does="Writes a data set of coloured shapes, trains reppoints_nano on it from nothing, measures it, and\n"
    "writes a page that shows what it sees: boxes, and the points of both looks.",
    example="  relook demo\n  relook demo --short --out /tmp/demo",
    options=Options,
    run=run,
)
