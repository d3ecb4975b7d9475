"""COCO files as they are found: holes in ids, missing keys, relative names, crowds, and mistakes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from relook.data.formats.coco.read import read_coco
from relook.data.formats.detect import read
from relook.data.formats.problems import Problems
from relook.data.sample import DataError, Source


def _image(path: Path, width: int = 40, height: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)


def _whole(**changes: Any) -> dict[str, Any]:
    """Two images, three boxes, categories 3 and 90."""
    good: dict[str, Any] = {
        "images": [
            {"id": 11, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 7, "file_name": "deep/b.png", "width": 40, "height": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 11, "category_id": 90, "bbox": [1, 2, 10, 20], "area": 150.5, "iscrowd": 0},
            {"id": 2, "image_id": 11, "category_id": 3, "bbox": [0, 0, 40, 30], "iscrowd": 1},
            {"id": 3, "image_id": 11, "category_id": 3, "bbox": [5, 5, 4.5, 6], "ignore": 1},
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    return {**good, **changes}


def _write(folder: Path, whole: object, name: str = "data.json") -> Path:
    _image(folder / "a.png")
    _image(folder / "deep" / "b.png")
    file = folder / name
    file.write_text(json.dumps(whole))
    return file


def _read(file: Path, problems: Problems) -> Source:
    return read_coco(file, [file.parent], problems, name="made")


def test_ids_with_holes_missing_area_crowds_and_empty_images(tmp_path: Path) -> None:
    """Labels follow the ids; area falls back to the box; images keep the order and ids of the file."""
    problems = Problems()
    source = _read(_write(tmp_path, _whole()), problems)
    assert not problems.found
    assert source.classes == ("cat", "dog")
    assert source.category_ids == (3, 90)
    full, empty = source.samples
    assert (full.id, empty.id) == (11, 7)
    assert full.boxes.tolist() == [[1, 2, 11, 22], [0, 0, 40, 30], [5, 5, 9.5, 11]]
    assert full.labels.tolist() == [1, 0, 0]
    assert full.crowd.tolist() == [False, True, False]
    assert full.ignore.tolist() == [False, False, True]
    assert full.area.tolist() == [150.5, 1200, 27]
    assert empty.boxes.shape == (0, 4)
    assert empty.image().shape == (30, 40, 3)
    assert full.segmentation == ()


def test_missing_sizes_come_from_the_files(tmp_path: Path) -> None:
    whole = _whole(images=[{"id": 11, "file_name": "a.png"}])
    source = _read(_write(tmp_path, whole), Problems())
    assert (source.samples[0].height, source.samples[0].width) == (30, 40)


def test_segmentations_are_carried_on_request(tmp_path: Path) -> None:
    whole = _whole()
    whole["annotations"][0]["segmentation"] = [[1, 2, 11, 2, 11, 22]]
    file = _write(tmp_path, whole)
    source = read_coco(file, [tmp_path], Problems(masks=True), name="made")
    assert source.samples[0].segmentation == ([[1, 2, 11, 2, 11, 22]], None, None)


def _row(**changes: Any) -> dict[str, Any]:
    return {"id": 9, "image_id": 7, "category_id": 3, "bbox": [1, 1, 5, 5], **changes}


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (_row(bbox=[1, 2, 3]), r"bbox \[1, 2, 3\] is not four finite numbers"),
        (_row(bbox=[1, 2, float("nan"), 3]), "is not four finite numbers"),
        (_row(bbox=[1, 2, "3", 3]), "is not four finite numbers"),
        (_row(bbox=None), "there is no bbox"),
        (_row(image_id=999), "image_id 999 is not the id of any image"),
        (_row(category_id=4), r"category_id 4 is not the id of any category.*known: 3, 90"),
        (_row(category_id=None), "category_id null"),
        ("text", 'is "text", no object'),
    ],
)
def test_rows_that_prevent_use_are_fatal_and_left_out(row: object, what: str, tmp_path: Path) -> None:
    """The message names file, row, value and fix; the other rows are still read."""
    problems = Problems()
    whole = _whole()
    whole["annotations"].append(row)
    file = _write(tmp_path, whole)
    source = _read(file, problems)
    assert sum(len(s.boxes) for s in source.samples) == 3
    with pytest.raises(DataError, match=what) as caught:
        problems.refuse(file)
    assert "annotations[3]" in str(caught.value)
    assert f"relook doctor {file}" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (_row(bbox=[1, 1, 0, 5]), "has no area"),
        (_row(bbox=[1, 1, 5, -2]), "are swapped; they are put right"),
        (_row(bbox=[1, 1, 0.5, 5]), "thinner than a pixel"),
        (_row(bbox=[100, 1, 5, 5]), "lies outside the image of 40x30"),
        (_row(bbox=[30, 1, 25, 5]), "passes the border"),
        (_row(id=1), "repeats its id"),
    ],
)
def test_rows_that_training_gets_along_with(row: dict[str, Any], what: str, tmp_path: Path) -> None:
    """They are told and counted, and kept for the evaluation, which judges by the file."""
    problems = Problems()
    whole = _whole()
    whole["annotations"].append(row)
    file = _write(tmp_path, whole)
    source = _read(file, problems)
    problems.refuse(file)
    (problem,) = problems.found
    assert what in str(problem)
    assert "annotations[3]" in problem.record
    assert sum(len(s.boxes) for s in source.samples) == 4
    assert source.notes[-1].startswith("1 record is left out")


def test_a_box_that_passes_the_border_by_rounding_is_fine(tmp_path: Path) -> None:
    whole = _whole()
    whole["annotations"].append(_row(bbox=[30.2, 1, 10.4, 5]))
    problems = Problems()
    _read(_write(tmp_path, whole), problems)
    assert not problems.found


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}]}, "repeats the id 1"),
        ({"images": [{"id": "x", "file_name": "a.png"}]}, 'id is "x", no whole number'),
        ({"images": [{"id": 1}]}, "file_name is null, no text"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "repeats the id 3"),
        ({"categories": [{"id": 3}]}, "name is null, no text"),
        ({"categories": []}, "none can be used"),
        ({"images": [{"id": 1, "file_name": "gone.png"}]}, "gone.png.*put the images there"),
    ],
)
def test_lists_that_prevent_use(changes: dict[str, Any], what: str, tmp_path: Path) -> None:
    problems = Problems()
    file = _write(tmp_path, _whole(annotations=[], **changes))
    _read(file, problems)
    with pytest.raises(DataError, match=what):
        problems.refuse(file)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "is no JSON"),
        ("[]", "does not begin with {"),
        ('{"images": [], "categories": []}', 'no list "annotations".*keys are: images, categories'),
    ],
)
def test_files_that_are_no_coco(text: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(DataError, match=what):
        read(file, "train")


def test_all_mistakes_are_in_one_error(tmp_path: Path) -> None:
    """Seven bad rows of one kind: they are counted, the first is shown, the next command is named."""
    whole = _whole(annotations=[_row(id=n, image_id=100 + n) for n in range(7)])
    file = _write(tmp_path, whole)
    with pytest.raises(DataError) as caught:
        read(file, "train")
    message = str(caught.value)
    assert "7 mistakes that prevent its use" in message
    assert "7 annotations: image_id ... is not the id of any image; write an id" in message
    assert "annotations[0] (id 0): image_id 100 is not" in message


def test_a_polygon_is_judged_only_by_the_doctor(tmp_path: Path) -> None:
    whole = _whole()
    whole["annotations"][0]["segmentation"] = [[1, 2, 3], [1, 2, 3, 4, 5, 6]]
    file = _write(tmp_path, whole)
    quick, thorough = Problems(), Problems(thorough=True)
    _read(file, quick)
    _read(file, thorough)
    assert not quick.found
    assert [p.what for p in thorough.found] == ["polygon 0 has 3 numbers"]


# -- layouts -------------------------------------------------------------------------------------------


def test_official_folder(tmp_path: Path) -> None:
    """annotations/instances_*2017.json beside other tasks' files; images in train2017/ and val2017/."""
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        _image(tmp_path / f"{split}2017" / "a.png")
        _image(tmp_path / f"{split}2017" / "deep" / "b.png")
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(_whole()))
        (tmp_path / "annotations" / f"captions_{split}2017.json").write_text("{}")
        (tmp_path / "annotations" / f"person_keypoints_{split}2017.json").write_text("{}")
    for split in ("train", "val"):
        source = read(tmp_path, split)
        assert source.samples[0].path == tmp_path / f"{split}2017" / "a.png"
        assert source.notes == ()
    named = read(tmp_path / "annotations" / "instances_val2017.json", "train")
    assert named.samples[0].path == tmp_path / "train2017" / "a.png"


