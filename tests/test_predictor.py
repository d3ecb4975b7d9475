"""Any images in, what was found out."""

import dataclasses
import io
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from relook.data.decode import BrokenImage
from relook.detector import Detector
from relook.predictor import Predictor
from relook.recipe import KeepRatio, Pixels, Recipe, Stretch
from relook.results.result import Result
from relook.types import Detections, Look, Losses, Targets

RECIPE = Recipe(test_size=KeepRatio(short=(64,), long=200), pixels=Pixels(mean=(0, 0, 0), std=(1, 1, 1)))


class Brightest(Detector[Tensor]):
    """Finds one object: the columns that are brighter than 200 anywhere; knows nothing else."""

    num_classes, stride = 2, 32
    in_original_pixels = True

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.shapes: list[tuple[int, ...]] = []
        self.originals: list[list[int]] = []
        self.explained = 0

    def forward(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        assert not torch.is_grad_enabled()
        assert not self.training
        return images.amax(1) * self.scale

    def loss(self, outputs: Tensor, targets: Targets) -> Losses:
        raise NotImplementedError

    def predict(self, outputs: Tensor, sizes: Tensor, originals: Tensor | None = None) -> Detections:
        assert originals is not None
        self.originals += originals.tolist()
        boxes = []
        for image, (height, width) in zip(outputs, sizes.tolist(), strict=True):
            bright = image[:height, :width] > 200
            columns, rows = bright.any(0).nonzero()[:, 0], bright.any(1).nonzero()[:, 0]
            boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else [0, 0, 0, 0])
        box = torch.tensor(boxes, dtype=torch.float32)[:, None]
        count = (box[:, 0, 2] > 0).long()
        scores, labels = torch.full((len(box), 1), 0.75), torch.ones(len(box), 1, dtype=torch.int64)
        return Detections(box, scores, labels, count)

    def explain(self, outputs: Tensor, found: Detections, sizes: Tensor) -> tuple[Look, ...]:
        self.explained += 1
        first, second = (found.boxes[:, :, None, x].repeat(1, 1, 9, 1) for x in (slice(2), slice(2, 4)))
        return (
            Look("first look", "Where.", points=first),
            Look("second look", "What.", points=second, joined=True),
        )


@pytest.fixture
def look() -> Predictor:
    return Predictor(Brightest(), RECIPE, ("dark", "bright"), device="cpu")


