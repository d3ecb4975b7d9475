"""What is in YOLO's text files: a box, an outline or a box with keypoints a line, as data.yaml declares."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from relook.data.columnar import pack
from relook.data.decode import BrokenImage, image_size
from relook.data.disk.listing import PassedOver, files_below, images_below, is_image_name, names_in
from relook.data.disk.places import Places
from relook.data.disk.regular import Unusable
from relook.data.disk.text import read_class_names, read_lines, read_text, split_lines, to_number
from relook.data.formats.geometry import CENTRE_AND_SIZE, box_problems, hull, likely_cause, swapped, upright
from relook.data.formats.problems import MOST_CLASSES, Problems, distinct, too_many_classes
from relook.data.sample import Sample, Source

_CLASS_FILES = ("classes.txt", "labels.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
_BEYOND = 2.0  # shares above are pixels


@dataclass(frozen=True, slots=True)
class Layout:
    """What a data set declares of itself."""

    file: Path  # data.yaml, obj.data or the folder
    classes: tuple[str, ...] | None = None  # None: by classes.txt, else by numbers
    keypoints: tuple[int, int] | None = None  # keypoints of each object, numbers of each
    outlines: bool = False  # longer rows are outlines, whatever else they could be

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.file if self.file.is_dir() else self.file.parent


def read_yolo(places: Sequence[Path], layout: Layout, problems: Problems, *, name: str) -> Source:
    """Reads all images below `places`; one without a label file is an image without objects.

    A line is `class x y width height`, the box by its centre and sides as shares of the image, then the
    keypoints if data.yaml declares some (`kpt_shape`), or `class x1 y1 x2 y2 x3 y3 ...`, an outline, whose
    hull is the box.

    Args:
        places: folders, or text files that list images.
        layout: what is declared.
        problems: where mistakes go; a line with a mistake is left out.
        name: of the split, for messages.
    """
    images = list(dict.fromkeys(image for place in places for image in _images_of(place, problems)))
    classes = _classes(layout, places, problems) if layout.classes is None else layout.classes
    if too_many_classes(len(classes), layout.file, problems):
        classes = ()
    if not images:
        problems.fatal(places[0], "images", "there is none", "put the images there")
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(_size, images))
    reading = _Reading(layout, len(classes), problems)
    samples = [reading.sample(*one, key) for key, one in enumerate(zip(images, sizes, strict=True), 1)]
    reading.finish(images)
    return Source(
        name=name,
        samples=pack(samples),
        classes=distinct(classes, range(len(classes)), layout.file, problems),
        category_ids=tuple(range(len(classes))),
        file=layout.file,
        notes=problems.all_notes(),
    )


def _images_of(place: Path, problems: Problems) -> Iterator[Path]:
    if place.is_dir():
        passed = PassedOver()
        yield from images_below(place, passed)
        told = passed.sentence(place)
        problems.notes += [told] if told else []
        return
    listed: tuple[str, ...] = ()
    with problems.going_on(place, "list"):
        listed = read_lines(place)
    find = Places(_roots(place))
    for line, count in Counter(listed).items():
        if count > 1:
            what = f'"{line}" is listed {count} times; it is taken once'
            problems.tolerable(place, f'line "{line}"', what, "drop the others")
        image = find.find(line) or place.parent / line.replace("\0", "")
        if image.name:
            yield image
        else:
            problems.fatal(place, f'line "{line}"', "is no name of a picture", "write one or drop the line")
    problems.notes += [f"{place}: {told}" for told in find.sentences()]


def _roots(listing: Path) -> list[Path]:
    """What names in a list may be relative to: its folder, those above, and where tools put images."""
    here = listing.parent
    return [here, here.parent, here / "obj_train_data", here / "images"]


def _size(image: Path) -> tuple[int, int]:
    """Height and width; zeros when the image is broken, as will be found when it is loaded."""
    try:
        return image_size(image)
    except BrokenImage:
        return 0, 0


def label_files(image: Path) -> tuple[Path, ...]:
    """Where the labels of an image may be: labels/ in place of the last images/ of its path, or beside it."""
    parts = list(image.parts)
    beside = image.with_suffix(".txt")
    for n in reversed(range(len(parts) - 1)):
        if parts[n].lower() in {"images", "image", "imgs", "img", "jpegimages"}:
            names = ("labels", "Labels", "label") if parts[n] != "images" else ("labels", "Labels")
            return (*(Path(*parts[:n], one, *parts[n + 1 :]).with_suffix(".txt") for one in names), beside)
    return (beside,)


# -- classes -------------------------------------------------------------------------------------------


def _classes(layout: Layout, places: Sequence[Path], problems: Problems) -> tuple[str, ...]:
    """The lines of classes.txt, else one number per class up to the largest in any label file."""
    folder = layout.folder
    beside = [label_files(place / "a.jpg")[0].parent for place in places]
    near = [one for place in (*places, *beside) for one in (place, place.parent)]
    for place in dict.fromkeys((*places, *beside, *near, folder, folder / "labels")):
        found = [place / name for name in names_in(place) if name in _CLASS_FILES or name.endswith(".names")]
        for file in found:
            with problems.going_on(file, "file"):
                return read_class_names(file)
    for file in files_below(folder, lambda name: name in _CLASS_FILES, PassedOver()):
        with problems.going_on(file, "file"):
            return read_class_names(file)
    numbers: set[int] = set()
    for file in files_below(folder, lambda name: name.lower().endswith(".txt"), PassedOver()):
        try:
            first = [line.split()[0] for line in split_lines(read_text(file)) if is_label_line(line)]
        except Unusable:
            continue  # it is told when it is read as labels
        numbers |= {int(float(one)) for one in first if float(one) < MOST_CLASSES}
    problems.notes.append(f"{folder} has no data.yaml or classes.txt, so its classes are called by numbers")
    return tuple(str(n) for n in range(max(numbers, default=-1) + 1))


def is_label_line(line: str) -> bool:
    """Whether a line of text is a class and numbers."""
    values = _numbers(line)
    return values is not None and len(values) >= 5 and values[0] == int(values[0]) >= 0


def _numbers(line: str) -> list[float] | None:
    """The finite numbers of a line; None when it holds something else."""
    values = [to_number(word) for word in line.split()]
    return values if values and all(map(math.isfinite, values)) else None


# -- labels --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Line:
    label: int
    box: tuple[float, float, float, float]  # x1 y1 x2 y2 as shares of the image
    written: tuple[float, ...] = ()  # x y width height of a box
    outline: tuple[float, ...] = ()  # x y x y ...


class _Reading:
    """The label files of a split, one after the other, and what they have in common."""

    def __init__(self, layout: Layout, classes: int, problems: Problems) -> None:
        self.layout, self.classes, self.problems = layout, classes, problems
        self.files = 0  # label files that are there
        self.lengths: Counter[int] = Counter()  # of rows that are longer than a box
        self.like_keypoints: Counter[int] = Counter()  # of rows that could be a box and keypoints
        self.first_long = ("", "")  # file, record
        self.boxes: list[tuple[float, ...]] = []  # x y width height in pixels
        self.sizes: list[tuple[int, int]] = []
        self.used: dict[Path, Path] = {}  # label file -> image

    def sample(self, image: Path, size: tuple[int, int], key: int) -> Sample:
        """An image with the objects of its label file."""
        file = next((one for one in label_files(image) if _there(one)), None)
        lines: list[_Line] = []
        if file is not None:
            self.files += 1
            if file in self.used and self.used[file].name != image.name:
                what = f'"{image.name}" and "{self.used[file].name}" share this file'
                self.problems.tolerable(file, "file", what, "give each image a name of its own")
            self.used[file] = image
            with self.problems.going_on(file, "file"):
                lines = list(self.lines(file, size))
        height, width = size
        scale = [width, height, width, height]
        boxes = np.array([upright(line.box) for line in lines], np.float64).reshape(-1, 4) * scale
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
            segmentation=tuple(_polygon(line, size) for line in lines) if self.problems.masks else (),
        )

    def lines(self, file: Path, size: tuple[int, int]) -> Iterator[_Line]:
        """What a label file holds; nothing for an image that cannot be read."""
        for n, text in enumerate(split_lines(read_text(file))):
            record = f"line {n + 1}"
            line = self.parse(text, record, file) if text.strip() else None
            if line is None or size == (0, 0):
                continue
            x1, y1, x2, y2 = (v * side for v, side in zip(line.box, (size[1], size[0]) * 2, strict=True))
            turned = swapped((x1, y1, x2, y2))
            if turned is not None:
                self.problems.tolerable(file, record, *turned)
            x1, y1, x2, y2 = upright((x1, y1, x2, y2))
            for issue in box_problems((x1, y1, x2 - x1, y2 - y1), size):
                self.problems.tolerable(file, record, *issue)
            if line.written:
                x, y, width, height = line.written
                self.boxes.append((x * size[1], y * size[0], width * size[1], height * size[0]))
                self.sizes.append(size)
            yield line

    def parse(self, text: str, record: str, file: Path) -> _Line | None:
        """One line of a label file; None, and a problem, when it has a mistake."""
        values = _numbers(text)
        shown = ascii(text.strip()[:60])[1:-1]
        if values is None or values[0] != int(values[0]):
            what, fix = f'"{shown}" is not a class and numbers', "write `class x y width height`"
        elif not 0 <= values[0] < self.classes:
            what = f"class {values[0]:.12g} is not among the {self.classes} classes"
            known = f"write 0 to {self.classes - 1}, or " if self.classes else ""
            fix = f"{known}name the class in data.yaml or classes.txt"
        elif (wrong := self.wrong_length(len(values) - 1)) is not None:
            what, fix = wrong
        elif max(map(abs, values[1:5] if self.layout.keypoints else values[1:])) > _BEYOND:
            what = f'"{shown}" holds pixels, not shares of the image'
            fix = "divide x and width by the image's width, y and height by its height"
        else:
            return self.line(values, record, file)
        self.problems.fatal(file, record, what, fix)
        return None

    def wrong_length(self, count: int) -> tuple[str, str] | None:
        """What is wrong with a row of so many numbers behind the class; None when nothing is."""
        if count == 4:
            return None
        if self.layout.keypoints is not None:
            keypoints, each = self.layout.keypoints
            whole = 4 + keypoints * each
            if count == whole:
                return None
            return (
                f"{count} numbers follow the class, but kpt_shape [{keypoints}, {each}] asks for {whole}",
                "write the box and all keypoints, or mend kpt_shape",
            )
        if count == 5:
            return "5 numbers follow the class; is the last a score?", "write x, y, width and height alone"
        if count < 6 or count % 2:
            return f"{count} numbers follow the class", "write 4, or 6 or more in pairs for an outline"
        return None

    def line(self, values: Sequence[float], record: str, file: Path) -> _Line:
        """A row of a length that may be."""
        label, numbers = int(values[0]), values[1:]
        if len(numbers) == 4 or self.layout.keypoints is not None:
            x, y, width, height = numbers[:4]
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            return _Line(label, box, (x, y, width, height))
        if not self.lengths:
            self.first_long = (str(file), record)
        self.lengths[len(numbers)] += 1
        if _like_keypoints(numbers) and not (len(numbers) == 8 and _is_convex(numbers)):
            self.like_keypoints[len(numbers)] += 1
        return _Line(label, hull(numbers), outline=tuple(numbers))

    def finish(self, images: Sequence[Path]) -> None:
        """What shows in all label files together."""
        if self.layout.keypoints is not None:
            self.problems.notes.append(f"{self.layout.file}: keypoints are not read, boxes are")
        if self.problems.thorough:
            self.say_which_labels_have_no_image(images)
        self.say_where_labels_are_missing(images)
        self.refuse_what_may_be_keypoints()
        written = np.array(self.boxes, np.float64).reshape(-1, 4)
        sizes = np.array(self.sizes, np.float64).reshape(-1, 2)
        likely_cause(written, sizes, CENTRE_AND_SIZE, str(self.layout.file), self.problems)

    def say_where_labels_are_missing(self, images: Sequence[Path]) -> None:
        """Where labels were looked for, when none was found."""
        if self.files or not images:
            return
        looked = " and ".join(map(str, label_files(images[0])))
        elsewhere = _text_folders(self.layout.folder)
        found = f"; text files are in {', '.join(elsewhere)}" if elsewhere else ""
        self.problems.notes.append(
            f"none of {len(images)} images has a label file: that of {images[0].name} was looked for as "
            f"{looked}{found}"
        )

    def say_which_labels_have_no_image(self, images: Sequence[Path]) -> None:
        """Label files in the folders of those that belong to images, and yet to none."""
        known = {file for image in images for file in label_files(image)}
        folders = {file.parent for file in self.used}
        left = [
            folder / name
            for folder in sorted(folders)
            for name in names_in(folder)
            if name.lower().endswith(".txt") and folder / name not in known and name not in _CLASS_FILES
        ]
        left = [file for file in left if not file.stem.lower().startswith(("train", "val", "test", "readme"))]
        if left and self.files:
            self.problems.notes.append(f"{len(left)} label files have no image, such as {left[0]}")

    def refuse_what_may_be_keypoints(self) -> None:
        """Rows that are nearly all of one length and can be read both ways are not guessed at."""
        count = sum(self.lengths.values())
        length, alike = next(iter(self.lengths.most_common(1)), (0, 0))
        if self.layout.outlines or alike < 0.9 * count or self.like_keypoints[length] < max(1, alike / 2):
            return
        what = f"{alike} of {count} long rows have {length} numbers: boxes with keypoints, or outlines?"
        fix = "write `kpt_shape: [keypoints, 2 or 3]` or `task: segment` into data.yaml"
        self.problems.fatal(self.first_long[0], self.first_long[1], what, fix)


def _polygon(line: _Line, size: tuple[int, int]) -> list[list[float]] | None:
    """The outline in pixels, as COCO writes a mask; None for a box."""
    if not line.outline:
        return None
    return [[value * size[1 - n % 2] for n, value in enumerate(line.outline)]]


def _like_keypoints(numbers: Sequence[float]) -> bool:
    """Whether a row can be a box and keypoints.

    Of three numbers each the third says whether it is visible: 0, 1 or 2. Of two, the box must lie in the
    image and most points in the box. A single pair may also be a score and the number of a track.
    """
    x, y, width, height = numbers[:4]
    rest = numbers[4:]
    if len(rest) % 3 == 0 and set(rest[2::3]) <= {0.0, 1.0, 2.0}:
        return True
    low, high = (x - width / 2, y - height / 2), (x + width / 2, y + height / 2)
    if min(width, height) <= 0 or min(low) < -0.01 or max(high) > 1.01:
        return False
    if len(rest) == 2 and rest[1] == int(rest[1]):
        return True
    points = [p for p in zip(rest[::2], rest[1::2], strict=True) if p != (0.0, 0.0)]
    slack = 0.02
    inside = sum(abs(px - x) <= width / 2 + slack and abs(py - y) <= height / 2 + slack for px, py in points)
    return inside >= 2 / 3 * len(points) - 1e-9


def _is_convex(points: Sequence[float]) -> bool:
    """Whether points x, y, x, y ... are the corners of a convex outline, as those of a turned box."""
    corners = np.array(points, np.float64).reshape(-1, 2)
    sides = np.roll(corners, -1, 0) - corners
    turns = sides[:, 0] * np.roll(sides[:, 1], -1) - sides[:, 1] * np.roll(sides[:, 0], -1)
    return bool((turns > 0).all() or (turns < 0).all())


def _there(file: Path) -> bool:
    """Whether there is something by that name, be it a pipe: what cannot be read is told."""
    try:
        return file.exists()
    except (OSError, ValueError):
        return False


def _text_folders(folder: Path) -> list[str]:
    """Folders that hold text files, for a message."""
    found = Counter(
        file.parent.relative_to(folder).as_posix() or "."
        for file in files_below(folder, lambda name: name.lower().endswith(".txt"), PassedOver())
        if not is_image_name(file.name)
    )
    return [f"{name}/ ({count})" for name, count in found.most_common(4)]
