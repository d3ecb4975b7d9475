"""Every odd kind of image file: read right or refused with its name."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relook.data.decode import BrokenImage, image_size, read_image


def _scene() -> Image.Image:
    """40 wide, 30 high: red above, blue below, green in the upper left corner."""
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:15], pixels[15:], pixels[:8, :10] = (200, 0, 0), (0, 0, 200), (0, 200, 0)
    return Image.fromarray(pixels)


def _bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,  # stored turned left, so that turning right, as 6 asks, gives the scene
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_all_eight_exif_orientations_give_the_upright_scene(orientation: int, tmp_path: Path) -> None:
    """Pixels and size are those that a viewer shows, from the head of the file as from the whole."""
    turn = TURNS[orientation]
    stored = _scene() if turn is None else _scene().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "turned.png"
    stored.save(file, exif=exif)
    assert np.array_equal(read_image(file), np.asarray(_scene()))
    assert image_size(file) == (30, 40)


def test_exif_orientation_of_a_jpeg() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_image(_bytes(_scene().transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95))
    assert image.shape == (30, 40, 3)
    assert np.abs(image.astype(int) - np.asarray(_scene()))[20:, 5:35].mean() < 12


def test_greyscale_becomes_three_equal_channels() -> None:
    grey = np.arange(200, dtype=np.uint8).reshape(10, 20)
    image = read_image(_bytes(Image.fromarray(grey)))
    assert np.array_equal(image, np.repeat(grey[:, :, None], 3, 2))


def test_one_bit_is_black_and_white() -> None:
    image = read_image(_bytes(Image.fromarray(np.eye(8, dtype=bool))))
    assert np.array_equal(image[..., 0], np.eye(8, dtype=np.uint8) * 255)


def test_sixteen_bits_keep_the_upper_eight() -> None:
    """256 grey levels of a 16-bit file come back, not a white image."""
    grey = (np.arange(256, dtype=np.uint16) * 256 + 77).reshape(16, 16)
    image = read_image(_bytes(Image.fromarray(grey)))
    assert np.array_equal(image[..., 1], np.arange(256, dtype=np.uint8).reshape(16, 16))


def test_sixteen_bit_tiff() -> None:
    grey = (np.arange(256, dtype=np.uint16) * 256 + 77).reshape(16, 16)
    image = read_image(_bytes(Image.fromarray(grey), "TIFF"))
    assert np.array_equal(image[..., 2], np.arange(256, dtype=np.uint8).reshape(16, 16))


def test_alpha_is_dropped_and_its_colours_stay() -> None:
    pixels = np.dstack([np.asarray(_scene()), np.zeros((30, 40), np.uint8)])
    assert np.array_equal(read_image(_bytes(Image.fromarray(pixels))), np.asarray(_scene()))


def test_grey_with_alpha() -> None:
    pixels = Image.merge("LA", [Image.new("L", (4, 3), 90), Image.new("L", (4, 3), 0)])
    assert np.array_equal(read_image(_bytes(pixels)), np.full((3, 4, 3), 90, np.uint8))


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_palette_is_looked_up(kind: str) -> None:
    image = read_image(_bytes(_scene().quantize(8), kind))
    assert np.abs(image.astype(int) - np.asarray(_scene())).max() <= 4


def test_cmyk_jpeg_has_its_colours() -> None:
    image = read_image(_bytes(_scene().convert("CMYK"), "JPEG", quality=95))
    assert image.shape == (30, 40, 3)
    assert np.abs(image[22, 20].astype(int) - [0, 0, 200]).max() < 12


def test_thirty_two_bit_values_are_refused_with_the_mend() -> None:
    data = _bytes(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    with pytest.raises(BrokenImage, match=r"32-bit values.*8 or 16 bits"):
        read_image(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF"])
def test_truncated_files_are_broken_not_half_grey(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    data = _bytes(Image.fromarray(noise), kind)
    file = tmp_path / "half.img"
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(BrokenImage, match=r"half\.img"):
        read_image(file)


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "empty"), (b"no image at all", "not an image"), (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "half")],
)
def test_files_that_are_no_images(content: bytes, why: str, tmp_path: Path) -> None:
    file = tmp_path / "half.png"
    file.write_bytes(content)
    with pytest.raises(BrokenImage, match=why):
        read_image(file)


def test_every_single_flipped_byte_is_read_or_refused() -> None:
    """Damage anywhere in a file never raises anything but BrokenImage."""
    good = bytearray(_bytes(_scene(), "PNG"))
    for n in range(0, len(good), 3):
        bad = good.copy()
        bad[n] ^= 0xFF
        try:
            assert read_image(bytes(bad)).dtype == np.uint8
        except BrokenImage:
            continue


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenImage, match=r"nowhere\.jpg: there is no such file"):
        read_image(tmp_path / "nowhere.jpg")
    with pytest.raises(BrokenImage, match="is a folder, not a file"):
        read_image(tmp_path)
    with pytest.raises(BrokenImage, match="no such file"):
        image_size(tmp_path / "nowhere.jpg")


def test_the_array_is_writable() -> None:
    """torch shares its memory, so it must not belong to Pillow."""
    image = read_image(_bytes(_scene()))
    image[0, 0] = 1
    assert image.flags.c_contiguous
