"""Which Pascal VOC data a path holds: VOC's folders, several years of them, or XML files beside pictures."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from relook.data.columnar import pack, with_classes
from relook.data.disk.listing import PassedOver, child, files_below, folders_in, names_in
from relook.data.disk.regular import is_regular
from relook.data.formats.problems import SPLIT_NAMES, Parts, Problems, with_stand_in
from relook.data.formats.voc.read import (
    Folder,
    class_names,
    declared_classes,
    is_xml,
    read_voc,
    stems,
)
from relook.data.sample import DataError, Source

_ANNOTATIONS = ("Annotations", "annots", "annotation", "xmls", "xml", "labels", "label")
_IMAGES = ("JPEGImages", "images", "imgs", "image", "img", "pictures", "photos")
_YEAR = re.compile(r"VOC\d{4}")
_PAIRS = (
    ("trainval", "test"),
    ("train", "val"),
    ("train", "valid"),
    ("train", "validation"),
    ("train", "test"),
)
_WHOLE = ("default", "all", "trainval", "train")  # lists that are no split, CVAT's first


def find_voc(path: Path) -> Parts | None:
    """The splits of a VOC folder, or of a VOCdevkit; None when `path` is neither.

    A devkit with several years is trained on all of them, as VOC2007 and VOC2012 are in papers: on every
    trainval list where one of them has a test list with annotations, which is then for validation.

    Raises:
        DataError: when there are several folders that are no years of one devkit.
    """
    if not path.is_dir():
        return None
    own = _folder(path)
    if own is not None:
        return _by_lists(own)
    beside = _beside(path)
    if beside is not None:
        return beside
    inner = [f for p in folders_in(path) if (f := _folder(p)) is not None]
    split = {s: f for s, names in SPLIT_NAMES.items() for f in inner if f.root.name.lower() in names}
    if len(split) == len(inner) > 1:
        classes = {s: replace(folder, classes_of=path) for s, folder in split.items()}
        return with_stand_in(
            {s: partial(read_voc, f, None, name=f"{path.name} {s}") for s, f in classes.items()}
        )
    if len(inner) > 1:
        return _devkit(path, inner)
    return _by_lists(inner[0]) if inner else None


def _folder(path: Path) -> Folder | None:
    """VOC's folders in `path`, however their names are written; None when it has none with XML in it."""
    annotations = child(path, *_ANNOTATIONS)
    if annotations is None or not any(_xml(annotations)):
        return None
    images = [one for name in _IMAGES if (one := child(path, name)) is not None]
    return Folder(path, annotations, (*dict.fromkeys(images), path, annotations))


def _xml(folder: Path) -> Iterator[Path]:
    return files_below(folder, is_xml, PassedOver())


def _beside(path: Path) -> Parts | None:
    """XML files beside their pictures: in train/, valid/ and test/ (Roboflow's export), or in one folder."""
    parts: Parts = {}
    for split, several in SPLIT_NAMES.items():
        place = child(path, *several)
        if place is not None and any(map(is_xml, names_in(place))):
            folder = Folder(place, place, (place,), classes_of=path)
            parts[split] = partial(read_voc, folder, None, name=f"{path.name} {split}")
    if parts:
        return with_stand_in(parts)
    if any(is_xml(name) and (path / name).is_file() for name in names_in(path)):
        images = [one for name in _IMAGES if (one := child(path, name)) is not None]
        folder = Folder(path, path, (path, *images))
        return {"all": partial(read_voc, folder, None, name=path.name)}
    return None


# -- lists ---------------------------------------------------------------------------------------------


def _by_lists(folder: Folder) -> Parts:
    """The splits that ImageSets/Main names, else everything that is annotated."""
    lists = _lists(folder)
    inner = _split_folders(folder)
    if inner and not lists:
        return inner
    for train, val in _PAIRS:
        if _annotated(folder, lists.get(train)) and _annotated(folder, lists.get(val)):
            parts: Parts = {"train": _part(folder, lists[train]), "val": _part(folder, lists[val])}
            if _annotated(folder, lists.get("test")):
                parts["test"] = parts["val"] if val == "test" else _part(folder, lists["test"])
            return parts
    for name in _WHOLE:
        if _annotated(folder, lists.get(name)):
            return {"train" if name == "train" else "all": _part(folder, lists[name])}
    wrong = [file for name, file in lists.items() if re.fullmatch(r"train(val)?|val(id(ation)?)?|test", name)]
    if wrong:
        what = (
            "lists no image that is annotated here" if is_regular(wrong[0]) else "is no file that can be read"
        )
        raise DataError(f"{wrong[0]}: {what}; write the names of images, one a line, or remove it")
    return {"all": partial(read_voc, folder, None, name=folder.root.name)}


