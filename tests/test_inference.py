"""One path from images to results: prediction and evaluation are the same computation."""

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import relook
from relook.cli import main
from relook.data import sample as sample_module
from relook.data.formats.detect import read
from relook.data.shapes import write_shapes
from relook.data.transforms.network_input import prepare
from relook.evaluation import evaluate
from relook.inference import Engine, Seen
from relook.predictor import Predictor
from relook.types import Detections
from relook.views import parse
from tiny_detector import RECIPE, TinyDetector, tiny, tiny_data
from untrained import untrained

CLASSES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes on disk, cropped to sizes of their own, odd ones among them."""
    folder = write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=2, val=5, side=96)
    file = folder / "annotations" / "instances_val2017.json"
    whole = json.loads(file.read_text())
    for n, image in enumerate(whole["images"]):
        path = folder / "val2017" / image["file_name"]
        image["height"], image["width"] = 96 - 7 * n, 96 - 5 * (n % 3)
        Image.fromarray(np.asarray(Image.open(path))[: image["height"], : image["width"]]).save(path)
    file.write_text(json.dumps(whole))
    return folder


def rows(found: list[dict[str, Any]], image: int) -> list[tuple[Any, ...]]:
    return [(r["category_id"], r["score"], *r["bbox"]) for r in found if r["image_id"] == image]


@pytest.mark.parametrize("views", [None, "100%+flip,75%"])
@pytest.mark.parametrize("name", ["reppoints_nano", "reppoints_v2_nano"])
def test_predict_alone_and_eval_alone_give_the_same_boxes(
    data: Path, tmp_path: Path, name: str, views: str | None
) -> None:
    """Bit for bit, image by image, from files of sizes of their own; in several views too."""
    weights = untrained(tmp_path / "w.safetensors", name, keep=20)
    source = read(data, "val")
    done = relook.evaluate(weights, data=data, views=views, workers=0, device="cpu", progress=False)
    look = relook.load(weights, device="cpu", views=views)
    for one in source.samples:
        ours = look.one(one.path).to_coco(one.id, category_ids=source.category_ids)
        assert len(ours) > 5
        assert rows(ours, one.id) == rows(done.detections, one.id)


def test_the_two_verbs_write_the_same_boxes(data: Path, tmp_path: Path) -> None:
    """`relook predict` and `relook eval`: the numbers in both detections.json are equal to the last digit."""
    weights = untrained(tmp_path / "w.safetensors", "reppoints_nano", keep=5)
    images = data / "val2017"
    predicted, evaluated = tmp_path / "predict", tmp_path / "eval"
    words = ["--weights", str(weights), "--device", "cpu", "--out"]
    assert main(["predict", str(images), *words, str(predicted), "--score", "0", "--no-pictures"]) == 0
    assert main(["eval", "--data", str(data), *words, str(evaluated), "--workers", "0"]) == 0
    file = json.loads((predicted / "detections.json").read_text())
    names = {image["id"]: image["file_name"] for image in file["images"]}
    theirs = json.loads((evaluated / "detections.json").read_text())
    for one in read(data, "val").samples:
        (mine,) = [key for key, name in names.items() if name == one.path.name]
        assert rows(file["annotations"], mine) == rows(theirs, one.id)
        assert len(rows(theirs, one.id)) == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_each_file_is_decoded_once_however_many_views_there_are(
    data: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Six views of five files: five are read in this process, or none where another process reads."""
    read_files: list[str] = []
    real = sample_module.read_image

    def counted(path: Path) -> np.ndarray:
        read_files.append(str(path))
        return real(path)

    monkeypatch.setattr(sample_module, "read_image", counted)
    source = read(data, "val")
    done = evaluate(
        tiny(), RECIPE, source, workers=workers, device="cpu", progress=False,
        views=parse("scales", RECIPE.test_size),
    )  # fmt: skip
    assert done.views == 6
    assert len({row["image_id"] for row in done.detections}) == 5
    assert len(read_files) == len(set(read_files)) == (0 if workers else 5)


