"""Masks through the whole house: from COCO's files to training, numbers, results and pictures."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import relook
from relook.cli import main
from relook.data.formats.detect import read
from relook.data.loading.loader import train_loader
from relook.data.sample import DataError
from relook.data.shapes import shapes, write_shapes
from relook.metrics.coco import CocoMasks, coco_ap, ground_truth
from relook.rle import bitmap, runs
from untrained import untrained


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("masks") / "data", train=6, val=4, side=96)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained small model that finds something everywhere."""
    path = tmp_path_factory.mktemp("weights") / "masks.safetensors"
    return str(untrained(path, "mask_rcnn_nano", keep=5))


def test_masks_reach_the_targets_and_move_with_the_picture(data: Path) -> None:
    """Each mask is as large as its box in the batch, mirrored or not, resized."""
    recipe = relook.entry("mask_rcnn_nano").recipe
    source = read(data, "train", masks=True)
    loader = train_loader(source, recipe, batch=3, workers=0, seed=0, stride=32, masks=True)
    for batch in loader:
        targets = batch.targets
        assert targets.masks is not None
        assert targets.masks.shape == (*targets.valid.shape, *batch.images.shape[-2:])
        assert not targets.masks[~targets.valid].any()
        for box, mask in zip(targets.boxes[targets.valid], targets.masks[targets.valid], strict=True):
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            seen = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
            assert (seen - box).abs().max() <= 2


def test_data_without_masks_are_refused(data: Path) -> None:
    """In training and in measuring, each in one sentence that says what to do."""
    recipe = relook.entry("mask_rcnn_nano").recipe
    plain = read(data, "train")
    with pytest.raises(DataError, match=r"no masks.*annotate them in COCO's format"):
        train_loader(plain, recipe, batch=2, workers=0, seed=0, stride=32, masks=True)
    with pytest.raises(ValueError, match=r"no masks to compare with.*--metrics bbox"):
        ground_truth(plain, masks=True)
    detector = relook.create_model("mask_rcnn_nano", num_classes=4)
    batch = next(iter(train_loader(plain, recipe, batch=2, workers=0, seed=0, stride=32)))
    with pytest.raises(ValueError, match=r"learns masks.*segmentation"):
        detector.loss(detector(batch.images), batch.targets)


@pytest.mark.parametrize("left", [None, []])
def test_boxes_alone_are_no_masks_to_learn(data: Path, tmp_path: Path, left: list[float] | None) -> None:
    """No segmentation is written, or an empty one for each object: refused, not learnt as filled boxes."""
    file = shutil.copytree(data, tmp_path / "data") / "annotations" / "instances_train2017.json"
    whole = json.loads(file.read_text())
    for one in whole["annotations"]:
        del one["segmentation"]
        one.update({} if left is None else {"segmentation": left})
    file.write_text(json.dumps(whole))
    source = read(file, "train", masks=True, whole=True)
    with pytest.raises(DataError, match="has no masks, which this model learns"):
        train_loader(
            source,
            relook.entry("mask_rcnn_nano").recipe,
            batch=2,
            workers=0,
            seed=0,
            stride=32,
            masks=True,
        )


def test_both_tools_give_the_same_numbers_of_masks() -> None:
    """hotcoco and pycocotools, on masks that were shifted, lost and found twice."""
    source = shapes(12, seed=3, split="val", side=96)
    random = np.random.default_rng(0)
    found = []
    for sample in source.samples:
        for n, told in enumerate(sample.segmentation):
            mask = np.roll(bitmap(told, 96, 96), random.integers(-3, 4, 2), (0, 1))
            for _ in range(int(random.integers(0, 3))):
                score, label = float(random.random()), int(sample.labels[n])
                row = {"image_id": sample.id, "category_id": label + 1, "score": score, "bbox": [0, 0, 9, 9]}
                found.append({**row, "segmentation": runs(mask)})
    mine, theirs = (coco_ap(source, found, backend=one, kind="segm") for one in ("hotcoco", "pycocotools"))
    assert mine.numbers == pytest.approx(theirs.numbers, abs=1e-12)
    assert 0 < mine.numbers["AP"] < 1


def test_results_have_masks(weights: str) -> None:
    """As pixels, as run lengths, in COCO's results, for supervision, and in pictures."""
    image = shapes(1, split="val", side=96).samples[0].image()
    result = relook.load(weights).one(image)
    assert len(result) == 5
    masks, lengths = result.masks, result.runs()
    assert masks is not None
    assert lengths is not None
    assert masks.shape == (5, 96, 96)
    for mask, told, row in zip(masks.numpy(), lengths, result.to_coco(), strict=True):
        assert (bitmap(told, 96, 96) == mask).all()
        assert row["segmentation"] == told
    assert (result.to_supervision().mask == masks.numpy()).all()
    drawn = np.asarray(result.plot())
    inside = masks[0].numpy()
    if inside.any():
        assert (drawn[inside] != image[inside]).any(1).mean() > 0.9
    boxes = relook.load(weights).one(image, looks=True)
    assert [panel.name for panel in boxes.panels()] == ["first look", "the answer"]


def test_masks_of_mirrored_views_are_mirrored_back(weights: str) -> None:
    """A symmetric picture: each object's mask lies in its box, whichever view it is from."""
    image = shapes(1, split="val", side=96).samples[0].image()
    result = relook.load(weights, views="flip").one(image)
    masks = result.masks
    assert masks is not None
    for mask, (x1, y1, x2, y2) in zip(masks, result.boxes.tolist(), strict=True):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        if len(rows):
            assert columns[0] >= x1 - 2
            assert columns[-1] <= x2 + 2
            assert rows[0] >= y1 - 2
            assert rows[-1] <= y2 + 2


def test_train_eval_predict_with_masks(
    data: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verbs: a short training, numbers of boxes and masks, and run lengths in the file of results."""
    given = ["--model", "mask_rcnn_nano", "--data", str(data), "--epochs", "1", "--workers", "0"]
    assert main(["train", *given, "--out", str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "segm AP" in rows[-1]
    capsys.readouterr()
    measure = ["eval", "--weights", weights, "--data", str(data), "--workers", "0", "--json"]
    assert main([*measure, "--out", str(tmp_path / "eval")]) == 0
    numbers = json.loads(capsys.readouterr().out)["numbers"]
    assert {"AP", "AP50", "segm AP", "segm AP50"} <= set(numbers)
    assert main([*measure, "--metrics", "bbox", "--out", str(tmp_path / "boxes")]) == 0
    assert "segm AP" not in json.loads(capsys.readouterr().out)["numbers"]
    picture = next((data / "val2017").glob("*.png"))
    assert (
        main(["predict", str(picture), "--weights", weights, "--score", "0", "--out", str(tmp_path / "p")])
        == 0
    )
    file = json.loads((tmp_path / "p" / "detections.json").read_text())
    assert file["annotations"]
    for row in file["annotations"]:
        assert row["area"] == bitmap(row["segmentation"], 96, 96).sum()
    assert Image.open(tmp_path / "p" / picture.name).size == (96, 96)


def test_models_without_masks_cannot_be_measured_by_them(data: Path, tmp_path: Path, capsys) -> None:
    """One sentence, and no traceback."""
    boxes = str(untrained(tmp_path / "boxes.safetensors", "reppoints_nano", keep=2))
    given = ["eval", "--weights", boxes, "--data", str(data), "--metrics", "segm", "--out", str(tmp_path)]
    assert main(given) != 0
    assert "finds boxes, no masks" in capsys.readouterr().err
    assert CocoMasks().headline == "segm AP"
