"""Data sets in Pascal VOC's folders: Annotations/*.xml, JPEGImages/, ImageSets/Main/*.txt."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from relook.data.columnar import pack, with_classes
from relook.data.decode import EXTENSIONS, BrokenImage, image_size
from relook.data.formats.geometry import box_problems
from relook.data.formats.problems import Parts, Problems
from relook.data.sample import DataError, Sample, Source

_LISTS = (("trainval", "test"), ("train", "val"), ("train", "test"))  # pairs of files, the first that fits
_YEAR = re.compile(r"VOC\d{4}")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", ".")


def find_voc(path: Path) -> Parts | None:
    """The splits of a VOC folder, or of a VOCdevkit; None when `path` is neither.

    A devkit with several years is trained on all of them, as VOC2007 and VOC2012 are in papers: on every
    trainval list where one of them has a test list with annotations, which is then for validation.

    Raises:
        DataError: when there are several folders that are no years of one devkit.
    """
    folders = [f.parent for f in (path / "Annotations", *path.glob("*/Annotations")) if any(f.glob("*.xml"))]
    if not folders:
        return None
    if len(folders) > 1:
        return _devkit(path, sorted(folders))
    for names in _LISTS:
        files = [_list(folders[0], name) for name in names]
        if all(map(_annotated, files)):
            return {
                split: partial(read_voc, folders[0], file, name=f"{folders[0].name} {file.stem}")
                for split, file in zip(("train", "val"), files, strict=True)
            }
    return {"all": partial(read_voc, folders[0], None, name=folders[0].name)}


def _every_class(folder: Path, problems: Problems) -> tuple[str, ...]:
    """The classes by the folder's own list, or of all its annotations."""
    pages = (_parse(file, problems) for file in (folder / "Annotations").glob("*.xml"))
    return _classes(folder) or tuple(sorted({one.name for page in pages if page for one in page.objects}))