def _split_folders(folder: Folder) -> Parts:
    """The splits by folders in the annotations: Annotations/train, Annotations/val."""
    parts: Parts = {}
    for split, names in SPLIT_NAMES.items():
        place = child(folder.annotations, *names)
        if place is not None and any(_xml(place)):
            images = [one for root in folder.images for name in names if (one := child(root, name))]
            inner = Folder(folder.root, place, (*images, *folder.images), classes_of=folder.annotations)
            parts[split] = partial(read_voc, inner, None, name=f"{folder.root.name} {split}")
    return with_stand_in(parts) if "train" in parts else {}


def _part(folder: Folder, file: Path) -> "partial[Source]":
    return partial(read_voc, folder, file, name=f"{folder.root.name} {file.stem}")


def _lists(folder: Folder) -> dict[str, Path]:
    """The text files of ImageSets/Main, or of ImageSets, by their lower-case names."""
    sets = child(folder.root, "ImageSets", "splits", "sets")
    places = [p for p in (sets and child(sets, "Main"), sets) if p]
    for place in places:
        found = {name[:-4].lower(): place / name for name in names_in(place) if name.lower().endswith(".txt")}
        if found:
            return found
    return {}


def _annotated(folder: Folder, file: Path | None) -> bool:
    """Whether there is such a list, and an annotation of any of its images: VOC2012's test has none."""
    if file is None or not is_regular(file):
        return False
    listed = stems(folder, file)
    return not listed or any((folder.annotations / f"{one}.xml").is_file() for one in listed)


# -- several years -------------------------------------------------------------------------------------


def _devkit(path: Path, folders: Sequence[Folder]) -> Parts:
    """Several years as one data set."""
    if not all(_YEAR.fullmatch(folder.root.name) for folder in folders):
        names = ", ".join(str(folder.root) for folder in folders)
        raise DataError(f"{path}: holds several VOC data sets; name one of {names}")
    lists = {folder.root: _lists(folder) for folder in folders}
    tested = [folder for folder in folders if _annotated(folder, lists[folder.root].get("test"))]
    val = "test" if tested else "val"
    full = all(_annotated(folder, lists[folder.root].get("train")) for folder in folders)
    train = "train" if not tested and full else "trainval"
    wanted = {
        "train": [(folder, train) for folder in folders],
        "val": [(folder, val) for folder in tested or folders],
    }
    for folder, name in (*wanted["train"], *wanted["val"]):
        if not _annotated(folder, lists[folder.root].get(name)):
            raise DataError(
                f"{path}: holds several VOC data sets; to use them together "
                f"{folder.root / 'ImageSets' / 'Main' / name}.txt is needed; "
                f"name one of {', '.join(str(f.root) for f in folders)} instead"
            )
    parts: Parts = {
        split: partial(_read_years, [(f, lists[f.root][name]) for f, name in chosen], folders)
        for split, chosen in wanted.items()
    }
    return {**parts, "test": parts["val"]} if tested else parts


def _read_years(files: Sequence[tuple[Folder, Path]], years: Sequence[Folder], problems: Problems) -> Source:
    """Images of several lists, numbered on; classes are those of all years, so that splits agree."""
    parts = [read_voc(folder, f, problems, name=f"{folder.root.name} {f.stem}") for folder, f in files]
    read = {folder.root for folder, _ in files}
    others = [_every_class(folder, problems) for folder in years if folder.root not in read]
    every = [*(part.classes for part in parts), *others]
    # an order that all years agree on, as in a list of their own, stays
    classes = every[0] if len(set(every)) == 1 else tuple(sorted({c for names in every for c in names}))
    ids = tuple(range(1, len(classes) + 1))
    samples = [sample for part in parts for sample in with_classes(part, classes, ids).samples]
    return replace(
        parts[0],
        samples=pack(samples, numbered=True),
        name=" + ".join(part.name for part in parts),
        classes=classes,
        category_ids=ids,
        file=files[0][1] if len(files) == 1 else files[0][0].root.parent,
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _every_class(folder: Folder, problems: Problems) -> tuple[str, ...]:
    """The classes by the folder's own list, or of all its annotations."""
    return declared_classes(folder, problems) or class_names(folder, problems)
