"""What is in a folder of Pascal VOC's XML files; what is wrong with one is told, and the others are read."""

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from relook.data.columnar import pack
from relook.data.decode import BrokenImage, image_size
from relook.data.disk.listing import PassedOver, files_below, images_below, is_image_name
from relook.data.disk.places import Places, spellings
from relook.data.disk.text import read_lines, read_xml, to_number
from relook.data.formats.geometry import (
    CORNERS,
    Array,
    Issue,
    box_problems,
    finite,
    hull,
    likely_cause,
    shares_instead_of_pixels,
    swapped,
    upright,
)
from relook.data.formats.problems import Problems, distinct, too_many_classes
from relook.data.sample import Sample, Source

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_LARGEST_SIDE = 1_000_000  # pixels


@dataclass(frozen=True, slots=True)
class Folder:
    """Where a VOC data set has what."""

    root: Path
    annotations: Path  # holds *.xml, in folders too
    images: tuple[Path, ...]  # where pictures may lie, the likeliest first
    classes_of: Path | None = None  # whose annotations give the classes, where that is more than this folder


def read_voc(folder: Folder, chosen: Path | None, problems: Problems, *, name: str) -> Source:
    """Reads the images that `chosen` lists, or all that have an annotation.

    VOC counts pixels from 1 and both corners belong to the object, so a box becomes (xmin - 1, ymin - 1,
    xmax, ymax). A folder in which some xmin or ymin is 0 was counted from 0: there corners are taken as they
    are. Objects marked difficult are treated as crowds: neither objects to learn nor background. The classes
    are all names in the folder, sorted, or the lines of its classes.txt or labels.txt.

    An annotation's picture is the one that its <filename> names, unless several annotations name that one:
    then, as where it names none, the picture with the annotation's own name.

    Args:
        folder: where annotations and pictures lie.
        chosen: text file with the name of one image a line.
        problems: where mistakes go; a record with a mistake is left out.
        name: of the split, for messages.
    """
    pages = _pages(folder, problems)
    objects = [one for page in pages.values() if page for one in page.objects]
    shares = bool(objects) and max(max(map(abs, one.box)) for one in objects) <= 1.5
    first = 0.0 if any(min(one.box[:2]) == 0 for one in objects) else 1.0
    if first == 0:
        problems.notes.append(f"{folder.root} counts pixels from 0, for some boxes start there")
    own = tuple(sorted({one.name for one in objects})) if folder.classes_of is None else ()
    classes = declared_classes(folder, problems) or own or class_names(folder, problems)
    if too_many_classes(len(classes), folder.root, problems):
        classes = ()
    labels = {c: n for n, c in enumerate(classes)}
    samples: list[Sample] = []
    with problems.going_on(chosen or folder.root, "list"):
        for n, stem in enumerate(_once(stems(folder, chosen), chosen, problems) if chosen else list(pages)):
            page = pages.get(stem)
            if page is not None:
                samples.append(_sample(page, n + 1, first, labels, problems))
            elif stem not in pages:
                problems.fatal(
                    chosen or folder.root, stem, "has no file in Annotations", "write it or drop the line"
                )
    if not samples:
        problems.fatal(
            chosen or folder.root, "images", "there is none", "list the names of images, one a line"
        )
    source = Source(
        name=name,
        samples=pack(samples),
        classes=distinct(classes, range(len(classes)), folder.root, problems),
        category_ids=tuple(range(1, len(classes) + 1)),
        file=chosen or folder.root,
    )
    _look_at_all(source, pages, str(folder.annotations), problems, shares=shares)
    return source.with_notes(problems.all_notes())


def _once(names: Sequence[str], chosen: Path, problems: Problems) -> list[str]:
    """The names, each once; tells of those that a list names several times."""
    for name, count in Counter(names).items():
        if count > 1:
            what = f'"{name}" is listed {count} times; it is taken once'
            problems.tolerable(chosen, f'line "{name}"', what, "drop the others")
    return list(dict.fromkeys(names))


def _look_at_all(
    source: Source, pages: "dict[str, _Page | None]", place: str, problems: Problems, *, shares: bool
) -> None:
    """Mistakes that show in all boxes together."""
    fix = "multiply x by the image's width, y by its height"
    if shares and shares_instead_of_pixels(source.samples, place, fix, problems):
        return
    rows = [(one.box, page.size) for page in pages.values() if page for one in page.objects]
    written = np.array([box for box, _ in rows], np.float64).reshape(-1, 4)
    sizes = np.array([size for _, size in rows], np.float64).reshape(-1, 2)
    likely_cause(written, sizes, CORNERS, place, problems)


# -- annotations ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Object:
    name: str
    box: tuple[float, float, float, float]  # xmin ymin xmax ymax as written
    difficult: bool
    outlines: tuple[tuple[float, ...], ...] = ()  # x y x y ... as written


@dataclass(frozen=True, slots=True)
class _Page:
    """One annotation file."""

    file: Path
    image: Path
    size: tuple[int, int]  # height, width
    objects: tuple[_Object, ...]


