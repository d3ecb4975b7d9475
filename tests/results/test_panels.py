"""What was seen, drawn step by step: which panels there are, where maps shine, how sheets are laid out."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from relook.results.drawing import DARK, LIGHT, Annotation, color
from relook.results.looks import ImageLook, ImageMap
from relook.results.panels import (
    LARGE,
    NARROW,
    PAINTS,
    SMALL,
    Panel,
    fitted,
    panels,
    sheet,
    shining,
    warmed,
)

GREY = 128
BOX = (120.0, 90.0, 260.0, 200.0)
Box = tuple[float, float, float, float]


def grey(height: int = 300, width: int = 400) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def corner_map(cells: tuple[int, int] = (10, 14), step: tuple[float, float] = (28.6, 30.0)) -> ImageMap:
    """Nothing seen anywhere."""
    return ImageMap(values=torch.zeros(2, *cells), step=step, names=("top left", "bottom right"))


def answer(box: Box = BOX, *, tag: str = "star 0.90", color: int = 0) -> Annotation:
    return Annotation(box=box, tag=tag, color=color)


def row_of_points(box: Box = BOX) -> np.ndarray:
    """Nine points across the middle of a box."""
    return np.stack([np.linspace(box[0], box[2], 9), np.full(9, (box[1] + box[3]) / 2)], -1)


def points(*rows: np.ndarray, moved: tuple[float, float] = (0, 25)) -> list[ImageLook]:
    """A first look at the points of each object, and a second one that moved them."""
    first = torch.from_numpy(np.stack(rows))
    return [
        ImageLook(title="first look", caption="Where.", points=first),
        ImageLook(title="second look", caption="What.", points=first + torch.tensor(moved), joined=True),
    ]


def maps(*given: ImageMap) -> ImageLook:
    return ImageLook(title="verification", caption="Sure?", maps=given or (corner_map(),))


def before(*boxes: Box) -> ImageLook:
    rows = torch.tensor(boxes, dtype=torch.float64)
    return ImageLook(title="regressed", caption="Dashed: before.", boxes=rows, on_answer=True)


def changed(image: Image.Image, picture: np.ndarray) -> np.ndarray:
    return (np.asarray(image) != picture).any(-1)


# -- panels --------------------------------------------------------------------------------------------


def names(steps: tuple[Panel, ...]) -> list[str]:
    return [step.name for step in steps]


def test_only_what_was_seen_has_a_panel():
    """A look with points and maps, one with points, none; nothing found leaves maps and answer."""
    first, second = points(row_of_points())
    everything = [first, maps(), second, before(BOX)]
    assert names(panels(grey(), [answer()], everything)) == [
        "first look",
        "verification",
        "second look",
        "the answer",
    ]
    assert names(panels(grey(), [answer()], [first, second])) == ["first look", "second look", "the answer"]
    assert names(panels(grey(), [answer()])) == ["the answer"]
    empty = panels(grey(), [], [look.pick(torch.zeros(0).long()) for look in everything])
    assert names(empty) == ["verification", "the answer"]
    assert empty[-1].caption == "Nothing was found."
    assert not changed(empty[-1].image, grey()).any()


def test_a_box_a_point_and_a_map_of_a_made_up_detector_are_drawn():
    """Nothing is known of it but its looks: proposals as boxes, centres as points, one likelihood map."""
    likelihood = ImageMap(
        values=torch.zeros(1, 10, 14), step=(28.6, 30.0), first=(14.3, 15.0), names=("an object",)
    )
    likelihood.values[0, 4, 6] = 1
    proposal = (100.0, 60.0, 300.0, 240.0)
    looks = [
        ImageLook(title="likelihood", caption="Is anything there?", maps=(likelihood,)),
        ImageLook(title="proposals", caption="A box.", boxes=torch.tensor([proposal]).double()),
        ImageLook(title="centres", caption="Its centre.", points=torch.tensor([[[190.0, 145.0]]]).double()),
        before(proposal),
    ]
    seen = panels(grey(), [answer()], looks)
    assert names(seen) == ["likelihood", "proposals", "centres", "the answer"]
    assert [step.caption for step in seen[:3]] == ["Is anything there?", "A box.", "Its centre."]
    warm = np.abs(np.asarray(seen[0].image).astype(int) - PAINTS[0]).sum(-1)
    y, x = np.unravel_index(warm.argmin(), warm.shape)
    assert (x + 0.5, y + 0.5) == pytest.approx((14.3 + 6 * 28.6, 15 + 4 * 30), abs=1)
    assert seen[0].keys == (("an object", PAINTS[0]), ("the answer's", LIGHT))
    box = np.asarray(seen[1].image)
    assert tuple(box[150, 100]) == tuple(box[60, 200]) == color(0)
    assert tuple(box[150, 120]) == (GREY,) * 3  # the answer's own box is not on this panel
    dots = changed(seen[2].image, grey())
    assert dots[135:156, 180:201].any()
    assert dots.sum() < 600
    assert changed(seen[3].image, grey())[60, 110:290].any(), "the box before, dashed"
    assert seen[3].caption == "Dashed: before."


def test_looks_lie_where_they_are_in_an_enlarged_picture():
    """All in pixels of the original; the picture is three times as large."""
    look = ImageLook(title="proposals", caption=".", boxes=torch.tensor([[10.0, 20, 60, 70]]).double())
    step = panels(grey(300, 400), [answer((30, 60, 180, 210))], [look], 3)[0]
    assert tuple(np.asarray(step.image)[100, 30]) == color(0)
    assert tuple(np.asarray(step.image)[60, 100]) == color(0)


def test_the_given_picture_stays_as_it_is():
    """All panels are copies of their own."""
    picture = grey()
    first, second = points(row_of_points())
    steps = panels(picture, [answer()], [first, maps(), second])
    assert (picture == GREY).all()
    assert len({id(step.image) for step in steps}) == 4


def test_first_points_are_hollow_and_second_points_filled():
    """The first panel has rings at the first points, nothing else; the third discs, and lines to them."""
    picture, box = grey(900, 1200), (360.0, 270.0, 780.0, 600.0)
    looks = points(np.array([[465.0, 435.0], [600.0, 435.0]]), moved=(0, 75))
    first, second = (np.asarray(panels(picture, [answer(box)], looks)[i].image) for i in (0, 1))
    x, y = 465, 435
    assert tuple(first[y, x]) == (GREY,) * 3  # hollow
    assert color(0) in map(tuple, first[y - 12 : y, x].tolist())
    assert (first[y + 30 : y + 100] == GREY).all()
    assert tuple(second[y + 75, x]) == color(0)
    assert (second[y + 2 : y + 60, x - 2 : x + 3] != GREY).any(axis=(1, 2)).all()  # the line between
    assert (second[y - 14 : y - 4] == GREY).all()  # without a ring


def test_every_object_has_a_colour_of_its_own_in_all_panels():
    """Two objects of one class are told apart, and keep their colours."""
    two = [answer(color=3), answer((20, 20, 80, 60), color=3)]
    for step in panels(grey(), two, points(row_of_points(), row_of_points((20, 20, 80, 60)))):
        seen = {tuple(pixel) for pixel in np.asarray(step.image).reshape(-1, 3).tolist()}
        assert {color(0), color(1)} <= seen, step.name


def test_a_box_that_moved_is_dashed_where_it_was():
    """Both edges show; dashes and gaps take turns; a box that stayed is drawn as if there were none."""
    image = panels(grey(), [answer()], [before((100.0, 80.0, 290.0, 230.0))])[-1].image
    edge = np.asarray(image)[80, 130:280]
    assert len(np.unique(edge, axis=0)) == 2
    turns = (edge[1:] != edge[:-1]).any(-1).sum()
    assert 5 < turns < 60
    assert tuple(np.asarray(image)[150, 120]) == color(0)
    stayed, plain = (panels(grey(), [answer()], looks)[-1].image for looks in ([before(BOX)], []))
    assert stayed.tobytes() == plain.tobytes()


def test_an_arrow_stands_at_each_corner_that_moved():
    """Between the old and the new corner something is drawn, at the other corner nothing."""
    shifted = (BOX[0] - 40, BOX[1] - 40, BOX[2], BOX[3])
    step = panels(grey(), [answer(tag="")], [before(shifted)])[-1]
    drawn = changed(step.image, grey())
    assert drawn[55:85, 85:115].sum() > 20
    assert not drawn[205:240, 265:300].any()
    assert step.caption == "Dashed: before."


def test_names_leave_moved_corners_free():
    """The label, which usually lies above the top-left corner, goes elsewhere when an arrow is there."""
    moved = before((BOX[0] - 4, BOX[1] - 18, BOX[2], BOX[3]))
    with_tag, without = (
        np.asarray(panels(grey(), [answer(tag=tag)], [moved])[-1].image) for tag in ("star 0.90", "")
    )
    around = np.s_[70:92, 114:122]
    assert (with_tag[around] == without[around]).all()
    assert (with_tag != without).any()


# -- maps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "paint"), [(0, PAINTS[0]), (1, PAINTS[1])])
def test_a_cell_shines_where_its_point_is(kind: int, paint: tuple[int, int, int]):
    """Cell (i, j) is the point (j * x, i * y): there the colour is full, and half on the way to the next."""
    heat = corner_map()
    heat.values[kind, 4, 6] = 1
    picture = warmed(grey(), [heat]).astype(int)
    away = np.abs(picture - paint).sum(-1)
    y, x = np.unravel_index(away.argmin(), away.shape)
    assert (x + 0.5, y + 0.5) == pytest.approx((6 * 28.6, 4 * 30), abs=1)
    assert away[y, x] < 25
    dim = picture[290, 10]
    assert len(set(dim)) == 1
    assert dim[0] < GREY
    assert (picture[y, x - 40] == dim).all()  # beyond the next cell
    between = picture[y, x - 14]
    assert (np.minimum(dim, paint) <= between).all()
    assert (between <= np.maximum(dim, paint)).all()


def test_a_map_of_one_value_is_even():
    """Between cells nothing is lost: their parts sum to one, up to the last cell."""
    heat = ImageMap(values=torch.full((2, 10, 14), 0.37), step=(28.6, 30), names=("a", "b"))
    shown = shining(heat, 270, 371)
    assert shown.shape == (2, 270, 371)
    assert np.allclose(shown, 0.37, atol=1e-6)


def test_coarser_maps_are_dots_of_the_same_size():
    """A cell of a map twice as coarse shines no farther than one of the finer map, and the warmest counts."""
    fine, coarse = corner_map((20, 28), (14.3, 15)), corner_map()
    coarse.values[0, 4, 6] = 1
    dot = np.asarray(warmed(grey(), [fine, coarse])).astype(int)
    lit = (dot != dot[0, 0]).any(-1)
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    assert rows[-1] - rows[0] <= 30
    assert columns[-1] - columns[0] <= 29
    fine.values[0, 8, 12] = 0.4  # the same point: fainter, so it changes nothing
    assert (warmed(grey(), [fine, coarse])[120, 171] == dot[120, 171]).all()


def test_both_colours_show_where_both_corners_are():
    """Where a bottom-right corner lies beside a top-left one, the colour lies between the two."""
    heat = corner_map()
    heat.values[:, 4, 6] = 1
    y, x = 120, 171
    mixed = warmed(grey(), [heat])[y, x].astype(int)
    assert np.abs(mixed - (np.array(PAINTS[0]) + PAINTS[1]) / 2).max() < 8


def test_angles_mark_the_corners_of_the_answer():
    """White at either corner of the box, and inwards; not at the other two."""
    step = panels(grey(), [answer()], [maps()])[0]
    picture = np.asarray(step.image).astype(int)
    assert picture[90:94, 118:126].max() > 180
    assert picture[196:203, 250:262].max() > 180
    assert picture[85:95, 255:265].max() < GREY
    assert [paint for _, paint in step.keys] == [PAINTS[0], PAINTS[1], LIGHT]
    assert len(panels(grey(), [], [maps()])[0].keys) == 2


# -- sheets --------------------------------------------------------------------------------------------


def steps(count: int, height: int, width: int) -> list[Panel]:
    return [Panel(name=f"step {i}", caption="What it shows.", image=Image.fromarray(grey(height, width)))
            for i in range(count)]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "size", "columns"),
    [
        (4, (400, 400), 2),
        (4, (400, 700), 2),
        (4, (700, 300), 4),
        (3, (300, 300), 3),
        (3, (300, 900), 1),
        (1, (300, 300), 1),
    ],
)
def test_a_sheet_takes_the_shape_that_fits(count: int, size: tuple[int, int], columns: int):
    """Four square pictures stand two by two, four tall ones in a row, three wide ones in a column."""
    whole = np.asarray(sheet(steps(count, *size)))
    pictures = (whole == GREY).all(-1)
    along = np.flatnonzero(np.diff(pictures.any(0).astype(int)) == 1)
    down = np.flatnonzero(np.diff((pictures.sum(1) > size[1] - 2).astype(int)) == 1)
    assert (len(along), len(down)) == (columns, count // columns)
    assert pictures.sum() >= count * size[0] * size[1]


def test_every_panel_of_a_sheet_is_whole_and_has_a_head():
    """Each picture appears unchanged, and above it are letters that no picture covers."""
    first, second = points(row_of_points())
    drawn = panels(grey(), [answer()], [first, maps(), second, before(BOX)])
    whole = np.asarray(sheet(drawn))
    for step in drawn:
        part = np.asarray(step.image)
        wanted = part[:40, :40].tobytes()
        found = [
            (y, x)
            for y in range(whole.shape[0] - part.shape[0] + 1)
            for x in (8, whole.shape[1] - part.shape[1] - 8)
            if whole[y : y + 40, x : x + 40].tobytes() == wanted
            and (whole[y : y + part.shape[0], x : x + part.shape[1]] == part).all()
        ]
        assert found, step.name
        y, x = found[0]
        assert (whole[y - 30 : y - 3, x : x + 200] != DARK).any()


def test_a_narrow_panel_still_has_room_for_words():
    """Beside a picture 20 pixels wide the head is as wide as words need."""
    whole = sheet(steps(4, 384, 20))
    assert whole.width > NARROW
    assert (np.asarray(whole) == GREY).all(-1).sum() >= 4 * 384 * 20


# -- sizes and odd things --------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [(16, 16), (5, 16), (1, 1), (128, 100), (383, 383)])
def test_small_pictures_are_enlarged_by_a_whole_factor(side: tuple[int, int]):
    """To at least SMALL pixels of the longer side, or as many as were asked for."""
    for asked in (0, 700):
        picture, zoom = fitted(grey(*side), asked)
        assert zoom == int(zoom) == math.ceil(max(SMALL, asked) / max(side))
        assert picture.shape == (side[0] * zoom, side[1] * zoom, 3)


def test_large_pictures_are_reduced():
    """To LARGE pixels of the longer side or as many as were asked for; a line stays a line."""
    picture, zoom = fitted(grey(1500, 3000))
    assert (picture.shape, zoom) == ((480, LARGE, 3), 0.32)
    assert fitted(grey(1500, 3000), 2000)[0].shape == (1000, 2000, 3)
    assert fitted(grey(1, 5000))[0].shape == (1, LARGE, 3)
    same = grey(500, 900)
    assert fitted(same)[0] is same


def test_anything_can_be_drawn():
    """Inverted, empty, one-pixel, outside and huge boxes, wild points, maps of one cell, pictures of one."""
    boxes = [(0, 0, 0, 0), (50, 50, 20, 20), (-50, -50, -10, -10), (500, 500, 600, 600), (3, 3, 4, 4)]
    boxes.append((-1e6, -1e6, 1e6, 1e6))
    wild = np.array([[1e6, -1e6], [-500, 3.0]])
    answers = [answer(tuple(map(float, box))) for box in boxes]
    moved = before(*[(9.0, 9.0, 5.0, 5.0)] * len(boxes))
    first, second = points(*[wild] * len(boxes))
    for size in ((1, 1), (16, 16), (40, 7)):
        for one in (corner_map((1, 1), (400.0, 400.0)), corner_map((2, 2), (8.0, 8.0))):
            picture, zoom = fitted(grey(*size))
            looks = [first, maps(one), second, moved]
            assert min(sheet(panels(picture, answers, looks, zoom)).size) > SMALL / 2