def _list(folder: Path, name: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{name}.txt"


def _annotated(file: Path) -> bool:
    """Whether there is such a list, and an annotation of any of its images: VOC2012's test has none."""
    if not file.is_file():
        return False
    stems = _stems(file)
    return not stems or any((file.parents[2] / "Annotations" / f"{one}.xml").is_file() for one in stems)


def _devkit(path: Path, folders: Sequence[Path]) -> Parts:
    """Several years as one data set."""
    if not all(_YEAR.fullmatch(folder.name) for folder in folders):
        names = ", ".join(map(str, folders))
        raise DataError(f"{path}: holds several VOC data sets; name one of {names}")
    tested = [folder for folder in folders if _annotated(_list(folder, "test"))]
    lists = {
        "train": [_list(folder, "trainval" if tested else "train") for folder in folders],
        "val": [_list(folder, "test" if tested else "val") for folder in tested or folders],
    }
    for file in (*lists["train"], *lists["val"]):
        if not _annotated(file):
            raise DataError(
                f"{path}: holds several VOC data sets; to use them together {file} is needed; "
                f"name one of {', '.join(map(str, folders))} instead"
            )
    return {split: partial(_read_years, files, folders) for split, files in lists.items()}


def _read_years(files: Sequence[Path], years: Sequence[Path], problems: Problems) -> Source:
    """Images of several lists, numbered on; classes are those of all years, so that splits agree."""
    parts = [read_voc(f.parents[2], f, problems, name=f"{f.parents[2].name} {f.stem}") for f in files]
    folders = {file.parents[2] for file in files}
    others = [_every_class(folder, problems) for folder in years if folder not in folders]
    every = [*(part.classes for part in parts), *others]
    # an order that all years agree on, as in a list of their own, stays
    classes = every[0] if len(set(every)) == 1 else tuple(sorted({c for names in every for c in names}))
    ids = tuple(range(1, len(classes) + 1))
    samples = [sample for part in parts for sample in with_classes(part, classes, ids).samples]
    return replace(
        parts[0],
        name=" + ".join(part.name for part in parts),
        samples=pack(replace(sample, id=n) for n, sample in enumerate(samples, start=1)),
        classes=classes,
        category_ids=ids,
        file=files[0] if len(files) == 1 else files[0].parents[3],
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def read_voc(folder: Path, chosen: Path | None, problems: Problems, *, name: str) -> Source:
    """Reads the images that `chosen` lists, or all that have an annotation.

    VOC counts pixels from 1 and both corners belong to the object, so a box becomes (xmin - 1, ymin - 1,
    xmax, ymax). A folder in which some xmin or ymin is 0 was counted from 0: there corners are taken as they
    are. Objects marked difficult are treated as crowds: neither objects to learn nor background. The classes
    are all names in the folder, sorted, or the lines of its classes.txt or labels.txt.

    Args:
        folder: holds Annotations.
        chosen: text file with the name of one image a line.
        problems: where mistakes go; a record with a mistake is left out.
        name: of the split, for messages.
    """
    files = {file.stem: file for file in sorted((folder / "Annotations").glob("*.xml"))}
    pages = {stem: page for stem, file in files.items() if (page := _parse(file, problems)) is not None}
    objects = [one for page in pages.values() for one in page.objects]
    first = 0.0 if any(min(one.box[:2]) == 0 for one in objects) else 1.0
    if first == 0:
        problems.notes.append(f"{folder} counts pixels from 0, for some boxes start there")
    classes = _classes(folder) or tuple(sorted({one.name for one in objects}))
    labels = {c: n for n, c in enumerate(classes)}
    samples: list[Sample] = []
    for n, stem in enumerate(_stems(chosen) if chosen else list(files)):
        if stem in pages:
            samples.append(_sample(pages[stem], n + 1, first, labels, problems))
        elif stem not in files:
            problems.fatal(chosen or folder, stem, "has no file in Annotations", "write it or drop the line")
    if not samples:
        problems.fatal(chosen or folder, "images", "there is none", "list the names of images, one a line")
    return Source(
        name=name,
        samples=pack(samples),
        classes=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        file=chosen or folder,
        notes=problems.all_notes(),
    )


@dataclass(frozen=True, slots=True)
class _Object:
    name: str
    box: tuple[float, ...]  # xmin ymin xmax ymax as written
    difficult: bool


@dataclass(frozen=True, slots=True)
class _Page:
    """One annotation file."""

    file: Path
    image: Path
    size: tuple[int, int]  # height, width
    objects: tuple[_Object, ...]


def _parse(file: Path, problems: Problems) -> _Page | None:
    """Reads one file; None, and a problem, when it is no XML."""
    try:
        # expat has refused nested entities that explode since 2.4.1, and resolves none from outside
        root = ET.parse(file).getroot()  # noqa: S314
    except (ET.ParseError, OSError) as error:
        problems.fatal(file, "file", f"is no XML ({error})", "write it again from its origin or remove it")
        return None
    image = _image_path(file, root.findtext("filename", ""))
    objects = [_object(node, f"object {n}", file, problems) for n, node in enumerate(root.iter("object"))]
    return _Page(file, image, _size(root, image), tuple(one for one in objects if one is not None))


def _object(node: ET.Element, record: str, file: Path, problems: Problems) -> _Object | None:
    name = node.findtext("name", "").strip()
    written = [node.findtext(f"bndbox/{key}", "") for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        box = tuple(float(text) for text in written)
    except ValueError:
        box = (math.nan,)
    if not name:
        problems.fatal(file, record, "has no name", "write the name of its class")
    elif not all(map(math.isfinite, box)):
        problems.fatal(
            file, record, f"bndbox {written} is not four finite numbers", "write them or remove it"
        )
    else:
        return _Object(name, box, node.findtext("difficult", "0").strip() == "1")
    return None


def _image_path(file: Path, written: str) -> Path:
    """The image of an annotation: as its file says, or named as the annotation itself."""
    folder = file.parent.parent
    for place in (folder / name for name in _IMAGE_FOLDERS):
        if written and (place / Path(written).name).is_file():
            return place / Path(written).name
        for ending in (*EXTENSIONS, ".JPG", ".JPEG", ".PNG"):
            if (place / f"{file.stem}{ending}").is_file():
                return place / f"{file.stem}{ending}"
    return folder / _IMAGE_FOLDERS[0] / (Path(written).name or f"{file.stem}.jpg")


def _size(root: ET.Element, image: Path) -> tuple[int, int]:
    """Height and width as written, else those of the image, else zeros."""
    try:
        height, width = (int(float(root.findtext(f"size/{key}", "0"))) for key in ("height", "width"))
        return (height, width) if height > 0 and width > 0 else image_size(image)
    except (ValueError, BrokenImage):
        return 0, 0


def _classes(folder: Path) -> tuple[str, ...]:
    """The classes by the folder's own list; empty when it has none."""
    for name in ("classes.txt", "labels.txt"):
        if (folder / name).is_file():
            return _lines(folder / name)
    return ()


def _lines(file: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip())


def _stems(file: Path) -> Sequence[str]:
    """The names in a list of images, without their endings; names may have blanks.

    A second column, as in the lists of each class, is not read.
    """
    places = file.parents[2] / "Annotations"

    def stem(line: str) -> str:
        bare = str(Path(line).with_suffix("")) if Path(line).suffix.lower() in EXTENSIONS else line
        return bare if " " not in bare or (places / f"{bare}.xml").is_file() else line.split(maxsplit=1)[0]

    return [stem(line) for line in _lines(file)]


def _sample(page: _Page, key: int, first: float, labels: dict[str, int], problems: Problems) -> Sample:
    boxes: list[list[float]] = []
    kept: list[_Object] = []
    for n, one in enumerate(page.objects):
        x1, y1, x2, y2 = one.box
        x1, y1 = x1 - first, y1 - first
        if one.name not in labels:
            known = ", ".join(labels)
            problems.fatal(page.file, f"object {n}", f"{one.name} is no class", f"fix it; known are {known}")
            continue
        for issue in box_problems((x1, y1, x2 - x1, y2 - y1), page.size):
            problems.tolerable(page.file, f"object {n}", *issue)
        boxes.append([x1, y1, x2, y2])
        kept.append(one)
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    return Sample(
        id=key,
        path=page.image,
        height=page.size[0],
        width=page.size[1],
        boxes=corners,
        labels=np.array([labels[one.name] for one in kept], np.int64),
        crowd=np.array([one.difficult for one in kept], np.bool_),
        ignore=np.zeros(len(kept), np.bool_),
        area=(corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]),
    )
