"""What would go wrong without a word: declarations, types, stale names, equal names, encodings, causes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_layouts import coco, instances, jpeg, label, labelimg, ultralytics, voc, xml

import mutants
from relook.data.checks.check import check
from relook.data.formats.detect import read, read_pair
from relook.data.sample import DataError

YAML = b"train: images/train\nval: images/val\nnames: [cat, dog]\n"


def laid_out(files: mutants.Files, folder: Path) -> Path:
    mutants.laid_out(files, folder)
    return folder


def coco_with(change: Any, folder: Path) -> Path:
    """The training file of COCO's folders, changed."""
    files = coco()
    whole = json.loads(files["annotations/instances_train.json"])
    change(whole)
    files["annotations/instances_train.json"] = json.dumps(whole).encode()
    return laid_out(files, folder)


# -- 1. what a file declares ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "rest"),
    [("[4, 3]", "0.1 0.1 2 0.9 0.9 1 0 0 0 0.5 0.5 2"), ("[3, 2]", "0.1 0.1 0.9 0.9 0.5 0.5")],
)
def test_keypoints_do_not_widen_the_box(shape: str, rest: str, tmp_path: Path) -> None:
    """With kpt_shape the box is the first four numbers."""
    files = ultralytics({}, YAML + f"kpt_shape: {shape}\n".encode())
    files["labels/train/p0.txt"] = f"0 0.375 0.5 0.5 0.5 {rest}\n".encode()
    assert read(laid_out(files, tmp_path), "train").samples[0].boxes.tolist() == [[8, 12, 40, 36]]


def test_rows_that_kpt_shape_forbids_are_refused(tmp_path: Path) -> None:
    files = ultralytics({}, YAML + b"kpt_shape: [2, 2]\n")
    files["labels/train/p0.txt"] = b"0 0.5 0.5 0.2 0.2 0.4 0.4\n"
    with pytest.raises(DataError, match=r"6 numbers follow the class, but kpt_shape \[2, 2\] asks for 8"):
        read(laid_out(files, tmp_path), "train")


@pytest.mark.parametrize("rest", ["0.4 0.5 2 0.6 0.5 1", "0.4 0.5 0.6 0.5", "0.4 0.5 0.6 0.5 0.5 0.6"])
def test_keypoints_that_nobody_declares_are_not_taken_for_outlines(rest: str, tmp_path: Path) -> None:
    """All rows of one length that can be read both ways are refused; `task: segment` says which it is."""
    files = ultralytics({}, YAML)
    for n in (0, 1):
        files[f"labels/train/p{n}.txt"] = f"0 0.5 0.5 0.5 0.5 {rest}\n".encode()
    with pytest.raises(DataError, match=r"boxes with keypoints, or outlines\?; write `kpt_shape"):
        read(laid_out(files, tmp_path / "a"), "train")
    files["data.yaml"] += b"task: segment\n"
    if "2" not in rest:
        assert len(read(laid_out(files, tmp_path / "b"), "train").samples[0].boxes) == 1


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("0 0.5 0.5 0.2 0.2 0.9", "5 numbers follow the class; is the last a score"),
        ("0 0.5 0.5 0.2", "3 numbers follow the class"),
        ("0 0.5 0.5 0.2 0.2 0.1 0.1 0.3", "7 numbers follow the class"),
    ],
)
def test_a_row_that_is_neither_box_nor_outline_is_no_guess(row: str, what: str, tmp_path: Path) -> None:
    files = ultralytics({}, YAML) | {"labels/train/p0.txt": row.encode()}
    with pytest.raises(DataError, match=rf"labels/train/p0\.txt: line 1: {what}"):
        read(laid_out(files, tmp_path), "train")


@pytest.mark.parametrize(
    ("yaml", "what"),
    [
        (b"nc: 3\n", r"nc says 3 classes, but names lists 2 \('cat, dog'\)"),
        (b"nc: x\n", "nc is 'x', no number"),
        (b"kpt_shape: [4]\n", "kpt_shape is .*write"),
        (b"names: [cat]\n", "the key names is there twice"),
    ],
)
def test_a_yaml_that_contradicts_itself(yaml: bytes, what: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=what):
        read(laid_out(ultralytics({}, YAML + yaml), tmp_path), "train")


def test_names_of_a_yaml_are_text_as_written(tmp_path: Path) -> None:
    """YAML would make False, 1000.0 and a date of them."""
    yaml = b"train: images/train\nval: images/val\nnames: [no, 1e3, 2001-01-01]\n"
    assert read(laid_out(ultralytics({}, yaml), tmp_path), "train").classes == ("no", "1e3", "2001-01-01")


