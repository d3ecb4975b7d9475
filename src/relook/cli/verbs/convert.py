"""`relook convert`: a published checkpoint becomes a safe file that describes itself."""

from dataclasses import dataclass
from pathlib import Path

from relook.cli.arguments import Verb, Wrong, changes, option, settings_option
from relook.cli.printing import say, say_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    source: str = option("a published checkpoint (.pth, .pt, .safetensors)", positional=True)
    target: str = option("where to write; ends in .safetensors", positional=True)
    model: str | None = option("which model it is, where its names and shapes leave a choice", default=None)
    set: tuple[str, ...] = settings_option()
    overwrite: bool = option("replace a file that is there", default=False)
    json: bool = option("print JSON", default=False)


def run(options: Options) -> int:
    """Writes a checkpoint as a file that describes itself; gives the exit status."""
    from relook.weights.models import open_weights  # noqa: PLC0415
    from relook.weights.reading.checkpoint import save_weights  # noqa: PLC0415 (torch, which --help does without)

    source, target = Path(options.source), Path(options.target)
    if target.suffix != ".safetensors":
        raise Wrong(f"{target}: the new file is safetensors; name it {target.with_suffix('.safetensors')}")
    if target.exists() and not options.overwrite:
        raise Wrong(f"{target} is there already; choose another name or say --overwrite")
    loaded = open_weights(source, options.model, changes(options.set))
    model, report = loaded.model, loaded.report
    save_weights(target, loaded.detector.state_dict(), model.describe())
    if options.json:
        say_json(
            {
                "file": str(target),
                "model": model.name,
                "recognised": loaded.note,
                "classes": list(model.classes),
                "tensors": report.tensors,
                "notes": list(report.notes),
            }
        )
        return 0
    say(f"{source} is {model.name} with {len(model.classes)} classes: {loaded.note}.")
    for note in report.notes:
        say(f"Note: {note}.")
    say(f"Wrote {report.tensors} tensors to {target}.")
    say(f"Try: relook predict photo.jpg --weights {target}")
    return 0


VERB = Verb(
    name="convert",
    does="Writes a published checkpoint as a safetensors file that says which model it is, what its classes\n"
    "are called and how pictures are prepared for it. Nothing in the checkpoint is run.",
    example="  relook convert reppoints_v2_r50_fpn_giou_1x.pth mine.safetensors\n"
    "  relook convert epoch_12.pth mine.safetensors --model reppoints_moment_r50_fpn_gn_head_gn_1x",
    options=Options,
    run=run,
)
