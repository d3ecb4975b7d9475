"""Several views of an image and their one answer."""

import math
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import relook
from relook.data.sample import Sample
from relook.data.shapes import CLASSES
from relook.data.transforms.network_input import Prepared, prepare
from relook.evaluation import evaluate
from relook.inference import Engine
from relook.predictor import Predictor
from relook.recipe import KeepRatio
from relook.results.result import Result
from relook.types import Detections, ImageDetections, Look
from relook.views import PRESETS, RULES, Placement, View, Views, merge, parse, recipe_view, to_original
from relook.weights.models import by_name
from relook.weights.reading.checkpoint import save_weights
from strategies import box_lists
from tiny_detector import RECIPE, TinyDetector, TinyOutputs, tiny, tiny_data
from twins import Box, iou

COCO = KeepRatio()  # 800 x 1333
FAINT = RULES["vote"].faint


def many(*views: View, **settings: Any) -> Views:
    return Views(views=views, **settings)


def found(
    boxes: Sequence[Box], scores: Sequence[float], labels: Sequence[int] | None = None
) -> ImageDetections:
    """What one view shows, in original pixels; `origin` names the row of each box."""
    return ImageDetections(
        torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float64),
        torch.tensor([0] * len(scores) if labels is None else labels, dtype=torch.int64),
        None,
        torch.arange(len(scores)),
    )


# -- what people write ---------------------------------------------------------------------------------


def test_a_list_of_sizes_is_understood():
    """Sizes, longer sides in the recipe's proportion, shares of its size, ranges, mirrors, how to merge."""
    views = parse("400:96-, 800 ,1800x3000:0-96+flip,50%:32-64,nms", COCO)
    assert views.views == (
        View(short=400, long=667, smallest=96),
        View(short=800, long=1333),
        View(short=1800, long=3000, largest=96),
        View(short=1800, long=3000, largest=96, mirrored=True),
        View(short=400, long=667, smallest=32, largest=64),
    )
    assert (views.merge, views.iou, views.keep) == ("nms", 0.6, 1000)
    assert parse("800", COCO) == recipe_view(COCO)
    assert (parse("800,600", COCO).merge, parse("800,600", COCO).iou) == ("vote", 0.66)
    assert parse("100%,64", RECIPE.test_size) == recipe_view(RECIPE.test_size)  # looked at once
    assert View(short=5, long=7).resize(replace(COCO, antialias=True), (3, 4)) == KeepRatio(
        short=(5,), long=7, antialias=True
    )


def test_presets_are_lists_in_the_same_words():
    """flip and scales follow the recipe's size; the authors' are 13 sizes, each mirrored too, and voting."""
    flip, scales, authors = (parse(name, COCO) for name in ("flip", "scales", "authors"))
    assert flip.views == (View(short=800, long=1333), View(short=800, long=1333, mirrored=True))
    assert flip.merge == "nms"
    assert [v.short for v in parse("scales", KeepRatio(short=(128,), long=128)).views[::2]] == [96, 128, 160]
    assert [v.mirrored for v in scales.views] == [False, True] * 3
    assert [(v.short, v.long, v.smallest, v.largest) for v in authors.views[::2]] == [
        (400, 667, 96, math.inf),
        (500, 833, 96, math.inf),
        (600, 1000, 64, math.inf),
        (640, 1067, 64, math.inf),
        (700, 1167, 64, math.inf),
        (800, 1333, 0, math.inf),
        (900, 1500, 0, math.inf),
        (1000, 1667, 0, math.inf),
        (1100, 1833, 0, 256),
        (1200, 2000, 0, 256),
        (1300, 2167, 0, 192),
        (1400, 2333, 0, 192),
        (1800, 3000, 0, 96),
    ]
    assert [replace(v, mirrored=True) for v in authors.views[::2]] == list(authors.views[1::2])
    assert (authors.merge, authors.iou, authors.keep) == ("vote", 0.66, 1000)
    assert parse("authors,nms", COCO).views == authors.views
    assert parse("authors,nms", COCO).merge == "nms"
    assert all(len(parse(name, COCO)) > 1 for name in PRESETS)


