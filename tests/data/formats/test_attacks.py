"""What a review and an attack found in the readers, each mended; every test failed before."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_layouts import coco, instances, jpeg, label, labelimg, ultralytics, voc, xml
from test_silent import YAML, coco_with, laid_out

import mutants
from relook.data.checks.check import check
from relook.data.decode import BrokenImage, image_size, read_image
from relook.data.formats.detect import read, read_pair
from relook.data.sample import DataError
from relook.inputs import pictures
from relook.rle import bitmap


def answered_in(folder: Path, seconds: float) -> str:
    started = time.monotonic()
    said = check(folder).text()
    assert time.monotonic() - started < seconds
    return said


# -- within five seconds -------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["punycode", "idna", "unicode_escape", "undefined"])
def test_codecs_that_are_of_no_text_are_not_used(encoding: str, tmp_path: Path) -> None:
    files = voc("Annotations", "JPEGImages")
    head = f"<?xml version='1.0' encoding='{encoding}'?>".encode()
    files["Annotations/p0.xml"] = head + b"aaaaaaaaaa-" + b"zb9" * 600_000
    assert f"says that its encoding is {encoding}, which is not known" in answered_in(
        laid_out(files, tmp_path), 5
    )


def test_names_of_thousands_of_folders_are_not_tried_one_by_one(tmp_path: Path) -> None:
    deep = "a/" * 20_000 + "p0.jpg"
    files = voc("Annotations", "JPEGImages") | {"Annotations/p0.xml": xml(0, deep)}
    answered_in(laid_out(files, tmp_path / "voc"), 5)
    folder = coco_with(lambda whole: whole["images"][0].update(file_name=deep), tmp_path / "coco")
    answered_in(folder, 5)
    lists = {"train.txt": f"{deep}\n".encode()}
    answered_in(
        laid_out(ultralytics(lists, YAML.replace(b"images/train", b"train.txt")), tmp_path / "yolo"), 5
    )


@pytest.mark.parametrize(
    "page", ["<object>" * 20_000 + "</object>" * 20_000, "<object><name>x</name>" + "<polygon>" * 20_000]
)
def test_elements_in_elements_cost_no_time(page: str, tmp_path: Path) -> None:
    files = voc("Annotations", "JPEGImages") | {
        "Annotations/p0.xml": f"<annotation>{page}</annotation>".encode()
    }
    answered_in(laid_out(files, tmp_path), 5)


def test_a_million_equal_mistakes_are_counted_not_kept(tmp_path: Path) -> None:
    rows = b"0," * 200_000 + b"0]}"
    text = b'{"images": [], "categories": [], "annotations": [' + rows
    files = coco() | {"annotations/instances_train.json": text}
    said = answered_in(laid_out(files, tmp_path), 10)
    assert "200,001 annotations: is ..., no object; write it anew or remove it; first: " in said


def test_digits_without_end_are_no_matter_for_the_report(tmp_path: Path) -> None:
    files = voc("Annotations", "JPEGImages") | {"ImageSets/Main/train.txt": b"p0\n" + b"1" * 60_000 + b"a\n"}
    answered_in(laid_out(files | {"ImageSets/Main/val.txt": b"p1\n"}, tmp_path), 5)


def test_a_picture_whose_head_is_asked_is_not_decoded(tmp_path: Path) -> None:
    """Pillow's own reader of a PNG's EXIF would."""
    Image.new("1", (12_000, 12_000)).save(tmp_path / "a.png")
    started = time.monotonic()
    assert image_size(tmp_path / "a.png") == (12_000, 12_000)
    assert time.monotonic() - started < 0.1


def test_an_icon_is_no_picture_whatever_its_ending(tmp_path: Path) -> None:
    """Its size is seen only when it is decoded."""
    Image.new("RGB", (32, 32)).save(tmp_path / "a.ico")
    (tmp_path / "a.ico").rename(tmp_path / "a.jpg")
    with pytest.raises(BrokenImage, match="not an image in a format that Pillow reads"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("counts", [[2**62] * 4 + [3072], [-1, 3073], [2**70], [3072.0 + 2**60]])
def test_run_lengths_whose_sum_wraps_around_end_no_process(counts: list[float]) -> None:
    with pytest.raises(ValueError, match=r"run lengths sum to|cannot be read"):
        bitmap({"size": [48, 64], "counts": counts}, 48, 64)


# -- the right format, and its names -----------------------------------------------------------------------


def test_voc_beside_text_files_of_labels_stays_voc(tmp_path: Path) -> None:
    """As darknet's voc_label.py leaves it; and annotations/ with a classes.txt in it."""
    files = voc("Annotations", "JPEGImages") | {f"labels/p{n}.txt": label(n) for n in range(4)}
    files |= {"ImageSets/Main/train.txt": b"p0\np1\n", "ImageSets/Main/val.txt": b"p2\np3\n"}
    assert read(laid_out(files, tmp_path / "a"), "train").classes == ("cat", "dog")
    files = voc("annotations", "images") | {
        "annotations/classes.txt": b"dog\ncat\n",
        "images/readme.txt": b"hi",
    }
    source = read(laid_out(files, tmp_path / "b"), "train")
    assert sum(len(sample.boxes) for sample in source.samples) == len(source.samples)