def test_darknet_counts_its_classes(tmp_path: Path) -> None:
    files = labelimg() | {
        "obj.data": b"classes = 3\nnames = classes.txt\ntrain = train.txt\n",
        "train.txt": b"p0.jpg",
    }
    with pytest.raises(DataError, match="nc says 3 classes, but names lists 2"):
        read(laid_out(files, tmp_path), "train")


# -- 2. types of JSON ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "crowd"), [("0", False), ("1", True), (None, False), (True, True), (0.0, False)]
)
def test_a_crowd_by_any_spelling(value: object, crowd: bool, tmp_path: Path) -> None:
    folder = coco_with(lambda whole: whole["annotations"][0].update(iscrowd=value), tmp_path)
    assert read(folder, "train").samples[0].crowd.tolist() == [crowd]


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
@pytest.mark.parametrize("value", ["no", 2, [], {}, -1])
def test_what_is_neither_0_nor_1_is_refused(key: str, value: object, tmp_path: Path) -> None:
    folder = coco_with(lambda whole: whole["annotations"][0].update({key: value}), tmp_path)
    with pytest.raises(
        DataError, match=rf"annotations\[0\] \(id 1\): {key} is .*, neither 0 nor 1; write 0 or 1"
    ):
        read(folder, "train")


@pytest.mark.parametrize("place", ["images", "categories"])
@pytest.mark.parametrize("value", ["1", None, True, 1.5, 10**30, 2**63, [1], {}])
def test_ids_that_are_no_whole_numbers_are_one_sentence(place: str, value: object, tmp_path: Path) -> None:
    folder = coco_with(lambda whole: whole[place][0].update(id=value), tmp_path)
    with pytest.raises(DataError, match=rf"{place}\[0\]: id is .*, no whole number; number them 1, 2, 3"):
        read(folder, "train")


def test_ids_like_1_0_are_read_and_said(tmp_path: Path) -> None:
    def change(whole: Any) -> None:
        for row in whole["images"]:
            row["id"] = float(row["id"])
        for row in whole["annotations"]:
            row["image_id"] = float(row["image_id"])

    source = read(coco_with(change, tmp_path), "train")
    assert [sample.id for sample in source.samples] == [1, 2]
    assert [len(sample.boxes) for sample in source.samples] == [1, 1]
    assert any("writes 2 ids as numbers like 1.0" in note for note in source.notes)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (b'"bbox": [8,', b'"bbox": [NaN,', "is not four finite numbers"),
        (b'"bbox": [8,', b'"bbox": [1e400,', "is not four finite numbers"),
        (b'"bbox": [8,', b'"bbox": [1' + b"0" * 400 + b",", "is not four finite numbers"),
        (b'"bbox": [8,', b'"bbox": ["8",', "is not four finite numbers"),
        (b'"bbox": [8,', b'"bbox": [true,', "is not four finite numbers"),
        (b'"bbox": [8,', b'"bbox": [1' + b"0" * 5000 + b",", "thousands of digits"),
        (b'"image_id": 1,', b'"image_id": 1, "image_id": 2,', 'has the key "image_id" twice; write it once'),
        (b'"images": [', b'"images": [], "images": [', 'has the key "images" twice'),
        (b'"name": "cat"', b'"name": "c\\ud800t"', "holds signs that no name can have"),
        (b'"name": "cat"', b'"name": "c\\u0000t"', "holds signs that no name can have"),
        (b'"name": "cat"', b'"name": "  "', "name is empty"),
        (b'"name": "cat"', b'"name": ["cat"]', r'name is \["cat"\], no text'),
        (b'"file_name": "p0.jpg"', b'"file_name": "p\\u0000.jpg"', "holds signs that no name can have"),
        (b'"file_name": "p0.jpg"', b'"file_name": 5', "file_name is 5, no text"),
        (b'"annotations": [', b'"annotations": [null, ', r"annotations\[0\]: is null, no object"),
    ],
)
def test_values_that_json_allows_and_nobody_can_use(
    old: bytes, new: bytes, what: str, tmp_path: Path
) -> None:
    files = coco()
    files["annotations/instances_train.json"] = files["annotations/instances_train.json"].replace(old, new, 1)
    with pytest.raises(DataError, match=what):
        read(laid_out(files, tmp_path), "train")