@pytest.mark.parametrize(
    ("text", "piece"),
    [("8oo", "8oo"), ("800,", ""), ("800+flop", "800+flop"), ("800:96", "800:96"), ("75%x90", "75%x90")],
)
def test_a_wrong_piece_is_named_and_the_words_are_taught(text: str, piece: str):
    """One sentence with the piece, the presets and an example."""
    with pytest.raises(
        ValueError,
        match=r"is no view; write flip, scales, authors, refinedet_voc, refinedet_coco or a list such as",
    ) as told:
        parse(text, COCO)
    assert str(told.value).startswith(repr(piece))
    assert "\n" not in str(told.value)


def test_sizes_that_cannot_be_are_refused():
    """No pixels, a range upside down, only a word on merging, no view at all."""
    for text, words in (
        ("0", "'0': a view's sides cannot be 0"),
        ("800x0", "800 and 0 pixels"),
        ("800:96-32", "from 96 to 32"),
        ("vote", "'vote' name no size"),
    ):
        with pytest.raises(ValueError, match=words):
            parse(text, COCO)
    with pytest.raises(ValueError, match="there is no view"):
        many()
    with pytest.raises(ValueError, match="several shorter sides"):
        recipe_view(KeepRatio(short=(480, 960)))


# -- back to the original ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [100, 101])
def test_mirrored_boxes_points_and_masks_return_to_where_they_were(width: int):
    """The mirror of what was found, found in the mirror, is what was found: to the bit, odd widths too."""
    boxes = torch.tensor([[3.0, 5.0, 40.0, 30.0], [60.0, 1.0, float(width), 20.0]])
    points = torch.tensor([[[3.0, 5.0], [40.0, 30.0]], [[61.0, 2.0], [99.0, 19.0]]])
    masks = torch.rand(2, 28, 28)
    plain = ImageDetections(
        boxes, torch.tensor([0.9, 0.5]), torch.tensor([1, 0]), masks, torch.tensor([7, 4])
    )
    turned = ImageDetections(
        torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], -1),
        plain.scores,
        plain.labels,
        masks.flip(-1),
        plain.origin,
    )
    scale = (width / 77, 50 / 39)
    straight, mirror = (Placement(width=width, scale=scale, mirrored=m) for m in (False, True))
    a, b = to_original(plain, straight), to_original(turned, mirror)
    seen = straight.points(points), mirror.points(torch.stack([width - points[..., 0], points[..., 1]], -1))
    assert a.boxes.dtype == torch.float64
    assert a.boxes[0].tolist() == [3 / scale[0], 5 / scale[1], 40 / scale[0], 30 / scale[1]]
    assert seen[0][0].flatten().tolist() == a.boxes[0].tolist()
    for x, y in ((a.boxes, b.boxes), seen, (a.masks, b.masks), (a.origin, b.origin)):
        assert x is not None
        assert y is not None
        assert torch.equal(x, y)


def test_a_range_counts_the_pixels_of_the_network_and_its_ends_belong_to_it():
    """Square roots of areas 8, 16 and 32 in the network's input, whatever the size of the original."""
    boxes = [[0, 0, 4, 16], [0, 0, 16, 16], [0, 0, 32, 32]]
    seen = found(boxes, [0.9, 0.8, 0.7])

    def kept(**limits: float) -> list[float]:
        return seen.scores[View(short=9, long=9, **limits).believes(seen.boxes, seen.boxes)].tolist()

    assert kept(smallest=16) == [0.8, 0.7]
    assert kept(largest=16) == [0.9, 0.8]
    assert kept(smallest=16, largest=16) == [0.8]
    assert kept(smallest=33) == []
    inverted = found([[9, 0, 4, 16]], [0.9])
    assert View(short=9, long=9).believes(inverted.boxes, inverted.boxes).tolist() == [
        True
    ]  # as without views
    assert View(short=9, long=9, largest=99).believes(inverted.boxes, inverted.boxes).tolist() == [False]


