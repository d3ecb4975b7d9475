"""Drawing boxes, names and points on pictures."""

import numpy as np
import pytest
from PIL import Image

from relook.results.drawing import (
    DARK,
    PALETTE,
    Annotation,
    PointSet,
    _contrast,
    _luminance,
    color,
    draw,
    enlarged,
)


def _grey(height: int = 120, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def _looks(first: np.ndarray, second: np.ndarray) -> tuple[PointSet, PointSet]:
    """Where points were, and where they moved."""
    return PointSet(at=first, title="first look"), PointSet(at=second, title="second look", joined=True)


def test_the_frame_lies_on_the_last_pixels_inside_the_box():
    """Pixel columns x1 and x2 - 1 carry the colour; the inside stays as it was."""
    picture = np.asarray(draw(_grey(), [Annotation(box=(20, 30, 60, 80), color=2)]))
    assert tuple(picture[50, 20]) == tuple(picture[50, 59]) == color(2)
    assert tuple(picture[30, 40]) == tuple(picture[79, 40]) == color(2)
    assert tuple(picture[55, 40]) == (128, 128, 128)
    assert tuple(picture[55, 61]) == (128, 128, 128)


def test_the_given_array_is_not_changed():
    """Drawing works on a copy."""
    picture = _grey()
    draw(picture, [Annotation(box=(1, 1, 50, 50), tag="a")])
    assert (picture == 128).all()


@pytest.mark.parametrize("box", [(0, 0, 30, 20), (130, 100, 160, 120), (0, 0, 160, 120), (150, 0, 160, 10)])
def test_a_name_is_wholly_inside_the_picture(box: tuple[float, float, float, float]):
    """Wherever the box is, the label's whole area appears: as many coloured pixels as in the middle."""

    def painted(where: tuple[float, float, float, float]) -> int:
        with_tag = np.asarray(draw(_grey(), [Annotation(box=where, tag="label", color=1)]))
        without = np.asarray(draw(_grey(), [Annotation(box=where, color=1)]))
        return int((with_tag != without).any(-1).sum())

    free = painted((60, 50, 90, 80))
    assert painted(box) >= 0.8 * free  # a label inside its box covers a little of the frame


def test_names_avoid_each_other():
    """Two objects at the same place: both labels can be read, side by side or one below the other."""
    one = np.asarray(draw(_grey(), [Annotation(box=(40, 40, 100, 90), tag="first", color=0)]))
    both = np.asarray(
        draw(
            _grey(),
            [
                Annotation(box=(40, 40, 100, 90), tag="first", color=0),
                Annotation(box=(40, 40, 100, 90), tag="first", color=1),
            ],
        )
    )
    blue = (one == PALETTE[0]).all(-1).sum()
    assert (both == PALETTE[0]).all(-1).sum() >= 0.9 * blue - 60
    assert (both == PALETTE[1]).all(-1).sum() > 100


def test_points_of_the_first_look_are_hollow_and_of_the_second_filled():
    """The centre of a first point shows the picture, the centre of a second point the colour."""
    points = np.array([[50.0, 60.0], [100.0, 60.0]])
    picture = np.asarray(
        draw(
            _grey(1200, 1200),
            [Annotation(box=(20, 20, 30, 30), points=_looks(points * 3, points * 3 + [0, 40]))],
            legend=False,
        )
    )
    assert tuple(picture[220, 150]) == color(0)
    first = picture[179, 149]
    ring = picture[170:190, 140:160].reshape(-1, 3)
    assert (np.abs(ring.astype(int) - color(0)).sum(-1) < 40).any()
    assert tuple(first) == (128, 128, 128)
    assert tuple(picture[200, 150]) != (128, 128, 128)  # the line that joins them


def test_points_far_outside_do_no_harm():
    """A wild point costs neither time nor memory and raises nothing."""
    wild = np.array([[1e6, -1e6], [np.float64(-500), 3.0]])
    picture = draw(_grey(), [Annotation(box=(5, 5, 40, 40), points=_looks(wild, wild[::-1].copy()))])
    assert picture.size == (160, 120)


def test_the_legend_appears_only_with_points_and_only_where_it_fits():
    """The lower left corner turns dark with points, stays without them and in a tiny picture."""
    mark = Annotation(box=(300, 20, 340, 60), points=_looks(np.ones((9, 2)), np.ones((9, 2))))
    assert tuple(np.asarray(draw(_grey(400, 500), [mark]))[-1, 0]) == DARK
    assert tuple(np.asarray(draw(_grey(400, 500), [mark], legend=False))[-1, 0]) == (128, 128, 128)
    assert tuple(np.asarray(draw(_grey(400, 500), [Annotation(box=mark.box)]))[-1, 0]) == (128, 128, 128)
    assert tuple(np.asarray(draw(_grey(24, 24), [mark]))[-1, 0]) == (128, 128, 128)


def test_any_picture_and_box_can_be_drawn():
    """Grey Pillow images, one-pixel pictures, empty, inverted and outside boxes."""
    for box in [(0, 0, 0, 0), (5, 5, 2, 2), (-50, -50, -10, -10), (500, 500, 600, 600), (3, 3, 3.2, 3.2)]:
        draw(_grey(1, 1), [Annotation(box=box, tag="name 0.5")])
        draw(Image.new("L", (30, 20)), [Annotation(box=box, tag="a much too long name for this picture")])


def test_letters_stand_out_from_every_class_colour():
    """WCAG contrast of at least 4.5 between a label's ground and its letters, for 200 classes."""
    for index in range(200):
        ground, text = color(index), _contrast(color(index))
        low, high = sorted((_luminance(ground), _luminance(text)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, index


def test_the_first_21_classes_have_colours_of_their_own():
    """Colours repeat no sooner."""
    assert len({color(i) for i in range(21)}) == 21
    assert color(0) == color(21)


def test_small_pictures_are_enlarged_by_a_whole_factor():
    """128 pixels become at least 400; large pictures stay as they are."""
    picture, factor = enlarged(_grey(96, 128), 400)
    assert (picture.shape, factor) == ((384, 512, 3), 4)
    same = _grey(500, 300)
    assert enlarged(same, 400)[0] is same
