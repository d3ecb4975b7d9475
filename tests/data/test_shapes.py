"""The generated data set: the same for ever, exact, fair, and equal on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from relook.data.formats.coco.read import read_coco
from relook.data.formats.detect import read
from relook.data.formats.problems import Problems
from relook.data.sample import DataError, Sample
from relook.data.shapes import CLASSES, shapes, write_shapes


def _masks(sample: Sample) -> np.ndarray:
    """[N, H, W] by the COCO tools."""
    encoded = [coco_mask.frPyObjects(s, sample.height, sample.width) for s in sample.segmentation]
    return np.stack([coco_mask.decode(e) for e in encoded]).astype(bool)


def test_image_i_depends_on_seed_split_and_i_only() -> None:
    few, many = shapes(3, seed=5), shapes(9, seed=5)
    for a, b in zip(few.samples, many.samples, strict=False):
        assert np.array_equal(a.image(), b.image())
        assert np.array_equal(a.boxes, b.boxes)
    assert np.array_equal(many.samples[4].image(), many.samples[4].image())


def test_other_seeds_and_splits_are_other_images() -> None:
    pictures = [
        shapes(1, seed=seed, split=split).samples[0].image().tobytes()
        for seed in (0, 1)
        for split in ("train", "val")
    ]
    assert len(set(pictures)) == 4


def test_boxes_are_tight_around_masks_that_do_not_overlap() -> None:
    """Boxes, areas and masks agree by the COCO tools; no pixel belongs to two shapes."""
    for sample in shapes(40, seed=1).samples:
        masks = _masks(sample)
        assert masks.sum(0).max() == 1
        for mask, box, area in zip(masks, sample.boxes, sample.area, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert area == mask.sum()


def test_shapes_are_large_enough_inside_and_of_all_classes() -> None:
    samples = shapes(200, seed=2, most=5).samples
    boxes = np.concatenate([s.boxes for s in samples])
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 14
    assert boxes.min() >= 0
    assert boxes.max() <= 128
    assert {len(s.boxes) for s in samples} == {1, 2, 3, 4, 5}
    counts = np.bincount(np.concatenate([s.labels for s in samples]), minlength=len(CLASSES))
    assert counts.min() > counts.sum() / 8


def test_some_shapes_overlap() -> None:
    """Boxes meet often enough that suppression and matching are tried."""
    meeting = 0
    for sample in shapes(100, seed=3).samples:
        low = np.maximum(sample.boxes[:, None, :2], sample.boxes[None, :, :2])
        high = np.minimum(sample.boxes[:, None, 2:], sample.boxes[None, :, 2:])
        meeting += int(((high > low).all(-1).sum() - len(sample.boxes)) > 0)
    assert meeting > 20


def test_other_sides() -> None:
    sample = shapes(1, seed=0, side=200).samples[0]
    assert sample.image().shape == (200, 200, 3)
    assert (sample.height, sample.width) == (200, 200)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"side": 40}, {"most": 0}])
def test_settings_that_cannot_be(wrong: dict[str, int]) -> None:
    settings = {"count": 2, **wrong}
    with pytest.raises(ValueError, match="side >= 64"):
        shapes(settings.pop("count"), **settings)


def test_what_is_written_reads_back_equal(tmp_path: Path) -> None:
    """Pictures, boxes, labels, areas and masks survive the disk; the detector of formats finds them."""
    folder = write_shapes(tmp_path / "data", train=4, val=3, seed=7)
    for split, count in (("train", 4), ("val", 3)):
        made, found = shapes(count, seed=7, split=split), read(folder, split)
        assert found.classes == made.classes
        assert found.category_ids == made.category_ids
        for a, b in zip(made.samples, found.samples, strict=True):
            assert a.id == b.id
            assert np.array_equal(a.image(), b.image())
            assert np.array_equal(a.boxes, b.boxes)
            assert np.array_equal(a.labels, b.labels)
            assert np.array_equal(a.area, b.area)
    file = folder / "annotations" / "instances_train2017.json"
    carried = read_coco(file, [folder / "train2017"], Problems(masks=True), name="masks")
    for a, b in zip(shapes(4, seed=7).samples, carried.samples, strict=True):
        assert np.array_equal(_masks(a), _masks(b))


def test_pycocotools_accepts_the_file(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "data", train=3, val=1, seed=0)
    coco = COCO(folder / "annotations" / "instances_train2017.json")
    annotation = coco.loadAnns(coco.getAnnIds())[0]
    assert coco.annToMask(annotation).sum() == annotation["area"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", fail)
        with pytest.raises(OSError, match="disk full"):
            write_shapes(tmp_path / "data", train=2, val=1)
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        write_shapes(tmp_path, train=1, val=1)