# -- one answer ----------------------------------------------------------------------------------------


def slow_vote(
    boxes: list[Box], scores: list[float], labels: list[int], threshold: float
) -> list[tuple[float, int, Box]]:
    """Soft box voting, box after box: (score, label, box)."""
    answer: list[tuple[float, int, Box]] = []
    rest = sorted(range(len(boxes)), key=lambda i: -scores[i])
    while rest:
        best = rest[0]
        overlaps = {
            i: 1.0 if i == best else iou(boxes[best], boxes[i]) for i in rest if labels[i] == labels[best]
        }
        cluster = [i for i, overlap in overlaps.items() if overlap >= threshold]
        total = sum(scores[i] for i in cluster)
        mean = [sum(scores[i] * boxes[i][k] for i in cluster) / total for k in range(4)]
        answer.append((scores[best], labels[best], mean))
        for i in cluster:
            faint = scores[i] * (1 - overlaps[i])
            if faint >= FAINT:
                answer.append((faint, labels[i], boxes[i]))
        rest = [i for i in rest if i not in cluster]
    return sorted(answer, key=lambda row: -row[0])


def slow_nms(
    boxes: list[Box], scores: list[float], labels: list[int], threshold: float
) -> list[tuple[float, int, Box]]:
    """Greedy suppression within each class, box after box."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(labels[j] != labels[i] or iou(boxes[j], boxes[i]) <= threshold for j in kept):
            kept.append(i)
    return [(scores[i], labels[i], boxes[i]) for i in kept]


@st.composite
def answers(draw: st.DrawFn) -> list[ImageDetections]:
    """What two or three views show: boxes that crowd, so that clusters have many members; scores differ."""
    crowd = draw(box_lists(least=1, most=3, sorted_corners=draw(st.booleans())))
    parts: list[ImageDetections] = []
    ranks = draw(st.permutations(range(1, 40)))
    for _ in range(draw(st.integers(2, 3))):
        rows = draw(st.lists(st.integers(0, len(crowd) - 1), max_size=6))
        moves = [draw(st.lists(st.integers(-4, 4), min_size=4, max_size=4)) for _ in rows]
        boxes = [(crowd[row] + torch.tensor(move)).tolist() for row, move in zip(rows, moves, strict=True)]
        scores = [ranks.pop() / 40 for _ in rows]
        parts.append(found(boxes, scores, [draw(st.integers(0, 1)) for _ in rows]))
    return parts


@pytest.mark.parametrize(("kind", "slow"), [("vote", slow_vote), ("nms", slow_nms)])
@given(parts=answers(), threshold=st.sampled_from([0.5, 0.6, 0.66, 1.0]))
def test_merging_is_what_it_says_box_after_box(
    kind: Any, slow: Any, parts: list[ImageDetections], threshold: float
):
    """The answer of all boxes at once is that of its slow twin: boxes, labels, scores and order."""
    views = many(View(short=1, long=1), merge=kind, iou=threshold)
    got = merge(parts, views)
    boxes = [box for part in parts for box in part.boxes.tolist()]
    scores = [score for part in parts for score in part.scores.tolist()]
    labels = [label for part in parts for label in part.labels.tolist()]
    want = slow(boxes, scores, labels, threshold)
    assert got.scores.tolist() == pytest.approx([row[0] for row in want], abs=1e-12)
    rows = sorted(zip(got.scores.tolist(), got.labels.tolist(), got.boxes.tolist(), strict=True))
    for (score, label, box), other in zip(rows, sorted(want), strict=True):
        assert (score, label) == (pytest.approx(other[0], abs=1e-12), other[1])
        assert box == pytest.approx(list(other[2]), abs=1e-9)


def test_voting_by_hand():
    """Three boxes of one object and one of another class: a weighted mean, the best score, faint copies."""
    a, b, c = [0, 0, 100, 100], [0, 0, 100, 80], [0, 10, 100, 100]
    parts = [found([a, a], [0.8, 0.7], [0, 1]), found([b], [0.4]), found([c], [0.2])]
    got = merge(parts, many(View(short=1, long=1)))
    assert got.labels.tolist() == [0, 1, 0]
    assert got.scores.tolist() == pytest.approx([0.8, 0.7, 0.4 * 0.2])
    assert got.boxes[0].tolist() == pytest.approx([0, 2 / 1.4, 100, (80 + 32 + 20) / 1.4])
    assert got.boxes[1].tolist() == a, "the only one of its class stays, to the bit"
    assert got.boxes[2].tolist() == b, "c weakened to 0.02 is gone"


def test_an_overlap_of_exactly_the_threshold_votes_but_is_not_suppressed():
    """As in the published code: at least 0.5 belongs to the cluster, more than 0.5 is suppressed."""
    parts = [found([[0, 0, 2, 2]], [0.9]), found([[0, 0, 2, 1]], [0.5])]
    voted, kept = (merge(parts, many(View(short=1, long=1), merge=m, iou=0.5)) for m in ("vote", "nms"))
    assert voted.boxes[0].tolist() == pytest.approx([0, 0, 2, (1.8 + 0.5) / 1.4])
    assert kept.boxes.tolist() == [[0, 0, 2, 2], [0, 0, 2, 1]]


@pytest.mark.parametrize("kind", ["vote", "nms"])
def test_looks_and_masks_follow_the_box_that_a_merged_box_grew_from(kind: Any):
    """The points of a merged box are those of its best member; a faint copy keeps its own."""
    far = [200, 200, 260, 260]
    parts = [found([[0, 0, 80, 100], far], [0.5, 0.3]), found([far, [0, 0, 100, 100]], [0.9, 0.7])]
    parts = [
        replace(p, origin=p.origin + 10 * i, masks=torch.full((2, 28, 28), float(i)))
        for i, p in enumerate(parts)
    ]
    got = merge(parts, many(View(short=1, long=1), merge=kind))
    assert got.scores.tolist()[:2] == [0.9, 0.7]
    assert got.origin[:2].tolist() == [10, 11]
    assert got.masks is not None
    assert got.masks[:, 0, 0].tolist()[:2] == [1, 1]
    if kind == "vote":
        assert got.scores[2].item() == pytest.approx(0.5 * 0.2)
        assert got.origin[2] == 0


def test_the_best_stay_and_nothing_found_is_an_answer():
    """`keep` counts all classes together; views that show nothing, of any class, give nothing."""
    parts = [
        found([[i * 9, 0, i * 9 + 8, 8] for i in range(6)], [0.1 * i + 0.1 for i in range(6)], [0, 1] * 3)
    ] * 2
    for kind in ("vote", "nms"):
        got = merge(parts, many(View(short=1, long=1), merge=kind, keep=4))
        assert got.scores.tolist() == pytest.approx([0.6, 0.5, 0.4, 0.3])
        nothing = merge([found([], [])] * 2, many(View(short=1, long=1), merge=kind))
        assert (len(nothing), nothing.boxes.shape, nothing.origin.shape) == (0, (0, 4), (0,))


@pytest.mark.parametrize("kind", ["vote", "nms"])
def test_a_single_view_is_the_answer(kind: Any):
    """Not a bit, not an order, not a number of boxes is changed, whatever the way of merging."""
    only = found([[0, 0, 9, 9], [0, 0, 9, 9]], [0.5, 0.5])
    assert merge([only], many(View(short=1, long=1), merge=kind, keep=1)) is only


# -- in the machines -----------------------------------------------------------------------------------


class Looking(TinyDetector):
    """The tiny detector with points, and blind to padding, which depends on the other images of a batch."""

    def forward(self, images: Tensor) -> TinyOutputs:
        plain = super().forward(images)
        padding = F.max_pool2d(images.abs().amax(1), 8).flatten(1) == 0
        return TinyOutputs(plain.logits.masked_fill(padding.unsqueeze(-1), -99), plain.boxes)

    def explain(self, outputs: TinyOutputs, found: Detections, sizes: Tensor) -> tuple[Look, ...]:
        return (Look("first look", "Where.", points=found.boxes[..., None, :2].expand(-1, -1, 9, -1)),)


def looking() -> Looking:
    torch.manual_seed(1)
    detector = Looking()
    detector.load_state_dict(tiny().state_dict())
    return detector


def photos() -> list[np.ndarray]:
    """Five images of different sizes, odd ones among them."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (40 + 9 * i, 91 - 7 * i, 3), np.uint8) for i in range(5)]


