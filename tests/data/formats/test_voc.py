"""Pascal VOC folders: lists, one-based corners, difficult objects, and mistakes."""

from pathlib import Path

import pytest
from PIL import Image

from relook.data.formats.detect import read
from relook.data.sample import DataError

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


def _object(name: str, box: tuple[object, ...], difficult: int = 0) -> str:
    return OBJECT.format(name=name, box=box, difficult=difficult)


def _add(folder: Path, stem: str, *objects: str, size: bool = True) -> None:
    """One image of 50 x 40 and its annotation."""
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    (folder / "JPEGImages").mkdir(exist_ok=True)
    Image.new("RGB", (50, 40)).save(folder / "JPEGImages" / f"{stem}.jpg")
    sizes = "<size><width>50</width><height>40</height><depth>3</depth></size>" if size else ""
    text = f"<annotation><filename>{stem}.jpg</filename>{sizes}{''.join(objects)}</annotation>"
    (folder / "Annotations" / f"{stem}.xml").write_text(text)


def _lists(folder: Path, **lists: list[str]) -> None:
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for name, stems in lists.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(stems) + "\n")


def test_lists_corners_and_difficult_objects(tmp_path: Path) -> None:
    """Corners count from 1 and belong to the object; difficult ones count as crowds; classes are sorted."""
    _add(tmp_path, "one", _object("dog", (1, 1, 50, 40)), _object("cat", (11, 6, 20, 15), difficult=1))
    _add(tmp_path, "two", size=False)
    _lists(tmp_path, train=["one"], val=["two"], trainval=["one", "two"])
    train, val = read(tmp_path, "train"), read(tmp_path, "val")
    assert train.classes == val.classes == ("cat", "dog")
    assert train.category_ids == (1, 2)
    (sample,) = train.samples
    assert sample.boxes.tolist() == [[0, 0, 50, 40], [10, 5, 20, 15]]
    assert sample.labels.tolist() == [1, 0]
    assert sample.crowd.tolist() == [False, True]
    assert sample.area.tolist() == [2000, 100]
    assert (val.samples[0].height, val.samples[0].width) == (40, 50)
    assert val.samples[0].boxes.shape == (0, 4)
    assert sample.image().shape == (40, 50, 3)


def test_corners_that_count_from_zero_are_noticed(tmp_path: Path) -> None:
    _add(tmp_path, "one", _object("dog", (0, 0, 50, 40)))
    _add(tmp_path, "two", _object("dog", (10, 10, 20.5, 20)))
    _lists(tmp_path, train=["one", "two"], val=["one"])
    source = read(tmp_path, "train")
    assert source.samples[0].boxes.tolist() == [[0, 0, 50, 40]]
    assert source.samples[1].boxes.tolist() == [[10, 10, 20.5, 20]]
    assert "counts pixels from 0" in source.notes[0]


def test_trainval_and_test_of_2007_inside_a_devkit(tmp_path: Path) -> None:
    folder = tmp_path / "VOC2007"
    for stem in ("1", "2", "3"):
        _add(folder, stem, _object("dog", (1, 1, 9, 9)))
    _lists(folder, trainval=["1", "2"], test=["3"])
    assert [s.path.stem for s in read(tmp_path, "train").samples] == ["1", "2"]
    assert [s.path.stem for s in read(tmp_path, "val").samples] == ["3"]


def test_without_lists_images_are_split_by_name(tmp_path: Path) -> None:
    for n in range(12):
        _add(tmp_path, str(n), _object("dog", (1, 1, 9, 9)))
    train, val = read(tmp_path, "train"), read(tmp_path, "val")
    assert len(train.samples) + len(val.samples) == 12
    assert len(val.samples) >= 1
    assert "no validation split" in train.notes[-1]


def test_several_years_are_not_guessed(tmp_path: Path) -> None:
    _add(tmp_path / "VOC2007", "1")
    _add(tmp_path / "VOC2012", "1")
    with pytest.raises(DataError, match="several VOC data sets"):
        read(tmp_path, "train")


def test_own_list_of_classes_fixes_labels_and_refuses_others(tmp_path: Path) -> None:
    _add(tmp_path, "one", _object("dog", (1, 1, 9, 9)), _object("cow", (1, 1, 9, 9)))
    _lists(tmp_path, train=["one"], val=["one"])
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(DataError, match=r'one\.xml: object 1: "cow" is no class.*known are: dog, cat'):
        read(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("<annotation>", r"one\.xml: file: is no XML"),
        (f"<annotation>{_object('', (1, 1, 9, 9))}</annotation>", "object 0: has no name"),
        (f"<annotation>{_object('dog', ('nan', 1, 9, 9))}</annotation>", "not four finite numbers"),
        (f"<annotation>{_object('dog', ('', 1, 9, 9))}</annotation>", "not four finite numbers"),
    ],
)
def test_mistakes_are_named(text: str, what: str, tmp_path: Path) -> None:
    _add(tmp_path, "one")
    _lists(tmp_path, train=["one"], val=["one"])
    (tmp_path / "Annotations" / "one.xml").write_text(text)
    with pytest.raises(DataError, match=what):
        read(tmp_path, "train")