def _image(height: int, width: int, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    image = np.full((height, width, 3), 30, np.uint8)
    if box is not None:
        image[box[1] : box[3], box[0] : box[2]] = 255
    return image


def _write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def test_boxes_and_points_come_back_in_original_pixels_by_the_true_ratios(look: Predictor):
    """48 x 127 becomes 64 x 169 (not 169.33): boxes and points return to where the object is."""
    found = look.one(_image(48, 127, (40, 10, 80, 30)), looks=True)
    assert (found.height, found.width) == (48, 127)
    assert found.boxes.tolist()[0] == pytest.approx([40, 10, 80, 30], abs=1.0)
    network = torch.tensor([round(v) for v in [40 * 169 / 127, 10 * 64 / 48]])
    points = found.asked_looks()[0].points
    assert points is not None
    assert points.shape == (1, 9, 2)
    assert points[0, 0].tolist() == found.boxes[0, :2].tolist()
    assert found.boxes.dtype == points.dtype == torch.float64
    x = found.boxes[0, 0].item() * 169 / 127
    assert x == pytest.approx(round(x), abs=1e-4), f"whole network pixels, near {network}"


def test_every_kind_of_input_gives_the_same(look: Predictor, tmp_path: Path):
    """Path, text, bytes, array and Pillow image of one picture; alpha and grey arrays too."""
    image = _image(64, 100, (20, 20, 60, 50))
    path = _write(tmp_path / "a.png", image)
    kinds = [
        path,
        str(path),
        path.read_bytes(),
        image,
        Image.open(path),
        np.dstack([image, image[:, :, :1]]),
        image[:, :, 0],
    ]
    results = [found.boxes.tolist() for found in look(kinds)]
    assert len(results) == 7
    assert all(r == results[0] for r in results)
    assert [f.name for f in look([path, image])] == [str(path), "image 2"]


def test_an_exif_turned_pillow_image_is_seen_upright(look: Predictor):
    """Orientation is applied to Pillow images as to files."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_image(64, 100)).save(buffer, format="JPEG", exif=exif)
    found = look.one(Image.open(buffer))
    assert (found.height, found.width) == (100, 64)


def test_order_is_that_of_the_input_and_of_names_in_a_folder(look: Predictor, tmp_path: Path):
    """Images come back in the order given; folders are read by name, deeper folders after their parent."""
    names = ["b.png", "a.jpg", "deep/c.png", "skip.txt", ".hidden.png"]
    for name in names:
        if name.endswith("txt"):
            (tmp_path / name).write_text("no image")
        else:
            _write(tmp_path / name, _image(32, 32))
    assert [f.path.name for f in look(tmp_path) if f.path] == ["a.jpg", "b.png", "c.png"]
    given = [tmp_path / "b.png", tmp_path / "a.jpg", tmp_path / "b.png"]
    assert [f.path for f in look(given)] == given
    assert [f.path.name for f in look(str(tmp_path / "*.png")) if f.path] == ["b.png"]
    assert [f.path.name for f in look(str(tmp_path / "**" / "*.png")) if f.path] == ["b.png", "c.png"]
    assert len(list(look([tmp_path, tmp_path / "*.jpg"]))) == 4


def test_broken_images_are_skipped_named_and_counted(
    look: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """One bad file among good ones costs only itself; `one` raises instead."""
    good = [_write(tmp_path / f"{i}.png", _image(32, 40)) for i in range(3)]
    bad = tmp_path / "bad.png"
    bad.write_bytes(good[0].read_bytes()[:40])
    stream = look([good[0], bad, good[1], tmp_path / "absent.png", good[2], np.zeros((2, 2), np.float32)])
    assert [f.path for f in stream] == good
    assert (stream.count, stream.broken_count) == (3, 3)
    assert [Path(b.name).name for b in stream.broken] == ["bad.png", "absent.png", "image 6"]
    assert all(b.why for b in stream.broken)
    assert len(caplog.messages) == 3
    assert all(m.startswith("skipped ") for m in caplog.messages)
    with pytest.raises(BrokenImage, match=r"bad\.png"):
        look.one(bad)


def test_tensors_and_opened_files_are_images(look: Predictor, tmp_path: Path):
    """As torchvision and Python give them: the same results as of the array."""
    array = _image(32, 40)
    file = _write(tmp_path / "a.png", array)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    wanted = look.one(array)

    class Place:  # of another library
        def __fspath__(self) -> str:
            return str(file)

    with file.open("rb") as opened:
        given = [tensor, opened, Place(), torch.stack([tensor, tensor])]
        found = [result for one in given for result in look(one)]
    assert len(found) == 5
    found += list(look([tensor, file.read_bytes(), Place()]))
    for one in found:
        assert one.boxes.tolist() == wanted.boxes.tolist()
        assert (one.height, one.width) == (32, 40)
    for content in (bytearray(file.read_bytes()), memoryview(file.read_bytes())):
        assert look.one(content).boxes.tolist() == wanted.boxes.tolist()  # pyright: ignore[reportArgumentType]
    grey = look.one(tensor[0])
    assert (grey.height, grey.width) == (32, 40)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda", "torch finds no such GPU here; here are cpu"),
        ("cuda:7", "torch finds no such GPU here; here are cpu"),
        ("cpu:2", "there is one CPU"),
        ("nope", "there is no device 'nope'; here are cpu"),
        ("gpu", "there is no device 'gpu'; here are cpu"),
    ],
)
def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, device: str, words: str):
    """With those that are."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=words):
        Predictor(Brightest(), RECIPE, ("a", "b"), device=device)


def test_one_bad_image_of_pillow_costs_only_itself(look: Predictor, tmp_path: Path):
    """Truncated, closed, without pixels, of a mode that nothing writes: each is skipped, and named."""
    whole = _write(tmp_path / "whole.png", _image(32, 40))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:-60])
    closed = Image.open(whole)
    closed.close()
    bad = [Image.open(tmp_path / "cut.png"), closed, Image.new("RGB", (0, 0)), Image.new("L", (0, 0))]
    stream = look([*bad, whole])
    assert [found.path for found in stream] == [whole]
    assert stream.broken_count == len(bad)
    with (
        (tmp_path / "new").open("wb") as opened,
        pytest.raises(TypeError, match="an opened file cannot be read"),
    ):
        list(look([opened]))
    with pytest.raises(FileNotFoundError, match="there is no file or folder ~nobody-of-that-name"):
        look("~nobody-of-that-name/a.jpg")
    with pytest.raises(FileNotFoundError, match="there is no file or folder aaa"):
        look("a" * 5000)
    with pytest.raises(FileNotFoundError, match="is the one you are in"):
        look("")
    huge = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (60_000, 60_000, 3))
    stream = look([huge, whole])
    assert len(list(stream)) == 1
    assert "60000x60000 pixels" in stream.broken[0].why


