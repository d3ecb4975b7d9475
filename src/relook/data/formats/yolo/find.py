"""Which YOLO data a path holds: by data.yaml, obj.data (darknet, CVAT), folders, or text beside pictures."""

import os
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

from relook.data.disk.listing import PassedOver, child, files_below, images_below, like, names_in
from relook.data.disk.places import FOLDERS, spellings
from relook.data.disk.regular import LARGEST_LIST, Unusable, is_regular, why_not
from relook.data.disk.text import read_class_names, read_text, read_yaml, split_lines
from relook.data.formats.problems import SPLIT_NAMES, Parts, Problems, with_stand_in
from relook.data.formats.yolo.read import Layout, is_label_line, read_yolo
from relook.data.sample import DataError, Source, Split
from relook.escaping import can_be_a_name

_IMAGES = ("images", "image", "imgs", "img", "JPEGImages")
_LABELS = ("labels", "label")
_MEANT = ("data", "dataset")  # stems of YAML files that must be readable; others may be of other things


def find_yolo(path: Path) -> Parts | None:
    """The splits of a YOLO folder or of its data.yaml; None when `path` is neither.

    Raises:
        DataError: when data.yaml or obj.data contradict themselves or name what is not there.
    """
    return find_declared_yolo(path) or (_by_folders(path) or _beside(path) if path.is_dir() else None)


def find_declared_yolo(path: Path) -> Parts | None:
    """The splits that a data.yaml or obj.data names; None when there is none.

    Raises:
        DataError: as `find_yolo`.
    """
    if path.is_file():
        return _by_yaml(path) if path.suffix.lower() in {".yaml", ".yml"} else None
    named = [path / name for name in names_in(path)]
    files = [file for file in named if file.suffix.lower() in {".yaml", ".yml"}]
    for file in sorted(files, key=lambda file: file.stem.lower() not in _MEANT):
        if (parts := _of_any(file)) is not None:
            return parts
    for file in named:
        if file.suffix.lower() == ".data" and (parts := _by_obj_data(file)) is not None:
            return parts
    return None


def _of_any(file: Path) -> Parts | None:
    """The splits of a YAML file; one not called data.yaml may be broken, for it may be another program's."""
    try:
        return _by_yaml(file)
    except DataError:
        if file.stem.lower() in _MEANT:
            raise
        return None


# -- data.yaml -----------------------------------------------------------------------------------------


def _by_yaml(file: Path) -> Parts | None:
    """The splits that a data.yaml names; None when it is another kind of file.

    Raises:
        DataError: when it contradicts itself, or an entry names a folder that is nowhere.
    """
    try:
        said: Any = read_yaml(file)
    except Unusable as error:
        raise DataError(str(error)) from error
    if not isinstance(said, dict) or not {"names", "nc"} & {str(key).lower() for key in cast("Any", said)}:
        return None
    facts = {str(key).lower(): value for key, value in cast("dict[Any, Any]", said).items()}
    classes = _classes(facts, file)
    if not any(_entry(facts, split) for split in SPLIT_NAMES):
        return _by_folders(file.parent, Layout(file=file, classes=classes))
    layout = Layout(
        file=file, classes=classes, keypoints=_keypoints(facts, file), outlines=_says_outlines(facts)
    )
    parts: Parts = {}
    missing: Parts = {}  # a test part is written there by many tools whether there is one or not
    for split in SPLIT_NAMES:
        entry = _entry(facts, split)
        if not entry:
            continue
        try:
            places = [_place(one, file, facts.get("path")) for one in entry]
        except DataError as error:
            missing[split] = partial(_refuse, error)
            continue
        parts[split] = partial(read_yolo, places, layout, name=f"{file.parent.name} {split}")
    return {**(with_stand_in(parts) if "val" not in missing else parts), **missing}


def _refuse(error: DataError, problems: Problems) -> Source:  # noqa: ARG001 (a Part)
    raise error


def _entry(facts: dict[str, Any], split: Split) -> list[Any]:
    """What a data.yaml says of a split."""
    found = next((facts[key] for key in SPLIT_NAMES[split] if not _empty(facts.get(key))), None)
    if isinstance(found, list):
        return [one for one in cast("list[Any]", found) if not _empty(one)]
    return [] if found is None else [found]


def _empty(value: object) -> bool:
    return value is None or value in ("", "null", "~", "Null", "NULL")


