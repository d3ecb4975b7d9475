"""`--data PATH`: which format a path holds, and its training and validation split."""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from relook.data.columnar import pack
from relook.data.disk.listing import is_unwanted
from relook.data.disk.regular import Unusable
from relook.data.formats.coco.find import find_coco, find_roboflow, one_coco_file
from relook.data.formats.problems import Part, Parts, Problems, printable
from relook.data.formats.voc.find import find_voc
from relook.data.formats.yolo.find import find_yolo
from relook.data.learnt import has_objects
from relook.data.matching import By, by_name, matched
from relook.data.sample import DataError, Sample, Source, Split
from relook.data.shapes import SPLITS, shapes
from relook.data.shapes import Split as MadeSplit

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of data set."""

    wants: str  # what it looks like, for the message when nothing fits
    find: Callable[[Path], Parts | None]  # its splits at a path; None when the path is another format


READERS: dict[str, Format] = {
    "roboflow": Format("train/_annotations.coco.json and valid/ alike (Roboflow's COCO)", find_roboflow),
    "coco": Format("NAME.json, or annotations/instances_train2017.json beside the images (COCO)", find_coco),
    "yolo": Format(
        "data.yaml, obj.data, images/ and labels/ with a text file per image, or text beside images (YOLO)",
        find_yolo,
    ),
    "voc": Format("Annotations/*.xml and JPEGImages/, or XML files beside the images (Pascal VOC)", find_voc),
}
"""All formats, in the order they are tried. `--data NAME:PATH` takes one without trying."""

SHAPES_COUNTS = {"train": 2000, "val": 200}
"""Images of the generated data set, unless `shapes:train=N,val=N` says otherwise."""

_DEPTH, _FOLDERS = 3, 50  # levels below a path, and folders of a level, in which a data set is looked for

VAL_SHARE = 0.1  # of the images, when a data set has no split of its own


def read(path: Path | str, split: Split, *, masks: bool = False, whole: bool = False) -> Source:
    """One split of the data at `path`.

    A data set without splits is split by a hash of its file names, so that the same tenth is always left for
    validation. Such choices, and how many records are left out, are logged and stand in `Source.notes`.

    Args:
        path: a folder or file in one of the formats of `READERS`, `NAME:PATH` to name the format, or "shapes"
            for the generated data set, also "shapes:seed=1,train=500,val=100,side=192,most=8".
        split: "train", "val" or "test".
        masks: carry the segmentations, too, which fill much memory; COCO's formats and "shapes" have them.
        whole: all of it, where it has no such split, and of a COCO file that file alone: the other split has
            a path of its own.

    Raises:
        DataError: when the format is not known or the data have mistakes that prevent their use.
    """
    parts = parts_of(path, alone=whole)
    problems = Problems(masks=masks)
    if whole:
        source = parts.get(split, next(iter(parts.values())))(problems)
    else:
        source = _read_split(parts, split, Path(path), problems)
    problems.refuse(path)
    say(source.notes)
    return source


def read_measured(
    path: Path | str,
    split: Split,
    classes: Sequence[str],
    by: By = "name",
    *,
    masks: bool = False,
    whole: bool = False,
) -> Source:
    """What a detector is measured on: one split, or all of a single COCO file, in the detector's classes.

    Args:
        path: as `read` takes it.
        split: as `read` takes it.
        classes: the detector's.
        by: how they and the data's are brought together; see `relook.data.matching.matched`.
        masks: as in `read`.
        whole: as in `read`.

    Raises:
        DataError: as `read`, and when classes cannot be brought together.
    """
    single = Path(path).is_file() and Path(path).suffix.lower() == ".json"
    source = read(path, split, masks=masks, whole=whole or single)
    measured = matched(source, classes, by)
    say(measured.notes)
    return measured


def parts_of(path: Path | str, *, alone: bool) -> Parts:
    """The splits at `path`; with `alone`, of a COCO file that file by itself.

    Raises:
        DataError: as `find_parts`.
    """
    if alone and Path(path).is_file() and Path(path).suffix.lower() == ".json":
        return one_coco_file(Path(path))
    return find_parts(path)


def say(notes: Sequence[str]) -> None:
    """Tells what a reader chose, each sentence once in a process: splits tell the same."""
    for note in notes:
        _say(printable(note))


@lru_cache(maxsize=10_000)
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
    parts = _at(place, formats) or _deeper(place, formats)
    if parts:
        return parts
    wanted = "".join(f"\n  {name}: {form.wants}" for name, form in formats.items())
    raise DataError(
        f"{place} holds no data set in a known format. Looked for:{wanted}\nFound: {_found(place)}\n"
        "Mend the layout, or name the annotation file itself"
    )


def _at(place: Path, formats: Mapping[str, Format]) -> Parts | None:
    """The splits in the first format that fits."""
    try:
        return next((parts for form in formats.values() if (parts := form.find(place))), None)
    except Unusable as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(f"{error.filename or place}: cannot be read ({error.strerror}); see to it") from error


def _deeper(place: Path, formats: Mapping[str, Format]) -> Parts | None:
    """The one data set in folders below: archives unpack into a folder of their own.

    Raises:
        DataError: when there are several.
    """
    level = [place] if place.is_dir() else []
    for _ in range(_DEPTH):
        level = [inner for folder in level for inner in _folders(folder)][:_FOLDERS]
        found = {folder: parts for folder in level if (parts := _at(folder, formats))}
        if len(found) > 1:
            names = ", ".join(list(map(str, found))[:6])
            raise DataError(f"{place} holds several data sets; name one of them: {names}")
        for folder, parts in found.items():
            note = f"{place} itself holds no data set; the one in {folder} is taken"
            return {split: partial(_noting, note, part) for split, part in parts.items()}
    return None


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if not is_unwanted(p.name) and p.is_dir())
    except OSError:
        return []


def _noting(note: str, part: Part, problems: Problems) -> Source:
    if note not in problems.notes:
        problems.notes.insert(0, note)
    return part(problems)


def _found(place: Path) -> str:
    """What lies there, shortened."""
    if place.is_file():
        return f"the file {place.name}"
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in place.iterdir())
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return printable((", ".join(names[:12]) or "an empty folder") + more)


def read_pair(
    train: Path | str, val: Path | str | None, *, masks: bool = False, allow_empty: bool = False
) -> tuple[Source, Source]:
    """What is trained on and what is validated on, from one path or two; classes are matched by name.

    Args:
        train: as `read` takes it.
        val: likewise, if it lies elsewhere; then nothing is kept back of `train` that has no parts of its
            own.
        masks: as in `read`.
        allow_empty: also where a part has no object to learn or to find.

    Raises:
        DataError: as `read`, when validation has classes that training has not, and when a part is empty.
    """
    if val is None:
        both = read(train, "train", masks=masks), read(train, "val", masks=masks)
    else:
        both = read(train, "train", masks=masks, whole=True), read(val, "val", masks=masks, whole=True)
    if both[1].classes != both[0].classes:
        way_out = "give both the same names"
        matching = by_name(both[1], both[0].classes, "the training data", way_out)
        say(matching.notes)
        both = both[0], matching
    if not allow_empty:
        refuse_empty(both[0], "train on")
        refuse_empty(both[1], "validate on", masks=masks)
    return both


def refuse_empty(source: Source, use: str, *, masks: bool = False) -> None:
    """Raises when no image has an object, as a misplaced folder of labels looks, or no object a mask.

    Raises:
        DataError: with what the reader has to say about it.
    """
    if has_objects(source):
        if masks and not any(part for sample in source.samples for part in sample.segmentation):
            raise DataError(
                f"{source.file or source.name} has no masks, by which this model is measured; annotate them "
                "in COCO's format (segmentation: polygons or run lengths), or train a model that finds boxes"
            )
        return
    boxes = sum(len(sample.boxes) for sample in source.samples)
    what = f"all of its {boxes} boxes are left out" if boxes else "no image has an object"
    notes = "".join(f"; {note}" for note in source.notes)
    raise DataError(
        f"{source.file or source.name}: there is nothing to {use}: {what} ({len(source.samples)} images)"
        f"{notes}; look with `relook doctor PATH`, or say --allow-empty if it is meant so"
    )


# -- splits --------------------------------------------------------------------------------------------


def _read_split(parts: Parts, split: Split, path: Path, problems: Problems) -> Source:
    if split in parts:
        if set(parts) == {"train"}:
            return _tenth(parts["train"], split, path, problems)
        if split == "val" and parts.get("test") is parts["val"]:
            problems.notes.append(f"{path} has no validation split, so its test split is taken")
        return parts[split](problems)
    if split == "test":
        there = " and ".join(parts)
        raise DataError(f"{path} holds no test split, only {there}; name the data to test on with --data")
    if split == "train" and "all" not in parts:
        there = (
            "a test split only" if set(parts.values()) == {parts.get("test")} else "a validation split only"
        )
        raise DataError(f"{path} holds {there}; name the data that hold a training split")
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
    digest = hashlib.sha256(os.fsencode(sample.path.name)).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


# -- generated -----------------------------------------------------------------------------------------


def _shapes(path: str, split: MadeSplit, problems: Problems) -> Source:
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