def test_keys_of_a_yaml_in_capitals(tmp_path: Path) -> None:
    yaml = b"Train: Train.txt\nValidation: Val.txt\nnames: [cat, dog]\n"
    lists = {"Train.txt": b"images/train/p0.jpg\n", "Val.txt": b"images/val/p2.jpg\n"}
    source = read(laid_out(ultralytics(lists, yaml), tmp_path), "train")
    assert (source.classes, len(source.samples)) == (("cat", "dog"), 1)


def test_names_of_a_yaml_without_splits_hold_for_its_folders(tmp_path: Path) -> None:
    assert read(laid_out(ultralytics({}, b"names: [cat, dog]\n"), tmp_path), "val").classes == ("cat", "dog")


def test_each_split_may_bring_its_own_list_of_classes(tmp_path: Path) -> None:
    """LabelImg writes one beside the labels; the two are matched by name."""
    files = ultralytics({}, b"") | {
        "labels/train/classes.txt": b"cat\ndog\n",
        "labels/val/classes.txt": b"dog\ncat\n",
    }
    del files["data.yaml"]
    train, val = read_pair(laid_out(files, tmp_path), None)
    assert train.classes == val.classes == ("cat", "dog")
    assert [val.classes[n] for sample in val.samples for n in sample.labels] == ["dog", "cat"]


def test_a_blank_line_in_a_list_of_classes_is_refused(tmp_path: Path) -> None:
    """Or all names behind it would be of other numbers."""
    with pytest.raises(DataError, match="line 2 is blank, though classes are numbered by their lines"):
        read(laid_out(labelimg() | {"classes.txt": b"cat\n\ndog\n"}, tmp_path), "train")


@pytest.mark.parametrize("names", ["coco.names", "cat, dog", "/dev/zero"])
def test_names_that_are_no_list_are_no_class(names: str, tmp_path: Path) -> None:
    yaml = f"train: images/train\nval: images/val\nnames: {names}\n".encode()
    with pytest.raises(DataError, match="no list of classes and no file"):
        read(laid_out(ultralytics({}, yaml), tmp_path), "train")


def test_yaml_of_another_program_is_passed_over(tmp_path: Path) -> None:
    files = voc("Annotations", "JPEGImages") | {"mkdocs.yml": b"a: ["}
    assert read(laid_out(files, tmp_path / "a"), "train").classes == ("cat", "dog")
    assert len(read(laid_out(ultralytics({"a.yaml": b"a: ["}, YAML), tmp_path / "b"), "train").samples) == 2


def test_folders_named_as_splits_are_splits(tmp_path: Path) -> None:
    """annotations/train with images/train, and train/annotations with train/images."""
    one, two = {}, {}
    for n in range(4):
        split = "train" if n < 2 else "val"
        one |= {f"annotations/{split}/p{n}.xml": xml(n), f"images/{split}/p{n}.jpg": jpeg(n)}
        two |= {f"{split}/annotations/p{n}.xml": xml(n), f"{split}/images/p{n}.jpg": jpeg(n)}
    for name, files in (("one", one), ("two", two)):
        folder = laid_out(files, tmp_path / name)
        assert [s.path.stem for s in read(folder, "train").samples] == ["p0", "p1"]
        assert [s.path.stem for s in read(folder, "val").samples] == ["p2", "p3"]


