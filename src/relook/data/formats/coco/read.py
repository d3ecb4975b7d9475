"""What is in a COCO file: every record is checked, whatever its types; a wrong one is told and left out."""

import gc
import math
import posixpath
from array import array
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from relook.data.columnar import pack
from relook.data.decode import BrokenImage, image_size
from relook.data.disk.places import Places
from relook.data.disk.regular import Unusable, is_regular
from relook.data.disk.text import TWICE, read_json
from relook.data.formats.geometry import (
    CORNER_AND_SIZE,
    Issue,
    box_problems,
    hull,
    likely_cause,
    numbers,
    segmentation_problems,
    shares_instead_of_pixels,
    swapped,
    upright,
)
from relook.data.formats.problems import Problems, distinct, too_many_classes
from relook.data.sample import DataError, Sample, Source
from relook.escaping import can_be_a_name
from relook.rle import box_of

T = TypeVar("T")

ROBOFLOW_FILE = "_annotations.coco.json"

_LARGEST_ID = 1 << 63  # numbers beyond do not fit 64 bits
_LARGEST_SIDE = 1_000_000  # pixels
_LARGEST_AREA = 1e18
_TRIED, _ALL = 50, 2000  # images that tell where all lie, and up to how many all are asked


def read_coco(file: Path, folders: Sequence[Path], problems: Problems, *, name: str) -> Source:
    """Reads one annotation file; labels follow the order of the category ids.

    Args:
        file: the JSON.
        folders: where the images may lie; the one that holds most of the first of them is taken.
        problems: where mistakes go; a record with a mistake is left out. It also says whether segmentations
            are carried; for all of COCO they fill gigabytes.
        name: of the split, for messages.

    Raises:
        DataError: when the file is no JSON or lacks a whole list, so that there is nothing to go on with.
    """
    reading = _Reading(file, problems, masks=problems.masks)
    with _uncollected():
        reading.read()
    find = _finder(reading, folders)
    samples = pack(image.sample(find(image.file_name)) for image in reading.images.values())
    fix = "multiply x and width by the image's width, y and height by its height"
    if not shares_instead_of_pixels(samples, str(file), fix, problems):
        sizes = samples.sizes.astype(np.float64)[np.array(reading.written_in, np.int64)]
        written = np.array(reading.written, np.float64).reshape(-1, 4)
        likely_cause(written, sizes.reshape(-1, 2), CORNER_AND_SIZE, str(file), problems)
    return Source(
        name=name,
        samples=samples,
        classes=reading.classes(),
        category_ids=tuple(reading.labels),
        file=file,
        notes=problems.all_notes(),
    )


