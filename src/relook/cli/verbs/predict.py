"""`relook predict`: pictures in, pictures with boxes and one COCO file out, as a stream."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from relook.cli.arguments import (
    MAX_PIXELS,
    MODEL,
    OVERWRITE,
    SIZE,
    WEIGHTS,
    Verb,
    Wrong,
    changes,
    limit_pixels,
    named_weights,
    option,
    settings_option,
)
from relook.cli.places import base_of, inside, relative, target_of
from relook.cli.printing import Counter, remark, say
from relook.escaping import printable_json
from relook.ownership import Folder

if TYPE_CHECKING:
    from relook.inputs import Picture
    from relook.results.result import Result, ResultStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    images: tuple[str, ...] = option(
        "pictures, folders, or patterns such as 'photos/*.jpg'", many=True, positional=True
    )
    weights: str | None = option(WEIGHTS, default=None)
    model: str | None = option(MODEL, default=None)
    out: str = option("folder for the results", default="runs/predict")
    overwrite: bool = option(OVERWRITE, default=False)
    score: float = option("leave out objects with a lower score", default=0.3)
    points: bool = option("draw the points of the first and of the second look", default=False)
    looks: bool = option(
        "draw all that was seen, step by step: first look, verification, second look, answer", default=False
    )
    no_pictures: bool = option("write only the COCO file", default=False)
    size: int | None = option(SIZE, default=None)
    short: int | None = option("length of the shorter side for the network, in pixels", default=None)
    max_pixels: int | None = option(MAX_PIXELS, default=None)
    views: str | None = option(
        "look several times at each picture and merge: flip, scales, authors, or sizes such as 600,800+flip",
        default=None,
    )
    batch: int = option("pictures a step", default=1)
    device: str = option("auto, cpu, cuda, cuda:1 ...", default="auto")
    precision: Literal["32", "bf16", "fp16"] = option("arithmetic of the network", default="32")
    set: tuple[str, ...] = settings_option()
    json: bool = option("print a line of JSON for each picture", default=False)


def run(options: Options) -> int:
    """Finds objects in pictures; 1 when none of them could be read."""
    from relook.api import load  # noqa: PLC0415 (torch, which --help does without)
    from relook.inputs import pictures  # noqa: PLC0415
    from relook.results.coco_file import CocoFile  # noqa: PLC0415

    named = named_weights(options.weights, options.model)
    sources = [pictures(one) for one in options.images]  # each says at once what is not there
    base = base_of(options.images)
    out = Path(options.out)
    _refuse(options, base)
    limit_pixels(options.max_pixels)
    settings = changes(options.set)
    if options.short is not None:
        settings["recipe.test_size.short"] = str(options.short)
    folder = Folder(out, overwrite=options.overwrite)
    folder.claim("detections.json")
    look = load(
        named,
        weights=options.weights if options.model else None,
        settings=settings,
        device=options.device,
        batch=options.batch,
        precision=options.precision,
        views=options.views,
        size=options.size,
    )
    kept_back: list[str] = []  # pictures that would have replaced others
    stream = look(_paths(sources, out), looks=options.points or options.looks)
    counter, told = Counter("pictures"), False
    with CocoFile(out / "detections.json", look.classes) as file:
        for result in stream:
            kept = result.above(options.score)
            name = relative(kept.name, base)
            if options.points and not told and not _has_points(kept):
                remark("this model looks at boxes, not at points: --looks draws what it saw")
                told = True
            rows = _rows(kept, options)
            file.add(name, height=kept.height, width=kept.width, found=rows)
            if not options.no_pictures:
                target = target_of(out, name, base)
                _plot(kept, options, target, folder, kept_back)
            if options.json:
                _line(
                    {
                        "file": kept.name,
                        "height": kept.height,
                        "width": kept.width,
                        "objects": _named(kept, rows),
                    }
                )
            counter.step()
    counter.done()
    if kept_back:
        remark(
            f"{len(kept_back)} pictures were not drawn, for {out} holds files of these names that relook did "
            f"not write, such as {kept_back[0]}; choose another --out, or say --overwrite"
        )
    return _summary(options, stream, file.annotations, counter.rate())


def _plot(kept: "Result", options: Options, target: Path, folder: Folder, kept_back: list[str]) -> None:
    """Draws a picture where nobody else's is."""
    name = target.relative_to(folder.path).as_posix()
    if not folder.may(name):
        kept_back.append(name)
        return
    kept.plot(target, points=options.points, looks=options.looks)
    folder.note(name)


