"""Frozen settings from text and from JSON, records of several kinds among them."""

import json
from dataclasses import asdict

import pytest

from relook.recipe import Flip, Jitter, KeepRatio, Optimizer, Recipe, Resize, Schedule, Selection, Stretch
from relook.settings import UnknownField, override, restored

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
        ("augment", "blur", r"expected resize\(\.\.\.\) or flip\(\.\.\.\) or jitter\(\.\.\.\), got 'blur'"),
        ("augment.jitter.strength", "0.3", r"no 'jitter' with settings in augment, which is resize, flip"),
        ("augment.flip", "0.3", r"write the whole of it: augment=resize, flip, flip\(\.\.\.\)"),
        ("augment.flip.probability", "often", "expected float, got 'often'"),
        ("optimizer.no_decay", "weights", "expected one of norms, norm_weights"),
        ("schedule.epoch", "3", "did you mean 'epochs'"),
    ],
)
def test_a_text_that_does_not_fit_is_answered_in_one_sentence(path: str, text: str, said: str) -> None:
    """With the path, what was expected and what was written; nothing in the text is ever run."""
    with pytest.raises(ValueError, match=said) as told:
        override(RECIPE, {path: text})
    assert "\n" not in str(told.value)


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
    with pytest.raises(UnknownField, match="it has a 'mosaic'"):
        restored(Recipe, {**plain, "augment": [{"kind": "mosaic"}]})