@contextmanager
def _uncollected() -> Generator[None]:
    """No search for garbage while millions of objects are made that are none: it would double the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(slots=True)
class _Image:
    """An image while its annotations come in."""

    id: int
    place: int  # its number among the images
    file_name: str
    height: int  # 0 when the file does not say
    width: int
    boxes: list[Sequence[float]] = field(default_factory=list[Sequence[float]])  # x1 y1 x2 y2
    labels: list[int] = field(default_factory=list[int])
    crowd: list[bool] = field(default_factory=list[bool])
    ignore: list[bool] = field(default_factory=list[bool])
    area: list[float] = field(default_factory=list[float])
    segmentation: list[Any] = field(default_factory=list[Any])

    def sample(self, path: Path) -> Sample:
        height, width = self.height, self.width
        if not height or not width:
            try:
                height, width = image_size(path)
            except BrokenImage:
                height = width = 0  # it will be found broken when it is loaded
        return Sample(
            id=self.id,
            path=path,
            height=height,
            width=width,
            boxes=np.array(self.boxes, np.float64).reshape(-1, 4),
            labels=np.array(self.labels, np.int64),
            crowd=np.array(self.crowd, np.bool_),
            ignore=np.array(self.ignore, np.bool_),
            area=np.array(self.area, np.float64),
            segmentation=tuple(self.segmentation),
        )


@dataclass(slots=True)
class _Reading:
    """One file on its way to samples, record by record."""

    file: Path
    problems: Problems
    masks: bool  # carry the segmentations
    names: dict[int, str] = field(default_factory=dict[int, str])  # by category id
    parents: dict[int, Any] = field(default_factory=dict[int, Any])  # supercategory by category id
    labels: dict[int, int] = field(default_factory=dict[int, int])  # by category id
    images: dict[int, _Image] = field(default_factory=dict[int, _Image])  # by id
    file_names: dict[str, int] = field(default_factory=dict[str, int])  # image id by file name
    annotation_ids: set[int] = field(default_factory=set[int])
    fractions: int = 0  # ids written as 1.0
    written: "array[float]" = field(default_factory=lambda: array("d"))  # x y width height, box after box
    written_in: "array[int]" = field(default_factory=lambda: array("q"))  # place of each one's image

    def read(self) -> None:
        """The whole file."""
        whole = _load(self.file)
        if TWICE in whole:
            self.problems.fatal(self.file, "file", f'has the key "{whole[TWICE]}" twice', "write it once")
        for n, row in self._sound("categories", whole):
            self.category(f"categories[{n}]", row)
        self.finish_categories(whole["annotations"])
        for n, row in self._sound("images", whole):
            self.image(f"images[{n}]", row)
        for n, row in self._sound("annotations", whole):
            self.annotation(n, row)
        if self.fractions:
            self.problems.notes.append(
                f"{self.file} writes {self.fractions:,} ids as numbers like 1.0, which are read as 1"
            )

    def _sound(self, key: str, whole: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows of a list that are objects with each key once."""
        for n, row in enumerate(whole[key]):
            if not isinstance(row, dict):
                what, fix = f"is {_told(row)}, no object", "write it anew or remove it"
                self.problems.fatal(self.file, f"{key}[{n}]", what, fix)
            elif TWICE in row:
                what = f"has the key {_told(cast('dict[str, Any]', row)[TWICE])} twice"
                self.problems.fatal(self.file, f"{key}[{n}]", what, "write it once")
            elif isinstance(row.get("segmentation"), dict) and TWICE in row["segmentation"]:
                what = "has a key twice in its segmentation"
                self.problems.fatal(self.file, f"{key}[{n}]", what, "write it once")
            else:
                yield n, cast("dict[str, Any]", row)

    def category(self, record: str, row: dict[str, Any]) -> None:
        key, name = self._id(record, row, "id"), row.get("name")
        if isinstance(name, (int, float)) and not isinstance(name, bool) and abs(name) < _LARGEST_ID:
            name = str(name)
        wrong = _bad_text(name)
        if wrong:
            self.problems.fatal(self.file, record, f"name is {wrong}", "write the name of the class")
        elif key is not None and key in self.names:
            what = f"repeats the id {key}"
            self.problems.fatal(self.file, record, what, "give each category an id of its own")
        elif key is not None:
            self.names[key] = str(name)
            self.parents[key] = row.get("supercategory")

    def finish_categories(self, annotations: Iterable[Any]) -> None:
        """Labels count the category ids from the smallest.

        Roboflow lists the project itself as category 0, parent of all others; that one is no class unless an
        object belongs to it.
        """
        others = {parent for key, parent in self.parents.items() if key != 0 and isinstance(parent, str)}
        kept = sorted(self.names)
        if self.file.name == ROBOFLOW_FILE and others == {self.names.get(0)}:
            rows = (cast("dict[str, Any]", row) for row in annotations if isinstance(row, dict))
            used = any(_whole(row.get("category_id")) == 0 for row in rows)
            kept = kept if used else [key for key in kept if key != 0]
        if too_many_classes(len(kept), self.file, self.problems):
            kept = []
        self.labels = {key: label for label, key in enumerate(kept)}
        if not kept:
            self.problems.fatal(self.file, "categories", "none can be used", "list the classes: id and name")

    def classes(self) -> tuple[str, ...]:
        """A name of its own for each label."""
        names = [self.names[key] for key in self.labels]
        return distinct(names, list(self.labels), self.file, self.problems)

    def image(self, record: str, row: dict[str, Any]) -> None:
        key, name = self._id(record, row, "id"), row.get("file_name")
        wrong = _bad_text(name)
        if wrong:
            self.problems.fatal(self.file, record, f"file_name is {wrong}", "write the name of the file")
        if wrong or key is None:
            return
        if key in self.images:
            what = f"repeats the id {key}"
            self.problems.fatal(self.file, record, what, "give each image an id of its own")
            return
        name = str(name)
        plain = posixpath.normpath(name.replace("\\", "/"))
        if plain in self.file_names:
            what = f'"{name}" is image {self.file_names[plain]}, too'
            self.problems.tolerable(self.file, record, what, "join the two")
        self.file_names[plain] = key
        height, width = _whole(row.get("height")), _whole(row.get("width"))
        if (
            height is None
            or width is None
            or not (0 < height <= _LARGEST_SIDE and 0 < width <= _LARGEST_SIDE)
        ):
            if row.get("height") is not None or row.get("width") is not None:
                sides = f"[{_told(row.get('height'))}, {_told(row.get('width'))}]"
                what = f'height and width {sides} of "{name}" are no sizes; the file\'s are taken'
                self.problems.tolerable(self.file, record, what, "write the file's")
            height = width = 0
        self.images[key] = _Image(key, len(self.images), name, height, width)

    def annotation(self, n: int, row: dict[str, Any]) -> None:
        if "id" in row:  # results have none, and nothing depends on it
            key = self._id(_named(n, row), row, "id", needed=False)
            if key is not None and key in self.annotation_ids:
                what, fix = "repeats its id", "give each an id of its own"
                self.problems.tolerable(self.file, _named(n, row), what, fix)
            self.annotation_ids.add(-1 if key is None else key)
        image = self._find(self.images, n, row, "image_id")
        label = self._find(self.labels, n, row, "category_id")
        crowd, ignore = self._flag(n, row, "iscrowd"), self._flag(n, row, "ignore")
        if image is None or label is None or crowd is None or ignore is None:
            return
        box = self._box(n, row, image)
        if box is None:
            return
        self.written.extend(box)
        self.written_in.append(image.place)
        if min(box[2], box[3]) < 0:
            box = self._put_right(box, f"{_named(n, row)} of {image.file_name}")
        for problem in self._looked_at(box, row, image):
            self.problems.tolerable(self.file, f"{_named(n, row)} of {image.file_name}", *problem)
        x, y, width, height = box
        image.boxes.append((x, y, x + width, y + height))
        image.labels.append(label)
        image.crowd.append(crowd)
        image.ignore.append(ignore)
        image.area.append(self._area(n, row, width * height, crowd=crowd))
        if self.masks:
            image.segmentation.append(row.get("segmentation"))

    def _put_right(self, box: Sequence[float], place: str) -> Sequence[float]:
        """A box of negative width or height, from its other corner."""
        corners = (box[0], box[1], box[0] + box[2], box[1] + box[3])
        issue = swapped(corners)
        if issue is not None:
            self.problems.tolerable(self.file, place, *issue)
        x1, y1, x2, y2 = upright(corners)
        return x1, y1, x2 - x1, y2 - y1

    def _looked_at(self, box: Sequence[float], row: dict[str, Any], image: _Image) -> Iterator[Issue]:
        """What is wrong with box and outline."""
        yield from box_problems(box, (image.height, image.width))
        if self.problems.thorough:
            yield from segmentation_problems(row.get("segmentation"), (image.height, image.width))

    # -- fields ------------------------------------------------------------------------------------

    def _id(self, record: str, row: dict[str, Any], key: str, *, needed: bool = True) -> int | None:
        """A whole number of 64 bits; None, and a problem, when it is none."""
        value = row.get(key)
        found = _whole(value)
        if found is None:
            tell = self.problems.fatal if needed else self.problems.tolerable
            what = f"{key} is {_told(value)}, no whole number" if key in row else f"has no {key}"
            tell(self.file, record, what, "number them 1, 2, 3 ... wherever they are named")
        elif isinstance(value, float):
            self.fractions += 1
        return found

    def _find(self, table: dict[int, T], n: int, row: dict[str, Any], key: str) -> T | None:
        """The image or label that an annotation names; None, and a problem, when there is none."""
        value = _whole(row.get(key))
        found = table.get(value) if value is not None else None
        if found is None:
            known = f" (known: {_listed(table)})" if key == "category_id" else ""
            what = f"{key} {_told(row.get(key))} is not the id of any {key[:-3]}"
            fix = f"write an id that exists{known} or remove it"
            self.problems.fatal(self.file, _named(n, row), what, fix)
        return found

    def _flag(self, n: int, row: dict[str, Any], key: str) -> bool | None:
        """0 or 1; None, and a problem, when it is neither."""
        value = row.get(key)
        if value is None or (isinstance(value, (int, float)) and value in (0, 1)):
            return bool(value)
        if value in ("0", "1"):
            what = f'{key} is the text "{value}"; it is read as the number'
            self.problems.tolerable(self.file, _named(n, row), what, "write it without quotes")
            return value == "1"
        what = f"{key} is {_told(value)}, neither 0 nor 1"
        self.problems.fatal(self.file, _named(n, row), what, "write 0 or 1")
        return None

    def _area(self, n: int, row: dict[str, Any], of_box: float, *, crowd: bool) -> float:
        """The annotation's own area, else that of its box."""
        area = row.get("area")
        if area is None:
            return of_box
        if isinstance(area, bool) or not isinstance(area, (int, float)) or not abs(area) <= _LARGEST_AREA:
            what = f"area is {_told(area)}, no number of pixels; that of its box is taken"
            self.problems.tolerable(self.file, _named(n, row), what, "write the object's pixels")
            return of_box
        if area <= 0 < of_box and not crowd:
            what = f"area is {area:g}; training leaves it out"
            self.problems.tolerable(self.file, _named(n, row), what, "write the object's pixels")
        return float(area)

    def _box(self, n: int, row: dict[str, Any], image: _Image) -> Sequence[float] | None:
        """x, y, width, height; None, and a problem, when they are not four finite numbers."""
        found = numbers(row.get("bbox"), 4)
        if found is not None:
            return found
        fix = "write [x, y, width, height] in pixels, or remove the annotation"
        if row.get("bbox") in (None, []):
            around = _around(row.get("segmentation"), image)
            if around is not None:
                what = "there is no bbox; the one around its segmentation is taken"
                self.problems.tolerable(self.file, _named(n, row), what, fix)
                return around
            what = "there is no bbox, and no segmentation that has one"
        else:
            what = f"bbox {_told(row['bbox'])} is not four finite numbers"
        self.problems.fatal(self.file, _named(n, row), what, fix)
        return None