def test_one_file_beside_its_images_is_split_by_names(tmp_path: Path) -> None:
    """About a tenth validates, always the same, never an image in both; the note says so."""
    images = [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in range(200)]
    for n in range(200):
        _image(tmp_path / "images" / f"{n}.png", 2, 2)
    (tmp_path / "mine.json").write_text(json.dumps(_whole(images=images, annotations=[])))
    for path in (tmp_path, tmp_path / "mine.json"):
        train, val = read(path, "train"), read(path, "val")
        ids = [{s.id for s in source.samples} for source in (train, val)]
        assert not ids[0] & ids[1]
        assert ids[0] | ids[1] == set(range(200))
        assert 8 <= len(ids[1]) <= 35
        assert "no validation split" in val.notes[-1]
        assert val.classes == train.classes
        again = read(path, "val")
        assert [s.id for s in again.samples] == [s.id for s in val.samples]


def test_a_validation_file_alone_is_taken_whole_and_cannot_train(tmp_path: Path) -> None:
    file = _write(tmp_path, _whole(), "my_val.json")
    assert len(read(file, "val").samples) == 2
    with pytest.raises(DataError, match="validation split only"):
        read(file, "train")


def test_two_files_of_one_role_are_not_guessed(tmp_path: Path) -> None:
    _write(tmp_path, _whole(), "first.json")
    _write(tmp_path, _whole(), "second.json")
    with pytest.raises(DataError, match=r"first\.json, second\.json could all be"):
        read(tmp_path, "train")