def _pages(folder: Folder, problems: Problems) -> dict[str, _Page | None]:
    """All annotations by name without ending, which may have folders; None for those with a mistake."""
    passed = PassedOver()
    files = sorted(files_below(folder.annotations, is_xml, passed))
    names = [file.relative_to(folder.annotations).with_suffix("").as_posix() for file in files]
    roots: list[ET.Element | None] = []
    for file in files:
        root = None
        with problems.going_on(file, "file"):
            root = read_xml(file)
        roots.append(root)
    images = _images(folder, dict(zip(names, roots, strict=True)), files, problems)
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(_size, roots, images))
    told = passed.sentence(folder.annotations)
    problems.notes += [told] if told and folder.annotations not in folder.images[:1] else []
    if problems.thorough:
        _say_which_have_none(folder, images, problems)
    pages: dict[str, _Page | None] = {}
    for name, file, root, image, size in zip(names, files, roots, images, sizes, strict=True):
        if root is None:
            pages[name] = None
            continue
        found = [
            _object(node, f"object {n}", file, problems) for n, node in enumerate(root.findall("object"))
        ]
        pages[name] = _Page(file, image, size, tuple(one for one in found if one is not None))
    return pages


def _say_which_have_none(folder: Folder, annotated: Sequence[Path], problems: Problems) -> None:
    """Pictures in the first folder of pictures that no annotation names, and what else lies there."""
    passed, known = PassedOver(), set(annotated)
    left = [path for path in images_below(folder.images[0], passed) if path not in known]
    if left:
        problems.notes.append(f"{len(left)} pictures have no annotation and are not used, such as {left[0]}")
    told = passed.sentence(folder.images[0])
    problems.notes += [told] if told else []


def is_xml(name: str) -> bool:
    """Whether a file name is one of an annotation."""
    return name.lower().endswith(".xml")


def _object(node: ET.Element, record: str, file: Path, problems: Problems) -> _Object | None:
    written = node.findtext("name", "")
    name = " ".join(written.split())
    if name != written and name:
        what = f'name "{written}" has blanks; it is read as "{name}"'
        problems.tolerable(file, record, what, "write it without")
    box = _box(node)
    if not name:
        problems.fatal(file, record, "has no name", "write the name of its class")
    elif box is None:
        texts = [node.findtext(f"bndbox/{key}", "") for key in _CORNERS]
        what = f"bndbox {texts} is not four finite numbers"
        if node.find("robndbox") is not None:
            what = "has a turned box (robndbox), which relook does not read"
        problems.fatal(file, record, what, "write xmin, ymin, xmax and ymax in pixels, or remove the object")
    else:
        return _Object(name, box, _is_set(node.findtext("difficult", "")), _outlines(node))
    return None


def _outlines(node: ET.Element) -> tuple[tuple[float, ...], ...]:
    """The polygons of an object: x1, y1, x2 ... in the order of their elements; unusable ones are none."""
    found: list[tuple[float, ...]] = []
    for outline in node.findall("polygon"):
        inner = [deep for one in outline for deep in (one, *one)]  # <x1>, or <pt><x>
        words = [(one.text or "").strip() for one in inner]
        points = tuple(to_number(word) for word in words if word)
        if len(points) >= 6 and len(points) % 2 == 0 and finite(points):
            found.append(points)
    return tuple(found)


def _is_set(text: str) -> bool:
    return text.strip().lower() in {"1", "true", "yes", "1.0"}


def _box(node: ET.Element) -> tuple[float, float, float, float] | None:
    """The four corners as written, else those around a polygon; None when they are no numbers."""
    texts = [node.findtext(f"bndbox/{key}", "") for key in _CORNERS]
    outlines = () if any(texts) else _outlines(node)
    if outlines:
        return hull([value for points in outlines for value in points])
    try:
        x1, y1, x2, y2 = (to_number(text.strip()) for text in texts)
    except ValueError:
        return None
    return (x1, y1, x2, y2) if finite((x1, y1, x2, y2)) else None


def _size(root: ET.Element | None, image: Path) -> tuple[int, int]:
    """Height and width as written, else those of the image, else zeros."""
    if root is None:
        return 0, 0
    try:
        height, width = (float(root.findtext(f"size/{key}", "0")) for key in ("height", "width"))
        if all(1 <= v <= _LARGEST_SIDE for v in (height, width)):
            return int(height), int(width)
    except ValueError:
        pass
    try:
        return image_size(image)
    except BrokenImage:
        return 0, 0


def _sample(page: _Page, key: int, first: float, labels: dict[str, int], problems: Problems) -> Sample:
    boxes: list[tuple[float, float, float, float]] = []
    kept: list[_Object] = []
    for n, one in enumerate(page.objects):
        if one.name not in labels:
            known = ", ".join(islice(labels, 20))
            what, fix = f'"{one.name}" is no class', f"mend it; known are: {known}"
            problems.fatal(page.file, f"object {n}", what, fix)
            continue
        turned = swapped(one.box)
        if turned is not None:
            problems.tolerable(page.file, f"object {n}", *turned)
        x1, y1, x2, y2 = upright(one.box)
        x1, y1 = x1 - first, y1 - first
        for issue in box_problems((x1, y1, x2 - x1, y2 - y1), page.size):
            problems.tolerable(page.file, f"object {n}", *issue)
        boxes.append((x1, y1, x2, y2))
        kept.append(one)
    corners: Array = np.array(boxes, np.float64).reshape(-1, 4)
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
        segmentation=_masks(kept) if problems.masks else (),
    )


