"""`relook dataset`: a data set in another format."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from relook.cli.arguments import Verb, option
from relook.cli.printing import Counter, remark, say, say_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    path: str = option("data as --data takes them", positional=True)
    out: str = option("a new folder", positional=True)
    to: Literal["coco", "voc", "yolo"] = option("the format to write: coco, voc or yolo")
    val_data: str | None = option("what is validated on, where it lies elsewhere", default=None)
    link: bool = option("link to the pictures instead of copying them", default=False)
    json: bool = option("print JSON", default=False)


def run(options: Options) -> int:
    """Reads a data set and writes it in another format; gives the exit status."""
    from relook.data.writing.write import write  # noqa: PLC0415 (numpy, which --help does without)

    counter = Counter("pictures")
    out = Path(options.out)
    splits, notes = write(
        options.path, out, options.to, val=options.val_data, link=options.link, progress=counter.step
    )
    counter.done()
    for note in notes:
        remark(f"relook dataset: {note}")
    rows = [
        {
            "split": split.name,
            "images": len(split.names),
            "objects": sum(len(sample.labels) for sample in split.source.samples),
        }
        for split in splits
    ]
    if options.json:
        say_json({"out": options.out, "format": options.to, "splits": rows, "notes": notes})
        return 0
    for row in rows:
        say(f"{row['split']}: {row['images']} pictures, {row['objects']} objects")
    say(f"written in {options.out}; look with: relook doctor {options.out}")
    return 0


VERB = Verb(
    name="dataset",
    does="Writes a data set in another format, masks where there are any. The folder is written whole or\n"
    "not at all. (To turn checkpoints into safe files: relook convert.)",
    example="  relook dataset my_pictures/ as_coco/ --to coco\n"
    "  relook dataset annotations/instances_train2017.json as_yolo/ --to yolo --link",
    options=Options,
    run=run,
)