def _around(segmentation: object, image: _Image) -> Sequence[float] | None:
    """x, y, width, height around polygons or run lengths; None when they cannot be read."""
    if isinstance(segmentation, list):
        parts = [
            cast("list[Any]", part) for part in cast("list[Any]", segmentation) if isinstance(part, list)
        ]
        rows = [numbers(part, len(part)) for part in parts]
        points = [v for row in rows if row and len(row) >= 6 for v in row[: len(row) // 2 * 2]]
        if not points:
            return None
        x1, y1, x2, y2 = hull(points)
        return x1, y1, x2 - x1, y2 - y1
    try:
        return box_of(segmentation, image.height, image.width)
    except ValueError:
        return None


def _named(n: int, row: dict[str, Any]) -> str:
    """An annotation's place in the file and its id."""
    return f"annotations[{n}] (id {_told(row.get('id'))})"


def _load(file: Path) -> dict[str, Any]:
    """The file with its three lists."""
    try:
        whole = read_json(file)
    except Unusable as error:
        raise DataError(str(error)) from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(whole.get(key), list):
            keys = ", ".join(list(whole)[:12]) or "none"
            raise DataError(
                f'{file}: holds no list "{key}", as COCO files do; its keys are: {keys}; write it again from '
                "its origin"
            )
    return whole


class _Root:
    """Where images lie: below one folder, but for names that must be looked for one by one."""

    def __init__(self, root: Path, places: Places, *, complete: bool) -> None:
        self.root, self.places, self.complete = root, places, complete

    def __call__(self, name: str) -> Path:
        if self.complete and not any(sign in name for sign in "\\%:") and not name.startswith(("/", ".")):
            return self.root / name
        return self.places.find(name) or self.root / name


def _finder(reading: _Reading, folders: Sequence[Path]) -> _Root:
    """Finds pictures; asks the disk for each only where the first ones do not lie in one folder."""
    here = [folder for folder in dict.fromkeys(folders) if folder.is_dir()] or [reading.file.parent]
    every = [image.file_name for image in reading.images.values()]
    first = every if len(every) <= _ALL else every[:: len(every) // _TRIED]
    there = {folder: sum(is_regular(folder / name) for name in first) for folder in here}
    best = max(here, key=lambda folder: there[folder])
    places = Places([best, *(folder for folder in here if folder != best)])
    find = _Root(best, places, complete=there[best] == len(first))
    if first and not there[best] and not any(map(places.find, first)):
        looked = ", ".join(map(str, here))
        what = f'neither "{first[0]}" nor the next {len(first) - 1} images are in any of: {looked}'
        fix = "put the images there or mend each file_name"
        reading.problems.fatal(reading.file, "images", what, fix)
        find.complete = True
    if not find.complete:
        for image in reading.images.values():
            find(image.file_name)
        reading.problems.notes += [f"{reading.file}: {told}" for told in places.sentences()]
        places.changed.clear()
    return find


def _whole(value: object) -> int | None:
    """A whole number of 64 bits, written as 1 or as 1.0; else None."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and -_LARGEST_ID <= value < _LARGEST_ID:
        return value
    return None


def _bad_text(value: object) -> str:
    """Why a value is no name, in words; empty when it is one."""
    if not isinstance(value, str) or not value.strip():
        return f"{_told(value)}, no text" if not isinstance(value, str) else "empty"
    if not can_be_a_name(value):
        return f"{_told(value)}, which holds signs that no name can have"
    return ""


def _told(value: object) -> str:
    """A value of the file as a message shows it: in quotes or brackets, and short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f'"{ascii(value[:40])[1:-1]}{"..." if len(value) > 40 else ""}"'
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else "a number of more than 20 digits"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else "[no finite number]"
    if isinstance(value, list):
        row = cast("list[Any]", value)
        first = ["[...]" if isinstance(one, (list, dict)) else _told(one) for one in row[:6]]
        return f"[{', '.join(first)}{', ...' if len(row) > 6 else ''}]"
    return "an object"


def _listed(table: Iterable[int]) -> str:
    """The first keys, for a message."""
    keys = list(islice(table, 11))
    return ", ".join(map(str, keys[:10])) + (", ..." if len(keys) > 10 else "")
