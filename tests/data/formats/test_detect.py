"""`--data PATH`: what is recognised, what is said when nothing is, and the generated data set."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from relook.data.formats.detect import READERS, read, read_pair
from relook.data.sample import DataError
from relook.data.shapes import shapes, write_shapes


def test_the_error_lists_what_was_looked_for_and_found(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "readme.txt").touch()
    with pytest.raises(DataError) as caught:
        read(tmp_path, "train")
    message = str(caught.value)
    assert "Found: pictures/, readme.txt" in message
    assert all(f"\n  {name}: {form.wants}" in message for name, form in READERS.items())


def test_an_empty_folder_and_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="an empty folder"):
        read(tmp_path, "train")
    with pytest.raises(DataError, match=r"does not exist.*shapes"):
        read(tmp_path / "gone", "train")


def test_a_format_can_be_named(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "data", train=2, val=1)
    assert len(read(f"coco:{folder}", "train").samples) == 2
    with pytest.raises(DataError, match=r"Looked for:\n  voc: [^\n]*\nFound"):
        read(f"voc:{folder}", "train")


def test_shapes_by_name_and_settings() -> None:
    source = read("shapes:train=3,val=2,seed=4,side=96", "train")
    expected = shapes(3, seed=4, side=96)
    assert len(source.samples) == 3
    assert np.array_equal(source.samples[2].image(), expected.samples[2].image())
    assert len(read("shapes:train=3,val=2", "val").samples) == 2


def test_a_wrong_setting_of_shapes_is_named() -> None:
    with pytest.raises(DataError, match="trian=3: is no setting; write NAME=NUMBER with seed, side"):
        read("shapes:trian=3,train=2", "train")


def test_two_paths_are_used_whole(tmp_path: Path) -> None:
    """Nothing of the first is left out of training; other classes are refused."""
    folder = write_shapes(tmp_path / "data", train=6, val=3)
    train, val = (next((folder / "annotations").glob(f"*{name}*.json")) for name in ("train", "val"))
    pair = read_pair(train, val)
    assert [len(one.samples) for one in pair] == [6, 3]
    assert [len(one.samples) for one in read_pair(folder, None)] == [6, 3]
    assert [len(one.samples) for one in read_pair(folder, train)] == [6, 6]
    text = val.read_text().replace('"star"', '"comet"')
    val.write_text(text)
    with pytest.raises(DataError, match=r"other classes than the training data: comet is not among .*star"):
        read_pair(train, val)


def test_a_validation_part_may_order_classes_otherwise(tmp_path: Path) -> None:
    """The same names: labels follow them."""
    folder = write_shapes(tmp_path / "data", train=6, val=6)
    train, val = (next((folder / "annotations").glob(f"*{name}*.json")) for name in ("train", "val"))
    plain = read_pair(train, val)[1]
    whole = json.loads(val.read_text())
    other = {c["id"]: 100 - c["id"] for c in whole["categories"]}  # the order of ids is that of the classes
    for row in whole["categories"]:
        row["id"] = other[row["id"]]
    for row in whole["annotations"]:
        row["category_id"] = other[row["category_id"]]
    val.write_text(json.dumps(whole))
    turned = read_pair(train, val)[1]
    assert turned.classes == plain.classes
    for a, b in zip(turned.samples, plain.samples, strict=True):
        assert a.labels.tolist() == b.labels.tolist()


def test_a_validation_part_may_lack_classes(tmp_path: Path) -> None:
    """Its labels are those of the training part, by name."""
    folder = write_shapes(tmp_path / "data", train=6, val=6)
    train, val = (next((folder / "annotations").glob(f"*{name}*.json")) for name in ("train", "val"))
    whole = json.loads(val.read_text())
    gone = whole["categories"].pop(0)["id"]
    whole["annotations"] = [a for a in whole["annotations"] if a["category_id"] != gone]
    val.write_text(json.dumps(whole))
    pair = read_pair(train, val)
    assert pair[0].classes == pair[1].classes
    counts = Counter(pair[1].classes[i] for s in pair[1].samples for i in s.labels)
    names = {c["id"]: c["name"] for c in whole["categories"]}
    assert counts == Counter(names[a["category_id"]] for a in whole["annotations"])
