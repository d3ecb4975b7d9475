"""A model by its name or from its file."""

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from relook.archives import CheckpointError
from relook.recipe import Flip, Jitter, KeepRatio, Recipe, Resize, Selection
from relook.settings import restored
from relook.weights.loading import load_start
from relook.weights.models import by_name, open_weights
from relook.weights.reading.checkpoint import read_checkpoint, save_weights
from relook.zoo.catalog import ENTRIES, find
from relook.zoo.entry import Entry

NANO = find("reppoints_nano")
MINE = replace(NANO, name="mine")  # what a user's own module would hold


def test_settings_are_remembered_and_checked():
    """Changes apply to detector and recipe, are kept as text, and know the nearest name."""
    model = by_name("reppoints_nano", {"detector.keep": "7", "recipe.test_size.short": "96"})
    assert (model.entry.detector.keep, model.entry.recipe.test_size.short) == (7, (96,))
    assert model.settings == {"detector.keep": "7", "recipe.test_size.short": "96"}
    with pytest.raises(ValueError, match="did you mean 'keep'"):
        by_name("reppoints_nano", {"detector.kep": "7"})
    with pytest.raises(ValueError, match="settings begin with detector"):
        by_name("reppoints_nano", {"keep": "7"})
    with pytest.raises(ValueError, match="near it: reppoints_nano"):
        by_name("reppoints_nanno")


def test_an_entry_of_ones_own_is_named_by_module():
    """`module:NAME`; each mistake in it has its sentence."""
    assert by_name(f"{__name__}:MINE").entry is MINE
    with pytest.raises(ValueError, match="cannot be imported"):
        by_name("no_such_module:ENTRY")
    with pytest.raises(ValueError, match="has no 'NOTHING'"):
        by_name(f"{__name__}:NOTHING")
    with pytest.raises(TypeError, match="is a str, not"):
        by_name(f"{__name__}:__doc__")


def test_a_file_of_ours_brings_everything_back(tmp_path: Path):
    """Weights, classes, settings and the whole recipe survive the disk; further settings apply on top."""
    model = by_name("reppoints_nano", {"recipe.test_size.short": "96"}).with_classes(("a", "b", "c"))
    recipe = replace(model.entry.recipe, test_size=KeepRatio(short=(104,), long=208, antialias=True))
    model = replace(model, entry=replace(model.entry, recipe=recipe))
    detector = model.entry.detector.build()
    path = tmp_path / "mine.safetensors"
    save_weights(path, detector.state_dict(), model.describe())
    loaded = open_weights(path, settings={"detector.keep": "5"})
    assert loaded.model.classes == ("a", "b", "c")
    assert loaded.model.entry.recipe == recipe
    assert loaded.model.entry.detector.keep == 5
    ours, theirs = loaded.detector.state_dict(), detector.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(CheckpointError, match="holds 'reppoints_nano'"):
        open_weights(path, "reppoints_v1_r50_fpn_1x")


def test_a_recipe_of_a_newer_relook_is_not_half_understood(tmp_path: Path):
    """An unknown field is an error that says to upgrade, not a silent default."""
    model = by_name("reppoints_nano")
    said = model.describe()
    path = tmp_path / "new.safetensors"
    save_weights(
        path, model.entry.detector.build().state_dict(), replace(said, recipe={**said.recipe, "mixup": 1})
    )
    with pytest.raises(CheckpointError, match=r"Recipe has 'mixup'.*upgrade"):
        open_weights(path)


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ({"recipe": {"pixels": {"pad": 0}}}, r"its Pixels has pad=0: it must be 1 to 4096"),
        ({"recipe": {"test_size": None}}, r"its Recipe\.test_size is None, which cannot be"),
        ({"recipe": "x"}, "its description cannot be read"),
        ({"format": "two"}, "its description cannot be read"),
    ],
)
def test_a_description_that_cannot_be_names_file_and_field(
    tmp_path: Path, description: dict[str, object], said: str
):
    model = by_name("reppoints_nano")
    written = json.loads(model.describe().metadata()["relook"])
    path = tmp_path / "odd.safetensors"
    save_file(
        model.entry.detector.build().state_dict(), path, {"relook": json.dumps({**written, **description})}
    )
    with pytest.raises(CheckpointError, match=rf"odd\.safetensors: {said}"):
        open_weights(path)


def test_every_recipe_of_the_catalog_survives_the_description():
    """Tuples, nested records and None come back as they were, for all entries."""
    for entry in ENTRIES.values():
        plain = json.loads(by_name(entry.name).describe().metadata()["relook"])["recipe"]
        assert restored(Recipe, plain) == entry.recipe, entry.name