def test_roboflow_folder_drops_the_project_category(tmp_path: Path) -> None:
    """train/ and valid/ with a JSON in each; category 0, parent of all, is no class."""
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets"},
        {"id": 2, "name": "dog", "supercategory": "pets"},
    ]
    rows = [{"id": 0, "image_id": 11, "category_id": 2, "bbox": [1, 1, 5, 5], "area": 25}]
    for split in ("train", "valid", "test"):
        (tmp_path / split).mkdir()
        _write(tmp_path / split, _whole(categories=categories, annotations=rows), "_annotations.coco.json")
    train, val = read(tmp_path, "train"), read(tmp_path, "val")
    assert train.classes == val.classes == ("cat", "dog")
    assert train.category_ids == (1, 2)
    assert train.samples[0].labels.tolist() == [1]
    assert val.samples[0].path == tmp_path / "valid" / "a.png"


def test_roboflow_without_a_parent_keeps_category_zero(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    categories = [{"id": 0, "name": "cat", "supercategory": "none"}, {"id": 1, "name": "dog"}]
    whole = _whole(categories=categories, annotations=[])
    _write(tmp_path / "train", whole, "_annotations.coco.json")
    assert read(tmp_path, "train").classes == ("cat", "dog")


def test_boxes_are_kept_in_double_precision(tmp_path: Path) -> None:
    """x + width as COCO's evaluation adds them."""
    whole = _whole(annotations=[_row(bbox=[0.1, 0.2, 10.3, 5.7])])
    source = _read(_write(tmp_path, whole), Problems())
    assert source.samples[1].boxes.dtype == np.float64
    assert source.samples[1].boxes[0].tolist() == [0.1, 0.2, 0.1 + 10.3, 0.2 + 5.7]
