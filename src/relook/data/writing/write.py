"""A data set that was read, written as another kind: pictures are copied, annotations written anew."""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
from PIL import Image

from relook.data.columnar import pack
from relook.data.disk.listing import is_image_name
from relook.data.formats.detect import parts_of
from relook.data.formats.problems import Problems
from relook.data.matching import by_name
from relook.data.sample import DataError, Sample, Source
from relook.data.writing.coco import COCO
from relook.data.writing.kinds import Split, Writer, counted, unsound
from relook.data.writing.voc import VOC
from relook.data.writing.yolo import YOLO

_LONGEST = 150  # bytes of a name

Kind = Literal["coco", "voc", "yolo"]

WRITERS: Final[Mapping[Kind, Writer]] = {"coco": COCO, "voc": VOC, "yolo": YOLO}


def write(
    path: Path | str,
    out: Path,
    kind: Kind,
    *,
    val: Path | str | None = None,
    link: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> tuple[tuple[Split, ...], list[str]]:
    """Reads all splits of a data set and writes them in another format, whole or not at all.

    Args:
        path: as `relook.data.formats.detect.read` takes it.
        out: a folder that does not exist yet, or an empty one.
        kind: the format.
        val: what is validated on, where it has a path of its own.
        link: link to the pictures instead of copying them.
        progress: called after each picture.

    Returns:
        The splits that were written; and in sentences what reading chose and the format cannot hold.

    Raises:
        DataError: when the data cannot be used, or `out` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is there already and holds something; choose a folder that does not exist")
    if out.resolve().is_relative_to(Path(path).resolve()):
        raise DataError(
            f"{out} lies in the data themselves, which would then hold all of it twice; choose another"
        )
    sources = _read_all(path, val)
    taken: dict[str, int] = {}
    splits = tuple(_named(split, source, taken) for split, source in sources.items())
    writer = WRITERS[kind]
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        notes = [note for source in sources.values() for note in source.notes]
        notes += writer.write(beside, splits)
        notes += counted(sum(map(unsound, splits)), "have a mask that cannot be read, which is left out")
        for split in splits:
            folder = beside / writer.images(split.name)
            folder.mkdir(parents=True, exist_ok=True)
            for sample, name in split.rows():
                _place(sample.path, folder / name, link=link)
                progress()
        _read_again(beside, splits)
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o777 & ~umask)  # mkdtemp makes private folders
        if out.exists():
            out.rmdir()
        beside.rename(out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return splits, list(dict.fromkeys(notes))


def _read_again(folder: Path, splits: Sequence[Split]) -> None:
    """Reads what was written, before it takes its place.

    Raises:
        DataError: when relook itself could not use it.
    """
    problems = Problems()
    counts = {split: len(part(problems).samples) for split, part in parts_of(folder, alone=False).items()}
    problems.refuse(folder)
    for split in splits:
        found = counts.get(split.name, counts.get("train"))
        if found != len(split.names):
            words = f"{found} of {len(split.names)} pictures of {split.name} can be read again"
            raise DataError(f"{words}; nothing is written")


def _read_all(path: Path | str, val: Path | str | None) -> dict[str, Source]:
    """Every split, each once, in the classes of the first; a test split is none of validation."""
    parts = parts_of(path, alone=True)
    if val is not None:
        other = parts_of(val, alone=True)
        first = parts.get("train") or next(iter(parts.values()))
        parts = {"train": first, "val": other.get("val") or next(iter(other.values()))}
    if "val" in parts and parts["val"] is parts.get("test"):
        parts = {split: part for split, part in parts.items() if split != "val"}
    problems = Problems(masks=True)
    sources = {split: part(problems) for split, part in parts.items() if split != "test"}
    if "test" in parts:
        try:
            sources["test"] = parts["test"](problems)
        except DataError as error:
            if "was not found" not in str(error):  # written in many files whether there is one or not
                raise
            problems.notes.append(str(error))
    problems.refuse(path)
    first = next(iter(sources.values()))
    return {split: _usable(source, first.classes, path) for split, source in sources.items()}


def _usable(source: Source, classes: Sequence[str], path: Path | str) -> Source:
    """The same in these classes.

    Raises:
        DataError: when it has no files, some cannot be read, or it has other classes.
    """
    if any(sample.pixels is not None for sample in source.samples):
        raise DataError(
            f"{path} is generated and has no files; write it with relook.data.shapes.write_shapes"
        )
    unknown = [sample.path for sample in source.samples if not sample.height]
    if unknown:
        more = f"{unknown[0]} and {len(unknown) - 1} other pictures cannot be read"
        raise DataError(f"{more}; look with `relook doctor {path}`")
    if source.classes == tuple(classes):
        return source
    return by_name(source, classes, "the first split", "give all splits the same")


def _named(split: str, source: Source, taken: dict[str, int]) -> Split:
    """A split whose pictures have names of unequal stems: labels of VOC and YOLO are named by them.

    A picture that is listed several times becomes one with all its objects.
    """
    places: dict[str, list[Sample]] = {}
    for sample in source.samples:
        places.setdefault(os.path.realpath(sample.path), []).append(sample)
    names = [_free(Path(place), taken) for place in places]
    return Split(split, replace(source, samples=pack(map(_joined, places.values()))), names)


def _joined(samples: Sequence[Sample]) -> Sample:
    """Several records of one picture as one."""
    if len(samples) == 1:
        return samples[0]
    first = samples[0]
    masks = [mask for one in samples for mask in (one.segmentation or (None,) * len(one.labels))]
    return replace(
        first,
        boxes=np.concatenate([one.boxes for one in samples]),
        labels=np.concatenate([one.labels for one in samples]),
        crowd=np.concatenate([one.crowd for one in samples]),
        ignore=np.concatenate([one.ignore for one in samples]),
        area=np.concatenate([one.area for one in samples]),
        segmentation=tuple(masks) if any(mask is not None for mask in masks) else (),
    )


def _free(picture: Path, taken: dict[str, int]) -> str:
    """The name of a picture, or one like it that no other has; of text that any disk and file can hold.

    `taken` holds the stems that were given, and the last number behind each.
    """
    ending = picture.suffix if is_image_name(picture.name) else _ending(picture)
    stem = "".join(sign if sign.isprintable() else "_" for sign in picture.stem).strip()
    if is_image_name(stem) or stem.lower().endswith((".xml", ".txt")):  # it would be read as an ending
        stem = stem.replace(".", "_")
    while len(stem.encode()) > _LONGEST:
        stem = stem[: len(stem) * 9 // 10]
    own, n = stem or "picture", taken.get(stem.casefold(), 1)
    while own.casefold() in taken:
        n += 1
        own = f"{stem}-{n}"
    taken[stem.casefold()] = n
    taken.setdefault(own.casefold(), 1)
    return f"{own}{ending}"


def _ending(picture: Path) -> str:
    """The ending that belongs to a file without one, or with another's."""
    try:
        with Image.open(picture) as opened:
            return f".{(opened.format or 'jpg').lower()}"
    except (OSError, ValueError):
        return picture.suffix


def _place(picture: Path, target: Path, *, link: bool) -> None:
    """Puts a picture where its annotation says it is."""
    if os.path.lexists(target):  # of two splits that share a folder
        return
    try:
        if link:
            target.symlink_to(picture.resolve())
        else:
            shutil.copyfile(picture, target)
    except OSError as error:
        raise DataError(
            f"{picture}: cannot be copied ({error.strerror}); look with `relook doctor`"
        ) from error
