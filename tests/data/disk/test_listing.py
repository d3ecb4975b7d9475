"""Which files of a folder are meant: one rule for prediction and all readers, and what it tells."""

import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from relook.data.disk.listing import PassedOver, child, image_endings, images_below
from relook.data.formats.detect import read
from relook.inputs import pictures


def _fill(folder: Path) -> None:
    """Three pictures that are meant, and all kinds of things that are not."""
    (folder / "deep" / "deeper").mkdir(parents=True)
    for name in ("a.jpg", "deep/b.JFIF", "deep/deeper/c.png", "._a.jpg", "__MACOSX/._b.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name, "PNG")
    for name in (".ipynb_checkpoints/a-checkpoint.jpg", "@eaDir/a.jpg", ".thumbs/a.jpg"):
        (folder / name).parent.mkdir()
        Image.new("RGB", (8, 8)).save(folder / name)
    (folder / "d.heic").write_bytes(b"x")
    (folder / "e.pdf").write_bytes(b"x")
    (folder / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "nowhere.jpg").symlink_to("gone.jpg")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "deep" / "up").symlink_to(folder)
    (folder / "link").symlink_to(folder / "deep")


def test_what_is_listed_and_what_is_told(tmp_path: Path) -> None:
    _fill(tmp_path)
    passed = PassedOver()
    names = [path.relative_to(tmp_path).as_posix() for path in images_below(tmp_path, passed)]
    assert names == ["a.jpg", "deep/b.JFIF", "deep/deeper/c.png"]
    assert passed.kinds["hidden"] == 5
    assert passed.kinds["pipe, device or link to nothing"] == 3
    assert passed.kinds["link to a folder that was listed"] == 2
    said = passed.sentence(tmp_path)
    assert said.startswith(f"passed over in {tmp_path}: 5 hidden (")
    assert "1 .heic (d.heic)" in said
    assert ".txt" not in said, "annotations beside pictures need no word"


def test_prediction_lists_by_the_same_rule_and_says_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _fill(tmp_path)
    assert [Path(str(one)).name for one in pictures(tmp_path)] == ["a.jpg", "b.JFIF", "c.png"]
    assert "passed over in" in caplog.text
    assert "1 .heic (d.heic)" in caplog.text
    caplog.clear()
    assert [Path(str(one)).name for one in pictures(f"{tmp_path}/*")] == ["a.jpg"]
    assert "1 .heic (d.heic)" in caplog.text
    assert [Path(str(one)).name for one in pictures(f"{tmp_path}/*.heic")] == ["d.heic"], (
        "asked for by its ending"
    )


def test_a_reader_lists_by_the_same_rule_and_says_it(tmp_path: Path) -> None:
    _fill(tmp_path / "images" / "train")
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [x]\n")
    source = read(tmp_path, "train")
    assert [sample.path.name for sample in source.samples] == ["a.jpg", "b.JFIF", "c.png"]
    assert any("passed over in" in note and ".heic" in note for note in source.notes)


def test_endings_are_those_that_pillow_reads_by_itself() -> None:
    """No stubs (GRIB, HDF5), and none for which it would start another program (EPS)."""
    assert {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".tif",
        ".bmp",
        ".gif",
        ".mpo",
    } <= image_endings()
    assert not {".eps", ".ps", ".pdf", ".mpg", ".h5", ".grib", ".wmf"} & image_endings()


def test_a_socket_and_a_missing_permission_end_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket is short
        try:
            one.bind("s.jpg")
        finally:
            os.chdir(here)
        assert [path.name for path in images_below(tmp_path, PassedOver())] == ["a.jpg"]


def test_a_folder_is_found_however_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "ANNOTATIONS").mkdir()
    (tmp_path / "annots").mkdir()
    assert child(tmp_path, "Annotations", "annots") == tmp_path / "ANNOTATIONS"
    assert child(tmp_path, "annots") == tmp_path / "annots"
    assert child(tmp_path, "images") is None
    assert child(tmp_path / "nowhere", "images") is None
