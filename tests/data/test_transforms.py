"""Geometry and pixels from file to network: the published rules, held against OpenCV and plain arithmetic."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from relook.data.transforms.network_input import normalise_into, prepare, stack
from relook.data.transforms.picture import Picture, picture
from relook.data.transforms.sizes import new_size, resize_boxes, resize_masks, resized_size
from relook.data.transforms.steps import augment, flip, jitter, mirror_boxes, resize
from relook.recipe import Flip, Jitter, KeepRatio, Pixels, Resize, Size, Stretch

SIDES = st.integers(1, 3000)


def _photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise over a ramp: both fine and coarse detail."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 150, width)[None, :, None] + np.linspace(0, 50, height)[:, None, None]
    return (ramp + random.uniform(0, 55, (height, width, 3))).astype(np.uint8)


def _resized(image: np.ndarray, size: Size) -> np.ndarray:
    """[H, W, 3] -> [h, w, 3]"""
    return resize(picture(image, np.zeros((0, 4))), size).image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("size", "short", "new"),
    [
        ((480, 640), 800, (800, 1067)),
        ((640, 480), 800, (1067, 800)),
        ((427, 640), 800, (800, 1199)),
        ((375, 500), 800, (800, 1067)),
        ((300, 640), 800, (625, 1333)),
        ((1080, 1920), 800, (750, 1333)),
        ((500, 500), 480, (480, 480)),
    ],
)
def test_the_published_rule(size: tuple[int, int], short: int, new: tuple[int, int]) -> None:
    """Known sizes of the published pipeline at (1333, short)."""
    assert resized_size(*size, short=short, long=1333) == new


@given(SIDES, SIDES, st.integers(32, 1000))
def test_sides_stay_within_the_rule(height: int, width: int, short: int) -> None:
    """The shorter side is never above `short`, the longer never above 1333, one of both is reached."""
    new = resized_size(height, width, short=short, long=1333)
    assert min(new) <= short
    assert max(new) <= 1333
    assert min(new) == short or max(new) == 1333


BOXES = st.lists(st.tuples(*[st.floats(-50, 700)] * 4), min_size=1, max_size=5)


@given(BOXES, st.integers(20, 600), st.integers(20, 600), st.integers(64, 900))
def test_boxes_stay_inside_and_keep_true_ratios(
    raw: list[tuple[float, ...]], height: int, width: int, short: int
) -> None:
    """Clipped to the image; what was inside is multiplied by new / old per axis."""
    boxes = np.sort(np.array(raw).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    new = resized_size(height, width, short=short, long=1333)
    moved = resize_boxes(torch.from_numpy(boxes), old=(height, width), new=new)
    limit = torch.tensor([new[1], new[0]] * 2)
    assert (moved >= 0).all()
    assert (moved <= limit).all()
    assert (moved[:, 2:] >= moved[:, :2]).all()
    inside = boxes.clip(0, [width, height, width, height])
    expected = inside * np.tile([new[1] / width, new[0] / height], 2)
    np.testing.assert_allclose(moved.numpy(), expected, atol=1e-3)


def test_480x640_has_two_different_ratios() -> None:
    """The specification's example: 1.66667 high, 1.66719 wide."""
    moved = resize_boxes(
        torch.tensor([[0.0, 0, 300, 300]], dtype=torch.float64), old=(480, 640), new=(800, 1067)
    )
    np.testing.assert_allclose(moved[0, 2:].numpy(), [500.15625, 500.0], atol=1e-4)


@given(BOXES, st.integers(20, 800))
def test_two_mirrors_are_none(raw: list[tuple[float, ...]], width: int) -> None:
    boxes = torch.tensor(raw, dtype=torch.float64)
    torch.testing.assert_close(mirror_boxes(mirror_boxes(boxes, width), width), boxes)


