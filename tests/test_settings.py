"""Frozen settings from text and from JSON, records of several kinds among them."""

import json
from dataclasses import asdict
from typing import Any, cast

import pytest

import relook
from relook.recipe import Flip, Jitter, KeepRatio, Optimizer, Recipe, Resize, Schedule, Selection, Stretch
from relook.settings import BadValue, UnknownField, override, restored

RECIPE = Recipe()


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("test_size.short", "600", KeepRatio(short=(600,))),
        ("test_size", "stretch", Stretch()),
        ("test_size", "stretch(height=320, width=640)", Stretch(height=320, width=640)),
        (
            "test_size",
            "keep_ratio(short=(480, 960), between=True)",
            KeepRatio(short=(480, 960), between=True),
        ),
        ("augment", "none", ()),
        ("augment", "flip", (Flip(),)),
        ("augment", "jitter(strength=0.2), resize", (Jitter(strength=0.2), Resize())),
        ("augment.flip.probability", "0.25", (Resize(), Flip(probability=0.25))),
        ("optimizer.no_decay", "norms,biases", ("norms", "biases")),
        ("optimizer.no_decay", "none", ()),
        ("optimizer.clip_by", "value", "value"),
        ("schedule.iterations", "90000", 90_000),
        ("schedule.iterations", "none", None),
        ("schedule.warmup_lr", "1e-6", 1e-6),
        ("schedule.drops", "60000,80000", (60_000, 80_000)),
        ("metric", "voc", "voc"),
        ("group_by", "none", "none"),
    ],
)
def test_text_becomes_the_field_it_is_for(path: str, text: str, value: object) -> None:
    """As `--set recipe.PATH=TEXT` writes it; a whole record, a step of several, or one field of them."""
    changed = override(RECIPE, {path: text})
    node: object = changed
    for name in path.split("."):
        node = getattr(node, name) if hasattr(node, name) else changed.augment
        if node is changed.augment or isinstance(node, KeepRatio | Stretch):
            break
    assert node == value


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        (
            "test_size",
            "square",
            r"expected keep_ratio\(\.\.\.\) or stretch\(\.\.\.\), got 'square'",
        ),
        ("test_size", "stretch(side=9)", r"Stretch has no 'side'"),
        ("test_size", "stretch, stretch", "expected one record"),
        ("test_size", "stretch(height=f())", "height=f.. is no plain value"),
        ("test_size", "stretch(height=", "cannot be read; write it as"),
        ("test_size", "stretch(9)", "expected keep_ratio"),
        ("test_size.height", "9", "KeepRatio has no 'height'"),
        ("augment", "blur", r"expected resize.*jitter.*crop.*, got 'blur'"),
        ("augment.jitter.strength", "0.3", r"no 'jitter' with settings in augment, which is resize, flip"),
        ("augment.flip", "0.3", r"write the whole of it: augment=resize, flip, flip\(\.\.\.\)"),
        ("augment.flip.probability", "often", "expected float, got 'often'"),
        ("optimizer.no_decay", "weights", "expected one of norms, norm_weights"),
        ("schedule.epoch", "3", "did you mean 'epochs'"),
        ("optimizer", "adamw", "optimizer: set what is in it: optimizer.kind, optimizer.lr"),
        ("augment", "resize)+(flip", "cannot be read; write it as"),
        ("augment", "flip(probability=" + "-" * 5000 + "1)", "cannot be read; write it as"),
        ("augment", "jitter(strength={[]: 1})", "is no plain value"),
        ("augment", "flip(probability=7)", "augment: probability=7.0: it must be in 0 .. 1"),
        ("augment", "jitter(strength=-3)", "it must be from 0 on"),
        ("batch", "0", "batch: batch=0: it must be at least 1 image"),
        ("pixels.pad", "0", "pad=0: it must be 1 to 4096"),
        ("pixels.std", "1,0,1", "each must be more than 0"),
        ("train_size", "stretch(height=0)", "height=0: it must be 1 to 20000 pixels"),
        ("train_size.short", "", "short=: give sides of at least 1 pixel"),
        ("train_size.between", "true", "`between` needs two of them"),
        ("schedule.epochs", "0", "epochs=0: it must be at least 1"),
        ("schedule.iterations", "-3", "iterations=-3: it must be at least 1, or none"),
        ("optimizer.clip", "nan", "clip=nan: it must be more than 0, or none"),
        ("optimizer.lr", "nan", "lr=nan: it must be a number from 0 on"),
        ("optimizer.weight_decay", "-1", "it must be from 0 on"),
    ],
)
def test_a_text_that_does_not_fit_is_answered_in_one_sentence(path: str, text: str, said: str) -> None:
    """With the path, what was expected and what was written; nothing in the text is ever run."""
    with pytest.raises(ValueError, match=said) as told:
        override(RECIPE, {path: text})
    assert "\n" not in str(told.value)