def test_a_weights_file_alone_imports_no_module(tmp_path: Path):
    """A description naming `module:NAME` is followed only when the user names it too."""
    detector = MINE.detector.build()
    path = tmp_path / "own.safetensors"
    save_weights(path, detector.state_dict(), by_name(f"{__name__}:MINE").describe())
    with pytest.raises(CheckpointError, match="may not make relook import"):
        open_weights(path)
    assert isinstance(open_weights(path, f"{__name__}:MINE").model.entry, Entry)


def test_a_file_without_description_is_recognised_and_named(tmp_path: Path):
    """Our names without metadata: model and classes from the shapes."""
    detector = replace(NANO.detector, num_classes=5).build()
    path = tmp_path / "bare.safetensors"
    save_file(detector.state_dict(), path)
    loaded = open_weights(path)
    assert (loaded.model.name, loaded.detector.num_classes) == ("reppoints_nano", 5)
    assert loaded.model.classes == ("class 0", "class 1", "class 2", "class 3", "class 4")
    assert "fit" in loaded.note


def test_a_choice_that_matters_is_left_to_the_user(tmp_path: Path):
    """Several models of one shape that predict differently: the sentence lists them, and --model decides."""
    entry = find("reppoints_v1_r50_fpn_1x")
    path = tmp_path / "some.pth"
    torch.save(entry.detector.build().state_dict(), path)
    with pytest.raises(CheckpointError, match=r"could be reppoints_v1_r50_fpn_1x or .*--model"):
        open_weights(path)
    loaded = open_weights(path, "reppoints_minmax_r50_fpn_gn_head_gn_1x")
    assert loaded.model.entry.detector.box == "minmax"
    assert len(loaded.model.classes) == 80
    assert loaded.model.classes[0] == "person"


def test_a_new_start_takes_all_but_what_depends_on_the_classes(tmp_path: Path):
    """Fine-tuning on other classes: every tensor but the classification layer is the file's."""
    old = replace(NANO.detector, num_classes=9).build()
    path = tmp_path / "old.safetensors"
    save_file(old.state_dict(), path)
    config = replace(NANO.detector, num_classes=3)
    new = config.build()
    before = {name: value.clone() for name, value in new.state_dict().items()}
    words = load_start(new, config, path)
    assert "2 that depend on the classes start anew" in words
    for name, value in new.state_dict().items():
        wanted = before[name] if name.startswith("head.cls_out") else old.state_dict()[name]
        assert torch.equal(value, wanted), name
    same = replace(NANO.detector, num_classes=9).build()
    assert "anew" not in load_start(same, replace(NANO.detector, num_classes=9), path)
    assert torch.equal(same.head.cls_out.weight, old.head.cls_out.weight)
    torch.save({"w": torch.zeros(2)}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="does not fit RepPoints"):
        load_start(new, config, tmp_path / "odd.pth")


def test_a_new_start_takes_what_fits_of_another_model(tmp_path: Path):
    """Backbone and pyramid where all of them fit, or the backbone alone; the sentence says which."""
    other = by_name("reppoints_v2_nano")
    save_weights(tmp_path / "v2.safetensors", other.entry.detector.build().state_dict(), other.describe())
    detector = NANO.detector.build()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    words = load_start(detector, NANO.detector, tmp_path / "v2.safetensors")
    theirs = read_checkpoint(tmp_path / "v2.safetensors").state
    assert "(backbone and pyramid) of another model in " in words
    for name, value in detector.state_dict().items():
        wanted = theirs[name] if name.startswith(("backbone.", "neck.")) else before[name]
        assert torch.equal(value, wanted), name
    anew = sum(not name.startswith(("backbone.", "neck.")) for name in before)
    assert f"{anew} start anew" in words
    narrow = replace(NANO.detector, width=32)
    assert "(backbone) of another model" in load_start(narrow.build(), narrow, tmp_path / "v2.safetensors")
    odd = {name: value for name, value in theirs.items() if "layer" not in name and "stage" not in name}
    torch.save(odd, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match="does not fit RepPoints"):
        load_start(narrow.build(), narrow, tmp_path / "half.pth")


@pytest.mark.parametrize(
    ("classes", "anew"),
    [(("cat", "dog"), False), ((), False), (("dog", "cat"), True), (("cat", "wolf"), True)],
)
def test_a_new_start_knows_classes_by_name(tmp_path: Path, classes: tuple[str, ...], anew: bool):
    """As many classes are no matter, if they have other names or another order; the sentence says so."""
    model = by_name("reppoints_nano").with_classes(("cat", "dog"))
    config = model.entry.detector
    save_weights(tmp_path / "x.safetensors", config.build().state_dict(), model.describe())
    theirs, detector = read_checkpoint(tmp_path / "x.safetensors").state, config.build()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    words = load_start(detector, config, tmp_path / "x.safetensors", classes)
    assert ("start anew, for its classes have other names or another order" in words) == anew
    for name, value in detector.state_dict().items():
        kept = anew and name.startswith("head.cls_out")
        assert torch.equal(value, before[name] if kept else theirs[name]), name