def _refuse(options: Options, base: Path) -> None:
    """Refuses results among the pictures, a score that is none, and several sizes at once."""
    if inside(base, Path(options.out)):
        raise Wrong(
            f"--out {options.out} holds the pictures themselves; choose another folder for the results"
        )
    if not 0 <= options.score <= 1:
        raise Wrong(f"--score {options.score}: scores lie between 0 and 1")
    given = [f"--{name}" for name in ("size", "short", "views") if getattr(options, name) is not None]
    if len(given) > 1:
        raise Wrong(f"{given[0]} and {given[1]} both say how large pictures become; give one of them")


def _summary(options: Options, stream: "ResultStream", objects: int, rate: float) -> int:
    """What was done, and which pictures were broken; 1 when all were."""
    tell = remark if options.json else say
    for broken in stream.broken if options.json else ():
        _line({"file": broken.name, "error": broken.why})
    tell(f"{stream.count} pictures, {objects} objects scored above {options.score}, {rate:.1f} pictures/s")
    if stream.broken_count:
        names = ", ".join(b.name for b in stream.broken[:5]) + (", ..." if stream.broken_count > 5 else "")
        tell(f"{stream.broken_count} could not be read and were skipped: {names}")
    where = "detections.json" if options.no_pictures else "the pictures and detections.json"
    tell(f"{where} in {options.out}")
    return 1 if stream.count == 0 else 0


def _rows(result: "Result", options: Options) -> list[dict[str, Any]]:
    """COCO results; with --points the points of each look, with --looks all that was seen of each object."""
    rows = result.to_coco()
    for look in result.looks or ():
        if options.looks or look.points is not None:
            for name, values in look.columns().items():
                for row, value in zip(rows, values, strict=True):
                    row[name] = _rounded(value)
    return rows


def _has_points(result: "Result") -> bool:
    return any(look.points is not None for look in result.looks or ())


def _rounded(value: Any) -> Any:
    """Numbers for people to read: hundredths of pixels, scores to six digits are more than enough."""
    if isinstance(value, list):
        return [_rounded(one) for one in value]  # pyright: ignore[reportUnknownVariableType]
    return round(value, 2 if abs(value) > 1 else 6)


def _named(result: "Result", rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"class": name, **{k: v for k, v in row.items() if k not in ("image_id", "category_id")}}
        for name, row in zip(result.names, rows, strict=True)
    ]


def _line(value: Any) -> None:
    print(printable_json(value), flush=True)


# -- where things are and go -----------------------------------------------------------------------------


def _paths(sources: "Sequence[Iterator[Picture]]", out: Path) -> Iterator[Path]:
    """All pictures, without those that relook itself wrote below `out`."""
    for source in sources:
        paths = (one for one in source if isinstance(one, (str, Path)))  # from text come only paths
        yield from (path for path in map(Path, paths) if not inside(path, out))


VERB = Verb(
    name="predict",
    does="Finds objects in pictures. Writes each picture with its boxes, and detections.json (COCO) with\n"
    "all of them. Pictures are read as they are needed: a folder may be of any size.",
    example="  relook predict street.jpg --weights mine.safetensors --points\n"
    "  relook predict photos/ 'more/*.png' --weights mine.safetensors --score 0.5 --out found\n"
    "  relook predict street.jpg --weights mine.safetensors --looks",
    options=Options,
    run=run,
)