def test_an_area_that_is_none_is_said(tmp_path: Path) -> None:
    """0 leaves an object out of training; text is replaced by the box's."""

    def change(whole: Any) -> None:
        whole["annotations"][0]["area"] = 0
        whole["annotations"][1]["area"] = "12"

    said = check(coco_with(change, tmp_path)).text()
    assert "annotations[0] (id 1): area is 0; training leaves it out" in said
    assert 'annotations[1] (id 2): area is "12", no number of pixels; that of its box is taken' in said


# -- 3. nothing usable ---------------------------------------------------------------------------------


def test_labels_elsewhere_are_said_with_the_place_looked_at(tmp_path: Path) -> None:
    files = {
        name.replace("labels/", "annotation_files/"): data for name, data in ultralytics({}, YAML).items()
    }
    folder = laid_out(files, tmp_path)
    report = check(folder)
    assert not report.usable
    assert any("was looked for as " in note and "labels/train/p0.txt" in note for note in report.notes)
    assert any("text files are in annotation_files/train/ (2)" in note for note in report.notes)
    with pytest.raises(DataError, match=r"nothing to train on: no image has an object.*--allow-empty"):
        read_pair(folder, None)
    assert len(read_pair(folder, None, allow_empty=True)[0].samples) == 2


def test_a_validation_split_without_objects_is_refused(tmp_path: Path) -> None:
    files = ultralytics({}, YAML) | {"labels/val/p2.txt": b"", "labels/val/p3.txt": b""}
    with pytest.raises(DataError, match="nothing to validate on"):
        read_pair(laid_out(files, tmp_path), None)


def test_every_box_left_out_is_nothing(tmp_path: Path) -> None:
    folder = coco_with(
        lambda whole: [row.update(bbox=[5, 5, 0, 9]) for row in whole["annotations"]], tmp_path
    )
    report = check(folder)
    assert not report.usable
    assert "all of 2 boxes are left out" in report.text()
    with pytest.raises(DataError, match="all of its 2 boxes are left out"):
        read_pair(folder, None)


def _many(boxes: list[list[float]], folder: Path) -> Path:
    """COCO data with these boxes, all in one picture of 64 x 48."""

    def change(whole: Any) -> None:
        row = whole["annotations"][0]
        whole["annotations"] = [{**row, "id": n, "bbox": box, "area": 9} for n, box in enumerate(boxes)]

    return coco_with(change, folder)


def test_shares_of_1_in_coco(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"all 4 boxes lie within one pixel.*look like shares.*multiply x and width"
    ):
        read(_many([[0.1, 0.2, 0.3, 0.4]] * 4, tmp_path), "train")


def test_shares_of_1_in_voc(tmp_path: Path) -> None:
    files = voc("Annotations", "JPEGImages")
    small = {b"9<": b"0.1<", b"13<": b"0.2<", b"40<": b"0.6<", b"36<": b"0.7<"}
    for name in [name for name in files if name.endswith("xml")]:
        for old, new in small.items():
            files[name] = files[name].replace(old, new)
    with pytest.raises(DataError, match="look like shares"):
        read(laid_out(files, tmp_path), "train")


def test_corners_given_as_sizes_are_named(tmp_path: Path) -> None:
    """COCO's boxes as x1, y1, x2, y2: most pass the border, and as corners they fit."""
    with pytest.raises(
        DataError, match=r"read as left, upper, right and lower border, 100% fit; write each box as"
    ):
        read(_many([[30, 20, 60, 40], [40, 10, 50, 45], [20, 30, 60, 47]], tmp_path), "train")


def test_sizes_given_as_corners_are_named(tmp_path: Path) -> None:
    """VOC's corners as x, y, width, height: most are inverted, and as sizes they fit."""
    files = voc("Annotations", "JPEGImages")
    boxes = [
        (30, 20, 10, 12),
        (40, 30, 8, 9),
        (25, 30, 30, 10),
        (5, 5, 20, 20),
        (50, 30, 9, 9),
        (33, 22, 9, 9),
    ]
    page = files["Annotations/p0.xml"].decode()
    start, end = page.index("<object>"), page.index("</annotation>")
    objects = "".join(
        page[start:end]
        .replace(">9<", f">{a}<")
        .replace(">13<", f">{b}<")
        .replace(">40<", f">{c}<")
        .replace(">36<", f">{d}<")
        for a, b, c, d in boxes
    )
    for n in range(4):
        files[f"Annotations/p{n}.xml"] = (
            (page[:start] + objects + page[end:]).replace("p0.jpg", f"p{n}.jpg").encode()
        )
    with pytest.raises(DataError, match="read as left and upper border, width and height, 100% fit"):
        read(laid_out(files, tmp_path), "train")


