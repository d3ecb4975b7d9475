"""From what people give (paths, folders, patterns, bytes, arrays, Pillow's images) to single pictures."""

import errno
import glob
import io
import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from relook.data.decode import BrokenImage, max_pixels, read_image
from relook.data.disk.listing import (
    PassedOver,
    answers,
    entries,
    image_endings,
    images_below,
    is_image_name,
    is_unwanted,
)
from relook.escaping import printable

log = logging.getLogger(__name__)

Picture = Path | str | bytes | NDArray[Any] | Image.Image
"""One image: a path, the bytes of a file, uint8 RGB [H, W, 3] or grey [H, W], or an image of Pillow's."""

Given = Picture | Tensor | IO[bytes] | os.PathLike[str]
"""What becomes one: also torchvision's uint8 tensors [3, H, W] in RGB, and files opened to read bytes."""

_TAKEN = (
    "give a path, a folder, a pattern, the bytes of a file or a file opened to read bytes, a uint8 array "
    "[H, W, 3] or tensor [3, H, W] in RGB, an image of Pillow's, or a list of those"
)


def pictures(images: Given | Iterable[Given]) -> Iterator[Picture]:
    """What people give -> single pictures, lazily: folders and patterns are listed as they are needed.

    Raises:
        FileNotFoundError: when a folder or pattern holds no image, or a path is not there.
        TypeError: for something that is no image.
        ValueError: for an address on the network.
    """
    if isinstance(images, (str, os.PathLike)):
        return _listed(cast("Path | str", _picture(images)))
    if _is_one(images):
        return iter((_picture(images),))
    return itertools.chain.from_iterable(map(_each, _iterable(images)))


def _each(given: object) -> Iterator[Picture]:
    """The pictures that one item of a list stands for: of a folder or a pattern several."""
    one = _picture(given)
    if isinstance(one, (str, Path)) and _several(one):
        return _listed(one)
    return iter((one,))


def _several(path: Path | str) -> bool:
    """Whether it is a folder or a pattern."""
    try:
        return not Path(path).is_file() and (Path(path).is_dir() or _is_pattern(path))
    except (OSError, ValueError):  # a name that no disk can hold, which is told when it is read
        return False


def _is_one(given: object) -> bool:
    """Whether it is one image rather than several; a batch of torch's is several."""
    if isinstance(given, Tensor):
        return given.ndim < 4
    one = isinstance(given, (bytes, bytearray, memoryview, np.ndarray, Image.Image))
    return one or hasattr(given, "read")


def _iterable(given: object) -> Iterable[object]:
    if hasattr(given, "keys") or not isinstance(given, Iterable):
        raise TypeError(f"a {type(given).__name__} is no image; {_TAKEN}")
    return cast("Iterable[object]", given)


def _picture(one: object) -> Picture:
    """The same, if it is an image: callers need not be typed."""
    if isinstance(one, str) and re.match(r"([a-z][a-z0-9+.-]+://|data:)", one, re.IGNORECASE):
        raise ValueError(f"{one:.200} is an address; download it, and give the file")
    if isinstance(one, (str, Path, bytes, np.ndarray, Image.Image)):
        return cast("Picture", one)
    if isinstance(one, bytearray | memoryview):
        return bytes(cast("bytearray", one))
    if isinstance(one, os.PathLike):
        return Path(cast("os.PathLike[str]", one))
    if isinstance(one, Tensor):
        return _from_tensor(one)
    if isinstance(one, io.TextIOBase):
        raise TypeError(f"a file opened to read text is no image; open it by open(path, 'rb'), or {_TAKEN}")
    if hasattr(one, "read"):
        return _content(one)
    raise TypeError(f"a {type(one).__name__} is no image; {_TAKEN}")


def _content(file: Any) -> bytes:
    try:
        content: object = file.read()
    except (OSError, ValueError) as error:  # closed, or opened to write
        raise TypeError(f"an opened file cannot be read ({error}); open it by open(path, 'rb')") from None
    if not isinstance(content, bytes):
        raise TypeError(f"a file that gives {type(content).__name__} is no image; {_TAKEN}")
    return content


def _from_tensor(image: Tensor) -> NDArray[Any]:
    """torchvision's uint8 [3, H, W], [1, H, W] or [H, W] as an array."""
    fits = image.ndim == 2 or (image.ndim == 3 and len(image) in (1, 3))
    if image.dtype != torch.uint8 or not fits or image.is_meta or image.layout != torch.strided:
        kind = str(image.dtype).removeprefix("torch.")
        raise TypeError(
            f"a tensor of {kind} {list(image.shape)} is no image; give uint8 [3, H, W] in RGB, values from 0 "
            "to 255, as torchvision.io.decode_image does"
        )
    array: NDArray[Any] = image.detach().cpu().numpy()
    return array if array.ndim == 2 else np.ascontiguousarray(array.transpose(1, 2, 0))


def _is_pattern(path: Path | str) -> bool:
    return glob.has_magic(str(path))


