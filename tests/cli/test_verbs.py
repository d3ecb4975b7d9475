"""What each verb does, from its arguments to its files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from commands import run
from relook.cli.verbs import demo as demo_verb
from relook.data.shapes import shapes
from relook.weights.models import by_name
from relook.weights.reading.checkpoint import read_checkpoint, save_weights
from relook.zoo.catalog import find
from untrained import untrained


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained small model for the classes of shapes, which finds something everywhere."""
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    return str(untrained(path, "reppoints_nano", keep=20))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a/x.png, b/x.png (the same name), b/y.gif and a broken one."""
    folder = tmp_path_factory.mktemp("pictures")
    images = [Image.fromarray(sample.image()) for sample in shapes(3, seed=1).samples]
    for image, name in zip(images, ("a/x.png", "b/x.png", "b/y.gif"), strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        image.save(folder / name)
    (folder / "b" / "broken.jpg").write_bytes(b"\xff\xd8\xff but no more")
    return folder


# -- predict -------------------------------------------------------------------------------------------


def test_predict_writes_pictures_and_one_coco_file(
    weights: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Names do not collide, kinds that cannot be written become PNG, the broken one is named, status 0."""
    out, err = run(
        capsys, "predict", pictures, "--weights", weights, "--out", tmp_path / "o", "--score", "0.1"
    )
    files = [p for p in (tmp_path / "o").rglob("*") if p.is_file() and p.name != ".relook"]
    written = sorted(p.relative_to(tmp_path / "o").as_posix() for p in files)
    assert written == ["a/x.png", "b/x.png", "b/y.gif.png", "detections.json"]
    coco = COCO(str(tmp_path / "o" / "detections.json"))
    assert [i["file_name"] for i in coco.dataset["images"]] == ["a/x.png", "b/x.png", "b/y.gif"]
    assert [c["name"] for c in coco.dataset["categories"]] == ["ellipse", "rectangle", "triangle", "star"]
    assert len(coco.dataset["annotations"]) > 3
    assert all(a["score"] > 0.1 for a in coco.dataset["annotations"])
    assert "3 pictures" in out
    assert "1 could not be read" in out
    assert "broken.jpg" in err
    drawn, plain = (
        np.asarray(Image.open(f / "a" / "x.png").convert("RGB")) for f in (tmp_path / "o", pictures)
    )
    assert drawn.shape == plain.shape
    assert (drawn != plain).any()