def _classes(facts: dict[str, Any], file: Path) -> tuple[str, ...]:
    """Class names from a list, a mapping of 0, 1, 2 ... to names, a file of names, or numbers up to `nc`.

    Raises:
        DataError: when they are no names, the numbers of the mapping have holes, or `nc` counts otherwise.
    """
    names = _names(facts.get("names"), file)
    count = facts.get("nc")
    if _empty(count):
        if not names:
            raise DataError(f"{file}: names is empty; list the names of the classes")
        return names
    if not isinstance(count, str) or not count.strip().isdecimal() or len(count) > 9:
        raise DataError(
            f"{file}: nc is {_short(count)}, no number that can be; write how many classes there are"
        )
    if not names:
        return tuple(str(n) for n in range(min(int(count), 100_000)))
    if int(count) != len(names):
        raise DataError(
            f"{file}: nc says {int(count)} classes, but names lists {len(names)} "
            f"({_short(', '.join(names))}); write the same number, or remove nc"
        )
    return names


def _names(value: Any, file: Path) -> tuple[str, ...]:
    if _empty(value):
        return ()
    if isinstance(value, dict):
        pairs = list(cast("dict[Any, Any]", value).items())
        if not all(isinstance(key, str) and key.strip().isdecimal() and len(key) < 10 for key, _ in pairs):
            raise DataError(f"{file}: names has keys that are no numbers; number the classes 0, 1, 2 ...")
        table = {int(key): name for key, name in pairs}
        if sorted(table) != list(range(len(pairs))):
            raise DataError(
                f"{file}: names has the numbers {_short(sorted(table))}; number the classes 0, 1, 2 ..."
            )
        value = [table[n] for n in range(len(table))]
    elif isinstance(value, str):
        value = _listed(value, file)
    rows = cast("list[Any]", value)
    for n, name in enumerate(rows):
        if not isinstance(name, str) or not name.strip() or not can_be_a_name(name):
            raise DataError(f"{file}: names[{n}] is {_short(name)}, no name; write the name of the class")
    return tuple(rows)


def _listed(value: str, file: Path) -> list[Any]:
    """The names in a file that `names` names."""
    listed = next((p for p in (file.parent / value, Path(value)) if is_regular(p)), None)
    if listed is None:
        fix = "write a list, such as `names: [cat, dog]`, or the name of a file that is there"
        raise DataError(f"{file}: names is {_short(value)}, no list of classes and no file; {fix}")
    return list(read_class_names(listed))


def _short(value: object) -> str:
    """A value of the file as a message shows it; nothing of what it holds is written out."""
    if isinstance(value, str):
        return ascii(value[:60])
    if isinstance(value, list):
        rows = cast("list[object]", value)
        return (
            f"a list of {len(rows)}" if any(not isinstance(v, (str, int)) for v in rows) else str(rows[:12])
        )
    return "empty" if value is None else f"a {type(value).__name__}"


def _keypoints(facts: dict[str, Any], file: Path) -> tuple[int, int] | None:
    """How many keypoints each box has, and numbers of each: `kpt_shape`.

    Raises:
        DataError: when it is no pair of numbers.
    """
    said: Any = facts.get("kpt_shape")
    if _empty(said) or said == []:
        if facts.get("task") == "pose" or not _empty(facts.get("flip_idx")):
            raise DataError(f"{file}: is of poses without kpt_shape; write [keypoints of an object, 2 or 3]")
        return None
    pair: list[Any] = [*cast("list[Any]", said)] if isinstance(said, list) else []
    good = len(pair) == 2 and all(isinstance(v, str) and v.isdecimal() and 0 < int(v) < 10_000 for v in pair)
    if not good or int(pair[1]) not in (2, 3):
        raise DataError(
            f"{file}: kpt_shape is {_short(cast('object', said))}; write [keypoints of an object, 2 or 3]"
        )
    return int(pair[0]), int(pair[1])


def _says_outlines(facts: dict[str, Any]) -> bool:
    """Whether `task: segment` says that longer rows are outlines."""
    return facts.get("task") in ("segment", "seg", "obb")


def _place(entry: Any, file: Path, root: Any) -> Path:
    """Where an entry lies: below `path`, beside the file, or so without folders of its own in front.

    A folder is not found by its last part alone: each split may have an images/.

    Raises:
        DataError: when it is in none of these places.
    """
    if not isinstance(entry, str) or "\0" in entry:
        raise DataError(f"{file}: {_short(entry)} is no folder or list of images; write its name")
    here = file.parent
    roots = [here]
    if isinstance(root, str) and not _empty(root) and "\0" not in root:
        inner = root.replace("\\", "/").removeprefix("../").removeprefix("./")
        roots += [Path(root), here / root, here / inner]
    tried: list[Path] = []
    for name, how in spellings(entry):
        bare = FOLDERS in how and "/" not in name and "/" in entry.strip("./\\").replace("\\", "/")
        for place in reversed(roots):
            tried.append(place / name)
            if is_regular(tried[-1]) or (tried[-1].is_dir() and not bare):
                return tried[-1]
    near = next((found for one in tried[: 2 * len(roots)] if (found := like(one)) and found.is_dir()), None)
    if near is not None:
        return near
    there = next((one for one in tried if os.path.lexists(one) and not one.is_dir()), None)
    if there is not None:
        what = why_not(there, LARGEST_LIST) or "is no folder"
        raise DataError(f"{file}: {entry} {what}; name a folder, or a list of images")
    looked = ", ".join(list(dict.fromkeys(map(str, tried)))[:6])
    raise DataError(f"{file}: {entry} was not found; looked for {looked}. Mend the entry or its `path`")