def _listed(path: Path | str) -> Iterator[Picture]:
    try:
        given = Path(path).expanduser()
        given.stat()
    except (RuntimeError, ValueError):  # of nobody's home, with a zero byte
        raise FileNotFoundError(f"there is no file or folder {printable(str(path), 300)}") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise FileNotFoundError(f"there is no file or folder {printable(str(path), 300)}") from None
        given = Path(path).expanduser()
    if not str(path):
        raise FileNotFoundError("there is no file or folder ''; . is the one you are in")
    if given.is_file():
        return iter([given])
    if given.is_dir():
        return _not_empty(_below(given), f"there is no image in {path} or below it ({_endings()})")
    if _is_pattern(path):
        return _not_empty(_matching(given), f"no file fits the pattern {path}")
    raise FileNotFoundError(f"there is no file or folder {path}")


def _not_empty(paths: Iterator[Path], message: str) -> Iterator[Path]:
    first = next(paths, None)
    if first is None:
        raise FileNotFoundError(message)
    return itertools.chain([first], paths)


def _endings() -> str:
    return ", ".join(sorted(image_endings()))


def _below(folder: Path) -> Iterator[Path]:
    """All images of a folder, then those of the folders in it; what was passed over is told at the end."""
    passed = PassedOver()
    yield from images_below(folder, passed)
    _tell(passed, folder)


def _tell(passed: PassedOver, place: Path) -> None:
    told = passed.sentence(place)
    if told:
        log.warning("%s", told)


def _matching(pattern: Path) -> Iterator[Path]:
    """Files that fit a pattern; where its last part alone has wild cards, without holding all their names.

    A pattern that ends in an ending of its own takes all that fit, others take images.
    """
    passed = PassedOver()
    any_kind = bool(pattern.suffix) and not _is_pattern(pattern.suffix)
    if _is_pattern(pattern.parent) or pattern.name == "**":
        fitting = sorted(glob.glob(str(pattern), recursive=True))  # noqa: PTH207 (Path.glob refuses absolute ones)
        fixed = sum(1 for _ in itertools.takewhile(lambda part: not _is_pattern(part), pattern.parts))
        found = (path for path in map(Path, fitting) if path.is_file())
        files = (path for path in found if not any(map(is_unwanted, path.parts[fixed:])))
    else:
        files = _in_one_folder(pattern, passed)
    for path in files:
        if any_kind or is_image_name(path.name):
            yield path
        else:
            passed.note(path.suffix.lower() or "without an ending", path.name)
    _tell(passed, pattern)


def _in_one_folder(pattern: Path, passed: PassedOver) -> Iterator[Path]:
    if pattern.parent.is_dir():
        hidden = pattern.name.startswith(".")
        for entry in entries(pattern.parent):
            if not fnmatchcase(entry.name, pattern.name) or answers(entry.is_dir):
                continue
            if not hidden and is_unwanted(entry.name):
                passed.note("hidden", entry.name)
            elif answers(entry.is_file):
                yield Path(entry.path)
            else:
                passed.note("pipe, device or link to nothing", entry.name)


def pixels(picture: Picture, name: str) -> NDArray[np.uint8]:
    """Any picture as upright uint8 RGB [H, W, 3].

    Raises:
        BrokenImage: when it cannot be read, or an array is of another type or shape.
    """
    if isinstance(picture, (str, Path, bytes)):
        return read_image(picture)
    if isinstance(picture, Image.Image):
        return _from_pillow(picture, name)
    array = picture
    _refuse_huge(*array.shape[:2], name=name)
    if array.dtype != np.uint8:
        raise BrokenImage(f"{name}: an array of {array.dtype}; give uint8 values from 0 to 255")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise BrokenImage(f"{name}: an array of shape {picture.shape}; give [H, W, 3] in RGB or [H, W]")
    rgb = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3]
    return np.ascontiguousarray(rgb)


def _refuse_huge(height: int = 0, width: int = 0, name: str = "") -> None:
    if height * width > max_pixels():
        raise BrokenImage(
            f"{name}: {width}x{height} pixels are more than {max_pixels():,}; --max-pixels says how many"
        )


def _from_pillow(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """By the rules of a file with that image, by way of a lossless file in memory unless it is plain."""
    _refuse_huge(image.height, image.width, name=name)
    try:  # Pillow reads it only now, and raises whatever its readers raise
        if image.mode == "RGB" and not image.getexif() and image.width * image.height:
            return np.array(image)
        content = _as_file(image)
    except Exception as error:
        why = f"{type(error).__name__}: {error!s:.200}"
        raise BrokenImage(f"{name}: Pillow cannot read it ({why})") from error
    try:
        return read_image(content)
    except BrokenImage as error:
        raise BrokenImage(f"{name}: {error}") from None


def _as_file(image: Image.Image) -> bytes:
    if image.mode not in {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"}:
        image = image.convert("RGB")
    kind = "TIFF" if image.mode in {"CMYK", "I", "F"} else "PNG"
    buffer = io.BytesIO()
    image.save(buffer, format=kind, exif=image.getexif(), **({"compress_level": 0} if kind == "PNG" else {}))
    return buffer.getvalue()