def test_cvat_writes_coco_by_the_name_of_a_subset(tmp_path: Path) -> None:
    files = {"annotations/instances_default.json": instances((0, 1, 2, 3))}
    files |= {f"images/default/p{n}.jpg": jpeg(n) for n in range(4)}
    assert all(sample.path.is_file() for sample in read(laid_out(files, tmp_path), "train").samples)


def test_json_in_utf_16_is_looked_into(tmp_path: Path) -> None:
    files = {"train.json": instances((0, 1)).decode().encode("utf-16"), "p0.jpg": jpeg(0), "p1.jpg": jpeg(1)}
    files |= {"val.json": instances((1,))}
    assert len(read(laid_out(files, tmp_path), "train").samples) == 2


# -- nothing silently wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [b"task: pose\n", b"flip_idx: [1, 0]\n"])
def test_a_yaml_of_poses_says_their_shape(more: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is of poses without kpt_shape"):
        read(laid_out(ultralytics({}, YAML + more), tmp_path), "train")


@pytest.mark.parametrize(
    "rows",
    [
        ["0 .5 .5 .2 .2 .45 .45 .9 .9 .5 .5"],
        ["0 .5 .5 .2 .2 .9 1"],
        ["0 .5 .5 .2 .2 .4 .5 2 .6 .5 1"] * 19 + ["0 .1 .5 .4 .2 .4 .5 2 .6 .5 1"],
        ["0 .5 .5 .2 .2 .4 .5 2 .6 .5 1"] * 19 + ["0 .1 .1 .2 .2 .3 .4"],
    ],
)
def test_rows_that_look_like_poses_are_refused_though_not_all_do(rows: list[str], tmp_path: Path) -> None:
    files = ultralytics({}, YAML) | {
        "labels/train/p0.txt": "\n".join(rows).encode(),
        "labels/train/p1.txt": b"",
    }
    with pytest.raises(DataError, match=r"boxes with keypoints, or outlines\?"):
        read(laid_out(files, tmp_path), "train")


def test_outlines_and_turned_boxes_are_still_read(tmp_path: Path) -> None:
    turned = b"0 0.3 0.2 0.6 0.3 0.5 0.6 0.2 0.5\n"
    files = ultralytics({}, YAML) | {"labels/train/p0.txt": turned * 3, "labels/train/p1.txt": turned}
    assert len(read(laid_out(files, tmp_path / "a"), "train").samples[0].boxes) == 3
    many = [
        b"0 0.4 0.5 0.42 0.45 0.6 0.5\n",
        b"0 0.4 0.5 0.42 0.45 0.6 0.5 0.5 0.6\n",
        b"1 .4 .5 .5 .4 .6 .5 .55 .6 .45 .6\n",
    ]
    files = ultralytics({}, YAML) | {"labels/train/p0.txt": b"".join(many), "labels/train/p1.txt": b""}
    assert len(read(laid_out(files, tmp_path / "b"), "train").samples[0].boxes) == 3


def test_corners_in_coco_are_named_though_a_part_fits(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    low = random.uniform(0, 0.8, (200, 2)) * [60, 44]
    high = low + random.uniform(0.1, 1, (200, 2)) * ([64, 48] - low)
    boxes = np.concatenate([low, high], 1).round(1).tolist()

    def change(whole: dict) -> None:
        row = whole["annotations"][0]
        whole["annotations"] = [{**row, "id": n, "bbox": box} for n, box in enumerate(boxes)]

    with pytest.raises(DataError, match="read as left, upper, right and lower border"):
        read(coco_with(change, tmp_path), "train")


@pytest.mark.parametrize(
    ("segmentation", "what"),
    [
        ("[[1, 2]]", "neither a list of polygons nor run lengths"),
        ({"size": [5, 5], "counts": "abc"}, "are of size"),
        ({"counts": "abc"}, "have no size"),
        ({"size": [48, 64], "counts": None}, "neither text nor numbers"),
    ],
)
def test_a_segmentation_of_any_type_is_looked_at(segmentation: object, what: str, tmp_path: Path) -> None:
    folder = coco_with(lambda whole: whole["annotations"][0].update(segmentation=segmentation), tmp_path)
    assert what in check(folder).text()


@pytest.mark.parametrize("row", ["1_0 .5 .5 .2 .2", "0 .5 .5 0_2 .2", "\u0661 .5 .5 .2 .2"])
def test_numbers_are_those_that_everybody_reads(row: str, tmp_path: Path) -> None:
    files = ultralytics({}, YAML) | {"labels/train/p0.txt": row.encode()}
    with pytest.raises(DataError, match="is not a class and numbers"):
        read(laid_out(files, tmp_path), "train")


def test_a_list_that_fits_nothing_is_a_mistake(tmp_path: Path) -> None:
    """Not a reason to split by names."""
    files = voc("Annotations", "JPEGImages") | {
        "ImageSets/Main/train.txt": b"x\n",
        "ImageSets/Main/val.txt": b"y\n",
    }
    with pytest.raises(DataError, match=r"train\.txt: lists no image that is annotated here"):
        read(laid_out(files, tmp_path), "train")


def test_nothing_is_kept_back_where_tests_stand_in(tmp_path: Path) -> None:
    files = {
        "annotations/instances_all.json": instances((0, 1, 2)),
        "annotations/instances_test.json": instances((3,)),
    }
    folder = laid_out(files | {f"images/p{n}.jpg": jpeg(n) for n in range(4)}, tmp_path)
    assert len(read(folder, "train").samples) == 3
    assert [sample.path.stem for sample in read(folder, "val").samples] == ["p3"]


def test_pictures_that_are_none_are_noticed_before_training(tmp_path: Path) -> None:
    files = coco() | {f"{s}/p{n}.jpg": b"<html>404" for n, s in enumerate(("train", "train", "val", "val"))}
    with pytest.raises(DataError, match="of 2 pictures tried none can be opened"):
        read_pair(laid_out(files, tmp_path), None)


def test_one_picture_by_two_spellings_is_said(tmp_path: Path) -> None:
    folder = coco_with(lambda whole: whole["images"][1].update(file_name="./p0.jpg"), tmp_path)
    assert '"./p0.jpg" is image 1, too' in check(folder).text()


def test_what_no_annotation_names_is_said(tmp_path: Path) -> None:
    files = voc("Annotations", "JPEGImages") | {"JPEGImages/more.jpg": jpeg(0), "JPEGImages/a.heic": b"x"}
    said = check(laid_out(files, tmp_path / "voc")).text()
    assert "1 pictures have no annotation and are not used, such as" in said
    assert "1 .heic (a.heic)" in said
    files = ultralytics({}, YAML) | {"labels/train/gone.txt": label(0)}
    assert "1 label files have no image, such as" in check(laid_out(files, tmp_path / "yolo")).text()


def test_a_glob_passes_over_what_a_folder_does(tmp_path: Path) -> None:
    for name in ("a/x.jpg", "__MACOSX/a/y.jpg", "@eaDir/q.jpg"):
        (tmp_path / "pics" / name).parent.mkdir(parents=True)
        (tmp_path / "pics" / name).write_bytes(jpeg(0))
    hidden = tmp_path / ".cache"
    (tmp_path / "pics").rename(hidden)  # what the pattern itself names is meant
    assert [Path(str(one)).name for one in pictures(f"{hidden}/**/*.jpg")] == ["x.jpg"]


def test_names_alike_in_many_folders_are_split_by_their_folders(tmp_path: Path) -> None:
    """By its name alone every picture would be in one part."""
    files = {"images/" + f"s{n}/colour.jpg": jpeg(0) for n in range(12)}
    files |= {f"labels/s{n}/colour.txt": label(0) for n in range(12)}
    train, val = read_pair(laid_out(files, tmp_path), None)
    assert len(train.samples) + len(val.samples) == 12
    assert train.samples
    assert val.samples


def test_a_validation_part_of_broken_pictures_is_not_usable(tmp_path: Path) -> None:
    files = ultralytics({}, YAML) | {f"images/train/q{n}.jpg": jpeg(0) for n in range(12)}
    files |= {f"images/val/p{n}.jpg": jpeg(n)[:600] for n in (2, 3)}
    report = check(laid_out(files, tmp_path))
    assert not report.usable
    assert "2 of 2 images are broken" in report.text()


def test_a_test_part_without_annotations_prevents_nothing(tmp_path: Path) -> None:
    """As COCO publishes it."""
    whole = json.loads(instances((3,)))
    whole["annotations"] = []
    files = coco() | {"annotations/instances_test.json": json.dumps(whole).encode(), "test/p3.jpg": jpeg(3)}
    assert check(laid_out(files, tmp_path)).usable


def test_labels_behind_a_link_are_found(tmp_path: Path) -> None:
    files = ultralytics({}, YAML)
    del files["data.yaml"]
    folder = laid_out(files, tmp_path)
    (folder / "labels/train").rename(tmp_path / "elsewhere")
    (folder / "labels/train").symlink_to(tmp_path / "elsewhere")
    assert sum(len(sample.boxes) for sample in read(folder, "train").samples) == 2


def test_numbers_as_names_of_classes_keep_their_digits(tmp_path: Path) -> None:
    folder = coco_with(lambda whole: whole["categories"][0].update(name=4006381333931), tmp_path)
    assert read(folder, "train").classes == ("4006381333931", "dog")


def test_a_name_that_no_disk_can_hold_is_answered() -> None:
    with pytest.raises(DataError, match="does not exist"):
        read("a" * 5000, "train")
    for wrong in ("shapes:seed=\u00b2", "shapes:train=2,side=0"):
        with pytest.raises(DataError):
            read(wrong, "train")


def test_memory_is_asked_for_the_file_not_for_its_limit(tmp_path: Path) -> None:
    """A process that may have 8 GB reads a small file."""
    import resource  # noqa: PLC0415

    folder = laid_out(coco(), tmp_path)
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), before[1]))
    try:
        assert len(read(folder, "train").samples) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_mutant_in_the_fuzzer_is_one(tmp_path: Path) -> None:
    """The damages change something: each kind is tried on each file of a data set."""
    for kind in ("bytes", "text", "value", "special"):
        names = mutants.laid_out(mutants.coco(), tmp_path / kind)
        before = {name: (tmp_path / kind / name).read_bytes() for name in names}
        for n in range(len(names)):
            mutants.Damage(kind, n / len(names), 0.3, 0.5, 8 * n + 7)(tmp_path / kind, names)
        after = {
            name: p.read_bytes() if (p := tmp_path / kind / name).is_file() and not p.is_symlink() else b""
            for name in names
        }
        assert before != after


