"""Verbs on data as people have them: doctor, dataset, and how eval, train and predict take data."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mutants
from commands import run
from relook.weights.models import by_name
from relook.weights.reading.checkpoint import save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained small model that knows cats and dogs."""
    model = by_name("reppoints_nano").with_classes(("cat", "dog"))
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    save_weights(path, model.entry.detector.build().state_dict(), model.describe())
    return str(path)


def data(folder: Path, kind: str = "yolo", **changes: bytes) -> Path:
    mutants.laid_out({**mutants.READERS[kind](), **changes}, folder)
    return folder


# -- doctor ----------------------------------------------------------------------------------------------


def test_doctor_draws_what_is_annotated(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A contact sheet first, then pictures of each split, with boxes and outlines in them."""
    folder = data(tmp_path / "data", "coco")
    out, _ = run(capsys, "doctor", folder, "--draw", tmp_path / "seen")
    names = sorted(path.name for path in (tmp_path / "seen").glob("*.jpg"))
    assert names == [
        "00-contact-sheet.jpg",
        "01-train-p0.jpg",
        "02-train-p1.jpg",
        "03-val-p2.jpg",
        "04-val-p3.jpg",
    ]
    assert f"5 pictures; look at {tmp_path / 'seen' / names[0]} first" in out
    plain = np.asarray(Image.open(folder / "train/p1.jpg").resize((512, 384))).astype(int)
    drawn = np.asarray(Image.open(tmp_path / "seen/02-train-p1.jpg").resize((512, 384))).astype(int)
    changed = np.abs(plain - drawn).max(2) > 40
    assert changed[38:140, 30:200].mean() > 0.2, "the outline from 4,5 to 24,17 is shaded"
    with Image.open(tmp_path / "seen" / names[0]) as sheet:
        assert min(sheet.size) > 500


def test_doctor_draws_what_it_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Broken pictures, boxes far outside and segmentations that cannot be read end nothing."""
    files = mutants.coco()
    text = files["annotations/instances_train.json"].decode()
    text = text.replace('"bbox": [4, 5, 20, 12.5]', '"bbox": [4, 5, 1e8, 1e8]', 1).replace(
        '"size": [48, 64]', '"size": [1]'
    )
    changes = {"annotations/instances_train.json": text.encode(), "val/p2.jpg": b"no picture"}
    folder = data(tmp_path / "data", "coco", **changes)
    out, _ = run(capsys, "doctor", folder, "--draw", tmp_path / "seen")
    assert "4 pictures; look at" in out


def test_doctor_says_which_objects_are_too_small_for_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """And the --size that keeps them, as a command to type; a wrong name comes before the long look."""
    changes = {
        f"labels/{s}/p{n}.txt": b"0 0.5 0.5 0.03 0.04\n1 0.5 0.5 0.9 0.9\n"
        for n, s in enumerate(("train", "train", "val", "val"))
    }
    folder = data(tmp_path / "data", **changes)
    out, _ = run(capsys, "doctor", folder, "--model", "reppoints_nano")
    assert "Objects as reppoints_nano sees them (--size 128)" in out
    row = next(line.split() for line in out.splitlines() if line.startswith("cat"))
    assert row == ["cat", "4", "5.1", "4", "4", "224", "416"]
    assert f"Suggested: relook train --model reppoints_nano --data {folder} --size 416" in out
    facts = json.loads(run(capsys, "doctor", folder, "--model", "reppoints_nano", "--json")[0])
    assert {one["name"]: one["wanted"] for one in facts["sizes"]} == {"cat": 224, "dog": 128}
    assert (
        "no model is called 'reppoints_nona'; near it: reppoints_nano"
        in run(capsys, "doctor", folder, "--model", "reppoints_nona", status=2)[1]
    )


def test_options_for_data_are_refused_for_checkpoints(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    said = run(capsys, "doctor", weights, "--draw", tmp_path, status=2)[1]
    assert "is a checkpoint; --val-data, --draw and --model are for data" in said


def test_a_picture_that_is_too_large_is_not_called_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The limit is said, can be raised, and nothing of Pillow's is changed for others."""
    monkeypatch.setenv("RELOOK_MAX_PIXELS", "")  # so that what --max-pixels sets is undone
    folder = data(tmp_path / "data")
    before = Image.MAX_IMAGE_PIXELS
    out, _ = run(capsys, "doctor", folder, "--max-pixels", "3000", status=1)
    assert "too large: 64x48 are 3,072 pixels; cut it into tiles or raise --max-pixels (now 3000)" in out
    assert "damaged" not in out
    assert "can be used" in run(capsys, "doctor", folder, "--max-pixels", "3072")[0]
    assert before == Image.MAX_IMAGE_PIXELS
    Image.new("1", (14_000, 14_000)).save(folder / "images/train/p0.jpg", "PNG")
    monkeypatch.setenv("RELOOK_MAX_PIXELS", "")
    assert "too large: 14000x14000 are 196 million pixels" in run(capsys, "doctor", folder)[0]
    assert "write how many pixels" in run(capsys, "doctor", folder, "--max-pixels", "0", status=2)[1]


def test_pillows_own_warning_stays(tmp_path: Path):
    """Pillow still warns those who open large images themselves, also after relook read one."""
    Image.new("1", (10_000, 9_000)).save(tmp_path / "a.png")
    code = (
        "import warnings; from PIL import Image; from relook.data.decode import read_image\n"
        f"name = {str(tmp_path / 'a.png')!r}\n"
        "def heard(open):\n"
        "    with warnings.catch_warnings(record=True) as found:\n"
        "        warnings.simplefilter('always'); open(name)\n"
        "    return len(found)\n"
        "print(heard(read_image), heard(Image.open))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    ours, theirs = map(int, ran.stdout.split())
    assert ours == 0
    assert theirs > 0


# -- dataset ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_dataset_writes_another_format(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = data(tmp_path / "data", "labelimg")
    out, _ = run(capsys, "dataset", folder, tmp_path / "out", "--to", kind)
    assert "all: 4 pictures, 8 objects" in out
    assert f"written in {tmp_path / 'out'}; look with: relook doctor {tmp_path / 'out'}" in out
    assert "can be used" in run(capsys, "doctor", tmp_path / "out")[0]
    said = run(capsys, "dataset", folder, tmp_path / "out", "--to", kind, status=2)[1]
    assert "is there already and holds something; choose a folder that does not exist" in said


def test_dataset_in_json_and_what_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = data(tmp_path / "data", "coco")
    said = json.loads(run(capsys, "dataset", folder, tmp_path / "out", "--to", "yolo", "--json")[0])
    assert said["splits"][0] == {"split": "train", "images": 2, "objects": 4}
    assert any("are crowds, difficult or to be ignored" in note for note in said["notes"])
    assert run(capsys, "dataset", folder, tmp_path / "x", "--to", "csv", status=2)[1].startswith(
        "relook dataset: --to"
    )


# -- eval, train, predict ----------------------------------------------------------------------------------


def test_eval_matches_classes_by_name_and_says_so(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    yaml = b"path: .\ntrain: images/train\nval: images/val\nnames: [dog, cat]\n"
    folder = data(tmp_path / "data", **{"data.yaml": yaml})
    given = ("eval", "--weights", weights, "--data", folder, "--workers", 0, "--out", tmp_path / "out")
    assert "in another order than the weights; they are matched by name" in run(capsys, *given)[1]
    told = json.loads((tmp_path / "out/metrics.json").read_text())
    assert told["classes_by"] == "name"
    assert told["category_ids"] == {"cat": 1, "dog": 0}, "the data's own"
    assert list(told["per_class"]) == ["cat", "dog"]
    run(capsys, *given, "--classes-by", "order")
    told = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (told["classes_by"], list(told["per_class"])) == ("order", ["dog", "cat"])
    (folder / "data.yaml").write_bytes(yaml.replace(b"dog", b"wolf"))
    said = run(capsys, *given, status=2)[1]
    assert "has other classes than the weights: wolf is not among cat, dog" in said


def test_eval_of_a_test_split_and_of_other_data(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files = mutants.coco()
    for n in range(2):  # two tests
        files[f"annotations/instances_test{'ab'[n]}_test.json"] = files["annotations/instances_val.json"]
    mutants.laid_out(files, tmp_path / "data")
    given = (
        "eval",
        "--weights",
        weights,
        "--data",
        tmp_path / "data",
        "--workers",
        0,
        "--out",
        tmp_path / "out",
    )
    assert "(val): 2 pictures" in run(capsys, *given)[0]
    said = run(capsys, *given, "--split", "test", status=2)[1]
    assert "could all be the test split" in said
    assert "--val-data" in said
    file = tmp_path / "data/annotations/instances_testa_test.json"
    assert f"{file}: 2 pictures" in run(capsys, *given, "--val-data", file)[0]
    one = tmp_path / "data/annotations/instances_train.json"
    alone = run(capsys, "eval", "--weights", weights, "--data", one, "--workers", 0, "--out", tmp_path / "o")[
        0
    ]
    assert "2 pictures, 3 objects" in alone, "a single file is taken whole"


def test_train_refuses_data_without_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Before anything is written; --allow-empty trains all the same, and no validation is called the best."""
    empty = {f"labels/{s}/p{n}.txt": b"" for n, s in enumerate(("train", "train", "val", "val"))}
    folder = data(tmp_path / "data", **empty)
    how = ("--epochs", 2, "--batch", 2, "--workers", 0, "--set", "recipe.selection.need=nothing")
    given = ("train", "--model", "reppoints_nano", "--data", folder, *how, "--out", tmp_path / "run")
    assert (
        "there is nothing to train on: no image has an object (2 images)" in run(capsys, *given, status=2)[1]
    )
    assert not (tmp_path / "run").exists()
    out, _ = run(capsys, *given, "--allow-empty")
    log = (tmp_path / "run/train.log").read_text(encoding="utf-8")
    assert "validated on 2 images: AP -  AP50 -  AP75 -  (nothing to be found in them)" in log
    assert not (tmp_path / "run/best.safetensors").exists()
    assert f"--weights {tmp_path / 'run/last.safetensors'}" in out


def test_size_is_the_same_for_train_eval_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """It stands in the weights file, so that a later command need not say it."""
    folder = data(tmp_path / "data")
    given = ("--data", folder, "--epochs", 1, "--batch", 2, "--workers", 0, "--out", tmp_path / "run")
    run(capsys, "train", "--model", "reppoints_nano", *given, "--size", 64)
    from relook.weights.models import open_weights  # noqa: PLC0415

    file = tmp_path / "run/last.safetensors"
    recipe = open_weights(file).model.entry.recipe
    assert (recipe.train_size.short, recipe.test_size.short, recipe.test_size.long) == ((64,), (64,), 128)
    assert open_weights(file, size=32).model.entry.recipe.test_size.short == (32,)
    run(
        capsys,
        "eval",
        "--weights",
        file,
        "--data",
        folder,
        "--size",
        32,
        "--workers",
        0,
        "--out",
        tmp_path / "e",
    )
    run(capsys, "predict", folder / "images", "--weights", file, "--size", 32, "--out", tmp_path / "p")
    said = run(capsys, "predict", folder, "--weights", file, "--size", 32, "--views", "64", status=2)[1]
    assert "--size and --views both say how large pictures become; give one of them" in said


def test_no_result_of_predict_takes_the_name_of_another(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """x.gif is written as PNG beside x.gif.png, which is a picture of its own."""
    (tmp_path / "in").mkdir()
    for name in ("x.gif", "x.gif.png", "x.gif.1.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.heic").write_bytes(b"x")
    _, err = run(capsys, "predict", tmp_path / "in", "--weights", weights, "--out", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
        "x.gif.1.png",
        "x.gif.2.png",
        "x.gif.png",
    ]
    assert "passed over in" in err
    assert "1 .heic (notes.heic)" in err


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1"])
def test_names_in_any_letters_under_any_locale(locale: str, tmp_path: Path):
    """Read and written as UTF-8; a terminal without these letters gets them escaped."""
    yaml = "train: images/train\nval: images/val\nnames: [кот, 犬]\n".encode()
    folder = data(tmp_path / "данные", **{"data.yaml": yaml})
    environment = {
        **os.environ,
        "LC_ALL": locale,
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }
    command = [
        sys.executable,
        "-X",
        "warn_default_encoding",
        "-W",
        "error::EncodingWarning:relook",
        "-m",
        "relook",
    ]
    for given in (["doctor", str(folder)], ["dataset", str(folder), str(tmp_path / "out"), "--to", "voc"]):
        ran = subprocess.run(
            [*command, *given], capture_output=True, env=environment, check=False, timeout=120
        )
        assert ran.returncode == 0, ran.stderr.decode()
    assert (tmp_path / "out/classes.txt").read_text(encoding="utf-8") == "кот\n犬\n"


def test_a_picture_whose_name_is_no_text_costs_no_results(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Its name is escaped in the file of detections."""
    (tmp_path / "in").mkdir()
    for name in (b"a.jpg", b"\xff.jpg", b"z.jpg"):
        (tmp_path / "in" / os.fsdecode(name)).write_bytes(mutants.PICTURES[0])
    run(capsys, "predict", tmp_path / "in", "--weights", weights, "--out", tmp_path / "out", "--score", 0.01)
    images = json.loads((tmp_path / "out/detections.json").read_text(encoding="utf-8"))["images"]
    assert {image["file_name"] for image in images} == {"a.jpg", "\udcff.jpg", "z.jpg"}


def test_control_signs_of_names_do_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = data(tmp_path / "a", "labelimg", **{"classes.txt": b"\x1b[31mred\ndog\n"})
    for given in (("doctor", folder), ("doctor", folder, "--model", "reppoints_nano")):
        out, err = run(capsys, *given)
        assert "\x1b" not in out + err
        assert "\\x1b[31mred" in out
    yaml = b'train: images/train\nval: "\\e]0;x\\a\\e[31mx"\nnames: [cat, dog]\n'
    folder = data(tmp_path / "b", **{"data.yaml": yaml})
    assert "\x1b" not in run(capsys, "dataset", folder, tmp_path / "out", "--to", "voc", status=2)[1]


def test_a_limit_that_is_no_number_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RELOOK_MAX_PIXELS", "lots")
    assert (
        "RELOOK_MAX_PIXELS=lots is no number of pixels"
        in run(capsys, "doctor", data(tmp_path / "d"), status=2)[1]
    )


# -- files of others -----------------------------------------------------------------------------------------


def test_predict_replaces_what_it_wrote_and_nothing_else(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "in" / name).write_bytes(mutants.PICTURES[0])
    out = tmp_path / "mine"
    out.mkdir()
    (out / "a.jpg").write_bytes(b"a photograph of my own")
    given = ("predict", tmp_path / "in", "--weights", weights, "--out", out)
    for _ in range(2):  # the second time its own results are replaced
        err = run(capsys, *given)[1]
        assert "1 pictures were not drawn" in err
        assert "such as a.jpg; choose another --out, or say --overwrite" in err
        assert (out / "a.jpg").read_bytes() == b"a photograph of my own"
        assert (out / "b.jpg").is_file()
        assert len(json.loads((out / "detections.json").read_text())["images"]) == 2
    run(capsys, *given, "--overwrite")
    assert (out / "a.jpg").read_bytes() != b"a photograph of my own"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "detections.json").write_text("mine")
    said = run(capsys, *given[:-1], tmp_path / "other", status=2)[1]
    assert "was not written by relook; choose another folder by --out, or say --overwrite" in said
    assert (tmp_path / "other" / "detections.json").read_text() == "mine"


def test_eval_replaces_what_it_wrote_and_nothing_else(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """And says so before it looks at any picture."""
    out = tmp_path / "mine"
    out.mkdir()
    (out / "metrics.json").write_text("mine")
    given = ("eval", "--weights", weights, "--data", data(tmp_path / "d"), "--workers", 0, "--out", out)
    assert "metrics.json is there already and was not written by relook" in run(capsys, *given, status=2)[1]
    assert [path.name for path in out.iterdir()] == ["metrics.json"]
    run(capsys, *given, "--overwrite")
    run(capsys, *given)
    assert json.loads((out / "metrics.json").read_text())["images"] == 2


def test_demo_removes_nothing_of_yours(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    said = run(capsys, "demo", "--short", "--out", tmp_path, status=2)[1]
    assert "data is there already and was not written by relook" in said
    assert (tmp_path / "data" / "thesis.txt").read_text() == "years of work"


def test_a_weights_file_may_have_any_name(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A colon is no module."""
    file = tmp_path / "run:12.safetensors"
    file.write_bytes(Path(weights).read_bytes())
    (tmp_path / "a.jpg").write_bytes(mutants.PICTURES[0])
    assert (
        "1 pictures"
        in run(capsys, "predict", tmp_path / "a.jpg", "--weights", file, "--out", tmp_path / "o")[0]
    )


# -- what a newcomer met -------------------------------------------------------------------------------------


def test_pictures_drawn_again_are_those_of_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Earlier ones of the doctor go, files of yours stay."""
    folder = data(tmp_path / "data", "coco")
    run(capsys, "doctor", folder, "--draw", tmp_path / "seen")
    (tmp_path / "seen" / "notes.txt").write_text("mine")
    run(capsys, "doctor", folder / "annotations/instances_val.json", "--draw", tmp_path / "seen")
    names = sorted(path.name for path in (tmp_path / "seen").iterdir() if path.name != ".relook")
    assert names == ["00-contact-sheet.jpg", "01-all-p2.jpg", "02-all-p3.jpg", "notes.txt"]


def test_tests_that_several_files_could_be_prevent_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Where nothing else could be validated on; writing another format does not leave them out either."""
    files = mutants.coco()
    val = files.pop("annotations/instances_val.json")
    files |= {f"annotations/instances_test_{name}.json": val for name in ("inshore", "offshore")}
    mutants.laid_out({name.replace("val/", "test/"): text for name, text in files.items()}, tmp_path / "data")
    assert "cannot be used yet" in run(capsys, "doctor", tmp_path / "data", status=1)[0]
    given = ("dataset", tmp_path / "data", tmp_path / "out", "--to", "yolo")
    assert "could all be the test split" in run(capsys, *given, status=2)[1]
    one = tmp_path / "data/annotations/instances_test_inshore.json"
    assert "val: 2 pictures" in run(capsys, *given, "--val-data", one)[0]


def test_data_are_not_written_into_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = data(tmp_path / "data", "labelimg")
    said = run(capsys, "dataset", folder, folder / "sub", "--to", "yolo", status=2)[1]
    assert "lies in the data themselves" in said


def test_rounding_is_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Shares that become pixels and shares again; VOC's numbers are short."""
    text = b"0 0.077083 0.1 0.154166 0.2\n"
    folder = data(tmp_path / "data", "labelimg", **{"p0.txt": text})
    err = run(capsys, "dataset", folder, tmp_path / "voc", "--to", "voc")[1]
    assert "clipped" not in err
    assert not re.search(r"\.\d{10}", (tmp_path / "voc/Annotations/p0.xml").read_text())


def test_empty_labels_beside_pictures_are_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """As LabelImg writes them for pictures without objects; and the doctor tells what is kept back."""
    folder = data(tmp_path / "data", "labelimg", **{f"p{n}.txt": b"" for n in range(4)})
    out, _ = run(capsys, "doctor", folder, status=1)
    assert "4 images (4 without objects)" in out
    assert "keeps back 2 of 4 images, by a hash of their names" in out


def test_the_limit_on_pixels_holds_for_prediction(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """What is too large is skipped and named; the others are looked at."""
    monkeypatch.setenv("RELOOK_MAX_PIXELS", "")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "small.jpg").write_bytes(mutants.PICTURES[0])
    Image.new("RGB", (100, 100)).save(tmp_path / "in" / "large.jpg")
    given = (
        "predict",
        tmp_path / "in",
        "--weights",
        weights,
        "--out",
        tmp_path / "out",
        "--max-pixels",
        3072,
    )
    out, _ = run(capsys, *given)
    assert "1 could not be read and were skipped: " in out
    assert "large.jpg" in out