def test_a_choice_within_one_record_is_a_plain_setting() -> None:
    """An optimizer has a kind, but is the same record for each of them; a comma at the end does no harm."""
    assert override(RECIPE, {"optimizer.kind": "adamw"}).optimizer.kind == "adamw"
    assert override(RECIPE, {"augment": "resize, flip,"}) == RECIPE


def test_fields_that_fit_only_together_are_written_together() -> None:
    """In any order: a range of sizes needs two of them."""
    wanted = KeepRatio(short=(480, 960), between=True)
    for text in ("keep_ratio(between=True, short=(480, 960))", "keep_ratio(short=(480, 960), between=True)"):
        assert override(RECIPE, {"train_size": text}).train_size == wanted


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("test_size", None),
        ("test_size", []),
        ("test_size", {"short": [128]}),
        ("test_size", {"kind": "keep_ratio", "short": 128}),
        ("test_size", {"kind": "keep_ratio", "short": "128"}),
        ("test_size", {"kind": "keep_ratio", "short": ["a"]}),
        ("test_size", {"kind": "keep_ratio", "short": [128], "long": None}),
        ("pixels", None),
        ("pixels", {"mean": [1]}),
        ("pixels", {"mean": ["a", "b", "c"]}),
        ("pixels", {"order": "zzz"}),
        ("pixels", {"pad": 1.5}),
        ("pixels", {"pad": 0}),
        ("augment", "x"),
        ("augment", [1]),
        ("schedule", {"drops": 3}),
        ("batch", True),
        ("batch", {"kind": "none"}),
        ("sync_bn", 1),
    ],
)
def test_stored_values_that_cannot_be_are_named(field: str, value: object) -> None:
    """A file that was changed by hand is told so by field, and is no case for an upgrade."""
    with pytest.raises(BadValue, match=rf"its Recipe\.{field}|its Pixels|its KeepRatio|its Schedule"):
        restored(Recipe, {field: value})
    with pytest.raises(BadValue, match="its Recipe is 'x'"):
        restored(Recipe, cast("Any", "x"))


def test_values_of_python_are_taken_as_they_are() -> None:
    changed = override(RECIPE, {"augment": (Flip(),), "test_size": Stretch(), "optimizer": Optimizer(lr=1.0)})
    assert (changed.augment, changed.test_size, changed.optimizer.lr) == ((Flip(),), Stretch(), 1.0)


def test_every_kind_survives_json() -> None:
    """Plain values and back: unions by their kind, tuples of records, nested records, None."""
    recipe = Recipe(
        optimizer=Optimizer(clip=1.0, clip_by="value", no_decay=("norms", "embeddings")),
        schedule=Schedule(iterations=900, warmup_lr=1e-6, drops=(600, 800)),
        train_size=Stretch(height=320, width=320),
        test_size=KeepRatio(short=(600,), long=1000),
        augment=(Jitter(strength=0.1), Flip(probability=0.4), Resize()),
        selection=Selection(need="nothing"),
        metric="voc",
    )
    assert restored(Recipe, json.loads(json.dumps(asdict(recipe)))) == recipe


def test_what_a_newer_version_wrote_is_not_half_understood() -> None:
    """An unknown field, an unknown kind of record."""
    plain = json.loads(json.dumps(asdict(RECIPE)))
    with pytest.raises(UnknownField, match="its Recipe has 'mixup'"):
        restored(Recipe, {**plain, "mixup": 1})
    with pytest.raises(UnknownField, match=r"its Recipe\.augment is a 'mosaic'"):
        restored(Recipe, {**plain, "augment": [{"kind": "mosaic"}]})


def test_fields_that_fit_only_together_are_changed_together() -> None:
    """Each alone would be refused; what is deeper is changed too, whatever the order."""
    start = relook.entry("centernet2_nano")
    changes = {
        "detector.backbone.name": "cs3darknet_m",
        "detector.stage_iou": "0.5,0.6",
        "detector.center_stds": "0.1,0.05",
        "detector.size_stds": "0.2,0.1",
        "detector.nms": "0.6",
    }
    for given in (changes, dict(reversed(changes.items()))):
        made: Any = override(start, given).detector
        assert (made.stage_iou, made.nms, made.backbone.name) == ((0.5, 0.6), 0.6, "cs3darknet_m")
    with pytest.raises(ValueError, match="one number for each stage"):
        override(start, {"detector.stage_iou": "0.5,0.6", "detector.nms": "0.6"})
    with pytest.raises(ValueError, match="score='foo': it must be one of product, mean_logits"):
        relook.create_model("centernet2_nano", score="foo")
    with pytest.raises(ValueError, match="keep=0: it must be at least 1"):
        relook.create_model("retinanet_r50_fpn_1x", keep=0)