def test_numbers_of_classes_that_cannot_be_meant(tmp_path: Path) -> None:
    """3 x 10^9 in a label, 200,000 categories, as many lines of classes.txt."""
    files = ultralytics({}, b"") | {"labels/train/p0.txt": b"3000000000 .5 .5 .2 .2\n"}
    del files["data.yaml"]
    said = answered_in(laid_out(files, tmp_path / "label"), 5)
    assert "class 3000000000 is not among the 2 classes" in said
    many = [{"id": n + 1, "name": f"c{n}"} for n in range(200_000)]
    folder = coco_with(lambda whole: whole.update(categories=many), tmp_path / "coco")
    assert "there are 200,000 classes, more than the 20,000 that relook takes" in answered_in(folder, 5)
    names = b"".join(b"c%d\n" % n for n in range(200_000))
    folder = laid_out(labelimg() | {"classes.txt": names}, tmp_path / "list")
    assert "there are 200,000 classes" in answered_in(folder, 5)


def test_pipes_and_devices_as_pictures_are_named(tmp_path: Path) -> None:
    def change(whole: dict) -> None:
        whole["images"][0]["file_name"], whole["images"][1]["file_name"] = "pipe.jpg", "zero.jpg"

    folder = coco_with(change, tmp_path)
    os.mkfifo(folder / "train/pipe.jpg")
    (folder / "train/zero.jpg").symlink_to("/dev/zero")
    said = answered_in(folder, 5)
    assert "is a pipe, not a file" in said
    assert "is a device, not a file" in said


def test_pictures_of_one_name_by_relative_and_absolute_paths_are_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may name some pictures by their whole path, though the data are given by a relative one."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.jpg").write_bytes(jpeg(0))
    file = tmp_path / "data.json"
    file.write_bytes(instances((0, 1), lambda n: "a/p.jpg" if n == 0 else str(tmp_path / "b/p.jpg")))
    monkeypatch.chdir(tmp_path)
    assert len(read("data.json", "train").samples) == len(read("data.json", "val").samples) == 1
