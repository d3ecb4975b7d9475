"""Where pictures lie, and where what is drawn of them goes."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

WRITABLE = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


def inside(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, by their names."""
    return whole(path).is_relative_to(whole(folder))


def whole(path: Path) -> Path:
    """The path from the root on, without `..`."""
    return Path(os.path.normpath(path.expanduser().absolute()))


def base_of(given: Sequence[str]) -> Path:
    """The folder that all pictures lie in: names of results are relative to it, so that none collide."""
    return Path(os.path.commonpath([_folder(Path(one)) for one in given]))


def _folder(path: Path) -> Path:
    path = whole(path)
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def relative(name: str, base: Path) -> str:
    """A picture's path below the folder that all lie in."""
    return whole(Path(name)).relative_to(base).as_posix()


def target_of(out: Path, name: str, base: Path) -> Path:
    """a/x.jpg -> OUT/a/x.jpg; of kinds that cannot be written, a picture as PNG beside that name.

    It never has the name of another picture: x.gif becomes x.gif.png, or x.gif.1.png beside an x.gif.png.
    """
    target = out / name
    if target.suffix.lower() in WRITABLE:
        return target
    endings = itertools.chain([".png"], (f".{n}.png" for n in itertools.count(1)))
    free = next(e for e in endings if not os.path.lexists(base / f"{name}{e}"))
    return target.with_name(f"{target.name}{free}")