def same(a: Result, b: Result) -> None:
    assert torch.equal(a.boxes, b.boxes)
    assert torch.equal(a.scores, b.scores)
    assert torch.equal(a.labels, b.labels)
    assert torch.equal(first_points(a), first_points(b))


def first_points(found: Result) -> Tensor:
    points = found.asked_looks()[0].points
    assert points is not None
    return points


@pytest.mark.parametrize("text", ["100%", "64,nms", "64x64,vote"])
def test_one_view_predicts_exactly_what_none_does(text: str):
    """Bit for bit: boxes, scores, labels and points."""
    plain = Predictor(looking(), RECIPE, CLASSES, device="cpu")
    viewed = Predictor(looking(), RECIPE, CLASSES, device="cpu", views=parse(text, RECIPE.test_size))
    for a, b in zip(plain(photos(), looks=True), viewed(photos(), looks=True), strict=True):
        assert len(a) > 0
        assert a.boxes.dtype == b.boxes.dtype == torch.float64
        same(a, b)


@pytest.mark.parametrize("text", ["100%", "64,nms"])
def test_one_view_scores_exactly_what_none_does(text: str):
    """Bit for bit: every detection of every image."""
    settings: dict[str, Any] = {"batch": 2, "workers": 0, "device": "cpu", "progress": False}
    data = tiny_data(5, "val")
    plain = evaluate(tiny(), RECIPE, data, **settings)
    viewed = evaluate(tiny(), RECIPE, data, **settings, views=parse(text, RECIPE.test_size))
    assert len(plain.detections) > 0
    assert viewed.detections == plain.detections
    assert viewed.report.numbers == plain.report.numbers