def test_what_is_not_there_is_said_in_one_sentence(look: Predictor, tmp_path: Path):
    """Absent files, empty folders, patterns without a match, and things that are no image."""
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        look(tmp_path / "absent.jpg")
    with pytest.raises(FileNotFoundError, match="no image in"):
        look(tmp_path)
    with pytest.raises(FileNotFoundError, match="pattern"):
        look(str(tmp_path / "*.jpg"))
    for odd in (3, None, 2.5, {"a": 1}, [3], [None], object()):
        with pytest.raises(TypeError, match=r"is no image; give a path, a folder, a pattern, the bytes"):
            list(look(odd))  # pyright: ignore[reportArgumentType]
    for address in ("https://example.org/a.jpg", "s3://here/a.jpg"):
        with pytest.raises(ValueError, match="is an address; download it"):
            list(look([address]))
        with pytest.raises(ValueError, match="is an address; download it"):
            look(address)
    with (tmp_path / "a.txt").open("w+") as text, pytest.raises(TypeError, match="opened to read text"):
        look(text)  # pyright: ignore[reportArgumentType]
    for tensor in (torch.zeros(3, 8, 8), torch.zeros(8, 8, 3, dtype=torch.uint8), torch.zeros(3)):
        with pytest.raises(TypeError, match=r"a tensor of .* is no image; give uint8 \[3, H, W\] in RGB"):
            look(tensor)
    with pytest.raises(ValueError, match="knows 2 classes but 3 names"):
        Predictor(Brightest(), RECIPE, ("a", "b", "c"))


def test_batches_change_nothing_but_the_number_of_steps():
    """Five images in batches of two: answers in order, each from its own image without its padding.

    This detector looks at single pixels; what padding does to convolutions is said at `Predictor`.
    """
    images = [_image(40 + 9 * i, 90 - 7 * i, (10, 8, 30 + i, 25)) for i in range(5)]
    one, two = Brightest(), Brightest()
    singles = [f.boxes.tolist() for f in Predictor(one, RECIPE, ("a", "b"), device="cpu")(images)]
    pairs = [f.boxes.tolist() for f in Predictor(two, RECIPE, ("a", "b"), device="cpu", batch=2)(images)]
    assert singles == pairs
    assert len(one.shapes) == 5
    assert [s[0] for s in two.shapes] == [2, 2, 1]
    assert all(s[2] % 32 == 0 and s[3] % 32 == 0 for s in two.shapes)


def test_images_are_taken_as_they_are_needed(look: Predictor):
    """An endless input can be read: only a few images ahead are asked for."""
    asked = 0

    def endless():
        nonlocal asked
        while True:
            asked += 1
            yield _image(32, 32)

    stream = look(endless())
    for _ in range(3):
        next(stream)
    assert asked <= 3 + 6