def test_a_mirrored_box_holds_the_mirrored_pixels() -> None:
    """The mirror of pixels and of boxes is one: a marked rectangle is still in its box."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:20, 5:25] = 255
    masks = torch.from_numpy(image[None, :, :, 0] > 0)
    out = flip(picture(image, np.array([[5.0, 10, 25, 20]]), masks=masks))
    x1, y1, x2, y2 = out.boxes[0].int().tolist()
    assert (out.image[:, y1:y2, x1:x2] == 255).all()
    assert out.image.sum() == image.sum()
    assert out.masks is not None
    assert out.masks[0, y1:y2, x1:x2].all()
    assert out.masks.sum() == 200


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 200), st.integers(8, 200), st.integers(16, 300), st.integers(0, 9))
def test_resize_equals_opencv_within_one_level(height: int, width: int, short: int, seed: int) -> None:
    """Bilinear without antialiasing, growing and shrinking."""
    image = _photo(height, width, seed)
    new = resized_size(height, width, short=short, long=1333)
    ours = _resized(image, KeepRatio(short=(short,)))
    theirs = cv2.resize(image, (new[1], new[0]), interpolation=cv2.INTER_LINEAR)
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("short", [100, 700])
def test_antialias_equals_pillow_within_one_level(short: int) -> None:
    image = _photo(300, 400)
    ours = _resized(image, KeepRatio(short=(short,), antialias=True))
    theirs = np.asarray(
        Image.fromarray(image).resize((ours.shape[1], ours.shape[0]), Image.Resampling.BILINEAR)
    )
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_shrinking_with_and_without_antialias_differ() -> None:
    """The flag does something: noise survives without it."""
    image = _photo(400, 400)
    sharp, smooth = (
        np.abs(np.diff(_resized(image, KeepRatio(short=(60,), antialias=flag)).astype(float), axis=1)).mean()
        for flag in (False, True)
    )
    assert sharp > 2 * smooth


def test_normalised_pixels_and_zero_padding() -> None:
    """(pixel - mean) / std where the image is, exactly 0 right of it and below."""
    pixels = Pixels()
    image = _photo(50, 70)
    ready = prepare(image, size=KeepRatio(short=(50,)), pixels=pixels)
    expected = (image.astype(np.float64) - pixels.mean) / pixels.std
    np.testing.assert_allclose(ready.image.permute(1, 2, 0).numpy(), expected, atol=1e-6)
    batch = stack([ready.image, ready.image[:, :33, :10]], pad=pixels.pad, stride=32)
    assert batch.shape == (2, 3, 64, 96)
    assert torch.equal(batch[0, :, :50, :70], ready.image)
    assert batch[0, :, 50:].abs().sum() == 0
    assert batch[0, :, :, 70:].abs().sum() == 0
    assert batch[1, :, 33:].abs().sum() == 0


def test_sides_are_multiples_of_pad_and_of_stride() -> None:
    batch = stack([torch.ones(3, 65, 10)], pad=32, stride=48)
    assert batch.shape == (1, 3, 96, 96)


def test_channels_in_the_order_of_the_network() -> None:
    """With "bgr" the first channel is blue, with the first mean and std."""
    pixels = Pixels(mean=(1.0, 2.0, 3.0), std=(1.0, 10.0, 100.0), order="bgr")
    image = np.full((4, 4, 3), (30, 20, 10), np.uint8)
    place = torch.zeros(3, 4, 4)
    normalise_into(place, torch.from_numpy(image).permute(2, 0, 1), pixels)
    torch.testing.assert_close(place[:, 0, 0], torch.tensor([9.0, 1.8, 0.27]))


def test_prepare_tells_size_and_true_ratios() -> None:
    ready = prepare(_photo(480, 640), size=KeepRatio(), pixels=Pixels())
    assert ready.size == (800, 1067)
    assert ready.scale == (1067 / 640, 800 / 480)
    assert prepare(_photo(480, 640), size=KeepRatio(short=(240,)), pixels=Pixels()).size == (240, 320)


def test_read_only_and_reversed_arrays_are_taken() -> None:
    """Views of other people's memory: read-only from Pillow, reversed channels from OpenCV."""
    image = _photo(40, 50)
    frozen = image.copy()
    frozen.setflags(write=False)
    reverse = np.ascontiguousarray(image[..., ::-1])[..., ::-1]
    expected = prepare(image, size=KeepRatio(short=(40,)), pixels=Pixels()).image
    for view in (frozen, reverse):
        assert torch.equal(prepare(view, size=KeepRatio(short=(40,)), pixels=Pixels()).image, expected)


def test_several_shorter_sides_need_a_choice() -> None:
    with pytest.raises(ValueError, match=r"several shorter sides \(640, 800\)"):
        prepare(_photo(40, 50), size=KeepRatio(short=(640, 800)), pixels=Pixels())


# -- stretching and masks ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(30, 90), (77, 41)])
def test_a_stretched_image_has_the_asked_sides_and_its_boxes_follow(size: tuple[int, int]) -> None:
    """Each axis by its own ratio, pixels as OpenCV has them."""
    image, rule = _photo(*size), Stretch(height=64, width=48)
    assert new_size(*size, rule) == (64, 48)
    theirs = cv2.resize(image, (48, 64), interpolation=cv2.INTER_LINEAR)
    assert np.abs(_resized(image, rule).astype(int) - theirs).max() <= 1
    out = resize(picture(image, np.array([[0.0, 0, size[1] / 2, size[0]]])), rule)
    assert out.boxes.tolist() == [[0, 0, 24, 64]]
    ready = prepare(image, size=rule, pixels=Pixels())
    assert (ready.size, ready.scale) == ((64, 48), (48 / size[1], 64 / size[0]))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 90), st.integers(1, 90), st.integers(0, 9))