def test_a_mirrored_image_in_a_mirrored_view_is_the_plain_result():
    """The network sees the same pixels, and boxes and points come out mirrored."""
    size = RECIPE.test_size
    view = View(short=64, long=64, mirrored=True)
    plain = Predictor(looking(), RECIPE, CLASSES, device="cpu")
    turned = Predictor(looking(), RECIPE, CLASSES, device="cpu", views=many(view))
    image = photos()[0][
        :, :64
    ]  # as wide as the network's input, so that resizing does not see left and right
    assert size.long == 64
    a, b = plain.one(image, looks=True), turned.one(image[:, ::-1], looks=True)
    assert len(a) > 0
    torch.testing.assert_close(
        b.boxes[:, [2, 1, 0, 3]], torch.tensor([64, 0, 64, 0]) + a.boxes * torch.tensor([-1, 1, -1, 1])
    )
    points = first_points(a) * torch.tensor([-1, 1]) + torch.tensor([64, 0])
    torch.testing.assert_close(first_points(b), points)
    assert torch.equal(a.scores, b.scores)


def test_views_of_a_batch_are_those_of_single_images():
    """Batches of two, three views of different sizes, a ranged one among them: the same answers in order."""
    views = parse("100%+flip,150%:16-", RECIPE.test_size)
    one = list(Predictor(looking(), RECIPE, CLASSES, device="cpu", views=views)(photos(), looks=True))
    two = list(Predictor(looking(), RECIPE, CLASSES, device="cpu", views=views, batch=2)(photos()))
    plain = list(Predictor(looking(), RECIPE, CLASSES, device="cpu")(photos()))
    assert len(one) == len(two) == 5
    for a, b, c in zip(one, two, plain, strict=True):
        torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-4, atol=1e-3)
        assert a.labels.tolist() == b.labels.tolist()
        assert first_points(a).shape == (len(a), 9, 2)
        assert a.boxes.shape != c.boxes.shape or not torch.equal(a.boxes, c.boxes)


