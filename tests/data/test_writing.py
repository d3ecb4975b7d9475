"""`relook dataset`: what is read in one format and written in another reads the same again."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mutants
from relook.data.formats.detect import parts_of
from relook.data.formats.problems import Problems
from relook.data.sample import DataError, Source
from relook.data.writing.write import WRITERS, Kind, write

KINDS: tuple[Kind, ...] = ("coco", "voc", "yolo")


def splits(path: Path) -> dict[str, Source]:
    problems = Problems(masks=True)
    found = {split: part(problems) for split, part in parts_of(path, alone=False).items()}
    problems.refuse(path)
    return found


def source_of(kind: str, folder: Path) -> Path:
    files = mutants.READERS[kind]()
    for name in list(files):  # run lengths, crowds, and boxes that are no hulls, are tried by themselves
        files[name] = files[name].replace(b"<difficult>1<", b"<difficult>0<")
        if name.endswith("json"):
            whole = json.loads(files[name])
            for row in whole["annotations"]:
                x, y, width, height = row["bbox"]
                outline = [x, y, x + width, y, x + width, y + height, x, y + height]
                row |= {"iscrowd": 0, "segmentation": [outline]}
            files[name] = json.dumps(whole).encode()
    mutants.laid_out(files, folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("origin", ["coco", "yolo", "voc", "labelimg", "darknet", "roboflow"])
def test_a_round_trip_keeps_everything(origin: str, kind: Kind, tmp_path: Path) -> None:
    """Splits, classes in their order, boxes, outlines, pictures: there, and back in its own format."""
    start = source_of(origin, tmp_path / "in")
    write(start, tmp_path / "there", kind)
    write(tmp_path / "there", tmp_path / "back", "coco")
    first, last = splits(start), splits(tmp_path / "back")
    assert first.keys() == last.keys() or (set(first), set(last)) == ({"all"}, {"train"})
    for before, after in zip(first.values(), last.values(), strict=True):
        assert before.classes == after.classes
        ours = {sample.path.name: sample for sample in after.samples}
        for sample in before.samples:
            other = ours[sample.path.name]
            assert (sample.height, sample.width) == (other.height, other.width)
            np.testing.assert_allclose(other.boxes, sample.boxes, atol=1e-9)
            assert other.labels.tolist() == sample.labels.tolist()
            assert other.image().tolist() == sample.image().tolist()
            for mine, theirs in zip(sample.segmentation, other.segmentation, strict=True):
                if isinstance(mine, list):
                    np.testing.assert_allclose(np.array(theirs), np.array(mine), atol=1e-9)


def test_crowds_and_run_lengths_go_where_they_can(tmp_path: Path) -> None:
    """COCO keeps both; VOC marks crowds difficult and has boxes for run lengths; YOLO leaves crowds out."""
    start = tmp_path / "in"
    mutants.laid_out(mutants.coco(), start)
    notes = {kind: write(start, tmp_path / kind, kind)[1] for kind in KINDS}
    coco, voc, yolo = (splits(tmp_path / kind)["train"].samples[0] for kind in KINDS)
    assert coco.crowd.tolist() == voc.crowd.tolist() == [True, False]
    assert coco.segmentation[0] == {"size": [48, 64], "counts": [100, 50, 2922]}
    assert voc.segmentation[0] is None
    assert len(yolo.boxes) == 1
    assert any("run lengths, which VOC's files do not hold" in note for note in notes["voc"])
    assert any("2 objects are crowds" in note for note in notes["yolo"])


def test_a_box_beyond_the_left_border_is_clipped_in_voc_and_said(tmp_path: Path) -> None:
    """A corner of 0 would say that all corners count from 0."""
    files = mutants.coco()
    files = {name: data.replace(b'"bbox": [4, 5,', b'"bbox": [-1, -3,') for name, data in files.items()}
    mutants.laid_out(files, tmp_path / "in")
    _, notes = write(tmp_path / "in", tmp_path / "out", "voc")
    assert any("VOC counts from 1, so they are clipped there" in note for note in notes)
    boxes = splits(tmp_path / "out")["train"].samples[0].boxes
    assert boxes[0].tolist() == [0, 0, 19, 9.5]
    assert boxes[1].tolist() == [5, 5, 25, 17.5]


@pytest.mark.parametrize("kind", KINDS)
def test_no_picture_takes_the_name_of_another(kind: Kind, tmp_path: Path) -> None:
    """a.jpg, a.png, deep/a.jpg and A.jpg are four pictures, with four label files."""
    folder = tmp_path / "in"
    names = ("a.jpg", "a.png", "deep/a.jpg", "A.jpg")
    (folder / "deep").mkdir(parents=True)
    for n, name in enumerate(names):
        Image.new("RGB", (20 + n, 10), (60 * n, 0, 0)).save(folder / name)
    whole = {
        "images": [
            {"id": n + 1, "file_name": name, "width": 20 + n, "height": 10} for n, name in enumerate(names)
        ],
        "annotations": [
            {"id": n + 1, "image_id": n + 1, "category_id": 1, "bbox": [n, 1, 5, 5], "iscrowd": 0}
            for n in range(4)
        ],
        "categories": [{"id": 1, "name": "x"}],
    }
    (folder / "data.json").write_text(json.dumps(whole))
    write(folder / "data.json", tmp_path / "out", kind)
    found = [sample for part in splits(tmp_path / "out").values() for sample in part.samples]
    assert sorted((sample.width, round(float(sample.boxes[0, 0]), 9)) for sample in found) == [
        (20, 0.0), (21, 1.0), (22, 2.0), (23, 3.0)
    ]  # fmt: skip
    assert all(sample.image().shape[1] == sample.width for sample in found)
    stems = [sample.path.stem.casefold() for sample in found]
    assert len(set(stems)) == 4


def test_the_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    start = source_of("yolo", tmp_path / "in")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="is there already and holds something; choose a folder"):
        write(start, tmp_path / "mine", "coco")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(start, tmp_path / "out", "coco", progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "mine"]
    (tmp_path / "empty").mkdir()
    write(start, tmp_path / "empty", "coco")
    assert (tmp_path / "empty" / "annotations").is_dir()


def test_pictures_can_be_links(tmp_path: Path) -> None:
    start = source_of("voc", tmp_path / "in")
    write(start, tmp_path / "out", "yolo", link=True)
    assert all(path.is_symlink() for path in (tmp_path / "out/images").rglob("*.jpg"))
    assert os.path.realpath(tmp_path / "out/images/train/p0.jpg") == os.path.realpath(
        start / "JPEGImages/p0.jpg"
    )


def test_a_test_split_is_written_once(tmp_path: Path) -> None:
    """As test, though it stands in for validation when there is none."""
    files = {
        name.replace("_val", "_test").replace("val/", "test/"): data for name, data in mutants.coco().items()
    }
    mutants.laid_out(files, tmp_path / "in")
    for kind in WRITERS:
        done, _ = write(tmp_path / "in", tmp_path / kind, kind)
        assert [split.name for split in done] == ["train", "test"]
        assert set(splits(tmp_path / kind)) == {"train", "val", "test"}


def test_data_that_cannot_be_used_are_not_written(tmp_path: Path) -> None:
    start = source_of("coco", tmp_path / "in")
    (start / "annotations/instances_val.json").write_text("{")
    with pytest.raises(DataError, match="does not end with }"):
        write(start, tmp_path / "out", "voc")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="is generated and has no files"):
        write("shapes:train=2,val=2", tmp_path / "out", "voc")


def _one_picture(
    annotations: list[dict], folder: Path, name: bytes = b"p0.jpg", classes: tuple[str, ...] = ("x",)
) -> Path:
    """COCO data of one picture of 64 x 48."""
    folder.mkdir(parents=True)
    (folder / os.fsdecode(name)).write_bytes(mutants.PICTURES[0])
    rows = [{"id": n, "image_id": 1, "category_id": 1, **row} for n, row in enumerate(annotations)]
    whole = {
        "images": [{"id": 1, "file_name": os.fsdecode(name), "width": 64, "height": 48}],
        "annotations": rows,
        "categories": [{"id": n, "name": one} for n, one in enumerate(classes, 1)],
    }
    (folder / "data.json").write_text(json.dumps(whole))
    return folder / "data.json"


@pytest.mark.parametrize("kind", KINDS)
def test_several_records_of_one_picture_are_joined(kind: Kind, tmp_path: Path) -> None:
    file = _one_picture([{"bbox": [1, 2, 9, 9]}, {"bbox": [20, 2, 9, 9]}], tmp_path / "in")
    whole = json.loads(file.read_text())
    whole["images"].append({**whole["images"][0], "id": 2})
    whole["annotations"][1]["image_id"] = 2
    file.write_text(json.dumps(whole))
    write(file, tmp_path / "out", kind)
    (source,) = splits(tmp_path / "out").values()
    assert [len(sample.boxes) for sample in source.samples] == [2]


@pytest.mark.parametrize("kind", KINDS)
def test_one_picture_in_two_splits_keeps_both_annotations(kind: Kind, tmp_path: Path) -> None:
    files = mutants.yolo() | {"data.yaml": b"train: train.txt\nval: images/train\nnames: [cat, dog]\n"}
    mutants.laid_out(files | {"train.txt": b"images/train/p0.jpg\n"}, tmp_path / "in")
    write(tmp_path / "in", tmp_path / "out", kind)
    assert [len(part.samples) for part in splits(tmp_path / "out").values()] == [1, 2]


BAD_MASKS = (
    [[1, 2, float("nan"), 4, 5, 6]],
    [[4, 5, 24, 5, "a", 17]],
    [5],
    [[10**400] * 6],
    [[1, 2, 3, 4, 5, 6, 7]],
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", BAD_MASKS)
def test_a_mask_that_cannot_be_read_is_left_out_and_said(kind: Kind, mask: list, tmp_path: Path) -> None:
    file = _one_picture([{"bbox": [1, 2, 9, 9], "segmentation": mask}], tmp_path / "in")
    _, notes = write(file, tmp_path / "out", kind)
    assert "1 object have a mask that cannot be read, which is left out" in notes
    (source,) = splits(tmp_path / "out").values()
    np.testing.assert_allclose(source.samples[0].boxes, [[1, 2, 10, 11]], atol=1e-9)


def test_what_was_not_learnt_is_not_learnt_afterwards(tmp_path: Path) -> None:
    """A box left of the picture, one that is to be ignored, one that passes the border by far."""
    rows = [{"bbox": [-20, -20, 15, 15]}, {"bbox": [4, 4, 9, 9], "ignore": 1}, {"bbox": [4, 5, 300, 20]}]
    file = _one_picture(rows, tmp_path / "in")
    notes = {kind: write(file, tmp_path / kind, kind)[1] for kind in KINDS}
    voc = splits(tmp_path / "voc")["all"].samples[0]
    assert voc.boxes.tolist() == [[4, 4, 13, 13], [4, 5, 304, 25]]
    assert voc.crowd.tolist() == [True, False]
    assert any("lie left of or above their picture" in note for note in notes["voc"])
    assert any("to be ignored, which VOC has no mark for" in note for note in notes["voc"])
    yolo = splits(tmp_path / "yolo")["train"].samples[0]
    np.testing.assert_allclose(yolo.boxes[-1], [4, 5, 64, 25], atol=1e-9)
    assert any("pass the border of their picture by far" in note for note in notes["yolo"])


NAMES = (
    b"\xff0.jpg",
    b" a .jpg",
    b"a.jpg.jpg",
    b"a.xml.jpg",
    b"a\\b.jpg",
    b"x" * 240 + b".jpg",
    "a\u202eb.jpg".encode(),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_any_name_are_written_under_one_that_can_be_read(
    kind: Kind, name: bytes, tmp_path: Path
) -> None:
    files = mutants.labelimg()
    mutants.laid_out({"classes.txt": files["classes.txt"]}, tmp_path / "in")
    (tmp_path / "in" / os.fsdecode(name)).write_bytes(mutants.PICTURES[0])
    (tmp_path / "in" / os.fsdecode(name)).with_suffix(".txt").write_bytes(files["p0.txt"])
    write(tmp_path / "in", tmp_path / "out", kind)
    (source,) = splits(tmp_path / "out").values()
    assert [len(sample.boxes) for sample in source.samples] == [2]
    assert source.samples[0].image().shape == (48, 64, 3)


@pytest.mark.parametrize(
    "name",
    [
        "a  b",
        "traffic\u00a0light",
        "a\u2028b",
        "a\u0085b",
        "a\ufffeb",
        "\ufeffa",
        " a",
        "#a: 'b', [c]",
        "null",
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_classes_of_any_name_are_written_so_that_they_can_be_read(
    kind: Kind, name: str, tmp_path: Path
) -> None:
    file = _one_picture([{"bbox": [1, 2, 9, 9]}], tmp_path / "in", classes=(name, "other"))
    write(file, tmp_path / "out", kind)
    (source,) = splits(tmp_path / "out").values()
    assert [source.classes[n] for n in source.samples[0].labels] == [source.classes[0]]
    assert len(source.classes) == 2


def test_thousands_of_pictures_of_one_name_take_no_time() -> None:
    from relook.data.writing.write import _free  # noqa: PLC0415

    taken: dict[str, int] = {}
    names = [_free(Path(f"{n}/image.jpg"), taken) for n in range(20_000)]
    assert len(set(names)) == 20_000
    assert names[:3] == ["image.jpg", "image-2.jpg", "image-3.jpg"]
