"""`relook doctor` on data: everything at once, with what is fatal and what is not, and a summary."""

import json
from pathlib import Path

import pytest

from relook.data.checks.check import check
from relook.data.shapes import write_shapes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight training and four validation images, nothing wrong."""
    return write_shapes(tmp_path / "data", train=8, val=4, seed=3)


def _change(folder: Path, **rows: list[dict[str, object]]) -> None:
    """Adds rows to the training file."""
    file = folder / "annotations" / "instances_train2017.json"
    whole = json.loads(file.read_text())
    for key, added in rows.items():
        whole[key] += added
    file.write_text(json.dumps(whole))


def test_good_data_have_a_summary_that_counts(folder: Path) -> None:
    """Counts are those of the annotation file."""
    report = check(folder)
    whole = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    train, val = report.splits
    assert report.usable
    assert not [p for p in report.problems if p.record != "classes"]
    assert (train.images, val.images) == (8, 4)
    assert train.boxes == len(whole["annotations"]) == sum(train.per_class.values())
    assert train.small + train.medium + train.large == train.boxes
    assert train.sides[0] <= train.sides[2] <= train.sides[4]
    assert train.image_sizes == {"128x128": 8}
    assert "These data can be used." in report.text()


def test_everything_wrong_is_found_in_one_look(folder: Path) -> None:
    """Broken files, bad rows, leaks: all in one report, each with file, record and fix."""
    images = folder / "train2017"
    (images / "000001.png").write_bytes(b"")
    half = (images / "000002.png").read_bytes()
    (images / "000002.png").write_bytes(half[: len(half) // 2])
    (images / "000003.png").unlink()
    box = {"image_id": 4, "category_id": 1, "iscrowd": 0}
    _change(
        folder,
        annotations=[
            {"id": 900, **box, "bbox": [1, 1, 0, 0]},
            {"id": 901, **box, "bbox": [500, 1, 10, 10]},
            {"id": 902, **box, "bbox": [1, 2, 3]},
            {"id": 902, **box, "bbox": [1, 1, 20, 20], "segmentation": [[1, 2, 3, 4]]},
            {"id": 903, **box, "bbox": [1, 1, 20, 20], "category_id": 77},
            {"id": 904, **box, "bbox": [1, 1, 20, 20], "image_id": 7777},
        ],
        categories=[{"id": 50, "name": "moon"}],
        images=[{"id": 70, "file_name": "000005.png", "height": 64, "width": 128}],
    )
    report = check(folder)
    text = report.text()
    fatal = [str(p) for p in report.problems if p.fatal]
    assert not report.usable
    assert len(fatal) == 3
    for what in (
        "000001.png: image 1: the file is empty",
        "000002.png: image 2: damaged",
        "000003.png: image 3: there is no such file",
        "has no area",
        "lies outside the image",
        "[1, 2, 3] is not four finite numbers",
        "repeats its id",
        "polygon 0 has 4 numbers",
        "category_id 77",
        "image_id 7777",
        'no object of the class "moon"',
        '"000005.png" is image 5, too',
        "is 128x128 pixels (width x height), but its annotation says 128x64",
        "data val does not list 1 of the 5 classes of the training data: moon",
        "1 of 9 images of data train have no annotation",
        "These data cannot be used yet.",
    ):
        assert what in text
    assert all(p.file and p.record and p.fix for p in report.problems)


def test_an_image_in_both_splits_is_a_leak(folder: Path) -> None:
    file = folder / "annotations" / "instances_val2017.json"
    whole = json.loads(file.read_text())
    for image in whole["images"]:
        image["file_name"] = f"../train2017/{image['file_name']}"
    file.write_text(json.dumps(whole))
    report = check(folder)
    leaks = [p for p in report.problems if p.what == "is in data train and in data val"]
    assert len(leaks) == 4
    assert report.usable


def test_mostly_broken_images_prevent_training(folder: Path) -> None:
    for file in [*(folder / "train2017").iterdir(), *(folder / "val2017").iterdir()]:
        file.write_bytes(b"")
    report = check(folder)
    assert not report.usable
    said = [problem.what for problem in report.problems if problem.fatal]
    assert "8 of 8 images are broken, with which training stops" in said
    assert "4 of 4 images are broken, with which training stops" in said


def test_no_format_and_no_json_are_reported_not_raised(tmp_path: Path) -> None:
    assert "no data set in a known format" in check(tmp_path).text()
    (tmp_path / "annotations_train.json").write_text('{"images": [}')
    report = check(tmp_path)
    assert not report.usable
    assert "is no JSON" in report.text()


def test_long_lists_are_cut_and_counted(folder: Path) -> None:
    """Mistakes of one kind are one line with their number and the first of them; kinds are cut, too."""
    bad = [{"id": 900 + n, "image_id": 1, "category_id": 99, "bbox": [0, 0, 9, 9]} for n in range(30)]
    _change(folder, annotations=[*bad, {"id": 930, "image_id": 1, "category_id": 1, "bbox": [0]}])
    said = check(folder).text(most=1)
    assert "31 mistakes prevent training:" in said
    assert "  30 annotations: category_id ... is not the id of any category; write an id that exists" in said
    assert "first: " in said
    assert "and 1 more kinds of mistakes" in said


def test_progress_ends_at_the_number_of_images(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    check(folder, progress=lambda done, of: told.append((done, of)))
    assert told[-1] == (12, 12)


def test_generated_data_can_be_checked() -> None:
    assert check("shapes:train=4,val=2").usable
