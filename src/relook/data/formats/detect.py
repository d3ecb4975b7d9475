"""`--data PATH`: which format a path holds, and its training and validation split."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from relook.data.columnar import pack, with_classes
from relook.data.formats.coco import find_coco, find_roboflow, one_coco_file
from relook.data.formats.problems import Part, Parts, Problems
from relook.data.formats.voc import find_voc
from relook.data.formats.yolo import find_yolo
from relook.data.sample import DataError, Sample, Source
from relook.data.shapes import SPLITS, Split, shapes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of data set."""

    wants: str  # what it looks like, for the message when nothing fits
    find: Callable[[Path], Parts | None]  # its splits at a path; None when the path is another format


READERS: dict[str, Format] = {
    "roboflow": Format("train/_annotations.coco.json and valid/ alike (Roboflow's COCO)", find_roboflow),
    "coco": Format("NAME.json, or annotations/instances_train2017.json beside the images (COCO)", find_coco),
    "yolo": Format("data.yaml, or images/ and labels/ with a text file per image (YOLO)", find_yolo),
    "voc": Format("Annotations/*.xml and JPEGImages/ (Pascal VOC)", find_voc),
}
"""All formats, in the order they are tried. `--data NAME:PATH` takes one without trying."""

SHAPES_COUNTS = {"train": 2000, "val": 200}
"""Images of the generated data set, unless `shapes:train=N,val=N` says otherwise."""

VAL_SHARE = 0.1  # of the images, when a data set has no split of its own


def read(path: Path | str, split: Split, *, masks: bool = False, whole: bool = False) -> Source:
    """One split of the data at `path`.

    A data set without splits is split by a hash of its file names, so that the same tenth is always left for
    validation. Such choices, and how many records are left out, are logged and stand in `Source.notes`.

    Args:
        path: a folder or file in one of the formats of `READERS`, `NAME:PATH` to name the format, or "shapes"
            for the generated data set, also "shapes:seed=1,train=500,val=100,side=192,most=8".
        split: "train" or "val".
        masks: carry the segmentations, too, which fill much memory; COCO's formats and "shapes" have them.
        whole: all of it, where it has no such split, and of a COCO file that file alone: the other split has
            a path of its own.

    Raises:
        DataError: when the format is not known or the data have mistakes that prevent their use.
    """
    alone = whole and Path(path).is_file() and Path(path).suffix == ".json"
    parts = one_coco_file(Path(path)) if alone else find_parts(path)
    problems = Problems(masks=masks)
    if whole:
        source = parts.get(split, next(iter(parts.values())))(problems)
    else:
        source = _read_split(parts, split, Path(path), problems)
    problems.refuse(path)
    for note in source.notes:
        _say(note)
    return source


@cache
def _say(note: str) -> None:
    """Once in a process, for training and validation split tell the same."""
    log.warning("%s", note)


def find_parts(path: Path | str) -> Parts:
    """The splits of the data at `path`, not read yet.

    Raises:
        DataError: when the path does not exist or no format fits; it says what was looked for and found.
    """
    if str(path).partition(":")[0] == "shapes" and not Path(path).exists():
        return {split: partial(_shapes, str(path), split) for split in SPLITS}
    named, _, rest = str(path).partition(":")
    formats = {named: READERS[named]} if rest and named in READERS else READERS
    place = Path(rest) if len(formats) == 1 else Path(path)
    if not place.exists():
        raise DataError(
            f"{place} does not exist; name a folder or file with data, or `shapes` for generated ones"
        )
    for form in formats.values():
        parts = form.find(place)
        if parts:
            return parts
    wanted = "".join(f"\n  {name}: {form.wants}" for name, form in formats.items())
    raise DataError(
        f"{place} holds no data set in a known format. Looked for:{wanted}\nFound: {_found(place)}\n"
        "Mend the layout, or name the annotation file itself"
    )


def _found(place: Path) -> str:
    """What lies there, shortened."""
    if place.is_file():
        return f"the file {place.name}"
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in place.iterdir())
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return (", ".join(names[:12]) or "an empty folder") + more


def read_pair(train: Path | str, val: Path | str | None, *, masks: bool = False) -> tuple[Source, Source]:
    """What is trained on and what is validated on, from one path or two.

    Args:
        train: as `read` takes it.
        val: likewise, if it lies elsewhere; then nothing is kept back of `train` that has no parts of its
            own.
        masks: as in `read`.

    Raises:
        DataError: as `read`, and when both have other classes.
    """
    if val is None:
        return read(train, "train", masks=masks), read(train, "val", masks=masks)
    both = (
        read(train, "train", masks=masks, whole=True),
        read(val, "val", masks=masks, whole=True),
    )
    if set(both[1].classes) <= set(both[0].classes):  # a small part may lack some, or name them otherwise
        both = both[0], with_classes(both[1], both[0].classes, both[0].category_ids)
    if both[0].classes != both[1].classes:
        told = " and ".join(f"{', '.join(one.classes[:5])} ({len(one.classes)})" for one in both)
        raise DataError(f"{train} and {val} have other classes: {told}; give both the same")
    return both


# -- splits --------------------------------------------------------------------------------------------


def _read_split(parts: Parts, split: Split, path: Path, problems: Problems) -> Source:
    if split in parts:
        if set(parts) == {"train"}:
            return _tenth(parts["train"], split, path, problems)
        return parts[split](problems)
    if split == "train" and "all" not in parts:
        raise DataError(f"{path} holds a validation split only; name the data that hold a training split")
    return _tenth(parts.get("all") or parts["train"], split, path, problems)


def _tenth(part: Part, split: Split, path: Path, problems: Problems) -> Source:
    """Splits what has no validation split: those whose file name hashes low are for validation."""
    source = part(problems)
    ranked = sorted(source.samples, key=_hash)
    count = max(1, sum(_hash(sample) < VAL_SHARE for sample in ranked))
    if len(ranked) < 2:
        problems.fatal(path, "images", f"{len(ranked)} images cannot be split", "give at least two")
    chosen = {sample.id for sample in (ranked[:count] if split == "val" else ranked[count:])}
    kept = pack(sample for sample in source.samples if sample.id in chosen)
    note = (
        f"{path} has no validation split, so {count} of {len(ranked)} images are kept for validation, "
        "chosen by a hash of their names"
    )
    return dataclasses.replace(
        source, name=f"{source.name} ({split})", samples=kept, notes=(*source.notes, note)
    )


def _hash(sample: Sample) -> float:
    """A number from 0 to 1 that depends on the name of the file only."""
    digest = hashlib.sha256(sample.path.name.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


# -- generated -----------------------------------------------------------------------------------------


def _shapes(path: str, split: Split, problems: Problems) -> Source:
    """The generated data set with the settings after "shapes:"."""
    settings = {"seed": 0, "side": 128, "most": 5, **SHAPES_COUNTS}
    for item in filter(None, path.partition(":")[2].split(",")):
        key, _, value = item.partition("=")
        if key not in settings or not value.isdigit():
            problems.fatal(path, item, "is no setting", f"write NAME=NUMBER with {', '.join(settings)}")
        else:
            settings[key] = int(value)
    return shapes(
        settings[split], seed=settings["seed"], split=split, side=settings["side"], most=settings["most"]
    )
