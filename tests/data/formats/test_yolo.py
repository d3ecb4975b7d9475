"""YOLO folders: with and without data.yaml, boxes and outlines, and mistakes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relook.data.formats.detect import read
from relook.data.sample import DataError


def _add(image: Path, labels: str | None, width: int = 50, height: int = 40) -> None:
    """An image, and its label file in labels/ where the image is in images/."""
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(image)
    if labels is not None:
        text = Path(str(image.with_suffix(".txt")).replace("/images/", "/labels/"))
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(labels)


def test_yaml_with_a_mapping_of_names(tmp_path: Path) -> None:
    """Ultralytics' layout: path, images/train, names by number; boxes in pixels of each image."""
    _add(tmp_path / "images" / "train" / "a.png", "1 0.5 0.5 0.2 0.5\n0 0.1 0.1 0.2 0.2\n")
    _add(tmp_path / "images" / "train" / "b.png", None)
    _add(tmp_path / "images" / "val" / "c.png", "")
    (tmp_path / "data.yaml").write_text(
        f"path: {tmp_path}\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n"
    )
    for path in (tmp_path, tmp_path / "data.yaml"):
        train, val = read(path, "train"), read(path, "val")
        assert train.classes == val.classes == ("cat", "dog")
        assert train.category_ids == (0, 1)
        first, second = train.samples
        np.testing.assert_allclose(first.boxes, [[20, 10, 30, 30], [0, 0, 10, 8]], atol=1e-9)
        assert first.labels.tolist() == [1, 0]
        np.testing.assert_allclose(first.area, [200, 80])
        assert (first.height, first.width) == (40, 50)
        assert len(second.boxes) == len(val.samples[0].boxes) == 0


def test_yaml_as_roboflow_writes_it(tmp_path: Path) -> None:
    """`../train/images` means train/images beside the file; valid stands for val; names are a list."""
    _add(tmp_path / "train" / "images" / "a.jpg", "0 0.5 0.5 0.2 0.5")
    _add(tmp_path / "valid" / "images" / "b.jpg", "0 0.5 0.5 0.2 0.5")
    (tmp_path / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['thing']\n"
    )
    assert read(tmp_path, "val").samples[0].path == tmp_path / "valid" / "images" / "b.jpg"
    assert read(tmp_path, "train").samples[0].labels.tolist() == [0]


def test_yaml_with_a_list_of_images(tmp_path: Path) -> None:
    _add(tmp_path / "images" / "a.png", "0 0.5 0.5 0.2 0.5")
    (tmp_path / "train.txt").write_text("./images/a.png\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: train.txt\nnames: [thing]\n")
    (sample,) = read(tmp_path, "train").samples
    assert len(sample.boxes) == 1


@pytest.mark.parametrize("layout", ["images/{}", "{}/images"])
def test_folders_without_yaml(layout: str, tmp_path: Path) -> None:
    """Both nestings; classes by classes.txt or, without it, by number over all splits."""
    _add(tmp_path / layout.format("train") / "a.png", "0 0.5 0.5 0.2 0.5")
    _add(tmp_path / layout.format("val") / "b.png", "2 0.5 0.5 0.2 0.5")
    train = read(tmp_path, "train")
    assert train.classes == ("0", "1", "2")
    assert "called by numbers" in train.notes[0]
    (tmp_path / "classes.txt").write_text("cat\ndog\ncow\n")
    assert read(tmp_path, "val").classes == ("cat", "dog", "cow")


def test_flat_folders_are_split_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The choice is said once, though both splits are read."""
    for n in range(10):
        _add(tmp_path / "images" / f"{n}.png", "0 0.5 0.5 0.2 0.5")
    train, val = read(tmp_path, "train"), read(tmp_path, "val")
    assert len(train.samples) + len(val.samples) == 10
    assert "no validation split" in val.notes[-1]
    assert caplog.text.count("has no validation split, so") == 1


def test_an_outline_gives_its_hull(tmp_path: Path) -> None:
    _add(tmp_path / "images" / "train" / "a.png", "0 0.1 0.2 0.5 0.1 0.3 0.9")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [thing]\n")
    np.testing.assert_allclose(read(tmp_path, "train").samples[0].boxes, [[5, 4, 25, 36]], atol=1e-9)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("1 0.5 0.5 0.2 0.2", r"line 2: class 1 is not among the 1 classes.*write 0 to 0"),
        ("-1 0.5 0.5 0.2 0.2", "class -1 is not among"),
        ("0.5 0.5 0.5 0.2 0.2", "not a class and numbers"),
        ("cat 0.5 0.5 0.2 0.2", '"cat 0.5 0.5 0.2 0.2" is not a class and numbers'),
        ("0 0.5 nan 0.2 0.2", "not a class and numbers"),
        ("0 0.5 0.5 0.2", "3 numbers follow the class"),
        ("0", "0 numbers follow the class"),
        ("0 25 20 10 20", "holds pixels.*divide x and width"),
    ],
)
def test_mistakes_are_named_with_their_line(line: str, what: str, tmp_path: Path) -> None:
    _add(tmp_path / "images" / "train" / "a.png", f"0 0.5 0.5 0.2 0.2\n{line}\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [thing]\n")
    with pytest.raises(DataError, match=what) as caught:
        read(tmp_path, "train")
    assert "a.txt: line 2" in str(caught.value)


def test_a_broken_image_has_no_boxes_and_does_not_prevent_use(tmp_path: Path) -> None:
    """Its size is unknown, so its shares cannot become pixels."""
    _add(tmp_path / "images" / "train" / "a.png", "0 0.5 0.5 0.2 0.2")
    _add(tmp_path / "images" / "train" / "b.png", "0 0.5 0.5 0.2 0.2")
    (tmp_path / "images" / "train" / "b.png").write_bytes(b"")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [thing]\n")
    good, broken = read(tmp_path, "train").samples
    assert len(good.boxes) == 1
    assert (broken.height, len(broken.boxes)) == (0, 0)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("train: nowhere\nnames: [a]\n", "nowhere was not found; looked for"),
        ("train: images\nnames: {0: a, 2: b}\n", "number the classes 0, 1, 2"),
        ("train: [\n", "is no YAML"),
    ],
)
def test_mistakes_of_the_yaml(text: str, what: str, tmp_path: Path) -> None:
    _add(tmp_path / "images" / "a.png", None)
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=what):
        read(tmp_path, "train")
