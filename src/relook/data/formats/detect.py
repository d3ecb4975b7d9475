"""`--data PATH`: which format a path holds, and its training and validation split."""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from relook.data.columnar import pack
from relook.data.decode import BrokenImage, image_size
from relook.data.disk.listing import folders_in
from relook.data.disk.regular import Unusable
from relook.data.formats.coco.find import find_coco, find_roboflow, one_coco_file
from relook.data.formats.problems import Part, Parts, Problems
from relook.data.formats.voc.find import find_voc
from relook.data.formats.yolo.find import find_declared_yolo, find_yolo
from relook.data.learnt import has_objects
from relook.data.matching import By, by_name, matched
from relook.data.sample import DataError, Sample, Source, Split
from relook.data.shapes import SPLITS, shapes
from relook.data.shapes import Split as MadeSplit
from relook.escaping import printable

log = logging.getLogger(__name__)


Finder = Callable[[Path], Parts | None]


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of data set."""

    wants: str  # what it looks like, for the message when nothing fits
    find: Finder  # its splits at a path; None when the path is another format


READERS: dict[str, Format] = {
    "roboflow": Format("train/_annotations.coco.json and valid/ alike (Roboflow's COCO)", find_roboflow),
    "coco": Format("NAME.json, or annotations/instances_train2017.json beside the images (COCO)", find_coco),
    "yolo": Format(
        "data.yaml, obj.data, images/ and labels/ with a text file per image, or text beside images (YOLO)",
        find_yolo,
    ),
    "voc": Format("Annotations/*.xml and JPEGImages/, or XML files beside the images (Pascal VOC)", find_voc),
}
"""All formats. `--data NAME:PATH` takes one without trying."""

_TRIED = (find_roboflow, find_coco, find_declared_yolo, find_voc, find_yolo)
"""In this order: a data set of Pascal VOC may have text files of labels beside its XML."""

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
        masks: carry the segmentations, too, which fill much memory: COCO's, outlines of YOLO, polygons of
            VOC, and those of "shapes".
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
    if not _is_there(place):
        raise DataError(
            f"{place} does not exist; name a folder or file with data, or `shapes` for generated ones"
        )
    finders = _TRIED if len(formats) > 1 else [form.find for form in formats.values()]
    parts = _at(place, finders) or _deeper(place, finders)
    if parts:
        return parts
    wanted = "".join(f"\n  {name}: {form.wants}" for name, form in formats.items())
    raise DataError(
        f"{place} holds no data set in a known format. Looked for:{wanted}\nFound: {_found(place)}\n"
        "Mend the layout, or name the annotation file itself"
    )


def _is_there(place: Path) -> bool:
    try:
        return place.exists()
    except (OSError, ValueError):  # a name that no disk can hold
        return False


def _at(place: Path, finders: Sequence[Finder]) -> Parts | None:
    """The splits in the first format that fits."""
    try:
        return next((parts for find in finders if (parts := find(place))), None)
    except Unusable as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(f"{error.filename or place}: cannot be read ({error.strerror}); see to it") from error


def _deeper(place: Path, finders: Sequence[Finder]) -> Parts | None:
    """The one data set in folders below: archives unpack into a folder of their own.

    Raises:
        DataError: when there are several.
    """
    level = [place] if place.is_dir() else []
    for _ in range(_DEPTH):
        level = [inner for folder in level for inner in folders_in(folder)][:_FOLDERS]
        found = {folder: parts for folder in level if (parts := _at(folder, finders))}
        if len(found) > 1:
            names = ", ".join(list(map(str, found))[:6])
            more = "the one to validate on with --val-data"
            raise DataError(f"{place} holds several data sets; name one of them: {names}; and {more}")
        for folder, parts in found.items():
            note = f"{place} itself holds no data set; the one in {folder} is taken"
            return {split: partial(_noting, note, part) for split, part in parts.items()}
    return None


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
    _refuse_unreadable(source, use)
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


def _refuse_unreadable(source: Source, use: str) -> None:
    """Raises when of some pictures, at even distances, none can be opened."""
    some = source.samples[:: max(1, len(source.samples) // 8)]
    why = ""
    for sample in some:
        try:
            if sample.pixels is None:
                image_size(sample.path)
        except BrokenImage as error:
            why = why or str(error)
        else:
            return
    if why:
        raise DataError(
            f"{source.file or source.name}: there is nothing to {use}: of {len(some)} pictures tried none "
            f"can be opened: {why}; look with `relook doctor PATH`"
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
    if split == "train" and "all" in parts and "val" in parts:  # tests that stand in: nothing is kept back
        return parts["all"](problems)
    if split == "train" and "all" not in parts:
        there = (
            "a test split only" if set(parts.values()) == {parts.get("test")} else "a validation split only"
        )
        raise DataError(f"{path} holds {there}; name the data that hold a training split")
    return _tenth(parts.get("all") or parts["train"], split, path, problems)


def _tenth(part: Part, split: Split, path: Path, problems: Problems) -> Source:
    """Splits what has no validation split: those whose file name hashes low are for validation."""
    source = part(problems)
    ranked, count = _ranked(source)
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


def _ranked(source: Source) -> tuple[list[Sample], int]:
    """The images by the hash of their names, and how many of the first are for validation."""
    names = _distinguishing([sample.path for sample in source.samples])
    places = {sample.id: _hash(name) for sample, name in zip(source.samples, names, strict=True)}
    ranked = sorted(source.samples, key=lambda sample: places[sample.id])
    low = sum(place < VAL_SHARE for place in places.values())
    return ranked, min(max(1, low), max(1, len(ranked) - 1))


def kept_back(source: Source) -> int:
    """How many images of data without a validation split are kept back for it."""
    return _ranked(source)[1]


def _distinguishing(paths: Sequence[Path]) -> list[str]:
    """The names of files; their paths below a common folder where several have one name."""
    names = [path.name for path in paths]
    if len(set(names)) == len(names) or not names:
        return names
    whole = [path.absolute() for path in paths]  # one file may name pictures of both kinds
    common = os.path.commonpath([path.parent for path in whole])
    return [os.path.relpath(path, common) for path in whole]


def _hash(name: str) -> float:
    """A number from 0 to 1 that depends on the name of the file only."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


# -- generated -----------------------------------------------------------------------------------------


def _shapes(path: str, split: MadeSplit, problems: Problems) -> Source:
    """The generated data set with the settings after "shapes:"."""
    settings = {"seed": 0, "side": 128, "most": 5, **SHAPES_COUNTS}
    for item in filter(None, path.partition(":")[2].split(",")):
        key, _, value = item.partition("=")
        if key not in settings or not (value.isascii() and value.isdecimal() and len(value) < 10):
            problems.fatal(path, item, "is no setting", f"write NAME=NUMBER with {', '.join(settings)}")
        else:
            settings[key] = int(value)
    try:
        return shapes(
            settings[split], seed=settings["seed"], split=split, side=settings["side"], most=settings["most"]
        )
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