# -- obj.data ------------------------------------------------------------------------------------------


def _by_obj_data(file: Path) -> Parts | None:
    """The splits of darknet's and CVAT's `obj.data`: lines such as `train = data/train.txt`.

    Raises:
        DataError: when it names other classes than it counts, or a list that is nowhere.
    """
    try:
        lines = [line.partition("=") for line in split_lines(read_text(file))]
    except Unusable as error:
        raise DataError(str(error)) from error
    facts = {key.strip().lower(): value.strip() for key, equals, value in lines if equals}
    if "names" not in facts:
        return None
    entries = {
        split: next((facts[k] for k in keys if facts.get(k)), "") for split, keys in SPLIT_NAMES.items()
    }
    try:
        names = read_class_names(_place(facts["names"], file, None))
        said: dict[str, Any] = {"names": list(names), "nc": facts.get("classes")}
        layout = Layout(file=file, classes=_classes(said, file))
    except Unusable as error:
        raise DataError(str(error)) from error
    parts: Parts = {
        split: partial(read_yolo, [_place(entry, file, None)], layout, name=f"{file.parent.name} {split}")
        for split, entry in entries.items()
        if entry and _exists(entry, file)
    }
    if not parts:
        inner = child(file.parent, "obj_train_data", "data")
        if inner is None:
            raise DataError(
                f"{file}: names no list that is here; write `train = train.txt`, a list of images"
            )
        parts["all"] = partial(read_yolo, [inner], layout, name=file.parent.name)
    return with_stand_in(parts)


def _exists(entry: str, file: Path) -> bool:
    return any((file.parent / name).exists() for name, _ in spellings(entry))


# -- folders -------------------------------------------------------------------------------------------


def _by_folders(path: Path, declared: Layout | None = None) -> Parts | None:
    """The splits of images/ and labels/, whichever of split and kind is the outer folder."""
    layout = declared or Layout(file=path)
    images = child(path, *_IMAGES)
    parts: Parts = {}
    if images is not None and _has_labels(child(path, *_LABELS), images):
        for split, names in SPLIT_NAMES.items():
            place = child(images, *names)
            if place is not None:
                parts[split] = partial(read_yolo, [place], layout, name=f"{path.name} {split}")
        return with_stand_in(parts or {"all": partial(read_yolo, [images], layout, name=path.name)})
    for split, names in SPLIT_NAMES.items():
        outer = child(path, *names)
        inner = None if outer is None else child(outer, *_IMAGES)
        if outer is not None and inner is not None and _has_labels(child(outer, *_LABELS), inner):
            parts[split] = partial(read_yolo, [inner], layout, name=f"{path.name} {split}")
    return with_stand_in(parts) if parts else None


def _has_labels(labels: Path | None, images: Path) -> bool:
    """Whether there are labels to images: in a folder of text files, or beside the images."""
    for place in (labels, images):
        if place is None:
            continue
        texts = files_below(place, lambda name: name.lower().endswith(".txt"), PassedOver())
        if place == labels and next(texts, None) is not None:
            return True
        if any(_starts_with_label(text) for text in islice(texts, 20)):
            return True
    return False


def _beside(path: Path) -> Parts | None:
    """Text files beside their pictures (LabelImg), in one folder or in train/, val/ and test/."""
    parts: Parts = {}
    for split, names in SPLIT_NAMES.items():
        place = child(path, *names)
        if place is not None and _labelled(place):
            parts[split] = partial(read_yolo, [place], Layout(file=path), name=f"{path.name} {split}")
    if parts:
        return with_stand_in(parts)
    inner = child(path, "obj_train_data")
    for place in (path, inner):
        if place is not None and _labelled(place):
            return {"all": partial(read_yolo, [place], Layout(file=path), name=path.name)}
    return None


def _labelled(place: Path) -> bool:
    """Whether some of the first pictures here have a text file of that name whose first line is a label."""
    listed = any((folder / "classes.txt").is_file() for folder in (place, place.parent))
    for n, image in enumerate(images_below(place, PassedOver())):
        text = image.with_suffix(".txt")
        if n == 200:
            return False
        if text.is_file() and text.name.lower() not in _LISTS and (listed or _starts_with_label(text)):
            return True
    return False


_LISTS: Sequence[str] = ("classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "readme.txt")


def _starts_with_label(text: Path) -> bool:
    try:
        lines = [line for line in split_lines(read_text(text)) if line.strip()]
    except Unusable:
        return False
    return bool(lines) and is_label_line(lines[0])