def test_a_listed_image_without_annotation_is_named(tmp_path: Path) -> None:
    _add(tmp_path, "one", _object("dog", (1, 1, 9, 9)))
    _lists(tmp_path, train=["one", "gone"], val=["one"])
    with pytest.raises(DataError, match=r"train\.txt: gone: has no file in Annotations"):
        read(tmp_path, "train")


def _devkit(path: Path) -> Path:
    """Two years: 2007 with a test list, 2012 without one, and classes of their own."""
    for year, name in (("VOC2007", "dog"), ("VOC2012", "bird")):
        _add(path / year, f"{year}_a", _object(name, (1, 1, 20, 20)), _object("cat", (5, 5, 30, 30)))
        _add(path / year, f"{year}_b", _object("cat", (1, 1, 20, 20)))
        _lists(path / year, trainval=[f"{year}_a"], train=[f"{year}_a"], val=[f"{year}_b"])
    return path


def test_several_years_are_one_data_set(tmp_path: Path) -> None:
    """Trained on every trainval list, validated on the test list of those that have one."""
    devkit = _devkit(tmp_path)
    tests = devkit / "VOC2007" / "ImageSets" / "Main" / "test.txt"
    tests.write_text("VOC2007_b\n")
    # a list without annotations, as VOC2012's test
    (devkit / "VOC2012" / "ImageSets" / "Main" / "test.txt").write_text("nowhere\n")
    train, val = read(devkit, "train"), read(devkit, "val")
    assert train.classes == val.classes == ("bird", "cat", "dog")
    assert train.name == "VOC2007 trainval + VOC2012 trainval"
    assert [sample.id for sample in train.samples] == [1, 2]
    assert [sample.path.stem for sample in train.samples] == ["VOC2007_a", "VOC2012_a"]
    named = [[train.classes[i] for i in sample.labels] for sample in train.samples]
    assert named == [["dog", "cat"], ["bird", "cat"]]
    assert [sample.path.stem for sample in val.samples] == ["VOC2007_b"]


def test_several_years_without_a_test_list(tmp_path: Path) -> None:
    devkit = _devkit(tmp_path)
    assert [s.path.stem for s in read(devkit, "train").samples] == ["VOC2007_a", "VOC2012_a"]
    assert [s.path.stem for s in read(devkit, "val").samples] == ["VOC2007_b", "VOC2012_b"]


def test_one_year_prefers_trainval_and_test(tmp_path: Path) -> None:
    """As papers do, where the test list has annotations; otherwise train and val."""
    year = _devkit(tmp_path) / "VOC2007"
    assert read(year, "train").name == "VOC2007 train"
    _list = year / "ImageSets" / "Main" / "test.txt"
    _list.write_text("VOC2007_b\n")
    assert read(year, "train").name == "VOC2007 trainval"
    assert read(year, "val").name == "VOC2007 test"


@pytest.mark.parametrize(
    "text", ["\ufefftwo\n", "two.jpg\n", "two.JPG\r\n", "two 1\n", "two\nwith blanks\n"], ids=repr
)
def test_a_test_list_is_used_however_it_is_written(tmp_path: Path, text: str) -> None:
    """A byte order mark, endings, a second column, names with blanks: none of its images is trained on."""
    for stem in ("one", "two", "with blanks"):
        _add(tmp_path, stem, _object("dog", (1, 1, 20, 20)))
    _lists(tmp_path, trainval=["one"])
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text(text, encoding="utf-8")
    assert [s.path.stem for s in read(tmp_path, "train").samples] == ["one"]
    wanted = ["two", "with blanks"] if "blanks" in text else ["two"]
    assert [s.path.stem for s in read(tmp_path, "val").samples] == wanted


def test_a_list_with_a_missing_name_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    """Not passed over, so that its other images would be trained on."""
    for stem in ("one", "two"):
        _add(tmp_path, stem, _object("dog", (1, 1, 20, 20)))
    for names in (["gone", "two"], ["two", "gone"]):
        folder = tmp_path / "ImageSets" / "Main"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trainval.txt").write_text("one\n")
        (folder / "test.txt").write_text("\n".join(names) + "\n")
        with pytest.raises(DataError, match="gone: has no file in Annotations"):
            read(tmp_path, "val")
