"""Masks from COCO's segmentations, exactly as COCO's own tools read and write them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from pycocotools import mask as tools

from relook.rle import area, bitmap, runs


@settings(deadline=None, max_examples=60)
@given(some.arrays(np.bool_, st.tuples(st.integers(1, 20), st.integers(1, 20))))
def test_runs_and_back(mask: np.ndarray) -> None:
    """As text and as numbers: the same pixels, and pycocotools' text."""
    made = runs(mask)
    assert (bitmap(made, *mask.shape) == mask).all()
    assert area(made) == mask.sum()
    theirs = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert made["counts"].encode() == theirs["counts"]
    column_wise = mask.T.reshape(-1)
    changes = np.flatnonzero(column_wise[1:] != column_wise[:-1]) + 1
    counts = np.diff([0, *changes, mask.size]).tolist()
    counts = [0, *counts] if column_wise[0] else counts
    assert (bitmap({"size": list(mask.shape), "counts": counts}, *mask.shape) == mask).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.floats(-5, 40, width=32), min_size=6, max_size=16), min_size=1, max_size=3))
def test_polygons_are_drawn_as_coco_does(parts: list[list[float]]) -> None:
    """Parts are united; an odd last number is left out."""
    mine = bitmap(parts, 30, 35)
    even = [part[: len(part) // 2 * 2] for part in parts]
    theirs = tools.decode(tools.merge(tools.frPyObjects(even, 30, 35))).astype(bool)
    assert mine is not None
    assert (mine == theirs).all()


@pytest.mark.parametrize("told", [None, [], [[1, 2, 3, 4]], "nonsense", [[]]])
def test_what_has_no_pixels_is_nothing(told: object) -> None:
    assert bitmap(told, 5, 5) is None


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"size": [5, 6], "counts": [30]}, "the image has"),
        ({"size": [5, 5], "counts": [30]}, "sum to 30"),
        ({"size": [5, 5]}, "neither numbers nor text"),
        ({"counts": [25]}, "the image has"),
    ],
)
def test_runs_that_cannot_be_are_refused(told: object, words: str) -> None:
    """One sentence that says why."""
    with pytest.raises(ValueError, match=words):
        bitmap(told, 5, 5)