def test_masks_are_resized_as_opencv_does(height: int, width: int, new_h: int, new_w: int, seed: int) -> None:
    """Nearest, without a shift of half a pixel: every pixel equal, growing and shrinking."""
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    ours = resize_masks(torch.from_numpy(mask)[None], (new_h, new_w))[0].numpy()
    theirs = cv2.resize(mask.astype(np.uint8), (new_w, new_h), interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(ours, theirs.astype(bool))


def test_every_step_moves_pixels_boxes_and_masks_together() -> None:
    """A white rectangle, its box and its mask are the same rectangle after all steps, whatever was drawn."""
    image = np.zeros((60, 90, 3), np.uint8)
    image[12:36, 18:54] = 255
    masks = torch.from_numpy(image[None, :, :, 0] > 0)
    start = picture(image, np.array([[18.0, 12, 54, 36]]), np.array([3]), masks)
    steps = (Jitter(strength=0.5), Resize(), Flip())
    for size in (KeepRatio(short=(40, 80, 120)), Stretch(height=120, width=60)):
        for n in range(12):
            out = augment(start, steps, size, (n,))
            x1, y1, x2, y2 = out.boxes[0].round().int().tolist()
            assert out.masks is not None
            box = torch.zeros(out.size, dtype=torch.bool)
            box[y1:y2, x1:x2] = True
            assert torch.equal(out.masks[0], box), (size, n)
            assert out.labels.tolist() == [3]
            assert (out.image[0, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2] > 60).all()
            assert out.image[0][~box].float().mean() < 12


# -- what chance decides -------------------------------------------------------------------------------


class Drawn:
    """What chance made of one image, read off the outcome: the shorter side, and whether it was mirrored."""

    start = picture(np.zeros((4, 4, 3), np.uint8), np.array([[0.0, 0, 2, 4]]))

    def __init__(self, size: Size, steps: tuple[Resize | Flip | Jitter, ...], key: tuple[int, ...]) -> None:
        out = augment(self.start, steps, size, key)
        self.short, self.mirrored = min(out.size), bool(out.boxes[0, 0] > 0)


PUBLISHED = (Resize(), Flip())


def test_draws_are_those_of_every_release() -> None:
    """The same seed, epoch and image as ever: a training that goes on sees what it would have seen."""
    between, listed = KeepRatio(short=(480, 960), between=True), KeepRatio(short=(640, 672, 704))
    first = [Drawn(between, PUBLISHED, (3, 1, n, 0)) for n in range(8)]
    second = [Drawn(listed, PUBLISHED, (-5, 2, n, 1)) for n in range(8)]
    assert [(d.short, d.mirrored) for d in first] == [
        *((950, True), (671, False), (848, False), (769, False)),
        *((652, False), (610, True), (871, False), (550, False)),
    ]
    assert [(d.short, d.mirrored) for d in second] == [
        *((704, False), (640, False), (640, True), (704, True)),
        *((640, True), (704, False), (640, True), (704, True)),
    ]


def test_draws_cover_the_range_and_repeat() -> None:
    """Whole numbers of [48, 96] with both ends, mirrors in half of the cases; equal keys draw equally."""
    size = KeepRatio(short=(48, 96), between=True)
    drawn = [Drawn(size, PUBLISHED, (0, 0, n)) for n in range(1500)]
    shorts = {d.short for d in drawn}
    assert (min(shorts), max(shorts)) == (48, 96)
    assert 0.45 < sum(d.mirrored for d in drawn) / len(drawn) < 0.55
    assert vars(Drawn(size, PUBLISHED, (3, 1, 7))) == vars(Drawn(size, PUBLISHED, (3, 1, 7)))
    others = {Drawn(size, PUBLISHED, (seed, epoch, 7)).short for seed in range(5) for epoch in range(5)}
    assert len(others) > 10


def test_a_list_of_shorter_sides_is_drawn_from_evenly() -> None:
    size = KeepRatio(short=(64, 67, 70))
    counts = np.unique([Drawn(size, PUBLISHED, (n,)).short for n in range(1500)], return_counts=True)
    assert counts[0].tolist() == [64, 67, 70]
    assert counts[1].min() > 430


def test_flip_zero_never_mirrors_and_one_always() -> None:
    size = KeepRatio(short=(8,))
    never, always = (Flip(probability=p) for p in (0.0, 1.0))
    assert not any(Drawn(size, (Resize(), never), (n,)).mirrored for n in range(100))
    assert all(Drawn(size, (Resize(), always), (n,)).mirrored for n in range(100))


def test_the_resize_comes_where_the_recipe_says_or_last() -> None:
    """Before or after the flip makes no difference to boxes, without a place it is last, none is left out."""
    size = KeepRatio(short=(8,))
    always = Flip(probability=1.0)
    for steps in ((Resize(), always), (always, Resize()), (always,)):
        out = augment(Drawn.start, steps, size, (0,))
        assert out.size == (8, 8)
        assert out.boxes.dtype == torch.float32
        assert out.boxes.tolist() == [[4, 0, 8, 8]]


def test_jitter_changes_colours_not_shapes_and_ones_change_nothing() -> None:
    image = _photo(30, 40)
    start = picture(image, np.array([[1.0, 2, 3, 4]]))
    assert jitter(start, 1.0, 1.0, 1.0) is start
    changed = augment(start, (Jitter(strength=0.4), Resize()), KeepRatio(short=(30,)), (1,))
    assert isinstance(changed, Picture)
    assert changed.image.shape == start.image.shape
    assert changed.boxes.tolist() == start.boxes.tolist()
    assert (changed.image.int() - start.image.int()).abs().max() > 5
