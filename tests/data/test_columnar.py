"""Samples in columns are the samples, in little memory, with slices and negative numbers as a tuple has."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest

from relook.data.columnar import pack
from relook.data.sample import Sample
from relook.data.shapes import shapes


def _samples() -> list[Sample]:
    """Boxes from none to five, crowds, names beyond ASCII."""
    made = [
        Sample(
            id=s.id * 7,
            path=Path(f"folder/höhe {s.id}.jpg"),
            height=100 + s.id,
            width=50,
            boxes=s.boxes,
            labels=s.labels,
            crowd=np.arange(len(s.boxes)) % 2 == 1,
            ignore=np.arange(len(s.boxes)) % 3 == 1,
            area=s.area,
            segmentation=s.segmentation,
        )
        for s in shapes(12, seed=0).samples
    ]
    return [*made[:5], Sample(id=-3, path=Path("empty.png"), height=1, width=2), *made[5:]]


def _same(a: Sample, b: Sample) -> bool:
    plain = [a.id == b.id, a.path == b.path, (a.height, a.width) == (b.height, b.width)]
    pairs = [(getattr(a, name), getattr(b, name)) for name in ("boxes", "labels", "crowd", "ignore", "area")]
    arrays = [np.array_equal(one, other) and one.dtype == other.dtype for one, other in pairs]
    return all([*plain, *arrays, a.segmentation == b.segmentation])


def test_what_comes_out_is_what_went_in() -> None:
    samples = _samples()
    packed = pack(samples)
    assert len(packed) == 13
    assert all(map(_same, packed, samples))
    assert all(map(_same, pickle.loads(pickle.dumps(packed)), samples))


def test_it_is_a_sequence() -> None:
    samples, packed = _samples(), pack(_samples())
    assert _same(packed[-1], samples[-1])
    assert [s.id for s in packed[2:9:3]] == [s.id for s in samples[2:9:3]]
    for wrong in (13, -14):
        with pytest.raises(IndexError, match="13 samples"):
            packed[wrong]


def test_nothing_packs_to_nothing() -> None:
    assert list(pack([])) == []
    assert pack([]).boxes.shape == (0, 4)


def test_a_thousand_images_are_a_few_large_objects() -> None:
    """Forty bytes and a name per image, fifty per box: nothing that reference counting would copy."""
    plain = [dataclasses.replace(sample, segmentation=()) for sample in _samples()] * 80
    boxes = sum(len(sample.boxes) for sample in plain)
    assert len(pickle.dumps(pack(plain))) < len(plain) * (40 + 30) + boxes * 52 + 2000
