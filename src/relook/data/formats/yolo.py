"""Data sets in YOLO's folders: images/ and labels/ with a text file per image, and mostly a data.yaml."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml

from relook.data.columnar import pack
from relook.data.decode import EXTENSIONS, BrokenImage, image_size
from relook.data.formats.geometry import box_problems
from relook.data.formats.problems import Parts, Problems
from relook.data.sample import DataError, Sample, Source

_VAL_NAMES = ("val", "valid", "validation", "test")


# -- which files ---------------------------------------------------------------------------------------


def find_yolo(path: Path) -> Parts | None:
    """The splits of a YOLO folder or of its data.yaml; None when `path` is neither."""
    if path.is_file():
        return _by_yaml(path) if path.suffix in {".yaml", ".yml"} else None
    for file in sorted([*path.glob("*.yaml"), *path.glob("*.yml")]):
        if (parts := _by_yaml(file)) is not None:
            return parts
    return _by_folders(path)


def _by_yaml(file: Path) -> Parts | None:
    """The splits that a data.yaml names; None when it is another kind of file.

    Raises:
        DataError: when an entry names a folder that is nowhere.
    """
    try:
        said: Any = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is no YAML ({error})") from error
    if not isinstance(said, dict) or "train" not in said or "names" not in said:
        return None
    facts = cast("dict[str, Any]", said)
    classes = _names(facts["names"], file)
    parts: Parts = {}
    for split, keys in (("train", ("train",)), ("val", _VAL_NAMES)):
        entry = next((facts[key] for key in keys if facts.get(key)), None)
        if entry is not None:
            places = [_place(str(one), file, facts.get("path")) for one in _as_list(entry)]
            parts[split] = partial(read_yolo, places, classes, file=file, name=f"{file.parent.name} {split}")
    return parts


def _as_list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _names(value: Any, file: Path) -> tuple[str, ...]:
    """Class names from a list, or from a mapping of 0, 1, 2 ... to names.

    Raises:
        DataError: when the numbers of the mapping have holes.
    """
    if not isinstance(value, dict):
        return tuple(map(str, _as_list(value)))
    table = {int(key): str(name) for key, name in cast("dict[Any, Any]", value).items()}
    if sorted(table) != list(range(len(table))):
        raise DataError(f"{file}: names has the numbers {sorted(table)}; number the classes 0, 1, 2 ...")
    return tuple(table[n] for n in range(len(table)))


def _place(entry: str, file: Path, root: Any) -> Path:
    """Where an entry lies: below `path`, beside the file, or so without its leading ../ (Roboflow's habit).

    Raises:
        DataError: when it is in none of these places.
    """
    here = file.parent
    roots = [here, *([Path(str(root)), here / str(root)] if root else [])]
    plain = entry.removeprefix("../").removeprefix("./")
    tried = [place / name for name in (entry, plain) for place in reversed(roots)]
    for place in tried:
        if place.exists():
            return place
    looked = ", ".join(dict.fromkeys(map(str, tried)))
    raise DataError(f"{file}: {entry} was not found; looked for {looked}. Mend the entry or its `path`")


def _by_folders(path: Path) -> Parts | None:
    """The splits of images/ and labels/, whichever of split and kind is the outer folder."""
    if not any(path.glob("labels/**/*.txt")) and not any(path.glob("*/labels/*.txt")):
        return None
    parts: Parts = {}
    for split, names in (("train", ("train",)), ("val", _VAL_NAMES)):
        places = [p for name in names for p in (path / "images" / name, path / name / "images") if p.is_dir()]
        if places:
            parts[split] = partial(read_yolo, places[:1], None, file=path, name=f"{path.name} {split}")
    if not parts and (path / "images").is_dir():
        parts["all"] = partial(read_yolo, [path / "images"], None, file=path, name=path.name)
    return parts or None


# -- what is in them -----------------------------------------------------------------------------------


def read_yolo(
    places: Sequence[Path], classes: tuple[str, ...] | None, problems: Problems, *, file: Path, name: str
) -> Source:
    """Reads all images below `places`; one without a label file is an image without objects.

    A line is `class x y width height`, the box by its centre and sides as shares of the image, or
    `class x1 y1 x2 y2 x3 y3 ...`, an outline, whose hull is the box.

    Args:
        places: folders, or text files that list images.
        classes: names; None takes those of classes.txt, or numbers when there is none.
        problems: where mistakes go; a line with a mistake is left out.
        file: the data.yaml or the folder, for messages.
        name: of the split, for messages.
    """
    images = [image for place in places for image in _images_of(place)]
    if classes is None:
        classes = _classes(file, problems)
    if not images:
        problems.fatal(places[0], "images", "there is none", "put the images there")
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(_size, images))
    return Source(
        name=name,
        samples=pack(
            _sample(image, n + 1, size, len(classes), problems)
            for n, (image, size) in enumerate(zip(images, sizes, strict=True))
        ),
        classes=classes,
        category_ids=tuple(range(len(classes))),
        file=file,
        notes=problems.all_notes(),
    )


def _images_of(place: Path) -> list[Path]:
    if place.is_file():
        lines = [line.strip() for line in place.read_text().splitlines() if line.strip()]
        return [place.parent / line for line in lines]
    return sorted(file for file in place.rglob("*") if file.suffix.lower() in EXTENSIONS)


def _size(image: Path) -> tuple[int, int]:
    """Height and width; zeros when the image is broken, as will be found when it is loaded."""
    try:
        return image_size(image)
    except BrokenImage:
        return 0, 0


def _label_file(image: Path) -> Path:
    """The text file of an image: labels/ in place of the last images/ of its path, else beside it."""
    parts = list(image.parts)
    for n in reversed(range(len(parts) - 1)):
        if parts[n] == "images":
            return Path(*parts[:n], "labels", *parts[n + 1 :]).with_suffix(".txt")
    return image.with_suffix(".txt")


def _classes(folder: Path, problems: Problems) -> tuple[str, ...]:
    """The lines of classes.txt, else one number per class up to the largest in any label file."""
    for listed in (folder / "classes.txt", folder / "labels" / "classes.txt", folder / "obj.names"):
        if listed.is_file():
            return tuple(line.strip() for line in listed.read_text().splitlines() if line.strip())
    numbers = {
        int(line.split()[0])
        for pattern in ("labels/**/*.txt", "*/labels/*.txt")
        for file in folder.glob(pattern)
        for line in file.read_text().splitlines()
        if line.strip() and line.split()[0].isdigit()
    }
    problems.notes.append(f"{folder} has no data.yaml or classes.txt, so its classes are called by numbers")
    return tuple(str(n) for n in range(max(numbers, default=-1) + 1))


@dataclass(frozen=True, slots=True)
class _Line:
    label: int
    box: tuple[float, float, float, float]  # x1 y1 x2 y2 as shares of the image


def _sample(image: Path, key: int, size: tuple[int, int], classes: int, problems: Problems) -> Sample:
    file = _label_file(image)
    lines: list[_Line] = []
    if file.is_file():
        for n, text in enumerate(file.read_text().splitlines()):
            line = _parse(text, f"line {n + 1}", file, classes, problems) if text.strip() else None
            if line is not None and size != (0, 0):
                x1, y1, x2, y2 = np.array(line.box) * [size[1], size[0], size[1], size[0]]
                for issue in box_problems((x1, y1, x2 - x1, y2 - y1), size):
                    problems.tolerable(file, f"line {n + 1}", *issue)
                lines.append(line)
    height, width = size
    boxes = np.array([line.box for line in lines], np.float64).reshape(-1, 4) * [width, height, width, height]
    return Sample(
        id=key,
        path=image,
        height=height,
        width=width,
        boxes=boxes,
        labels=np.array([line.label for line in lines], np.int64),
        crowd=np.zeros(len(lines), np.bool_),
        ignore=np.zeros(len(lines), np.bool_),
        area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
    )


def _parse(text: str, record: str, file: Path, classes: int, problems: Problems) -> _Line | None:
    """One line of a label file; None, and a problem, when it has a mistake."""
    try:
        first, *numbers = map(float, text.split())
    except ValueError:
        first, numbers = math.nan, list[float]()
    shown = text.strip()[:60]
    if not all(map(math.isfinite, (first, *numbers))) or first != int(first):
        problems.fatal(
            file, record, f'"{shown}" is not a class and numbers', "write `class x y width height`"
        )
    elif not 0 <= first < classes:
        what = f"class {first:g} is not among the {classes} classes"
        problems.fatal(file, record, what, f"write 0 to {classes - 1}, or name the class in data.yaml")
    elif len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        problems.fatal(
            file, record, f"{len(numbers)} numbers follow the class", "write 4, or 6 or more in pairs"
        )
    elif max(map(abs, numbers)) > 2:
        what = f'"{shown}" holds pixels, not shares of the image'
        problems.fatal(
            file, record, what, "divide x and width by the image's width, y and height by its height"
        )
    elif len(numbers) == 4:
        x, y, width, height = numbers
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return _Line(int(first), box)
    else:
        xs, ys = numbers[::2], numbers[1::2]
        return _Line(int(first), (min(xs), min(ys), max(xs), max(ys)))
    return None
