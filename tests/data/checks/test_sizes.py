"""How large objects are at a network's input, and which size lifts them above what is lost."""

from pathlib import Path

import numpy as np
import pytest

from relook.data.checks.sizes import class_sizes
from relook.data.columnar import pack
from relook.data.sample import Sample, Source
from relook.recipe import KeepRatio, Recipe, Size, Stretch, scaled, side_of, sizes_at
from relook.settings import override
from relook.zoo import catalog


def _source(sides: list[float], height: int = 480, width: int = 640) -> Source:
    """Square objects in one picture: even ones small, of class 0."""
    boxes = np.array([[1, 1, 1 + side, 1 + side] for side in sides])
    count = len(sides)
    sample = Sample(
        id=1,
        path=Path("a.jpg"),
        height=height,
        width=width,
        boxes=boxes,
        labels=np.arange(count) % 2,
        crowd=np.zeros(count, np.bool_),
        ignore=np.zeros(count, np.bool_),
        area=(boxes[:, 2:] - boxes[:, :2]).prod(1),
    )
    return Source(
        name="x", samples=pack([sample]), classes=("platelet", "cell"), category_ids=(1, 2), file=None
    )


def test_objects_shrink_with_the_picture() -> None:
    """480 x 640 at 128: 40 pixels are 10.7, 100 are 26.7, 20 are 5.3."""
    small, large = class_sizes([_source([40, 100, 20, 110])], KeepRatio(short=(128,), long=256))
    assert (small.name, small.objects, small.below, small.hard) == ("platelet", 2, 1, 2)
    assert (large.name, large.below, large.hard, large.wanted, large.easy) == ("cell", 0, 0, 128, 128)
    assert small.median == 8.0
    assert small.wanted == 192  # 128 * 8 / 5.6 (5 % from the smallest), in steps of 32
    assert small.easy == 384


@pytest.mark.parametrize("rule", [KeepRatio(short=(128,), long=150), Stretch(height=128, width=128)])
def test_the_wanted_size_is_enough(rule: Size) -> None:
    """At the size that is wanted 95 % are above the border, whatever the rule."""
    source = _source(np.linspace(10, 60, 40).tolist())
    for one in class_sizes([source], rule):
        larger = scaled(rule, one.wanted / side_of(rule))
        again = next(other for other in class_sizes([source], larger) if other.name == one.name)
        assert again.below <= 0.05 * one.objects
        assert one.wanted > side_of(rule)


@pytest.mark.parametrize("name", ["reppoints_nano", "reppoints_v2_r50_fpn_giou_2x", "refinedet_nano"])
@pytest.mark.parametrize("side", [64, 416, 1200])
def test_a_size_sets_training_and_tests_alike(name: str, side: int) -> None:
    """As text that --set takes; all lengths in proportion."""
    recipe: Recipe = catalog.ENTRIES[name].recipe
    changed = override(
        recipe, {key.removeprefix("recipe."): text for key, text in sizes_at(recipe, side).items()}
    )
    assert side_of(changed.test_size) == side
    factor = side / side_of(recipe.test_size)
    assert side_of(changed.train_size) == pytest.approx(side_of(recipe.train_size) * factor, abs=1)
    if isinstance(recipe.test_size, KeepRatio) and isinstance(changed.test_size, KeepRatio):
        assert changed.test_size.long == pytest.approx(recipe.test_size.long * factor, abs=1)
        assert changed.test_size.antialias == recipe.test_size.antialias


def test_no_size_below_one_pixel() -> None:
    with pytest.raises(ValueError, match="size=0: it must be at least 1 pixel"):
        sizes_at(Recipe(), 0)
