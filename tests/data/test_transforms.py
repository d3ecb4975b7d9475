"""Geometry and pixels from file to network: the published rules, held against OpenCV and plain arithmetic."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from relook.data.transforms import (
    Draw,
    draw,
    mirror_boxes,
    normalise_into,
    prepare,
    reshape_image,
    resize_boxes,
    resized_size,
    stack,
)
from relook.recipe import Augment, Pixels, Resize

SIDES = st.integers(1, 3000)


def _photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise over a ramp: both fine and coarse detail."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 150, width)[None, :, None] + np.linspace(0, 50, height)[:, None, None]
    return (ramp + random.uniform(0, 55, (height, width, 3))).astype(np.uint8)


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
    moved = resize_boxes(boxes, old=(height, width), new=new)
    limit = torch.tensor([new[1], new[0]] * 2)
    assert (moved >= 0).all()
    assert (moved <= limit).all()
    assert (moved[:, 2:] >= moved[:, :2]).all()
    inside = boxes.clip(0, [width, height, width, height])
    expected = inside * np.tile([new[1] / width, new[0] / height], 2)
    np.testing.assert_allclose(moved.numpy(), expected, atol=1e-3)


def test_480x640_has_two_different_ratios() -> None:
    """The specification's example: 1.66667 high, 1.66719 wide."""
    moved = resize_boxes(np.array([[0.0, 0.0, 300.0, 300.0]]), old=(480, 640), new=(800, 1067))
    np.testing.assert_allclose(moved[0, 2:].numpy(), [500.15625, 500.0], atol=1e-4)


@given(BOXES, st.integers(20, 800))
def test_two_mirrors_are_none(raw: list[tuple[float, ...]], width: int) -> None:
    boxes = torch.tensor(raw, dtype=torch.float64)
    torch.testing.assert_close(mirror_boxes(mirror_boxes(boxes, width), width), boxes)


def test_a_mirrored_box_holds_the_mirrored_pixels() -> None:
    """The mirror of pixels and of boxes is one: a marked rectangle is still in its box."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:20, 5:25] = 255
    out = reshape_image(image, Draw(short=40, mirrored=True), Resize(short=(40,)))
    x1, y1, x2, y2 = mirror_boxes(torch.tensor([[5.0, 10, 25, 20]]), 60)[0].int().tolist()
    assert (out[:, y1:y2, x1:x2] == 255).all()
    assert out.sum() == image.sum()


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 200), st.integers(8, 200), st.integers(16, 300), st.integers(0, 9))
def test_resize_equals_opencv_within_one_level(height: int, width: int, short: int, seed: int) -> None:
    """Bilinear without antialiasing, growing and shrinking."""
    image = _photo(height, width, seed)
    new = resized_size(height, width, short=short, long=1333)
    ours = reshape_image(image, Draw(short=short), Resize(short=(short,))).permute(1, 2, 0).numpy()
    theirs = cv2.resize(image, (new[1], new[0]), interpolation=cv2.INTER_LINEAR)
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("short", [100, 700])
def test_antialias_equals_pillow_within_one_level(short: int) -> None:
    image = _photo(300, 400)
    resize = Resize(short=(short,), antialias=True)
    ours = reshape_image(image, Draw(short=short), resize).permute(1, 2, 0).numpy()
    theirs = np.asarray(
        Image.fromarray(image).resize((ours.shape[1], ours.shape[0]), Image.Resampling.BILINEAR)
    )
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_shrinking_with_and_without_antialias_differ() -> None:
    """The flag does something: noise survives without it."""
    image = _photo(400, 400)
    sharp, smooth = (
        reshape_image(image, Draw(short=60), Resize(short=(60,), antialias=flag))
        .float()
        .diff(dim=-1)
        .abs()
        .mean()
        for flag in (False, True)
    )
    assert sharp > 2 * smooth


def test_normalised_pixels_and_zero_padding() -> None:
    """(pixel - mean) / std where the image is, exactly 0 right of it and below."""
    pixels = Pixels()
    image = _photo(50, 70)
    ready = prepare(image, resize=Resize(short=(50,)), pixels=pixels)
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
    ready = prepare(_photo(480, 640), resize=Resize(), pixels=Pixels())
    assert ready.size == (800, 1067)
    assert ready.scale == (1067 / 640, 800 / 480)
    assert prepare(_photo(480, 640), resize=Resize(), pixels=Pixels(), short=240).size == (240, 320)


def test_read_only_and_reversed_arrays_are_taken() -> None:
    """Views of other people's memory: read-only from Pillow, reversed channels from OpenCV."""
    image = _photo(40, 50)
    frozen = image.copy()
    frozen.setflags(write=False)
    reverse = np.ascontiguousarray(image[..., ::-1])[..., ::-1]
    expected = prepare(image, resize=Resize(short=(40,)), pixels=Pixels()).image
    for view in (frozen, reverse):
        assert torch.equal(prepare(view, resize=Resize(short=(40,)), pixels=Pixels()).image, expected)


def test_several_shorter_sides_need_a_choice() -> None:
    with pytest.raises(ValueError, match=r"several shorter sides \(640, 800\)"):
        prepare(_photo(40, 50), resize=Resize(short=(640, 800)), pixels=Pixels())


def test_draws_cover_the_range_and_repeat() -> None:
    """Whole numbers of [480, 960] with both ends, mirrors in half of the cases; equal keys draw equally."""
    resize = Resize(short=(480, 960), between=True)
    drawn = [draw(resize, Augment(), (0, 0, n)) for n in range(4000)]
    shorts = {d.short for d in drawn}
    assert min(shorts) == 480
    assert max(shorts) == 960
    assert 0.45 < sum(d.mirrored for d in drawn) / 4000 < 0.55
    assert draw(resize, Augment(), (3, 1, 7)) == draw(resize, Augment(), (3, 1, 7))
    assert (
        len({draw(resize, Augment(), (seed, epoch, 7)).short for seed in range(5) for epoch in range(5)}) > 15
    )


def test_a_list_of_shorter_sides_is_drawn_from_evenly() -> None:
    resize = Resize(short=(640, 672, 704))
    counts = np.unique([draw(resize, Augment(), (n,)).short for n in range(3000)], return_counts=True)
    assert counts[0].tolist() == [640, 672, 704]
    assert counts[1].min() > 900


def test_flip_zero_never_mirrors_and_one_always() -> None:
    assert not any(draw(Resize(), Augment(flip=0.0), (n,)).mirrored for n in range(100))
    assert all(draw(Resize(), Augment(flip=1.0), (n,)).mirrored for n in range(100))


def test_jitter_changes_colours_not_shapes_and_zero_changes_nothing() -> None:
    image = _photo(30, 40)
    resize = Resize(short=(30,))
    plain = draw(resize, Augment(flip=0.0), (1,))
    assert not plain.jittered
    assert np.array_equal(reshape_image(image, plain, resize).permute(1, 2, 0).numpy(), image)
    strong = draw(resize, Augment(flip=0.0, jitter=0.4), (1,))
    changed = reshape_image(image, strong, resize).permute(1, 2, 0).numpy()
    assert changed.shape == image.shape
    assert np.abs(changed.astype(int) - image).max() > 5
    assert all(0.6 <= f <= 1.4 for f in (strong.brightness, strong.contrast, strong.saturation))
