"""Data sets in COCO's JSON, in its own folders, in Roboflow's, or as one file beside its images."""

import gc
import json
import math
import re
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, cast

import numpy as np

from relook.data.columnar import pack
from relook.data.decode import BrokenImage, image_size
from relook.data.formats.geometry import box_problems, polygon_problems
from relook.data.formats.problems import Parts, Problems
from relook.data.sample import DataError, Sample, Source

T = TypeVar("T")

ROBOFLOW_FILE = "_annotations.coco.json"

_OTHER_TASKS = ("captions", "person_keypoints", "stuff", "panoptic", "image_info")
_ROLES = {"train": r"train", "val": r"val(id(ation)?)?", "test": r"test"}


# -- which files ------------------------------------------------------------------------------


def find_coco(path: Path) -> Parts | None:
    """The splits of a COCO file or folder; None when `path` is neither.

    Raises:
        DataError: when several files claim the same split.
    """
    if path.is_file():
        folder = path.parent.parent if path.parent.name == "annotations" else path.parent
        return _by_role(_siblings(path), folder) if path.suffix == ".json" else None
    files = [*path.glob("annotations/*.json"), *path.glob("*.json")]
    files = sorted(f for f in files if not f.name.startswith(_OTHER_TASKS))
    instances = [f for f in files if f.name.startswith("instances")]
    chosen = instances or [f for f in files if _looks_like_coco(f)]
    return _by_role(chosen, path) if chosen else None


def one_coco_file(path: Path) -> Parts:
    """A COCO file by itself, whatever lies beside it."""
    return _by_role([path], path.parent.parent if path.parent.name == "annotations" else path.parent)


def find_roboflow(path: Path) -> Parts | None:
    """The splits of a folder as Roboflow exports COCO: train/, valid/ and test/ with a JSON in each."""
    folders = {"train": ("train",), "val": ("valid", "val", "test")}
    parts: Parts = {}
    for split, names in folders.items():
        for name in reversed(names):
            if (path / name / ROBOFLOW_FILE).is_file():
                file = path / name / ROBOFLOW_FILE
                parts[split] = partial(read_coco, file, [file.parent], name=f"{path.name} {split}")
    return parts or None


def _by_role(files: Sequence[Path], folder: Path) -> Parts:
    """Which split each file is: by the words train, val or test in its name; test stands in for val."""
    by_role: dict[str, list[Path]] = {}
    for file in files:
        by_role.setdefault(_role(file), []).append(file)
    if "val" not in by_role and "test" in by_role:
        by_role["val"] = by_role["test"]
    by_role.pop("test", None)
    if "train" in by_role and "val" in by_role:
        by_role.pop("all", None)
    for role, claimed in by_role.items():
        if len(claimed) > 1:
            names = ", ".join(f.name for f in claimed)
            raise DataError(f"{folder}: {names} could all be the {role} split; name one of them as the data")
    return {
        role: partial(
            read_coco, claimed[0], _image_folders(claimed[0], folder, role), name=f"{folder.name} {role}"
        )
        for role, claimed in by_role.items()
    }


def _role(file: Path) -> str:
    for role, word in _ROLES.items():
        if re.search(rf"(^|[^a-z]){word}([^a-z]|$)", file.stem.lower()):
            return role
    return "all"


def _siblings(file: Path) -> list[Path]:
    """The file, and the one beside it that is named alike but for the words train and val."""
    swaps = (("train", "val"), ("val", "train"), ("train", "valid"), ("valid", "train"))
    for word, other in swaps:
        beside = file.with_name(file.name.replace(word, other))
        if word in file.name and beside.is_file() and beside != file:
            return [file, beside]
    return [file]


def _looks_like_coco(file: Path) -> bool:
    text = file.read_bytes()
    return b'"images"' in text or b'"annotations"' in text