def test_corners_of_yolo_are_named(tmp_path: Path) -> None:
    files = ultralytics({}, YAML)
    files["labels/train/p0.txt"] = (
        b"0 0.6 0.7 0.9 0.95\n1 0.7 0.6 0.95 0.8\n0 0.5 0.7 0.98 0.9\n0 0.1 0.1 0.9 0.3\n"
    )
    files["labels/train/p1.txt"] = b""
    with pytest.raises(DataError, match="read as left, upper, right and lower border, 100% fit"):
        read(laid_out(files, tmp_path), "train")


def test_swapped_corners_are_put_right_and_said(tmp_path: Path) -> None:
    files = voc("Annotations", "JPEGImages")
    files["Annotations/p0.xml"] = (
        files["Annotations/p0.xml"].replace(b"<xmin>9<", b"<xmin>41<").replace(b"<xmax>40<", b"<xmax>8<")
    )
    folder = laid_out(files, tmp_path)
    assert "corners [41, 13, 8, 36] are swapped; they are put right" in check(folder).text()
    boxes = [sample.boxes for part in ("train", "val") for sample in read(folder, part).samples]
    assert all((box[:, 2:] > box[:, :2]).all() for box in boxes)


# -- 4. stale references -------------------------------------------------------------------------------


def test_a_filename_that_all_annotations_share_gives_way_to_their_own(tmp_path: Path) -> None:
    files = voc("Annotations", "JPEGImages") | {f"Annotations/p{n}.xml": xml(n, "p0.jpg") for n in range(4)}
    folder = laid_out(files, tmp_path)
    names = {sample.path.name for part in ("train", "val") for sample in read(folder, part).samples}
    assert names == {"p0.jpg", "p1.jpg", "p2.jpg", "p3.jpg"}
    assert '<filename> names "p0.jpg", as 3 others do; the picture of the annotation' in check(folder).text()


def test_annotations_of_one_picture_alone_are_said(tmp_path: Path) -> None:
    files = voc("Annotations", "JPEGImages") | {f"Annotations/p{n}.xml": xml(n, "p0.jpg") for n in range(4)}
    files = {
        name: data for name, data in files.items() if name not in ("JPEGImages/p1.jpg", "JPEGImages/p2.jpg")
    }
    assert "give each picture one annotation" in check(laid_out(files, tmp_path)).text()


def test_a_picture_in_two_folders_is_said(tmp_path: Path) -> None:
    files = voc("Annotations", "JPEGImages") | {"images/p0.jpg": jpeg(1)}
    said = check(laid_out(files, tmp_path)).text()
    assert '"p0.jpg" is in ' in said
    assert "JPEGImages is taken; keep one of them" in said


def test_a_list_that_names_a_picture_twice_takes_it_once(tmp_path: Path) -> None:
    lists = {"train.txt": b"images/train/p0.jpg\nimages/train/p0.jpg\nimages/train/p1.jpg\n"}
    yaml = b"train: train.txt\nval: images/val\nnames: [cat, dog]\n"
    folder = laid_out(ultralytics(lists, yaml), tmp_path)
    assert len(read(folder, "train").samples) == 2
    assert '"images/train/p0.jpg" is listed 2 times; it is taken once' in check(folder).text()


# -- 7. names that are not unique ----------------------------------------------------------------------


def test_two_categories_of_one_name_stay_two_classes(tmp_path: Path) -> None:
    folder = coco_with(lambda whole: whole["categories"][1].update(name="cat"), tmp_path)
    source = read(folder, "train")
    assert source.classes == ("cat", "cat (number 2)")
    assert (
        '"cat" is the name of several classes; this one is called "cat (number 2)" here'
        in check(folder).text()
    )


def test_names_that_differ_by_case_or_blanks_are_said(tmp_path: Path) -> None:
    yaml = b"train: images/train\nval: images/val\nnames: ['Traffic light', 'traffic  light']\n"
    said = check(laid_out(ultralytics({}, yaml), tmp_path)).text()
    assert '"traffic  light" and "Traffic light" differ only by case or blanks' in said


def test_two_pictures_that_share_a_label_file_are_said(tmp_path: Path) -> None:
    files = ultralytics({}, YAML) | {"images/train/p0.png": jpeg(1)}
    assert '"p0.png" and "p0.jpg" share this file' in check(laid_out(files, tmp_path)).text()


# -- 8. encodings --------------------------------------------------------------------------------------