def _masks(objects: Sequence[_Object]) -> tuple[list[list[float]] | None, ...]:
    """The outlines of each object as COCO writes a mask; None for one that has a box alone."""
    return tuple([list(points) for points in one.outlines] or None for one in objects)


# -- their pictures ------------------------------------------------------------------------------------


def _images(
    folder: Folder, roots: dict[str, ET.Element | None], files: Sequence[Path], problems: Problems
) -> list[Path]:
    """The picture of each annotation: as its <filename> says, or named as the annotation itself."""
    places = Places(folder.images)
    written = {name: _written(root) for name, root in roots.items()}
    said = {name: places.find(text) if text else None for name, text in written.items()}
    claims = Counter(path for path in said.values() if path is not None)
    found: list[Path] = []
    for (name, named), file in zip(said.items(), files, strict=True):
        own = places.named_as(name)
        image, issue = _chosen(named, own, claims)
        if issue is not None:
            problems.tolerable(file, "file", *issue)
        if len(own) > 1:
            folders = " and in ".join(str(one.parent) for one in own[:3])
            what = f'"{own[0].name}" is in {folders}; the one in {(image or own[0]).parent} is taken'
            problems.tolerable(file, "file", what, "keep one of them")
        usual = folder.images[0] / (PurePosixPath(written[name].replace("\\", "/")).name or f"{name}.jpg")
        found.append(image or usual)
    problems.notes += [f"{folder.annotations}: {told}" for told in places.sentences()]
    return found


def _chosen(
    named: Path | None, own: Sequence[Path], claims: Mapping[Path, int]
) -> tuple[Path | None, Issue | None]:
    """The picture of an annotation: the one it names or one of its own name; and what is to be said."""
    if named is None or named in own:
        return named or next(iter(own), None), None
    others = claims[named] - 1
    what = f'<filename> names "{named.name}"'
    if not own:
        shared = Issue(f"{what}, as {others} others do", "give each picture one annotation")
        return named, shared if others else None
    if others:
        what += f", as {others} others do; the picture of the annotation's own name is taken"
        return own[0], Issue(what, "write the picture's name, or remove <filename>")
    return named, Issue(f"{what}, though there is one of the annotation's own name", "see which it is")


def _written(root: ET.Element | None) -> str:
    text = "" if root is None else root.findtext("filename", "").strip()
    return text if "\0" not in text else ""


# -- names ---------------------------------------------------------------------------------------------


def declared_classes(folder: Folder, problems: Problems) -> tuple[str, ...]:
    """The classes by the folder's own list, CVAT's labelmap.txt included; empty when it has none."""
    for place in dict.fromkeys((folder.root, folder.classes_of or folder.root)):
        for name in ("classes.txt", "labels.txt"):
            if (place / name).is_file():
                with problems.going_on(place / name, "file"):
                    return tuple(" ".join(line.split()) for line in read_lines(place / name))
        if (place / "labelmap.txt").is_file():
            with problems.going_on(place / "labelmap.txt", "file"):
                lines = [line.split(":")[0].strip() for line in read_lines(place / "labelmap.txt")]
                return tuple(n for n in lines if n and not n.startswith("#") and n != "background")
    return ()


def class_names(folder: Folder, problems: Problems) -> tuple[str, ...]:
    """The names of all objects, sorted."""
    found: set[str] = set()
    for file in sorted(files_below(folder.classes_of or folder.annotations, is_xml, PassedOver())):
        with problems.going_on(file, "file"):
            nodes = read_xml(file).findall("object")
            found |= {" ".join(node.findtext("name", "").split()) for node in nodes}
    return tuple(sorted(found - {""}))


def stems(folder: Folder, chosen: Path) -> list[str]:
    """The names in a list of images, without their endings; names may have blanks and folders.

    A second column, as in the lists of each class, is not read.
    """
    there: dict[str, str] = {}

    def known(name: str) -> str | None:
        if name not in there:
            bare = name.rsplit(".", 1)[0] if is_image_name(name) or name.lower().endswith(".xml") else name
            forms = [form for form, _ in spellings(bare)]
            there[name] = next((f for f in forms if (folder.annotations / f"{f}.xml").is_file()), "")
        return there[name] or None

    def stem(line: str) -> str:
        parts = line.rsplit(maxsplit=1)
        column = parts[0] if len(parts) == 2 and parts[1] in {"-1", "0", "1"} else line
        bare = line.rsplit(".", 1)[0] if is_image_name(line) else line
        return known(line) or known(column) or known(line.split(maxsplit=1)[0]) or bare

    return [stem(line) for line in read_lines(chosen)]