def _image_folders(file: Path, folder: Path, role: str) -> list[Path]:
    """Where the images may lie, the likeliest first."""
    year = re.search(r"\d{4}", file.stem)
    names = [f"{role}{year[0]}"] if year else []
    names += {"train": ["train"], "val": ["val", "valid", "test"]}.get(role, [])
    roots = [folder, folder / "images", file.parent, file.parent / "images", folder / "JPEGImages"]
    return [*(root / name for name in names for root in roots[:2]), *roots]


# -- what is in them --------------------------------------------------------------------------


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
    root = _root(reading, folders)
    return Source(
        name=name,
        samples=pack(image.sample(root) for image in reading.images.values()),
        classes=tuple(reading.names[key] for key in reading.labels),
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
    file_name: str
    height: int  # 0 when the file does not say
    width: int
    boxes: list[list[float]] = field(default_factory=list[list[float]])  # x1 y1 x2 y2
    labels: list[int] = field(default_factory=list[int])
    crowd: list[bool] = field(default_factory=list[bool])
    ignore: list[bool] = field(default_factory=list[bool])
    area: list[float] = field(default_factory=list[float])
    segmentation: list[Any] = field(default_factory=list[Any])

    def sample(self, root: Path) -> Sample:
        path, height, width = root / self.file_name, self.height, self.width
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
    labels: dict[int, int] = field(default_factory=dict[int, int])  # by category id
    images: dict[int, _Image] = field(default_factory=dict[int, _Image])  # by id
    file_names: dict[str, int] = field(default_factory=dict[str, int])  # image id by file name
    annotation_ids: set[int] = field(default_factory=set[int])

    def read(self) -> None:
        """The whole file."""
        whole = _load(self.file)
        for n, row in enumerate(whole["categories"]):
            self.category(n, _object(row))
        self.finish_categories(whole["categories"])
        for n, row in enumerate(whole["images"]):
            self.image(n, _object(row))
        for n, row in enumerate(whole["annotations"]):
            self.annotation(n, _object(row))

    def category(self, n: int, row: dict[str, Any]) -> None:
        record = f"categories[{n}]"
        key, name = row.get("id"), row.get("name")
        if not _whole(key) or not name:
            self.problems.fatal(self.file, record, "has no whole-number id or no name", "give it both")
        elif key in self.names:
            self.problems.fatal(
                self.file, record, f"repeats the id {key}", "give each category an id of its own"
            )
        else:
            self.names[key] = str(name)

    def finish_categories(self, rows: list[Any]) -> None:
        """Labels count the category ids from the smallest.

        Roboflow lists the project itself as category 0, parent of all others; that one is no class.
        """
        parents = {_object(row).get("supercategory") for row in rows if _object(row).get("id") != 0}
        rootless = self.file.name != ROBOFLOW_FILE or parents != {self.names.get(0)}
        kept = sorted(key for key in self.names if key != 0 or rootless)
        self.labels = {key: label for label, key in enumerate(kept)}
        if not kept:
            self.problems.fatal(self.file, "categories", "none can be used", "list the classes: id and name")

    def image(self, n: int, row: dict[str, Any]) -> None:
        record = f"images[{n}]"
        key, name = row.get("id"), row.get("file_name")
        if not _whole(key) or not name:
            self.problems.fatal(self.file, record, "has no whole-number id or no file_name", "give it both")
            return
        if key in self.images:
            self.problems.fatal(
                self.file, record, f"repeats the id {key}", "give each image an id of its own"
            )
            return
        name = str(name)
        if name in self.file_names:
            twin = self.file_names[name]
            self.problems.tolerable(self.file, record, f"{name} is image {twin}, too", "join the two")
        self.file_names[name] = key
        height, width = row.get("height"), row.get("width")
        if not (_whole(height) and _whole(width) and height > 0 and width > 0):
            if height is not None or width is not None:
                what = f"height {height} and width {width} of {name} are no sizes; the file's are taken"
                self.problems.tolerable(self.file, record, what, "write the file's")
            height = width = 0
        self.images[key] = _Image(key, name, height, width)

    def annotation(self, n: int, row: dict[str, Any]) -> None:
        key = row.get("id")
        if _whole(key):
            if key in self.annotation_ids:
                self.problems.tolerable(
                    self.file, _named(n, row), "repeats its id", "give each an id of its own"
                )
            self.annotation_ids.add(key)
        image = self._find(self.images, n, row, "image_id")
        label = self._find(self.labels, n, row, "category_id")
        box = None if image is None or label is None else self._box(n, row)
        if image is None or label is None or box is None:
            return
        for problem in box_problems(box, (image.height, image.width)):
            self.problems.tolerable(self.file, f"{_named(n, row)} of {image.file_name}", *problem)
        crowd = bool(row.get("iscrowd", 0))
        if self.problems.thorough and not crowd:
            for problem in polygon_problems(row.get("segmentation")):
                self.problems.tolerable(self.file, f"{_named(n, row)} of {image.file_name}", *problem)
        x, y, width, height = box
        area = row.get("area")
        image.boxes.append([x, y, x + width, y + height])
        image.labels.append(label)
        image.crowd.append(crowd)
        image.ignore.append(bool(row.get("ignore", 0)))
        image.area.append(float(area) if _number(area) else width * height)
        if self.masks:
            image.segmentation.append(row.get("segmentation"))

    def _find(self, table: dict[int, T], n: int, row: dict[str, Any], key: str) -> T | None:
        """The image or label that an annotation names; None, and a problem, when there is none."""
        value = row.get(key)
        found = table.get(value) if _whole(value) else None
        if found is None:
            what = f"{key} {value} is not the id of any {key[:-3]}"
            known = f" (known: {_listed(table)})" if key == "category_id" else ""
            fix = f"write an id that exists{known} or remove it"
            self.problems.fatal(self.file, _named(n, row), what, fix)
        return found

    def _box(self, n: int, row: dict[str, Any]) -> list[float] | None:
        """x, y, width, height; None, and a problem, when they are not four finite numbers."""
        box = row.get("bbox")
        numbers = cast("list[Any]", box) if isinstance(box, list) else []
        if len(numbers) == 4 and all(map(_number, numbers)):
            return [float(number) for number in numbers]
        what = "there is no bbox" if box is None else f"bbox {box} is not four finite numbers"
        fix = "write [x, y, width, height] in pixels, or remove the annotation"
        self.problems.fatal(self.file, _named(n, row), what, fix)
        return None


def _named(n: int, row: dict[str, Any]) -> str:
    """An annotation's place in the file and its id."""
    return f"annotations[{n}] (id {row.get('id')})"


def _load(file: Path) -> dict[str, list[Any]]:
    """The three lists of the file."""
    try:
        whole = _object(json.loads(file.read_bytes()))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{file}: is no JSON ({error}); write it again from its origin") from error
    lists: dict[str, list[Any]] = {}
    for key in ("images", "annotations", "categories"):
        if not isinstance(whole.get(key), list):
            keys = ", ".join(whole) or "none"
            raise DataError(f'{file}: holds no list "{key}", as COCO files do; its keys are: {keys}')
        lists[key] = whole[key]
    return lists


def _root(reading: _Reading, folders: Sequence[Path]) -> Path:
    """The folder in which most of the first images lie."""
    first = [image.file_name for image in list(reading.images.values())[:50]]
    there = {folder: sum((folder / name).is_file() for name in first) for folder in folders}
    best = max(folders, key=lambda folder: there[folder])
    if first and not there[best]:
        looked = ", ".join(dict.fromkeys(map(str, folders)))
        what = f"neither {first[0]} nor the next {len(first) - 1} images are in any of: {looked}"
        reading.problems.fatal(reading.file, "images", what, "put the images there or fix each file_name")
    return best


def _object(row: object) -> dict[str, Any]:
    """The row as a JSON object; anything else is one without keys."""
    return cast("dict[str, Any]", row) if isinstance(row, dict) else {}


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _listed(table: Iterable[int]) -> str:
    """The first keys, for a message."""
    keys = sorted(table)
    return ", ".join(map(str, keys[:10])) + (", ..." if len(keys) > 10 else "")