def test_a_classifier_is_pointed_to_the_right_option(tmp_path: Path):
    """torchvision's names of a ResNet's tensors."""
    config = find("reppoints_v1_r50_fpn_1x").detector
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet50").state_dict(), tmp_path / "resnet50.pth")
    with pytest.raises(CheckpointError, match=r"a classifier's weights: give it as --backbone-weights .*pth"):
        load_start(config.build(), config, tmp_path / "resnet50.pth")


@pytest.mark.parametrize("averaged", [False, True])
def test_the_state_of_a_run_is_a_weights_file_of_ours(tmp_path: Path, averaged: bool):
    """It says what it is: model, classes, recipe; averaged weights are those that count."""
    model = by_name("reppoints_nano").with_classes(("cat", "dog"))
    detector = model.entry.detector.build()
    own = detector.state_dict()
    average = {name: value + 1 for name, value in own.items()}
    callbacks = {"Ema": {"updates": 3, "weights": average}} if averaged else {}
    said = {"description": model.describe().metadata()["relook"]}
    state = {f"step.detector.{name}": value for name, value in own.items()}
    torch.save({"state_dict": state, "callbacks": callbacks, "relook": said}, tmp_path / "last.ckpt")
    loaded = open_weights(tmp_path / "last.ckpt")
    assert loaded.model.classes == ("cat", "dog")
    assert loaded.note == "it says so"
    wanted = average if averaged else own
    assert all(torch.equal(value, wanted[name]) for name, value in loaded.detector.state_dict().items())


def test_the_state_of_our_own_training_is_weights_too(tmp_path: Path):
    """last.ckpt carries a prefix before every name."""
    detector = NANO.detector.build()
    state = {f"step.detector.{name}": value for name, value in detector.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    assert set(read_checkpoint(tmp_path / "last.ckpt").state) == set(detector.state_dict())


def test_an_entry_beside_ones_work_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`--model mine:ENTRY` with mine.py in the current folder, whoever started Python."""
    (tmp_path / "my_own_model.py").write_text(
        "from relook.zoo.catalog import find\nENTRY = find('reppoints_nano')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p])
    assert by_name("my_own_model:ENTRY").entry is NANO


def test_weights_files_of_the_first_format_still_load(tmp_path: Path):
    """Written before recipes knew kinds: settings, recipe and classes mean what they meant."""
    path = tmp_path / "old.safetensors"
    path.write_bytes(gzip.decompress((Path(__file__).parent / "format-1.safetensors.gz").read_bytes()))
    loaded = open_weights(path)
    recipe, detector = loaded.model.entry.recipe, loaded.model.entry.detector
    assert loaded.model.classes == ("cat", "dog", "owl")
    assert (detector.width, detector.num_classes, detector.backbone.name) == (16, 3, "test_resnet")
    assert recipe.train_size == KeepRatio(short=(64, 96), long=256)
    assert recipe.test_size == KeepRatio(short=(96,), long=256)
    assert recipe.augment == (Jitter(strength=0.2), Resize(), Flip(probability=0.25))
    assert (recipe.group_by, recipe.selection) == ("none", Selection(min_side=32, need="nothing"))
    assert (recipe.optimizer.clip, recipe.optimizer.kind, recipe.schedule.epochs) == (10.0, "adamw", 7)
    again = tmp_path / "new.safetensors"
    save_weights(again, loaded.detector.state_dict(), loaded.model.describe())
    assert json.loads(safe_open(again, "pt").metadata()["relook"])["format"] == 2
    assert open_weights(again).model.entry == loaded.model.entry


def test_a_recipe_of_the_first_format_without_jitter_has_no_such_step(tmp_path: Path):
    """Nearly all files: resize and flip, as published."""
    model = by_name("reppoints_nano")
    recipe = {
        "batch": 8,
        "augment": {"flip": 0.5, "jitter": 0.0, "group_by": "w>h", "min_side": 8, "need": "nothing"},
    }
    facts = {
        "format": 1,
        "model": "reppoints_nano",
        "settings": {"recipe.augment.flip": "0.5"},
        "recipe": recipe,
    }
    path = tmp_path / "old.safetensors"
    save_file(model.entry.detector.build().state_dict(), path, metadata={"relook": json.dumps(facts)})
    recipe = open_weights(path).model.entry.recipe
    assert recipe.augment == (Resize(), Flip(probability=0.5))
    assert (recipe.group_by, recipe.selection.min_side) == ("w>h", 8)
