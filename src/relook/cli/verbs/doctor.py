"""`relook doctor`: what is in a checkpoint, or everything that is wrong with a data set."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relook.cli.arguments import MAX_PIXELS, Verb, Wrong, limit_pixels, option
from relook.cli.data_views import draw, input_of, size_lines, sizes_of
from relook.cli.places import inside
from relook.cli.printing import Counter, say, say_json
from relook.escaping import printable

if TYPE_CHECKING:
    from relook.weights.identify import Identity
    from relook.weights.reading.checkpoint import Checkpoint

WEIGHTS = frozenset({".pth", ".pt", ".safetensors", ".bin", ".ckpt", ".pkl", ".tar"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    path: str = option("a checkpoint, or data as --data takes them", positional=True)
    val_data: str | None = option("of data: what is validated on, where it lies elsewhere", default=None)
    draw: Path | None = option(  # noqa: RUF009 (a field)
        "of data: a folder for pictures with what is annotated: a contact sheet, then one by one",
        default=None,
    )
    model: str | None = option(
        "of data: a name of `relook models`; says which objects are too small for it, and which --size helps",
        default=None,
    )
    max_pixels: int | None = option(MAX_PIXELS, default=None)
    json: bool = option("print JSON", default=False)


def run(options: Options) -> int:
    """Says what is in a file of weights or wrong with data; 1 when something prevents its use."""
    limit_pixels(options.max_pixels)
    if _is_weights(Path(options.path)):
        if options.val_data or options.draw or options.model:
            raise Wrong(f"{options.path} is a checkpoint; --val-data, --draw and --model are for data")
        return _weights(options)
    return _data(options)


def _is_weights(path: Path) -> bool:
    """By its ending, or by its first bytes where that says nothing."""
    if path.suffix.lower() in WEIGHTS:
        return not path.is_dir()
    try:
        return path.is_file() and path.open("rb").read(2) in {b"PK", b"\x80\x02"}
    except (OSError, ValueError):
        return False


# -- checkpoints -----------------------------------------------------------------------------------------


def _weights(options: Options) -> int:
    from relook.weights.identify import identify  # noqa: PLC0415
    from relook.weights.pretrained import backbones_of  # noqa: PLC0415
    from relook.weights.reading.checkpoint import read_checkpoint  # noqa: PLC0415 (torch, which --help does without)

    checkpoint = read_checkpoint(options.path)
    identity = identify(checkpoint)
    backbones = [] if identity.exact else backbones_of(checkpoint.state)
    if options.json:
        say_json({**_facts(checkpoint, identity), "backbones": backbones})
    else:
        say("\n".join(_lines(checkpoint, identity, backbones)))
    return 0 if (identity.exact or backbones) and not checkpoint.not_finite else 1


def _facts(checkpoint: "Checkpoint", identity: "Identity") -> dict[str, Any]:
    nearest = identity.nearest
    said = checkpoint.description
    return {
        "file": str(checkpoint.path),
        "says": None if said is None else asdict(said),
        "models": [c.entry.name for c in identity.exact],
        "certain": identity.certain,
        "doubts": [doubt for doubt in dict.fromkeys(c.entry.doubt for c in identity.exact) if doubt],
        "num_classes": identity.exact[0].classes if identity.exact else None,
        "classes": list(checkpoint.classes),
        "tensors": len(checkpoint.state),
        "parameters": sum(t.numel() for t in checkpoint.state.values()),
        "epoch": checkpoint.epoch,
        "unsafe": False,  # or reading had been refused
        "replaced": list(checkpoint.stand_ins),
        "notes": list(checkpoint.notes),
        "not_finite": list(checkpoint.not_finite),
        "nearest": None
        if nearest is None
        else {"model": nearest.entry.name, "num_classes": nearest.classes, **asdict(nearest.difference)},
    }


def _lines(checkpoint: "Checkpoint", identity: "Identity", backbones: Sequence[str]) -> list[str]:
    total = sum(t.numel() for t in checkpoint.state.values())
    lines = [f"{checkpoint.path}: {len(checkpoint.state)} tensors, {total / 1e6:.1f} million numbers"]
    if checkpoint.place:
        lines.append(f"  weights under {checkpoint.place!r}")
    lines.append("  safe: nothing in it had to be run" + _replaced(checkpoint))
    lines += [f"  note: {note}" for note in checkpoint.notes]
    lines += [f"  unsound: {checkpoint.unsound()}"] if checkpoint.not_finite else []
    if checkpoint.epoch is not None:
        lines.append(f"  trained for {checkpoint.epoch} epochs")
    if checkpoint.description is not None:
        said = checkpoint.description
        lines.append(f"  says of itself: {said.model}, written by relook {said.relook_version}")
    if checkpoint.classes:
        shown = ", ".join(printable(name, 200) for name in checkpoint.classes[:8]) + (
            ", ..." if len(checkpoint.classes) > 8 else ""
        )
        lines.append(f"  names {len(checkpoint.classes)} classes: {shown}")
    if backbones:
        return [
            *lines,
            f"  it holds ImageNet weights for the backbone of {', '.join(backbones)} and models like them",
            f"  next: relook train --model {backbones[0]} --data mine/ --backbone-weights {checkpoint.path}",
        ]
    return lines + (_fits(checkpoint, identity) if identity.exact else _differs(identity))


def _replaced(checkpoint: "Checkpoint") -> str:
    if not checkpoint.stand_ins:
        return ""
    return f"; read as plain values: {', '.join(checkpoint.stand_ins)}"


def _fits(checkpoint: "Checkpoint", identity: "Identity") -> list[str]:
    names = [c.entry.name for c in identity.exact]
    best = identity.exact[0]
    because = f" ({'; '.join(identity.hints)} decided)" if identity.hints else ""
    target = checkpoint.path.with_suffix(".safetensors").name
    if len(names) == 1:
        which = f"  it is {names[0]} with {best.classes} classes, nothing missing or unexpected{because}"
    else:
        which = f"  it is one of: {', '.join(names)}, with {best.classes} classes{because}"
    same = (
        "their predictions are the same"
        if identity.certain
        else "they predict differently: say which one it is"
    )
    if checkpoint.description is not None:
        return [which, f"  next: relook predict photo.jpg --weights {checkpoint.path}"]
    model = "" if identity.certain else f" --model {names[0]}"
    middle = [f"  {same}"] if len(names) > 1 else []
    middle += [f"  {doubt}" for doubt in dict.fromkeys(c.entry.doubt for c in identity.exact) if doubt]
    return [which, *middle, f"  next: relook convert {checkpoint.path} {target}{model}"]


def _differs(identity: "Identity") -> list[str]:
    nearest = identity.nearest
    if nearest is None:
        return ["  it fits no model of the catalog"]
    return [
        f"  it fits no model of the catalog; nearest is {nearest.entry.name} with {nearest.classes} classes:",
        f"  {nearest.difference.sentence()}",
    ]


# -- data ------------------------------------------------------------------------------------------------


def _data(options: Options) -> int:
    from relook.data.checks.check import examined  # noqa: PLC0415 (numpy, which --help does without)

    if options.draw is not None and inside(options.draw, Path(options.path)):
        raise Wrong(f"--draw {options.draw} lies in the data themselves; choose another folder")
    rule = input_of(options.model)  # a wrong name is told before the long look
    counter = Counter("images looked at")

    def progress(done: int, _: int) -> None:
        counter.count = done - 1
        counter.step()

    masks = options.draw is not None
    report, sources = examined(options.path, val=options.val_data, masks=masks, progress=progress)
    counter.done()
    sizes = sizes_of(sources, rule)
    drawn = draw(options.draw, sources)
    if options.json:
        more = {"sizes": [asdict(one) for one in sizes], "drawn": [str(path) for path in drawn]}
        say_json({"usable": report.usable, **asdict(report), **more})
    else:
        if rule is not None:
            say("\n".join(size_lines(options.model, options.path, sizes, rule)))
        say(report.text())
        if drawn:
            say(f"{len(drawn)} pictures; look at {drawn[0]} first")
    return 0 if report.usable else 1


VERB = Verb(
    name="doctor",
    does="Of a checkpoint: which model it is, how many classes, what is missing or unexpected, and whether\n"
    "it is safe. Of data: everything that is wrong, all at once, with file, record and fix. Ends with 1\n"
    "if it found something that prevents the use.",
    example="  relook doctor published.pth\n  relook doctor my_pictures/ --draw seen/\n"
    "  relook doctor my_pictures/ --model reppoints_nano",
    options=Options,
    run=run,
)
