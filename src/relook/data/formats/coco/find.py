"""Which COCO files a path holds: in COCO's own folders, in Roboflow's, or one file beside its images."""

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from relook.data.disk.listing import child, names_in
from relook.data.disk.regular import LARGEST_JSON, MEGABYTE, Unusable, is_regular, read_ends
from relook.data.formats.coco.read import ROBOFLOW_FILE, read_coco
from relook.data.formats.problems import SPLIT_NAMES, Part, Parts, ambiguous, with_stand_in

_LOOKED_AT = 16 * MEGABYTE  # of each end of a file
_OTHER_TASKS = ("captions", "person_keypoints", "stuff", "panoptic", "image_info")
_ROLES = {"train": r"train(ing)?", "val": r"val(id(ation)?)?", "test": r"test(ing)?"}
_VAL_FOLDERS = ["val", "valid", "validation", "test"]
_FOLDERS = {"train": ["train", "training"], "val": _VAL_FOLDERS, "test": ["test", "testing", "val", "valid"]}


def find_coco(path: Path) -> Parts | None:
    """The splits of a COCO file or folder; None when `path` is neither.

    A split that several files claim is ambiguous; reading it says so, and the others can be read.
    """
    if path.is_file():
        return _by_role(_siblings(path), _folder_of(path)) if path.suffix.lower() == ".json" else None
    listed = child(path, "annotations", "annotation", "labels")
    files = [folder / n for folder in (path, listed) if folder for n in names_in(folder) if _is_json(n)]
    files = sorted(f for f in files if not f.name.startswith(_OTHER_TASKS))
    instances = [f for f in files if f.name.startswith("instances")]
    chosen = instances or [f for f in files if _looks_like_coco(f)]
    return _by_role(chosen, path) if chosen else None


def one_coco_file(path: Path) -> Parts:
    """A COCO file by itself, whatever lies beside it."""
    return {"all": _part(path, _folder_of(path), _role(path))}


def find_roboflow(path: Path) -> Parts | None:
    """The splits of a folder as Roboflow exports COCO: train/, valid/ and test/ with a JSON in each."""
    parts: Parts = {}
    for split, names in SPLIT_NAMES.items():
        file = next((f for name in names if (f := path / name / ROBOFLOW_FILE).is_file()), None)
        if file is not None:
            parts[split] = partial(read_coco, file, [file.parent], name=f"{path.name} {split}")
    return with_stand_in(parts) if parts else None


def _by_role(files: Sequence[Path], folder: Path) -> Parts:
    """Which split each file is: by the words train, val or test in its name."""
    by_role: dict[str, list[Path]] = {}
    for file in files:
        by_role.setdefault(_role(file), []).append(file)
    if "train" in by_role and {"val", "test"} & set(by_role):
        by_role.pop("all", None)
    roles = [role for role in (*_ROLES, "all") if role in by_role]
    return with_stand_in({role: _claimed(by_role[role], folder, role) for role in roles})


def _claimed(files: Sequence[Path], folder: Path, role: str) -> Part:
    return _part(files[0], folder, role) if len(files) == 1 else ambiguous(folder, role, files)


def _part(file: Path, folder: Path, role: str) -> Part:
    return partial(read_coco, file, _image_folders(file, folder, role), name=f"{folder.name} {role}")


def _role(file: Path) -> str:
    for role, word in _ROLES.items():
        if re.search(rf"(^|[^a-z]){word}([^a-z]|$)", file.stem.lower()):
            return role
    return "all"


def _folder_of(file: Path) -> Path:
    """The folder of the data set that an annotation file belongs to."""
    beside = file.parent.name.lower() in {"annotations", "annotation", "labels"}
    return file.parent.parent if beside else file.parent


def _siblings(file: Path) -> list[Path]:
    """The file, and those beside it that are named alike but for the words train, val and test."""
    words = ("train", "valid", "val", "test")
    for word in words:
        if _role(file) != "all" and word in file.name:
            others = [file.with_name(file.name.replace(word, other)) for other in words if other != word]
            return [file, *(one for one in dict.fromkeys(others) if one.is_file() and one != file)]
    return [file]


def _is_json(name: str) -> bool:
    """By its name alone: that it is a pipe, say, is told when it is read."""
    return name.lower().endswith(".json")


def _looks_like_coco(file: Path) -> bool:
    """By its text, of large files that at both ends."""
    if not is_regular(file):  # it is told if its name says that it would be one
        return os.path.lexists(file) and not file.is_dir() and _role(file) != "all"
    try:
        head, tail = read_ends(file, LARGEST_JSON, _LOOKED_AT)
    except Unusable:
        return True
    text = (head if head == tail else head + tail).replace(b"\0", b"")  # which UTF-16 has between letters
    if not text.lstrip(b"\xef\xbb\xbf\xfe\xff \t\r\n").startswith(b"{"):
        return b'"images"' in text[:4096]
    return b'"images"' in text or b'"annotations"' in text


def _image_folders(file: Path, folder: Path, role: str) -> list[Path]:
    """Where the images may lie, the likeliest first."""
    year = re.search(r"\d{4}", file.stem)
    names = [f"{role}{year[0]}"] if year else []
    names += [re.sub(r"^(instances|annotations?)_", "", file.stem), *_FOLDERS.get(role, [])]
    roots = [folder, folder / "images", file.parent, file.parent / "images", folder / "JPEGImages"]
    inner = [child(root, name) for name in names for root in roots[:2]]
    return [*(path for path in inner if path is not None), *roots]