def test_results_leave_as_soon_as_they_are_made() -> None:
    """The first result is there before the second batch is asked for."""
    engine = Engine(tiny(), RECIPE, device="cpu")
    asked: list[int] = []

    def batches():
        for n in range(3):
            asked.append(n)
            image = np.full((64, 48, 3), 40 * n, np.uint8)
            yield engine.batch([engine.first(image)], [(64, 48)], [n])

    seen: list[Seen] = []
    for one in engine.run(batches()):
        seen.append(one)
        assert asked == list(range(len(seen)))
    assert [one.key for one in seen] == [0, 1, 2]


def test_evaluation_keeps_rows_and_nothing_else() -> None:
    """Of images that are done no tensor of the detector stays alive: each batch finds the last one gone."""
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    class Watched(TinyDetector):
        def predict(self, outputs: Any, sizes: Tensor) -> Detections:
            nonlocal most
            found = super().predict(outputs, sizes)
            alive.add(found.boxes)
            most = max(most, len(alive))
            return found

    torch.manual_seed(0)
    done = evaluate(Watched(), RECIPE, tiny_data(9, "val"), workers=0, device="cpu", progress=False)
    assert len(done.rows) == 90
    assert most <= 2


def test_the_mode_of_a_detector_is_given_back_after_an_error() -> None:
    """A run that ends in the middle leaves a detector in training in training."""
    detector = tiny().train()
    engine = Engine(detector, RECIPE, device="cpu")
    image = np.zeros((64, 64, 3), np.uint8)
    good = engine.batch([engine.first(image)], [(64, 64)], [0])
    bad = replace(good, images=torch.zeros(1, 3, 7, 7))
    with pytest.raises(RuntimeError):
        list(engine.run([good, bad]))
    assert detector.training
    stream = engine.run([good, good])
    next(stream)
    stream.close()
    assert detector.training


def test_two_streams_do_not_change_each_other_nor_the_detector() -> None:
    """Each batch is seen in evaluation mode, whatever happens in between; each module keeps its own mode."""
    detector = tiny().train()
    detector.norm = torch.nn.BatchNorm2d(3)
    detector.norm.eval()  # frozen by its owner
    engine = Engine(detector, RECIPE, device="cpu")
    seen_in: list[bool] = []
    detector.register_forward_pre_hook(lambda module, _: seen_in.append(module.training))
    image = np.zeros((64, 64, 3), np.uint8)
    good = engine.batch([engine.first(image)], [(64, 64)], [0])
    first, second = engine.run([good, good]), engine.run([good, good])
    next(first), next(second)
    assert detector.training
    list(first)
    detector.train()
    detector.norm.eval()
    list(second)
    assert seen_in == [False] * 4
    assert detector.training
    assert not detector.norm.training


def test_an_image_is_prepared_as_by_hand() -> None:
    """What the network sees is resize, normalise and pad, whoever drives it."""
    seen: list[Tensor] = []

    class Seeing(TinyDetector):
        def forward(self, images: Tensor) -> Any:
            seen.append(images)
            return super().forward(images)

    image = np.random.default_rng(0).integers(0, 255, (41, 83, 3), np.uint8)
    torch.manual_seed(0)
    Predictor(Seeing(), RECIPE, CLASSES, device="cpu").one(image)
    ready = prepare(image, size=RECIPE.test_size, pixels=RECIPE.pixels)
    assert torch.equal(seen[0][0, :, : ready.size[0], : ready.size[1]], ready.image)
    assert seen[0].shape[-2] % 8 == 0


def test_corners_that_name_pixels_become_edges() -> None:
    """One pixel of the file more on the right and below, once, whatever the views; scores stay."""
    source = tiny_data()
    for views in (None, parse("100%+flip", RECIPE.test_size)):
        found = [
            evaluate(tiny(), recipe, source, workers=0, device="cpu", progress=False, views=views).rows
            for recipe in (RECIPE, replace(RECIPE, last_pixel=True))
        ]
        assert len(found[0]) > 0
        np.testing.assert_allclose(found[1].box - found[0].box, [[0, 0, 1, 1]] * len(found[0]), atol=1e-9)
        assert (found[0].score == found[1].score).all()
