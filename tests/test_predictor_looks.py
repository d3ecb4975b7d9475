"""What a detector saw, all the way to the picture as it was given: corner maps, boxes before verification."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from relook.data.shapes import shapes
from relook.detector import Detector
from relook.predictor import Predictor
from relook.recipe import KeepRatio, Pixels, Recipe
from relook.results.looks import ImageMap
from relook.results.panels import PAINTS
from relook.results.result import Result
from relook.types import Detections, HeatMap, Look, Losses, Targets
from relook.views import View, Views
from relook.weights.models import by_name

RECIPE = Recipe(test_size=KeepRatio(short=(64,), long=200), pixels=Pixels(mean=(0, 0, 0), std=(1, 1, 1)))


class Corner(Detector[Tensor]):
    """Finds one object from the brightest cell to the image's end, and has two maps that say where."""

    num_classes, stride = 1, 32

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        return images.amax(1) * self.scale

    def loss(self, outputs: Tensor, targets: Targets) -> Losses:
        raise NotImplementedError

    def predict(self, outputs: Tensor, sizes: Tensor) -> Detections:
        count, _, width = outputs.shape
        boxes = torch.zeros(count, 1, 4)
        for i, image in enumerate(outputs):
            y, x = divmod(int(image.argmax()), width)
            boxes[i, 0] = torch.tensor([x, y, sizes[i, 1], sizes[i, 0]])
        ones = torch.ones(count, 1)
        return Detections(boxes, ones * 0.9, ones.long() - 1, torch.ones(count).long())

    def explain(self, outputs: Tensor, found: Detections, sizes: Tensor) -> tuple[Look, ...]:
        count, height, width = outputs.shape
        fine = torch.full((count, 2, height // 8, width // 8), 0.01)
        for i, image in enumerate(outputs):
            y, x = divmod(int(image.argmax()), width)
            fine[i, 0, round(y / 8), round(x / 8)] = 1
        fine[:, 1, :, :] = outputs[:, ::8, ::8] == 0  # padding, among others
        coarse = torch.zeros(count, 2, height // 16, width // 16)
        names = ("top left", "bottom right")
        maps = HeatMap(fine, 8, 0.0, names), HeatMap(coarse, 16, 0.0, names)
        points = found.boxes[:, :, None, :2].repeat(1, 1, 9, 1)
        return (
            Look("first look", "Where.", points=points),
            Look("verification", "Sure?", maps=maps),
            Look("second look", "What.", points=points + 1, joined=True),
            Look("regressed", "Dashed: before.", boxes=found.boxes - 2, on_answer=True),
        )


def look(**given: object) -> Predictor:
    return Predictor(Corner(), RECIPE, ("it",), device="cpu", **given)  # pyright: ignore[reportArgumentType]


def image(height: int, width: int, spot: tuple[int, int]) -> np.ndarray:
    """Grey, with a bright spot of a few pixels around x, y."""
    picture = np.full((height, width, 3), 40, np.uint8)
    picture[max(0, spot[1] - 1) : spot[1] + 2, max(0, spot[0] - 1) : spot[0] + 2] = 255
    return picture


def maps(found: Result) -> tuple[ImageMap, ...]:
    """The maps of the fine and of the coarse level; none where there is no such look."""
    return tuple(one for look in found.asked_looks() for one in look.maps)


def hottest(found: Result) -> tuple[float, float]:
    """The point of the original image where a top-left corner is surest."""
    values, step = maps(found)[0].values, maps(found)[0].step
    i, j = divmod(int(values[0].argmax()), values.shape[2])
    return j * step[0], i * step[1]


@pytest.mark.parametrize(
    ("height", "width", "spot"),
    [(48, 127, (90, 30)), (127, 48, (20, 100)), (64, 64, (0, 0)), (33, 301, (250, 16)), (16, 16, (8, 8))],
)
def test_heat_lies_where_the_corner_is_in_the_original(height: int, width: int, spot: tuple[int, int]):
    """By each axis's true ratio: the hottest cell's point is within half a cell of the spot; drawn too."""
    found = look().one(image(height, width, spot), looks=True)
    x, y = hottest(found)
    step = maps(found)[0].step
    assert abs(x - spot[0]) <= step[0] / 2 + 1.5
    assert abs(y - spot[1]) <= step[1] / 2 + 1.5
    panel = found.panels()[1]
    zoom = panel.image.width / width
    away = np.abs(np.asarray(panel.image).astype(int) - PAINTS[0]).sum(-1)
    row, column = np.unravel_index(away.argmin(), away.shape)
    assert (column / zoom, row / zoom) == pytest.approx((x, y), abs=max(1.5, 0.5 * max(step)))


def test_padding_is_cut_off_and_steps_are_true():
    """48 x 127 becomes 64 x 169, padded to 192: 22 of 24 columns are its own, 8 * 127 / 169 wide."""
    found = look().one(image(48, 127, (90, 30)), looks=True)
    assert [tuple(one.values.shape) for one in maps(found)] == [(2, 8, 22), (2, 4, 11)]
    assert maps(found)[0].step == pytest.approx((8 * 127 / 169, 8 * 48 / 64))
    assert maps(found)[1].step == pytest.approx((16 * 127 / 169, 16 * 48 / 64))
    assert maps(found)[0].values[1].sum() == 0, "nothing of the padding"
    assert maps(found)[0].values.dtype == torch.float32
    assert not maps(found)[0].values.is_inference()


def test_each_image_of_a_batch_has_its_own_heat():
    """Three images of different shapes at once: what each would have alone."""
    images = [image(48, 127, (90, 30)), image(64, 64, (9, 50)), image(100, 70, (33, 3))]
    alone = list(look()(images, looks=True))
    for one, other in zip(alone, look(batch=3)(images, looks=True), strict=True):
        for mine, theirs in zip(maps(one), maps(other), strict=True):
            assert torch.equal(mine.values, theirs.values)
            assert mine.step == theirs.step


def test_the_box_before_verification_is_in_original_pixels():
    """By the same ratios as boxes; kept by `above`, as is heat."""
    found = look().one(image(48, 127, (90, 30)), looks=True).above(0.5)
    before = found.asked_looks()[3]
    assert before.boxes is not None
    ratio = np.array([127 / 169, 48 / 64] * 2)
    assert before.boxes[0].numpy() == pytest.approx(found.boxes[0].numpy() - 2 * ratio, abs=1e-4)
    assert before.columns().keys() == {"regressed_box"}
    assert found.asked_looks()[0].columns().keys() == {"first_points"}
    nothing = found.above(0.95)
    assert (len(nothing), len(maps(nothing)), len(nothing.asked_looks()[3].boxes)) == (0, 2, 0)


@pytest.mark.parametrize("mirrored", [(True,), (False, True)])
def test_merged_and_mirrored_views_have_no_verification(mirrored: tuple[bool, ...]):
    """A mirrored top-left corner is another corner, and a merged box has no map of its own."""
    views = Views(views=tuple(View(short=64, long=200, mirrored=one) for one in mirrored))
    found = look(views=views).one(image(48, 127, (90, 30)), looks=True)
    assert maps(found) == ()
    assert [one.title for one in found.asked_looks()] == ["first look", "second look"]
    assert [panel.name for panel in found.panels()] == ["first look", "second look", "the answer"]


def test_one_view_as_it_is_verifies():
    """A single view of another size is a plain look."""
    found = look(views=Views(views=(View(short=96, long=300),))).one(image(48, 127, (90, 30)), looks=True)
    assert maps(found)[0].step == pytest.approx((8 * 127 / 254, 8 * 48 / 96))
    assert len(found.panels()) == 4


def test_a_sheet_is_drawn_from_every_kind_of_picture(tmp_path):
    """Grey, tiny and large arrays; the sheet is written as it is returned; `looks` includes points."""
    for picture in (
        image(16, 16, (8, 8))[:, :, 0],
        image(300, 1200, (700, 100)),
        image(3, 200, (20, 1)),
    ):
        found = look().one(picture, looks=True)
        sheet = found.plot(tmp_path / "sheet.png", looks=True)
        assert found.plot(looks=True, points=True).tobytes() == sheet.tobytes()
        assert (tmp_path / "sheet.png").stat().st_size > 1000
        assert max(sheet.size) > 400
    assert found.panels(side=1000)[0].image.width >= 1000


@pytest.mark.parametrize("name", ["reppoints_nano", "reppoints_v2_nano"])
def test_a_batch_of_one_shape_changes_no_result(name: str):
    """Images of one shape, alone and three at a time: the same objects, but for rounding; heat as well."""
    torch.manual_seed(0)
    model = by_name(name, {"detector.score": "0.0", "detector.keep": "10"})
    detector = model.entry.detector.build().double()
    images = [sample.image()[:96] for sample in shapes(4, seed=5).samples]

    def found(batch: int) -> list[Result]:
        recipe = model.entry.recipe
        own = Predictor(Doubled(copy.deepcopy(detector)), recipe, model.classes, device="cpu", batch=batch)
        return list(own(images, looks=True))

    for alone, together in zip(found(1), found(3), strict=True):
        assert alone.labels.tolist() == together.labels.tolist()
        assert torch.allclose(alone.boxes, together.boxes, atol=1e-4)
        assert torch.allclose(alone.scores, together.scores, atol=1e-6)
        assert len(maps(alone)) == (2 if "v2" in name else 0)
        for mine, theirs in zip(maps(alone), maps(together), strict=True):
            assert torch.allclose(mine.values, theirs.values, atol=1e-6)


class Doubled(Detector[object]):
    """A detector in float64, so that rounding changes no order."""

    def __init__(self, inner: Detector[object]) -> None:
        super().__init__()
        self.inner, self.num_classes, self.stride = inner, inner.num_classes, inner.stride

    def forward(self, images: Tensor) -> object:
        return self.inner(images.double())

    def loss(self, outputs: object, targets: Targets) -> Losses:
        raise NotImplementedError

    def predict(self, outputs: object, sizes: Tensor) -> Detections:
        return self.inner.predict(outputs, sizes)

    def explain(self, outputs: object, found: Detections, sizes: Tensor) -> tuple[Look, ...]:
        return self.inner.explain(outputs, found, sizes)
