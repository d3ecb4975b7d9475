"""Image files of any common kind -> uint8 RGB arrays, upright.

Pillow decodes. torchvision's JPEG decoder gives the same pixels a third faster (0.9 against 1.3 ms for
640x480), but knows fewer kinds of files; one decoder for all kinds is worth that.
"""

import io
import os
import threading
from functools import cache
from pathlib import Path
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from relook.data.disk.listing import UNREAD, image_endings
from relook.data.disk.regular import LARGEST_IMAGE, Unusable, read_bytes, why_not

MAX_PIXELS: Final = 178_956_970
"""Pixels of the largest image that is read, unless the variable `RELOOK_MAX_PIXELS` says otherwise."""


class BrokenImage(ValueError):  # noqa: N818 - says what the image is, as the reader of a log would
    """An image that cannot be used; the message names the file and says why."""


def max_pixels() -> int:
    """The limit on the pixels of an image: of this process and of those it starts.

    Raises:
        ValueError: when `RELOOK_MAX_PIXELS` is no whole number above 0.
    """
    said = os.environ.get("RELOOK_MAX_PIXELS", "")
    if said and not (said.isdecimal() and int(said) > 0):
        raise ValueError(f"RELOOK_MAX_PIXELS={said} is no number of pixels; write one such as {MAX_PIXELS}")
    return int(said) if said else MAX_PIXELS


def read_image(source: Path | str | bytes) -> NDArray[np.uint8]:
    """Reads one image as uint8 RGB [H, W, 3], with its EXIF orientation applied.

    Greyscale becomes three equal channels; alpha is dropped, the colours below it stay; palettes and CMYK are
    converted; of 16 bits the upper 8 stay; of an animation the first frame is taken.

    Args:
        source: a path, or the bytes of a file.

    Raises:
        BrokenImage: when the file is missing, empty, truncated, no image or of a kind of unknown range.
    """
    name = f"image of {len(source):,} bytes" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else read_bytes(Path(source), LARGEST_IMAGE)
    except Unusable as error:
        raise BrokenImage(f"{name}: {error.what}") from error
    if not data:
        raise BrokenImage(f"{name}: the file is empty")
    try:
        with _opened(io.BytesIO(data), name) as opened:
            return _rgb(_upright(opened), name)
    except BrokenImage:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImage(f"{name}: not an image in a format that Pillow reads") from error
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise BrokenImage(f"{name}: damaged ({str(error) or type(error).__name__})") from error


def image_size(path: Path | str) -> tuple[int, int]:
    """(height, width) of an image as `read_image` would give it, from the head of the file alone.

    Raises:
        BrokenImage: as `read_image`; but a damage behind the head is not seen.
    """
    what = why_not(path, LARGEST_IMAGE)
    if what or not Path(path).stat().st_size:
        raise BrokenImage(f"{path}: {what or 'the file is empty'}")
    try:
        with Path(path).open("rb") as file, _opened(file, str(path)) as opened:
            width, height = opened.size
            # not the PNG reader's own, which decodes the whole image to see what lies behind it
            turned = Image.Image.getexif(opened).get(_ORIENTATION, 1) in _SIDEWAYS
    except BrokenImage:
        raise
    except UnidentifiedImageError as error:
        raise BrokenImage(f"{path}: not an image in a format that Pillow reads") from error
    except Exception as error:  # as in `read_image`
        raise BrokenImage(f"{path}: not a readable image ({str(error) or type(error).__name__})") from error
    return (width, height) if turned else (height, width)


def check_image(path: Path | str) -> tuple[int, int]:
    """(height, width) of an image all of which was decoded; needs less memory than `read_image`.

    Raises:
        BrokenImage: as `read_image`.
    """
    height, width = image_size(path)
    try:
        with Path(path).open("rb") as file, _opened(file, str(path)) as opened:
            if opened.mode in {"I", "F"}:
                return read_image(path).shape[:2]  # refuses it
            opened.load()
    except BrokenImage:
        raise
    except Exception as error:  # as in `read_image`
        raise BrokenImage(f"{path}: damaged ({str(error) or type(error).__name__})") from error
    return height, width


_opening = threading.Lock()


@cache
def _formats() -> tuple[str, ...]:
    image_endings()  # so that Pillow has looked for all of its formats
    return tuple(kind for kind in Image.OPEN if kind not in UNREAD)


def _opened(file: IO[bytes], name: str) -> Image.Image:
    """The head of an image, whose size is allowed.

    Pillow's own limit, which has no say for a single call, is lifted while the head is read, and back then.

    Raises:
        BrokenImage: when it has more pixels than allowed.
    """
    with _opening:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            opened = Image.open(file, formats=_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    pixels, most = opened.width * opened.height, max_pixels()
    if pixels > most:
        raise BrokenImage(
            f"{name}: too large: {opened.width}x{opened.height} are {_counted(pixels)}; "
            f"cut it into tiles or raise --max-pixels (now {most})"
        )
    return opened


def _counted(pixels: int) -> str:
    return f"{pixels / 1e6:,.0f} million pixels" if pixels >= 1e6 else f"{pixels:,} pixels"


_ORIENTATION = 0x0112  # the EXIF tag
_SIDEWAYS = frozenset({5, 6, 7, 8})  # its values that exchange width and height


def _upright(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it; the same object when nothing is to be turned."""
    if image.getexif().get(_ORIENTATION, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """Any mode of Pillow -> [H, W, 3] uint8 of its own memory."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in {"I", "F"}:
        raise BrokenImage(
            f"{name}: holds 32-bit values, whose range is unknown; save it with 8 or 16 bits per channel"
        )
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
