"""Data sets as tools write them, each read by its path alone: boxes, classes and splits are right."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

import mutants
from relook.data.formats.detect import read
from relook.data.sample import DataError

Files = dict[str, bytes]
BOX = [8.0, 12.0, 40.0, 36.0]  # x1 y1 x2 y2 of every object, in pictures of 64 x 48
NAMES = ("cat", "dog")


def jpeg(n: int) -> bytes:
    return mutants.PICTURES[n]


def label(n: int) -> bytes:
    """A line of YOLO's; the class is the number's last bit."""
    return f"{n % 2} 0.375 0.5 0.5 0.5\n".encode()


def xml(n: int, filename: str | None = None, head: str = "") -> bytes:
    """A page of VOC's: corners from 1."""
    text = (
        f"{head}<annotation><filename>{filename or f'p{n}.jpg'}</filename>"
        "<size><width>64</width><height>48</height><depth>3</depth></size>"
        f"<object><name>{NAMES[n % 2]}</name><bndbox><xmin>9</xmin><ymin>13</ymin>"
        "<xmax>40</xmax><ymax>36</ymax></bndbox></object></annotation>"
    )
    return text.encode()


def instances(numbers: tuple[int, ...], name: Callable[[int], str] = "p{}.jpg".format) -> bytes:
    """A COCO file of some pictures."""
    whole = {
        "images": [{"id": n + 1, "file_name": name(n), "width": 64, "height": 48} for n in numbers],
        "annotations": [
            {"id": n + 1, "image_id": n + 1, "category_id": n % 2 + 1, "bbox": [8, 12, 32, 24], "area": 768}
            for n in numbers
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    return json.dumps(whole).encode()


def voc(annotations: str, images: str) -> Files:
    return {
        name: data
        for n in range(4)
        for name, data in ((f"{annotations}/p{n}.xml", xml(n)), (f"{images}/p{n}.jpg", jpeg(n)))
    }


def split(n: int, second: str = "valid") -> str:
    return "train" if n < 2 else second


def roboflow_voc() -> Files:
    pairs = [((f"{split(n)}/p{n}.jpg", jpeg(n)), (f"{split(n)}/p{n}.xml", xml(n))) for n in range(4)]
    return dict(one for pair in pairs for one in pair)


def labelimg() -> Files:
    pairs = [((f"p{n}.jpg", jpeg(n)), (f"p{n}.txt", label(n))) for n in range(4)]
    return {"classes.txt": b"cat\ndog\n", **dict(one for pair in pairs for one in pair)}


def labelimg_in_splits() -> Files:
    files = {name: data for name, data in labelimg().items() if name == "classes.txt"}
    for n in range(4):
        files |= {f"{split(n, 'val')}/p{n}.jpg": jpeg(n), f"{split(n, 'val')}/p{n}.txt": label(n)}
    return files


def cvat_yolo() -> Files:
    files: Files = {
        "obj.data": b"classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
        "obj.names": b"cat\ndog\n",
        "train.txt": b"".join(b"data/obj_train_data/p%d.jpg\n" % n for n in range(4)),
    }
    for n in range(4):
        files |= {f"obj_train_data/p{n}.jpg": jpeg(n), f"obj_train_data/p{n}.txt": label(n)}
    return files


def ultralytics(lists: dict[str, bytes], yaml: bytes) -> Files:
    files: Files = {"data.yaml": yaml, **lists}
    for n in range(4):
        files[f"images/{split(n, 'val')}/p{n}.jpg"] = jpeg(n)
        files[f"labels/{split(n, 'val')}/p{n}.txt"] = label(n)
    return files


def cvat_ultralytics() -> Files:
    lists = {
        "train.txt": b"data/images/train/p0.jpg\ndata/images/train/p1.jpg\n",
        "val.txt": b"data/images/val/p2.jpg\ndata/images/val/p3.jpg\n",
    }
    return ultralytics(lists, b"names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\nval: val.txt\n")


def windows_lists() -> Files:
    lists = {
        "train.txt": b"\xef\xbb\xbf.\\images\\train\\p0.jpg\r\n.\\images\\train\\p1.jpg\r\n",
        "val.txt": b"C:\\work\\set\\images\\val\\p2.jpg\r\nC:\\work\\set\\images\\val\\p3.jpg\r\n",
    }
    return ultralytics(lists, b"train: train.txt\nval: val.txt\nnames: [cat, dog]\n")


def cvat_voc() -> Files:
    files: Files = {
        "ImageSets/Main/default.txt": b"left/p0\nleft/p1\nright/p2\nright/p3\n",
        "labelmap.txt": b"# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:1,2,3::\ndog:4,5,6::\n",
    }
    for n in range(4):
        place = "left" if n < 2 else "right"
        files[f"Annotations/{place}/p{n}.xml"] = xml(n, f"{place}/p{n}.jpg")
        files[f"JPEGImages/{place}/p{n}.jpg"] = jpeg(n)
    return files


def coco(
    name: Callable[[int], str] = "p{}.jpg".format, place: Callable[[int], str] = "p{}.jpg".format
) -> Files:
    files = {
        f"annotations/instances_{one}.json": instances(n, name)
        for one, n in (("train", (0, 1)), ("val", (2, 3)))
    }
    return files | {f"{split(n, 'val')}/{place(n)}": jpeg(n) for n in range(4)}


def deeper() -> Files:
    return {f"download/pets/{name}": data for name, data in coco().items()} | {"__MACOSX/._download": b""}


LAYOUTS: dict[str, Callable[[], Files]] = {
    "voc in lower case": lambda: voc("annotations", "images"),
    "voc of kangaroos": lambda: voc("annots", "images"),
    "voc in one folder": lambda: {name[4:]: data for name, data in voc("set", "set").items()},
    "voc of roboflow": roboflow_voc,
    "voc of cvat": cvat_voc,
    "yolo of labelimg": labelimg,
    "yolo of labelimg in splits": labelimg_in_splits,
    "yolo 1.1 of cvat": cvat_yolo,
    "ultralytics of cvat": cvat_ultralytics,
    "lists of windows": windows_lists,
    "coco with backslashes": lambda: coco(lambda n: f"{split(n, 'val')}\\p{n}.jpg"),
    "coco percent-encoded": lambda: coco(lambda n: quote(f"my cat {n}.jpg"), "my cat {}.jpg".format),
    "coco of another machine": lambda: coco("/volumes/old/pets/p{}.jpg".format),
    "coco with addresses": lambda: coco("https://example.org/pets/p{}.jpg?token=1".format),
    "coco in another case": lambda: coco("P{}.JPG".format),
    "coco in another form of unicode": lambda: coco("e\u0301{}.jpg".format, "\u00e9{}.jpg".format),
    "one folder too deep": deeper,
    "one folder above VOCdevkit": lambda: {
        f"VOCdevkit/VOC2012/{k}": v for k, v in voc("Annotations", "JPEGImages").items()
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read_by_its_path(layout: str, tmp_path: Path) -> None:
    """Four pictures, one object in each, whichever split they are in; pictures can be opened."""
    mutants.laid_out(LAYOUTS[layout](), tmp_path)
    parts = [read(tmp_path, "train"), read(tmp_path, "val")]
    seen = {sample.path.name[-5]: (sample, part) for part in parts for sample in part.samples}
    assert sorted(seen) == ["0", "1", "2", "3"]
    for key, (sample, part) in seen.items():
        np.testing.assert_allclose(sample.boxes, [BOX], atol=1e-9)
        assert part.classes == NAMES
        assert [part.classes[n] for n in sample.labels] == [NAMES[int(key) % 2]]
        assert sample.image().shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("layout", "note"),
    [
        ("coco with backslashes", r"2 names are written with backslashes, such as train\\p0\.jpg"),
        ("coco percent-encoded", r"2 names are written percent-encoded, such as my%20cat%200\.jpg"),
        (
            "coco of another machine",
            r"written with folders that are not here, such as /volumes/old/pets/p0\.jpg",
        ),
        ("coco in another case", r"written in another case or spelling of letters, such as P0\.JPG"),
        ("one folder too deep", r"itself holds no data set; the one in .*download/pets is taken"),
    ],
)
def test_what_had_to_be_changed_is_said(layout: str, note: str, tmp_path: Path) -> None:
    mutants.laid_out(LAYOUTS[layout](), tmp_path)
    notes = read(tmp_path, "train").notes
    assert any(re.search(note, one) for one in notes), notes


def test_a_test_split_is_read(tmp_path: Path) -> None:
    """By all formats; where there is no validation split it is validated on, which is said."""
    yaml = b"train: images/train\nval: images/val\ntest: images/test\nnames: [cat, dog]\n"
    third = {"images/test/p3.jpg": jpeg(3), "labels/test/p3.txt": label(3)}
    mutants.laid_out(ultralytics(third, yaml), tmp_path / "yolo")
    lists = {f"ImageSets/Main/{s}.txt": f"p{n}\n".encode() for n, s in enumerate(("train", "val", "test"))}
    mutants.laid_out(voc("Annotations", "JPEGImages") | lists, tmp_path / "voc")
    files = coco() | {"annotations/instances_test.json": instances((3,)), "test/p3.jpg": jpeg(3)}
    mutants.laid_out(files, tmp_path / "coco")
    roboflow = {
        f"{s}/_annotations.coco.json": instances((n,)) for n, s in enumerate(("train", "valid", "test"))
    }
    pictures = {f"{s}/p{n}.jpg": jpeg(n) for n, s in enumerate(("train", "valid", "test"))}
    mutants.laid_out(roboflow | pictures, tmp_path / "roboflow")
    for name, stem in (("yolo", "p3"), ("voc", "p2"), ("coco", "p3"), ("roboflow", "p2")):
        assert [sample.path.stem for sample in read(tmp_path / name, "test").samples] == [stem]
        assert stem not in {sample.path.stem for sample in read(tmp_path / name, "train").samples}
    (tmp_path / "coco/annotations/instances_val.json").unlink()
    source = read(tmp_path / "coco", "val")
    assert [sample.path.stem for sample in source.samples] == ["p3"]
    assert any("has no validation split, so its test split is taken" in note for note in source.notes)


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    mutants.laid_out(coco(), tmp_path)
    with pytest.raises(DataError, match="holds no test split, only train and val"):
        read(tmp_path, "test")


def test_a_missing_test_folder_of_a_yaml_is_no_mistake(tmp_path: Path) -> None:
    """Tools write the entry whether there is one or not; a missing validation folder is told once read."""
    yaml = b"train: images/train\nval: images/nowhere\ntest: images/test\nnames: [cat, dog]\n"
    mutants.laid_out(ultralytics({}, yaml), tmp_path)
    assert len(read(tmp_path, "train").samples) == 2
    with pytest.raises(DataError, match="images/nowhere was not found; looked for"):
        read(tmp_path, "val")
    with pytest.raises(DataError, match="images/test was not found"):
        read(tmp_path, "test")


def test_several_data_sets_below_a_path_are_not_guessed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        mutants.laid_out(coco(), tmp_path / name)
    with pytest.raises(DataError, match=r"holds several data sets; name one of them: .*one, .*two"):
        read(tmp_path, "train")


def test_category_0_of_roboflow_stays_when_it_is_annotated(tmp_path: Path) -> None:
    """It is the parent of all others and yet some objects belong to it."""
    whole = json.loads(instances((0, 1)))
    whole["categories"] = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets"},
    ]
    whole["annotations"][0]["category_id"], whole["annotations"][1]["category_id"] = 0, 1
    for one in ("train", "valid"):
        files = {f"{one}/_annotations.coco.json": json.dumps(whole).encode()}
        mutants.laid_out(files | {f"{one}/p{n}.jpg": jpeg(n) for n in (0, 1)}, tmp_path)
    source = read(tmp_path, "train")
    assert source.classes == ("pets", "cat")
    assert [sample.labels.tolist() for sample in source.samples] == [[0], [1]]


def test_two_names_may_not_find_one_picture_by_leaving_folders_out(tmp_path: Path) -> None:
    """a/p0.jpg and b/p0.jpg of another machine are not both the p0.jpg that is here."""
    file = tmp_path / "data.json"
    file.write_bytes(instances((0, 1), lambda n: f"/there/{'ab'[n]}/p0.jpg"))
    (tmp_path / "p0.jpg").write_bytes(jpeg(0))
    found = [sample.path.is_file() for sample in read(file, "train", whole=True).samples]
    assert found == [True, False]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    """Pictures behind a link count, a link to the folder itself does not."""
    mutants.laid_out(
        ultralytics({}, b"train: images/train\nval: images/val\nnames: [cat, dog]\n"), tmp_path / "a"
    )
    (tmp_path / "a/images/train/more").symlink_to(tmp_path / "a/images/val")
    (tmp_path / "a/images/train/again").symlink_to(tmp_path / "a/images/train")
    names = [sample.path.name for sample in read(tmp_path / "a", "train").samples]
    assert names == ["p0.jpg", "p1.jpg", "p2.jpg", "p3.jpg"]