CHINESE = "小猫和狗"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_says_its_encoding(encoding: str, tmp_path: Path) -> None:
    """Label files, lists of classes, YAML and JSON alike."""
    yolo = ultralytics(
        {}, f"train: images/train\nval: images/val\nnames: [{CHINESE}, dog]\n".encode(encoding)
    )
    yolo["labels/train/p0.txt"] = label(0).decode().encode(encoding)
    assert read(laid_out(yolo, tmp_path / "yolo"), "train").classes == (CHINESE, "dog")
    files = labelimg() | {"classes.txt": f"{CHINESE}\ndog\n".encode(encoding)}
    assert read(laid_out(files, tmp_path / "flat"), "train").classes == (CHINESE, "dog")
    text = coco()["annotations/instances_train.json"].decode().replace('"cat"', f'"{CHINESE}"')
    file = tmp_path / "data.json"
    file.write_bytes(text.encode(encoding))
    mutants.laid_out({"p0.jpg": jpeg(0), "p1.jpg": jpeg(1)}, tmp_path)
    assert read(file, "train", whole=True).classes == (CHINESE, "dog")


@pytest.mark.parametrize("name", ["data.yaml", "labels/train/p0.txt"])
def test_text_that_says_none_is_named_with_the_mend(name: str, tmp_path: Path) -> None:
    files = ultralytics({}, YAML)
    files[name] = f"# {CHINESE}\n".encode("gbk") + files[name]
    folder = laid_out(files, tmp_path)
    with pytest.raises(
        DataError, match=r"is no text in UTF-8 \(byte 0x.. in line 1\); save it as UTF-8, as `iconv -f GBK"
    ):
        read(folder, "train")
    assert name in check(folder).text()


@pytest.mark.parametrize("declared", ["gb2312", "gbk", "big5", "shift_jis", "utf-16", "utf-8"])
def test_xml_is_read_in_the_encoding_it_declares(declared: str, tmp_path: Path) -> None:
    files = voc("Annotations", "JPEGImages")
    page = xml(0, head=f"<?xml version='1.0' encoding='{declared}'?>").decode()
    name = {"big5": "貓和狗", "shift_jis": "犬"}.get(declared, CHINESE)
    files["Annotations/p0.xml"] = page.replace("cat", name).encode(declared)
    assert name in read(laid_out(files, tmp_path), "train").classes


@pytest.mark.parametrize(
    ("declared", "what"),
    [
        ("klingon", "says that its encoding is klingon, which is not known"),
        ("utf-8", "says that it is utf-8, but is not"),
    ],
)
def test_xml_in_another_encoding_than_it_declares_is_named(declared: str, what: str, tmp_path: Path) -> None:
    files = voc("Annotations", "JPEGImages")
    page = xml(0, head=f"<?xml version='1.0' encoding='{declared}'?>").decode()
    files["Annotations/p0.xml"] = page.replace("cat", CHINESE).encode("gbk")
    folder = laid_out(files, tmp_path)
    with pytest.raises(DataError, match=rf"p0\.xml: file: {what}"):
        read(folder, "train")


def test_problems_of_one_kind_are_one_line(tmp_path: Path) -> None:
    folder = coco_with(lambda whole: [row.update(segmentation=[]) for row in whole["annotations"]], tmp_path)
    said = check(folder).text()
    assert (
        "  2 annotations: segmentation is an empty list; remove the key, or draw the outline; first: " in said
    )
    assert said.count("empty list") == 1


def test_the_doctor_reads_one_file_alone_and_says_who_claims_a_split(tmp_path: Path) -> None:
    """Train and three tests: train can be read; the message names --val-data, to validate on one of them."""
    names = ("test", "test_inshore", "test_offshore")
    files = coco() | {f"annotations/instances_ship_{name}.json": instances((3,)) for name in names}
    files["annotations/instances_ship_train.json"] = files.pop("annotations/instances_train.json")
    del files["annotations/instances_val.json"]
    folder = laid_out(files, tmp_path)
    (tmp_path / "val").rename(tmp_path / "test")
    file = folder / "annotations/instances_ship_test_inshore.json"
    assert (
        "could all be the test split; name one of them as the data, or the one to validate on with --val-data"
        in (check(folder).text())
    )
    assert [len(one.samples) for one in read_pair(folder, file)] == [2, 1]
    report = check(folder, val=file)
    assert [split.images for split in report.splits] == [2, 1]
    assert [split.images for split in check(file).splits] == [1]


def test_areas_are_counted_as_the_evaluation_does(tmp_path: Path) -> None:
    """By the annotation's own: this object fills a part of its box."""
    folder = coco_with(lambda whole: whole["annotations"][0].update(bbox=[0, 0, 60, 40], area=100), tmp_path)
    assert check(folder).splits[0].small == 2
    assert np.isclose(check(folder).splits[0].sides[-1], 49.0)