def test_a_long_folder_needs_no_more_memory_than_a_short_one(look: Predictor, tmp_path: Path):
    """The peak of traced memory for 150 images is that for 15, within a fifth and 200 kB."""
    one = _write(tmp_path / "first.png", _image(64, 64))
    peaks = []
    for count in (15, 150):
        folder = tmp_path / str(count)
        folder.mkdir()
        for i in range(count):
            os.link(one, folder / f"{i}.png")
        list(look([one] * 2))  # warm
        tracemalloc.start()
        for found in look(folder):
            found.above(0.1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 200_000


def test_the_points_of_one_object_have_a_colour_of_their_own(look: Predictor):
    """With points drawn, what belongs together; without, each class has its colour."""
    images = [_image(64, 64, (16, 16, 40, 48))]
    for found in look(images, looks=True):
        twice = dataclasses.replace(found, objects=_twice(found.objects), looks=())
        assert [one.color for one in twice.annotations(points=True)] == [0, 1]
        assert [one.color for one in twice.annotations()] == [twice.objects.labels[0]] * 2


def _twice(objects: Any) -> Any:
    """The same objects once more."""
    values = {f.name: getattr(objects, f.name) for f in dataclasses.fields(objects)}
    both = {k: torch.cat([v, v]) if isinstance(v, torch.Tensor) and v.ndim else v for k, v in values.items()}
    return type(objects)(**both)


def test_results_convert(look: Predictor, tmp_path: Path):
    """COCO results, supervision's record, names, a threshold, and a picture on disk."""
    found = look.one(_image(64, 64, (16, 16, 40, 48)), looks=True)
    assert found.names == ["bright"]
    assert len(found) == 1
    assert found.to_coco(7) == [
        {"image_id": 7, "category_id": 2, "bbox": [16.0, 16.0, 24.0, 32.0], "score": 0.75}
    ]
    assert found.to_coco(category_ids=[5, 9])[0]["category_id"] == 9
    assert len(found.above(0.75)) == 0
    assert isinstance(found.above(0.5), Result)
    detections = found.to_supervision()
    assert detections.xyxy.tolist() == [[16.0, 16.0, 40.0, 48.0]]
    assert detections.data["class_name"].tolist() == ["bright"]
    picture = found.plot(tmp_path / "out.png", points=True)
    assert np.asarray(picture).tolist() == np.asarray(Image.open(tmp_path / "out.png")).tolist()
    assert picture.size == (64, 64)
    assert (np.asarray(picture) != found.pixels()).any()
    assert (np.asarray(found.plot()) != np.asarray(picture)).any(), "points add something"
    assert found.plot(side=100).size == (128, 128)
    found.plot(tmp_path / "out.jpg")
    with pytest.raises(ValueError, match="names no picture format"):
        found.plot(tmp_path / "out.doc")


def test_an_image_without_objects_is_a_result(look: Predictor):
    """Nothing found is no error anywhere."""
    found = look.one(_image(32, 32), looks=True)
    assert (len(found), found.to_coco(), found.names) == (0, [], [])
    assert found.to_supervision().xyxy.shape == (0, 4)
    assert (np.asarray(found.plot(points=True)) == 30).all()


def test_what_was_seen_is_asked_for_or_not_computed(tmp_path: Path):
    """Without looks the detector is not asked to explain; drawing them then says how to ask."""
    detector = Brightest()
    look = Predictor(detector, RECIPE, ("a", "b"), device="cpu")
    plain, asked = look.one(_image(64, 64, (16, 16, 40, 48))), None
    assert (detector.explained, plain.looks) == (0, None)
    assert plain.plot().size == (64, 64)
    for drawn in ({"points": True}, {"looks": True}):
        with pytest.raises(ValueError, match=r"image 1: what the detector saw was not asked for.*looks=True"):
            plain.plot(tmp_path / "out.png", **drawn)
    assert not (tmp_path / "out.png").exists()
    asked = look.one(_image(64, 64, (16, 16, 40, 48)), looks=True)
    assert detector.explained == 1
    assert [one.title for one in asked.above(0.5).asked_looks()] == ["first look", "second look"]
    assert asked.above(0.9).asked_looks()[0].points.shape == (0, 9, 2)
    assert torch.equal(asked.boxes, plain.boxes)


def test_a_detector_is_told_the_sizes_of_the_files():
    """For those that suppress or paste masks there: (height, width), image by image."""
    detector = Brightest()
    images = [_image(40, 90), _image(31, 47), _image(64, 64)]
    list(Predictor(detector, RECIPE, ("a", "b"), device="cpu", batch=2)(images))
    assert detector.originals == [[40, 90], [31, 47], [64, 64]]


def test_another_size_is_asked_for():
    """The recipe's test size, and a stretched one whatever the ratio of sides."""
    for size, shape in ((KeepRatio(short=(96,)), (96, 96)), (Stretch(height=64, width=32), (64, 32))):
        detector = Brightest()
        recipe = replace(RECIPE, test_size=size)
        found = Predictor(detector, recipe, ("a", "b"), device="cpu").one(_image(64, 64, (16, 16, 48, 48)))
        assert detector.shapes == [(1, 3, *shape)]
        assert found.boxes[0].tolist() == pytest.approx([16, 16, 48, 48], abs=1)
