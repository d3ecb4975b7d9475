"""SSD's augmentation: what is drawn over many draws, and exact cases of each step."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relook.data.transforms.picture import Picture
from relook.data.transforms.ssd import crop, cut_out, expand, photometric, to_hsv, to_rgb
from relook.data.transforms.steps import augment
from relook.recipe import Crop, Expand, Flip, Jitter, Photometric, Resize, Stretch

DRAWS = 3000


def photo(height: int = 40, width: int = 60) -> Picture:
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)) * 255
    boxes = torch.tensor([[5.0, 5, 25, 30], [30, 10, 55, 35]], dtype=torch.float64)
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    masks[0, 5:30, 5:25], masks[1, 10:35, 30:55] = True, True
    return Picture(image=image, boxes=boxes, labels=torch.tensor([3, 1]), masks=masks)


@given(st.lists(st.tuples(*[st.floats(-40, 300, width=32)] * 3), min_size=1, max_size=8))
def test_colours_come_back(colours: list[tuple[float, float, float]]) -> None:
    """To hue, saturation, value, and back: also beyond 0 .. 255, as long as the largest is positive."""
    image = torch.tensor(colours).T.reshape(3, 1, -1).double()
    image = image + (5 - image.amax(0)).clamp(min=0)
    again = to_rgb(*to_hsv(image))
    assert torch.allclose(again, image, atol=1e-3)


def test_half_of_all_images_lie_on_a_larger_canvas() -> None:
    """Ratios are uniform from 1 to 4; places are uniform; boxes and masks move along."""
    random, start = np.random.default_rng(0), photo()
    made = [expand(start, Expand(), random) for _ in range(DRAWS)]
    large = [one for one in made if one.size != start.size]
    assert len(large) == pytest.approx(DRAWS / 2, rel=0.1)
    ratios = np.array([one.size[0] / start.size[0] for one in large])
    assert ratios.mean() == pytest.approx(2.5, abs=0.1)
    assert ratios.max() <= 4
    left = np.array([float(one.boxes[0, 0] - 5) / max(one.size[1] - 60, 1) for one in large])
    assert left.mean() == pytest.approx(0.5, abs=0.05)
    for one in large[:20]:
        x, y = (one.boxes[0, :2] - torch.tensor([5, 5])).int().tolist()
        assert torch.equal(one.image[:, y : y + 40, x : x + 60], start.image)
        assert one.image[:, -1, -1].tolist() in ([123.0, 117.0, 104.0], start.image[:, -1, -1].tolist())
        assert one.masks[0, y + 5 : y + 30, x + 5 : x + 25].all()
        assert one.masks[0].sum() == start.masks[0].sum()
        assert one.masks.shape[1:] == one.image.shape[1:]


def test_a_sixth_of_all_images_stays_whole() -> None:
    """Others are parts of at least three tenths of each side, not flatter or taller than 1 : 2."""
    random, start = np.random.default_rng(0), photo()
    made = [crop(start, Crop(), random) for _ in range(DRAWS)]
    whole = sum(one.size == start.size for one in made)
    assert whole == pytest.approx(DRAWS / 6, rel=0.15)
    for one in made:
        height, width = one.size
        assert 0.3 * 40 - 1 <= height <= 40
        assert 0.3 * 60 - 1 <= width <= 60
        assert 0.5 - 0.1 <= height / width <= 2.2
        assert len(one.boxes) == len(one.labels) == len(one.masks) > 0
        assert (one.boxes >= 0).all()
        assert (one.boxes[:, [0, 2]] <= width).all()
        assert one.masks.shape[1:] == one.size
    assert 0.1 < np.mean([len(one.boxes) == 1 for one in made]) < 0.9


def test_an_image_without_objects_stays_whole() -> None:
    start = photo()
    empty = cut_out(start, (0, 0, 3, 3))
    assert len(empty.boxes) == 0
    random = np.random.default_rng(0)
    assert all(crop(empty, Crop(), random).size == empty.size for _ in range(50))


def test_colours_over_many_draws() -> None:
    """Brightness alone moves the mean by up to 32; channels change places in five of twelve images."""
    grey = Picture(
        image=torch.full((3, 2, 2), 100.0), boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)
    )
    step, random = Photometric(contrast=0.0, saturation=0.0, hue=0.0), np.random.default_rng(0)
    levels = np.array([float(photometric(grey, step, random).image.mean()) for _ in range(DRAWS)])
    assert np.mean(np.abs(levels - 100) < 1e-3) == pytest.approx(0.5, abs=0.05)
    assert levels.min() < 70
    assert levels.max() > 130
    assert np.abs(levels - 100).max() <= 32.01
    random = np.random.default_rng(0)
    step = Photometric(brightness=0.0, contrast=0.5, saturation=0.0, hue=0.0)
    factors = np.array([float(photometric(grey, step, random).image.mean()) / 100 for _ in range(DRAWS)])
    assert factors.min() == pytest.approx(0.5, abs=0.02)
    assert factors.max() == pytest.approx(1.5, abs=0.02)
    tinted = Picture(
        image=torch.tensor([10.0, 20, 30]).reshape(3, 1, 1), boxes=grey.boxes, labels=grey.labels
    )
    plain = Photometric(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    moved = [photometric(tinted, plain, random).image.flatten().round().tolist() for _ in range(DRAWS)]
    assert np.mean([one != [10, 20, 30] for one in moved]) == pytest.approx(5 / 12, abs=0.04)


def test_jitter_after_colours_keeps_them_in_range() -> None:
    """Floating point is not taken for 0 .. 1."""
    start = photo()
    made = augment(start, (Photometric(), Jitter(), Resize()), Stretch(height=32, width=32), (1, 2))
    assert made.image.std() > 10
    assert made.image.max() > 100


def test_a_key_draws_the_same() -> None:
    """The published order, in a recipe's words: twice the same, and another with another key."""
    steps = (Photometric(), Expand(), Crop(), Flip(), Resize())
    rule = Stretch(height=32, width=48)
    one, same, other = (augment(photo(), steps, rule, key) for key in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(one.image, same.image)
    assert torch.equal(one.boxes, same.boxes)
    assert one.size == other.size == (32, 48)
    assert not torch.equal(one.image, other.image)


def _one_colour(step: Photometric, colour: tuple[float, float, float]) -> torch.Tensor:
    """[DRAWS, 3] what becomes of a colour; its channels in ascending order, whatever order was drawn."""
    random = np.random.default_rng(1)
    start = Picture(
        image=torch.tensor(colour)[:, None, None].repeat(1, 2, 2),
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        masks=None,
    )
    return torch.stack([photometric(start, step, random).image[:, 0, 0].sort()[0] for _ in range(DRAWS)])


def _drawn(values: torch.Tensor, least: float, most: float, usual: float) -> None:
    """With a coin from `least` to `most`, else as `usual`."""
    changed = values[(values - usual).abs() > 1e-4]
    assert len(changed) == pytest.approx(len(values) / 2, rel=0.1)
    assert changed.min().item() == pytest.approx(least, abs=0.02 * (most - least))
    assert changed.max().item() == pytest.approx(most, abs=0.02 * (most - least))
    assert changed.mean().item() == pytest.approx((least + most) / 2, abs=0.05 * (most - least))


def test_each_colour_is_drawn_from_its_own_range_with_its_own_coin() -> None:
    """One at a time: saturation, hue, brightness and contrast."""
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    least, middle, most = _one_colour(Photometric(**{**off, "saturation": 0.5}), (200, 150, 100)).unbind(1)
    _drawn((most - least) / most / 0.5, 0.5, 1.5, 1.0)
    assert torch.allclose(most, torch.tensor(200.0))
    least, middle, most = _one_colour(Photometric(**{**off, "hue": 18.0}), (200, 150, 100)).unbind(1)
    _drawn((middle - 150) * 0.6, -18, 18, 0.0)
    assert torch.allclose(least, torch.tensor(100.0), atol=1e-3)
    least, middle, most = _one_colour(Photometric(**{**off, "brightness": 32.0}), (200, 150, 100)).unbind(1)
    _drawn(most - 200, -32, 32, 0.0)
    least, middle, most = _one_colour(Photometric(**{**off, "contrast": 0.5}), (200, 150, 100)).unbind(1)
    _drawn(middle / 150, 0.5, 1.5, 1.0)
