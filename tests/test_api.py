"""What Python code sees of relook."""

import json
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import relook
from relook.api import TrainOptions, frozen_for_nothing
from relook.data.shapes import write_shapes
from relook.train_settings import TrainSettings
from relook.weights.models import by_name
from relook.weights.reading.checkpoint import save_weights


def weights(path: Path, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """A weights file of an untrained small model that finds something everywhere."""
    torch.manual_seed(0)
    model = by_name("reppoints_nano").with_classes(classes)
    detector = model.entry.detector.build()
    with torch.no_grad():
        detector.head.cls_out.bias.add_(4)
    save_weights(path, detector.state_dict(), model.describe())
    return path


def test_import_is_light():
    """`import relook` adds less than two seconds to torch and torchvision, and loads nothing heavy."""
    code = """
        import time, torch, torchvision
        began = time.perf_counter()
        import relook, sys
        took = time.perf_counter() - began
        assert took < 2, took
        assert not {"timm", "pytorch_lightning", "hotcoco", "rich", "relook.api"} & set(sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_relook_train_is_the_room_and_the_function():
    """It can be called, and its modules can be imported by any of Python's ways."""
    import relook.train_settings as room  # noqa: PLC0415

    assert room.TrainSettings is TrainSettings
    assert relook.train_settings is room
    assert callable(relook.train)
    with pytest.raises(ValueError, match="did you mean 'epochs'"):
        relook.train(model="reppoints_nano", data="shapes", epoch=3)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        relook.trian  # noqa: B018


def test_options_of_train_are_the_settings_of_the_loop():
    """The typed keywords and the record they fill name the same things."""
    assert set(TrainOptions.__annotations__) == {f.name for f in fields(TrainSettings)}


def test_models_are_made_by_name():
    """Patterns, classes, settings by keyword, and the nearest name for each mistake."""
    assert "reppoints_nano" in relook.list_models()
    assert all("r101" in name for name in relook.list_models("*r101*"))
    assert relook.list_models("nothing*") == []
    assert relook.entry("reppoints_nano").publisher == "relook"
    detector = relook.create_model("reppoints_nano", num_classes=7, keep=11)
    assert (detector.num_classes, detector.config.keep) == (7, 11)
    with pytest.raises(ValueError, match="near it: reppoints_nano"):
        relook.create_model("repoints_nano")
    with pytest.raises(ValueError, match="no setting 'kepe'; did you mean 'keep'"):
        relook.create_model("reppoints_nano", kepe=3)


def test_a_saved_model_is_ready_for_images(tmp_path: Path):
    """load gives a Predictor with the file's classes; results are those of the detector itself."""
    path = weights(tmp_path / "mine.safetensors")
    look = relook.load(path, device="cpu")
    assert look.classes == ("cat", "dog")
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    found = look.one(image, looks=True)
    assert len(found) > 0
    assert found.asked_looks()[0].points.shape == (len(found), 9, 2)
    again = relook.load("reppoints_nano", weights=path, device="cpu", settings={"detector.keep": "3"}).one(
        image
    )
    assert len(again) == 3
    assert torch.equal(again.boxes, found.boxes[:3])
    with pytest.raises(ValueError, match="nobody has published weights"):
        relook.load("reppoints_nano")
    with pytest.raises(relook.CheckpointError, match="there is no file"):
        relook.load(tmp_path / "absent.safetensors")


def test_training_takes_the_classes_of_the_data_and_describes_its_weights(tmp_path: Path):
    """A short run end to end: the file it leaves loads, names the classes and predicts."""
    result = relook.train(
        model="reppoints_nano",
        data="shapes:train=8,val=4",
        settings={"recipe.batch": "4", "recipe.train_size.short": "64", "recipe.test_size.short": "64"},
        epochs=1,
        workers=0,
        devices="cpu",
        out=tmp_path / "run",
        tensorboard=False,
        progress=False,
    )
    assert result.steps == 2
    look = relook.load(result.last, device="cpu")
    assert look.classes == ("ellipse", "rectangle", "triangle", "star")
    assert look.recipe.test_size.short == (64,)
    with pytest.raises(ValueError, match="has 4 classes; leave the setting out"):
        relook.train(
            model="reppoints_nano", data="shapes:train=8,val=4", settings={"detector.num_classes": "9"}
        )
    tuned = relook.train(
        model="reppoints_nano",
        data="shapes:train=4,val=4",
        start=result.last,
        settings={"recipe.batch": "4"},
        epochs=1,
        workers=0,
        devices="cpu",
        out=str(tmp_path / "tuned"),
        tensorboard=False,
        progress=False,
    )
    assert tuned.steps == 1


def test_a_backbone_may_be_named():
    """By timm's name; what is no network of its kind is told with the nearest."""
    small = relook.create_model("reppoints_v1_r50_fpn_1x", backbone="resnet18")
    assert small.backbone.config.name == "resnet18"
    assert small.backbone.config.frozen == relook.entry("reppoints_v1_r50_fpn_1x").detector.backbone.frozen
    for wrong, words in {
        "resnet51": "timm has no network 'resnet51'; did you mean",
        "mobilenetv2_100": "is no ResNet with such stages",
        "hf-hub:some/where": "timm has no network 'hf-hub:some/where'",
    }.items():
        with pytest.raises(ValueError, match=words):
            relook.create_model("reppoints_v1_r50_fpn_1x", backbone=wrong)
    with pytest.raises(ValueError, match="has a backbone of one kind"):
        relook.create_model("refinedet_320_vgg_voc", backbone="resnet18")
    with pytest.raises(ValueError, match=r"reppoints_nano.keep=-3: it must be a whole number from 1"):
        relook.create_model("reppoints_nano", keep=-3)


# -- from nothing ------------------------------------------------------------------------------------------


def _frozen(model: Any) -> dict[str, str]:
    return frozen_for_nothing(model, "none", None)


def test_nothing_is_frozen_where_nothing_was_learnt():
    """Parts and statistics of a backbone learn that starts from random numbers, unless told not to."""
    model = by_name("reppoints_v1_r50_fpn_1x")
    free = {"detector.backbone.frozen": "0", "detector.backbone.freeze_statistics": "false"}
    assert _frozen(model) == free
    backbone = model.change(free).entry.detector.build().train().backbone
    assert all(p.requires_grad for p in backbone.parameters())
    assert all(part.training for part in backbone.modules())
    assert frozen_for_nothing(model, "auto", None) == {}
    assert frozen_for_nothing(model, "none", "some.pth") == {}
    assert _frozen(by_name("reppoints_v1_r50_fpn_1x", {"detector.backbone.frozen": "1"})) == {
        "detector.backbone.freeze_statistics": "false"
    }
    assert _frozen(by_name("reppoints_nano")) == {}
    assert "detector.backbone.frozen_norms" in _frozen(by_name("centernet2_original_r50_fpn_1x"))


def test_what_a_run_starts_from_is_in_its_log_and_stays_when_it_goes_on(tmp_path: Path):
    """The log says that nothing is frozen; going on needs no word of it and says none."""
    (tmp_path / "data").mkdir()
    write_shapes(tmp_path / "data", train=4, val=2, seed=0)
    common: dict[str, Any] = {
        "model": "reppoints_v1_r50_fpn_1x",
        "data": tmp_path / "data",
        "size": 64,
        "settings": {"detector.backbone.name": "resnet18", "detector.width": "32"},
        "out": tmp_path / "run",
        "epochs": 2,
        "batch": 2,
        "workers": 0,
        "tensorboard": False,
        "progress": False,
    }
    relook.train(**common, backbone_weights="none", stop_after=1)
    log = (tmp_path / "run" / "train.log").read_text()
    assert "starting from random weights" in log
    assert "so all of the backbone learns: detector.backbone.frozen=0" in log
    assert "will never learn" not in log
    result = relook.train(**common, resume=tmp_path / "run")
    assert result.epochs == 2
    assert (tmp_path / "run" / "train.log").read_text().count("all of the backbone learns") == 1
    assert relook.load(result.last).detector.backbone.config.frozen == 0


def test_names_in_any_letters_go_all_the_way(tmp_path: Path):
    """Through training, weights, evaluation and a new start: also with spaces that no printer prints."""
    data = write_shapes(tmp_path / "data", train=4, val=2, seed=0)
    name = "\u5927\u578b\u3000\u72ac"
    for file in data.rglob("*.json"):
        facts = json.loads(file.read_text())
        facts["categories"][0]["name"] = name
        file.write_text(json.dumps(facts))
    common: dict[str, Any] = {
        "model": "reppoints_nano",
        "data": data,
        "size": 64,
        "epochs": 1,
        "workers": 0,
        "progress": False,
        "tensorboard": False,
    }
    result = relook.train(**common, out=tmp_path / "run")
    assert name in relook.load(result.last).classes
    done = relook.evaluate(result.last, data=data, workers=0, progress=False)
    assert name in done.report.per_class
    relook.train(**common, out=tmp_path / "again", start=result.last)
    assert "start anew" not in (tmp_path / "again" / "train.log").read_text()


def test_what_follows_a_training_on_two_devices_happens_once(tmp_path: Path):
    """In a script without a guard, too: the process beside the first ends with the training."""
    data = write_shapes(tmp_path / "data", train=8, val=2, seed=0)
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import relook
        result = relook.train(
            model="reppoints_nano", data={str(data)!r}, devices="cpu:2", epochs=1, batch=2, workers=0,
            size=64,
            out={str(tmp_path / "run")!r}, progress=False, tensorboard=False,
        )
        with open({str(tmp_path / "said")!r}, "a") as file:
            file.write(f"{{result.epochs}}\\n")
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script)], check=False, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "said").read_text() == "1\n"