@pytest.mark.parametrize("views", [2, 12])
def test_more_views_are_not_more_pictures_in_memory(monkeypatch: pytest.MonkeyPatch, views: int):
    """Of each picture the first view, the one that is looked at and the next; of those ahead the first."""
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def counted(*given: Any, **settings: Any) -> Prepared:
        nonlocal most
        made = prepare(*given, **settings)
        alive.add(made.image)
        most = max(most, len(alive))
        return made

    monkeypatch.setattr("relook.inference.prepare", counted)
    sizes = many(*(View(short=40 + i, long=80) for i in range(views)))
    look = Predictor(looking(), RECIPE, CLASSES, device="cpu", views=sizes)
    assert len(list(look(photos() * 4))) == 20
    ahead = 4 + 1  # as `Predictor` reads ahead, and the one that is asked for
    assert most <= 3 + ahead + 1


def test_predict_and_evaluate_see_the_same_in_several_views():
    """Scores and boxes of the one are those of the other, image by image; each look is counted."""
    views, data = parse("scales", RECIPE.test_size), tiny_data(4, "val")
    done = evaluate(tiny(), RECIPE, data, batch=3, workers=0, device="cpu", progress=False, views=views)
    assert (done.views, done.to_json()["views"]) == (6, 6)
    look = Predictor(tiny(), RECIPE, CLASSES, device="cpu", views=views)
    for sample in data.samples:
        theirs = [row for row in done.detections if row["image_id"] == sample.id]
        ours = look.one(sample.image()).to_coco(sample.id, category_ids=data.category_ids)
        assert len(ours) == len(theirs) > 0
        np.testing.assert_allclose([r["score"] for r in ours], [r["score"] for r in theirs], atol=1e-6)
        best = next(i for i, row in enumerate(ours) if row["category_id"] == theirs[0]["category_id"])
        np.testing.assert_allclose(ours[best]["bbox"], theirs[0]["bbox"], atol=1e-2)


def test_a_broken_image_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """One line in the log and one in the list, however many views ask for it."""
    data, broken = tiny_data(4, "val"), tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    samples = [*data.samples, Sample(id=99, path=broken, height=64, width=64)]
    done = evaluate(
        tiny(),
        RECIPE,
        replace(data, samples=samples),
        workers=0,
        device="cpu",
        progress=False,
        views=parse("scales", RECIPE.test_size),
    )
    assert len(done.broken) == 1
    assert len([line for line in caplog.messages if "broken.png" in line]) == 1
    assert {row["image_id"] for row in done.detections} == {sample.id for sample in data.samples}


def test_load_understands_the_words(tmp_path: Path):
    """`relook.load(..., views="flip")` follows the recipe of the weights."""
    torch.manual_seed(0)
    model = by_name("reppoints_nano").with_classes(CLASSES)
    file = tmp_path / "mine.safetensors"
    save_weights(file, model.entry.detector.build().state_dict(), model.describe())
    size = model.entry.recipe.test_size
    assert relook.load(file, device="cpu").views == recipe_view(size)
    assert relook.load(file, device="cpu", views="flip").views == parse("flip", size)
    assert relook.load(file, device="cpu", views=parse("64", size)).views == parse("64", size)


def test_votes_refuse_scores_that_decay_in_each_view() -> None:
    """RefineDet's for COCO: one sentence with what to add."""
    entry = relook.entry("refinedet_nano")
    detector = replace(entry.detector, soft_nms=True).build()
    views = parse("100%+flip,soft_vote", entry.recipe.test_size)
    with pytest.raises(ValueError, match=r"merged by soft_vote.*--set detector\.soft_nms=false"):
        Engine(detector, entry.recipe, device="cpu", views=views)
