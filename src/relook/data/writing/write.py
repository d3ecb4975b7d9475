"""A data set that was read, written as another kind: pictures are copied, annotations written anew."""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from relook.data.formats.detect import parts_of
from relook.data.formats.problems import Part, Problems
from relook.data.matching import by_name
from relook.data.sample import DataError, Source
from relook.data.writing.coco import COCO
from relook.data.writing.kinds import Split, Writer
from relook.data.writing.voc import VOC
from relook.data.writing.yolo import YOLO

Kind = Literal["coco", "voc", "yolo"]

WRITERS: Final[Mapping[Kind, Writer]] = {"coco": COCO, "voc": VOC, "yolo": YOLO}


def write(
    path: Path | str,
    out: Path,
    kind: Kind,
    *,
    link: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> tuple[tuple[Split, ...], list[str]]:
    """Reads all splits of a data set and writes them in another format, whole or not at all.

    Args:
        path: as `relook.data.formats.detect.read` takes it.
        out: a folder that does not exist yet, or an empty one.
        kind: the format.
        link: link to the pictures instead of copying them.
        progress: called after each picture.

    Returns:
        The splits that were written; and in sentences what reading chose and the format cannot hold.

    Raises:
        DataError: when the data cannot be used, or `out` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is there already and holds something; choose a folder that does not exist")
    sources = _read_all(path)
    names = _names(list(sources.values()))
    splits = tuple(
        Split(split, source, [names[os.path.realpath(sample.path)] for sample in source.samples])
        for split, source in sources.items()
    )
    writer = WRITERS[kind]
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        notes = [note for source in sources.values() for note in source.notes]
        notes += writer.write(beside, splits)
        for split in splits:
            folder = beside / writer.images(split.name)
            folder.mkdir(parents=True, exist_ok=True)
            for sample, name in split.rows():
                _place(sample.path, folder / name, link=link)
                progress()
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


def _read_all(path: Path | str) -> dict[str, Source]:
    """Every split, each once, in the classes of the first; a test split is none of validation."""
    parts = parts_of(path, alone=True)
    if "val" in parts and parts["val"] is parts.get("test"):
        parts = {split: part for split, part in parts.items() if split != "val"}
    problems = Problems(masks=True)
    sources: dict[str, Source] = {}
    read: list[Part] = []
    for split, part in parts.items():
        if not any(part is one for one in read):
            read.append(part)
            sources[split] = part(problems)
    problems.refuse(path)
    first = next(iter(sources.values()))
    for split, source in sources.items():
        if any(sample.pixels is not None for sample in source.samples):
            raise DataError(
                f"{path} is generated and has no files; write it with relook.data.shapes.write_coco"
            )
        unknown = [sample.path for sample in source.samples if not sample.height]
        if unknown:
            raise DataError(
                f"{unknown[0]} and {len(unknown) - 1} other pictures cannot be read; look with "
                f"`relook doctor {path}`"
            )
        if source.classes != first.classes:
            sources[split] = by_name(source, first.classes, "the first split", "give all splits the same")
    return sources


def _names(sources: Sequence[Source]) -> dict[str, str]:
    """A name for each picture, whose stem no other has: labels of VOC and YOLO are named by it."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for place in (os.path.realpath(sample.path) for source in sources for sample in source.samples):
        if place in names:
            continue
        picture = Path(place)
        own, n = picture.stem, 1
        while own.casefold() in taken:
            n += 1
            own = f"{picture.stem}-{n}"
        taken.add(own.casefold())
        names[place] = f"{own}{picture.suffix}"
    return names


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
