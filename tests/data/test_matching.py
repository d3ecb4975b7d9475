"""Classes brought together by name: order, missing ones, unknown ones, likeness; the data's own ids stay."""

from pathlib import Path

import numpy as np
import pytest

from relook.data.columnar import pack
from relook.data.matching import by_name, matched
from relook.data.sample import DataError, Sample, Source
from relook.data.shapes import shapes


def source(classes: tuple[str, ...], ids: tuple[int, ...], labels: list[int]) -> Source:
    """One picture with objects of these labels."""
    count = len(labels)
    sample = Sample(
        id=1,
        path=Path("a.jpg"),
        height=9,
        width=9,
        boxes=np.tile([0.0, 0, 5, 5], (count, 1)),
        labels=np.array(labels, np.int64),
        crowd=np.zeros(count, np.bool_),
        ignore=np.zeros(count, np.bool_),
        area=np.full(count, 25.0),
    )
    return Source(name="made", samples=pack([sample]), classes=classes, category_ids=ids, file=None)


def test_another_order_is_matched_by_name_and_said() -> None:
    found = by_name(source(("dog", "cat"), (7, 3), [0, 0, 1]), ("cat", "dog"), "the weights", "rename")
    assert found.classes == ("cat", "dog")
    assert found.samples[0].labels.tolist() == [1, 1, 0]
    assert found.category_ids == (3, 7), "the data's own"
    assert found.notes == (
        "made lists its classes in another order than the weights; they are matched by name",
    )


def test_classes_that_the_data_lack_get_ids_beyond() -> None:
    found = by_name(source(("dog",), (7,), [0]), ("cat", "dog", "bird"), "the weights", "rename")
    assert found.category_ids == (8, 7, 9)
    assert found.samples[0].labels.tolist() == [1]
    assert "does not list 2 of the 3 classes of the weights: cat, bird" in found.notes[0]


def test_a_name_that_differs_by_case_or_blanks_is_the_same_where_that_leaves_no_choice() -> None:
    found = by_name(
        source((" Traffic  light",), (1,), [0]), ("cat", "traffic light"), "the weights", "rename"
    )
    assert found.samples[0].labels.tolist() == [1]
    assert any("is taken for 'traffic light' of the weights" in note for note in found.notes)
    for theirs, ours in ((("Cat", "CAT"), ("cat", "dog")), (("Cat", "x"), ("cat", "cAt"))):
        with pytest.raises(DataError, match="other classes than the weights"):
            by_name(source(theirs, (1, 2), [0, 1]), ours, "the weights", "rename")


def test_other_names_are_refused_with_the_nearest_and_a_way_out() -> None:
    with pytest.raises(
        DataError,
        match=r"aeroplane is not among airplane, dog; is 'aeroplane' what the weights call 'airplane'\?",
    ):
        by_name(source(("aeroplane", "dog"), (1, 2), [0]), ("airplane", "dog"), "the weights", "rename them")


def test_an_unknown_class_without_objects_is_dropped_and_said() -> None:
    found = by_name(source(("all", "dog"), (0, 1), [1]), ("dog",), "the weights", "rename")
    assert found.classes == ("dog",)
    assert found.samples[0].labels.tolist() == [0]
    assert "all, without objects, are not among the classes of the weights" in found.notes[-1]


def test_by_order_needs_as_many_and_says_what_it_compares() -> None:
    found = matched(source(("boat", "plane"), (1, 2), [1]), ("ship", "aircraft"), "order")
    assert found.classes_by == "order"
    assert found.notes == (
        "classes are compared by their order: 'ship' of the weights with 'boat' of the data",
    )
    with pytest.raises(DataError, match="the weights know 3 classes and made has 2: boat, plane"):
        matched(source(("boat", "plane"), (1, 2), [1]), ("a", "b", "c"), "order")


def test_weights_that_know_numbers_only_are_taken_by_order() -> None:
    found = matched(source(("boat", "plane"), (1, 2), [1]), ("class 0", "class 1"))
    assert (found.classes, found.classes_by) == (("boat", "plane"), "order")


def test_generated_data_are_matched_too() -> None:
    made = shapes(3)
    turned = by_name(made, made.classes[::-1], "the weights", "rename")
    for before, after in zip(made.samples, turned.samples, strict=True):
        assert [made.classes[n] for n in before.labels] == [turned.classes[n] for n in after.labels]


def test_twenty_thousand_classes_take_no_time() -> None:
    names = tuple(f"c{n}" for n in range(20_000))
    found = by_name(source(names[::-1], tuple(range(20_000)), [0]), names, "the weights", "rename")
    assert found.samples[0].labels.tolist() == [19_999]