def test_predict_draws_and_writes_points_on_request(
    weights: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """--points adds nine first and nine second points to each object, and changes the picture."""
    for name, extra in (("plain", []), ("points", ["--points"])):
        run(
            capsys,
            "predict",
            pictures / "a" / "x.png",
            "--weights",
            weights,
            "--out",
            tmp_path / name,
            *extra,
        )
    plain, points = (json.loads((tmp_path / n / "detections.json").read_text()) for n in ("plain", "points"))
    first = points["annotations"][0]
    assert np.shape(first["first_points"]) == np.shape(first["second_points"]) == (9, 2)
    assert "first_points" not in plain["annotations"][0]
    assert (tmp_path / "plain" / "x.png").read_bytes() != (tmp_path / "points" / "x.png").read_bytes()


@pytest.fixture(scope="module")
def verifying(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained small V2 that finds something everywhere."""
    path = tmp_path_factory.mktemp("verifying") / "v2.safetensors"
    return str(untrained(path, "reppoints_v2_nano", keep=20))


@pytest.fixture(scope="module")
def proposing(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained small CenterNet2 that finds something everywhere."""
    path = tmp_path_factory.mktemp("proposing") / "centernet2.safetensors"
    return str(untrained(path, "centernet2_nano", keep=20))


def test_predict_draws_proposals_and_both_scores(
    proposing: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """--looks of CenterNet2: three pictures; proposal, last region, both scores; --points: it has none."""
    given = ("predict", pictures / "a" / "x.png", "--weights", proposing, "--score", "0.05")
    run(capsys, *given, "--looks", "--out", tmp_path)
    rows = json.loads((tmp_path / "detections.json").read_text())["annotations"]
    assert rows
    for row in rows:
        assert len(row["first_box"]) == len(row["second_box"]) == 4
        assert row["score"] == pytest.approx((row["first_score"] * row["second_score"]) ** 0.5, abs=1e-4)
    assert Image.open(tmp_path / "x.png").width > 3 * 384
    out, err = run(capsys, *given, "--points", "--out", tmp_path / "points")
    assert "looks at boxes, not at points: --looks" in out + err


def test_predict_draws_all_looks(
    weights: str, verifying: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """--looks: a sheet of four steps for V2, of three for V1 and merged views; numbers in the file."""
    image, points = pictures / "a" / "x.png", {"first_points", "second_points"}
    runs = (
        ("v2", verifying, [], points | {"regressed_box"}),
        ("v1", weights, [], points),
        ("views", verifying, ["--views", "flip"], points),
        ("both", verifying, ["--points"], points | {"regressed_box"}),
    )
    sizes: dict[str, tuple[int, int]] = {}
    for name, file, extra, added in runs:
        out = tmp_path / name
        given = ("predict", image, "--weights", file, "--looks", "--score", "0.1", "--out", out)
        run(capsys, *given, *extra)
        rows = json.loads((out / "detections.json").read_text())["annotations"]
        assert rows
        assert all(row.keys() & {*points, "regressed_box"} == added for row in rows)
        sizes[name] = Image.open(out / "x.png").size
    assert sizes["v2"][1] > 2 * 384  # two by two
    assert sizes["v1"] == sizes["views"]
    assert sizes["v1"][0] > 3 * 384  # in a row
    file = json.loads((tmp_path / "v2" / "detections.json").read_text())
    assert np.shape(file["annotations"][0]["regressed_box"]) == (4,)
    assert (tmp_path / "both" / "x.png").read_bytes() == (tmp_path / "v2" / "x.png").read_bytes()


def test_predict_draws_a_sheet_where_nothing_is_found(
    verifying: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Corner maps and the picture; no object in the file."""
    out = tmp_path / "none"
    given = ("predict", pictures / "a", "--weights", verifying, "--looks", "--score", "1", "--out", out)
    run(capsys, *given)
    assert json.loads((out / "detections.json").read_text())["annotations"] == []
    assert Image.open(out / "x.png").size[0] > 384


def test_predict_looks_several_times(
    weights: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """--views 100% is the plain result, scales another one, with points; --short beside it is refused."""
    given = ["predict", pictures / "a", "--weights", weights, "--points", "--no-pictures", "--out", tmp_path]
    found: list[str] = []
    for extra in ([], ["--views", "100%"], ["--views", "scales"], ["--views", "64,128:8-+flip,nms"]):
        run(capsys, *given, *extra)
        found.append((tmp_path / "detections.json").read_text())
    assert found[0] == found[1]
    assert len(set(found)) == 3
    for text in found:
        assert np.shape(json.loads(text)["annotations"][0]["first_points"]) == (9, 2)
    said = "relook predict: --short and --views both say how large pictures become; give one of them\n"
    assert run(capsys, *given, "--views", "64", "--short", "64", status=2)[1] == said


def test_predict_streams_json_lines(
    weights: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """--json: a line for each picture in order, broken ones too; nothing else on stdout."""
    given = ("predict", pictures / "b", "--weights", weights, "--out", tmp_path, "--json", "--no-pictures")
    out, err = run(capsys, *given)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [Path(row["file"]).name for row in rows] == ["x.png", "y.gif", "broken.jpg"]
    assert rows[0]["objects"][0].keys() == {"class", "bbox", "score"}
    assert "error" in rows[2]
    assert "2 pictures" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == [".relook", "detections.json"]


def test_predict_leaves_its_own_pictures_alone(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Results below the input are not read again, and may not replace it; all broken is a failure."""
    Image.fromarray(shapes(1).samples[0].image()).save(tmp_path / "x.png")
    for _ in range(2):
        out, _ = run(capsys, "predict", tmp_path, "--weights", weights, "--out", tmp_path / "out")
        assert "1 pictures" in out
    before = (tmp_path / "x.png").read_bytes()
    _, err = run(capsys, "predict", tmp_path / "x.png", "--weights", weights, "--out", tmp_path, status=2)
    assert "holds the pictures themselves" in err
    assert (tmp_path / "x.png").read_bytes() == before
    (tmp_path / "bad.jpg").write_bytes(b"no")
    run(capsys, "predict", tmp_path / "bad.jpg", "--weights", weights, "--out", tmp_path / "o2", status=1)
    run(capsys, "predict", tmp_path / "*.tif", "--weights", weights, status=2)


# -- eval ----------------------------------------------------------------------------------------------


def test_eval_prints_and_saves_the_numbers(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The 12 numbers and each class, as text and as JSON; both tools agree; detections are COCO results."""
    given = [
        "eval",
        "--weights",
        weights,
        "--data",
        "shapes:train=4,val=4",
        "--workers",
        "0",
        "--device",
        "cpu",
    ]
    out, _ = run(capsys, *given, "--out", tmp_path)
    assert all(f"\n{name} " in out for name in ("AP", "AP50", "AR100", "star"))
    fast = json.loads(run(capsys, *given, "--out", tmp_path, "--json")[0])
    slow = json.loads(run(capsys, *given, "--out", tmp_path, "--json", "--backend", "pycocotools")[0])
    assert len(fast["numbers"]) == 12
    assert fast["numbers"] == pytest.approx(slow["numbers"], abs=1e-12)
    assert slow["backend"] == "pycocotools"
    assert json.loads((tmp_path / "metrics.json").read_text())["numbers"] == slow["numbers"]
    rows = json.loads((tmp_path / "detections.json").read_text())
    assert rows[0].keys() == {"image_id", "category_id", "bbox", "score"}


def test_eval_with_several_metrics_and_curves(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """VOC's mean first, then COCO's numbers; a page, a table and a picture for each class."""
    given = ["eval", "--weights", weights, "--data", "shapes:train=2,val=4", "--workers", "0"]
    given += ["--device", "cpu", "--metrics", "voc07", "coco", "--curves", "--out", tmp_path]
    out, _ = run(capsys, *given)
    kept = json.loads((tmp_path / "metrics.json").read_text())
    assert (kept["metric"], kept["headline"]) == ("voc07+coco", "mAP")
    assert list(kept["numbers"])[:2] == ["mAP", "AP"]
    assert "curves.html" in out
    assert "<svg" in (tmp_path / "curves.html").read_text()
    assert (tmp_path / "curves.csv").read_text().startswith("class,overlap,recall,precision,score\n")
    assert list((tmp_path / "curves").glob("*.svg"))
    told = json.loads(run(capsys, *given, "--json")[0])
    assert told["files"]["curves"].endswith("curves.html")
    err = run(capsys, *given[:-4], "--metrics", "segm", status=2)[1]
    assert "finds boxes, no masks" in err


def test_eval_looks_several_times(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """--views 100% is the plain result, flip another one that says so; a wrong word is explained."""
    given = [
        "eval",
        "--weights",
        weights,
        "--data",
        "shapes:train=2,val=2",
        "--workers",
        "0",
        "--device",
        "cpu",
    ]
    found: list[str] = []
    for extra in ([], ["--views", "100%"], ["--views", "flip"]):
        out, _ = run(capsys, *given, "--out", tmp_path, *extra)
        found.append((tmp_path / "detections.json").read_text())
        assert ("each looked at 2 times" in out) == ("flip" in extra)
    assert found[0] == found[1] != found[2]
    assert json.loads((tmp_path / "metrics.json").read_text())["views"] == 2
    err = run(capsys, *given, "--out", tmp_path, "--views", "600+flop", status=2)[1]
    assert err.startswith("relook eval: '600+flop' is no view; write flip, scales, authors, refinedet_voc")
    assert err.count("\n") == 1


def test_eval_refuses_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """80 classes against four of other names; by order only as many can be compared."""
    model = by_name("reppoints_nano")
    save_weights(tmp_path / "w.safetensors", model.entry.detector.build().state_dict(), model.describe())
    given = (
        "eval",
        "--weights",
        tmp_path / "w.safetensors",
        "--data",
        "shapes:train=2,val=2",
        "--workers",
        "0",
    )
    said = run(capsys, *given, "--out", tmp_path, status=2)[1]
    assert "has other classes than the weights: ellipse, rectangle" in said
    assert "write --classes-by order" in said
    assert (
        "the weights know 80 classes"
        in run(capsys, *given, "--out", tmp_path, "--classes-by", "order", status=2)[1]
    )


# -- convert and doctor ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as from elsewhere: our small model's tensors without any description, three classes."""
    detector = replace(find("reppoints_nano").detector, num_classes=3).build()
    path = tmp_path_factory.mktemp("published") / "epoch_12.pth"
    meta = {"CLASSES": ("a", "b", "c"), "epoch": 12, "best": np.float64(0.5)}
    torch.save({"state_dict": detector.state_dict(), "meta": meta, "optimizer": {}}, path)
    return path


def test_doctor_says_what_a_checkpoint_is(published: Path, capsys: pytest.CaptureFixture[str]):
    """Model, classes, safety, what was replaced and left aside, and the next command."""
    out, _ = run(capsys, "doctor", published)
    for words in (
        "it is reppoints_nano with 3 classes",
        "nothing missing",
        "safe",
        "12 epochs",
        "a, b, c",
        "scalar",
    ):
        assert words in out
    assert f"relook convert {published} epoch_12.safetensors" in out
    bare = published.with_name("weights")  # no ending: its first bytes say what it is
    bare.write_bytes(published.read_bytes())
    assert "it is reppoints_nano" in run(capsys, "doctor", bare)[0]
    facts = json.loads(run(capsys, "doctor", published, "--json")[0])
    assert (facts["models"], facts["num_classes"], facts["unsafe"]) == (["reppoints_nano"], 3, False)


def test_doctor_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A file of no known model: the nearest one, and the difference by name; status 1."""
    state = find("reppoints_nano").detector.build().state_dict()
    state.pop("head.init_out.bias")
    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "odd.pth")
    out, _ = run(capsys, "doctor", tmp_path / "odd.pth", status=1)
    assert "nearest is reppoints_nano" in out
    assert "1 missing (head.init_out.bias)" in out
    assert "1 unexpected (extra)" in out


def test_doctor_looks_at_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A data set that can be used ends with 0, another with 1."""
    assert "can be used" in run(capsys, "doctor", "shapes:train=3,val=2")[0]
    assert json.loads(run(capsys, "doctor", "shapes:train=3,val=2", "--json")[0])["usable"] is True
    (tmp_path / "annotations.json").write_text("{")
    run(capsys, "doctor", tmp_path / "annotations.json", status=1)


def test_convert_writes_a_file_that_describes_itself(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """What comes out loads by itself and holds the same numbers; a file that is there is not replaced."""
    target = tmp_path / "new.safetensors"
    out, _ = run(capsys, "convert", published, target)
    assert "is reppoints_nano with 3 classes" in out
    written, given = read_checkpoint(target), torch.load(published, weights_only=False)["state_dict"]
    assert written.classes == ("a", "b", "c")
    assert all(torch.equal(written.state[name], value) for name, value in given.items())
    assert "there already" in run(capsys, "convert", published, target, status=2)[1]
    facts = json.loads(run(capsys, "convert", published, target, "--overwrite", "--json")[0])
    assert facts["model"] == "reppoints_nano"
    _, err = run(
        capsys,
        "convert",
        published,
        tmp_path / "b.safetensors",
        "--model",
        "reppoints_v1_r50_fpn_1x",
        status=2,
    )
    assert "does not fit" in err
    assert not (tmp_path / "b.safetensors").exists()


# -- train and demo --------------------------------------------------------------------------------------


def test_train_takes_its_options_from_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A run from a file with flags on top; JSON; classes in the weights; a taken folder is refused."""
    config = tmp_path / "mine.yaml"
    config.write_text(
        "model: reppoints_nano\ndata: shapes:train=4,val=2\nepochs: 5\nworkers: 0\ndevices: cpu\n"
        "tensorboard: false\nset: [recipe.batch=4, recipe.train_size.short=64, recipe.test_size.short=64]\n"
    )
    given = ("train", "--config", config, "--epochs", "1", "--out", tmp_path / "run", "--json")
    result = json.loads(run(capsys, *given)[0])
    assert (result["epochs"], result["steps"]) == (1, 1)
    assert read_checkpoint(result["last"]).classes == ("ellipse", "rectangle", "triangle", "star")
    assert "--overwrite" in run(capsys, *given, status=2)[1]
    run(capsys, *given, "--overwrite")


def test_demo_goes_all_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Data, training, numbers, pictures and the page, in the smallest size; a second replaces the first."""
    tiny = demo_verb.Plan(train=16, val=4, epochs=1, shown=2)
    monkeypatch.setattr(demo_verb, "SHORT", tiny)
    for _ in range(2):
        out, err = run(capsys, "demo", "--short", "--out", tmp_path / "demo")
    assert "AP50" in out
    assert (tmp_path / "demo" / "index.html").resolve().as_uri() in out
    assert all(f"{i} of 4" in err for i in (1, 2, 3, 4))
    page = (tmp_path / "demo" / "index.html").read_text()
    assert page.count("<img") == 6
    assert page.count("<svg") == 2
    assert len(list((tmp_path / "demo" / "pictures").iterdir())) == 6
    numbers = json.loads((tmp_path / "demo" / "metrics.json").read_text())["numbers"]
    assert f">{numbers['AP50']:.2f}<" in page
