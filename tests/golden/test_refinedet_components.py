"""Parts of RefineDet equal the published functions: priors, coding, matching, losses, suppression, metric."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from golden import recipe
from published import Case, difference
from relook.assign.best_prior import best_prior
from relook.data.sample import Sample, Source
from relook.data.transforms.picture import Picture
from relook.data.transforms.ssd import cut_out, placed, recoloured
from relook.data.transforms.steps import flip, resize
from relook.detectors.refinedet import EXTRA, RefineDet, RefineDetConfig, RefineDetOutputs, moved, sampled
from relook.metrics.metric import Rows
from relook.metrics.voc import Voc, Voc07, precision_curves
from relook.ops import levels as L
from relook.ops.box_coder import encode
from relook.ops.deform_conv import deform_conv2d
from relook.ops.nms import Kept
from relook.ops.suppression.per_class import per_class_nms
from relook.ops.suppression.soft import soft_nms
from relook.recipe import Recipe, Stretch
from relook.training.optim import learning_rate, plan
from relook.types import ImageDetections, Targets
from relook.views import PRESETS, merge, parse
from relook.zoo.catalog import ENTRIES

CASE = Case("refinedet", "components")
TOLERANCE = 1e-6

pytestmark = pytest.mark.golden


def corners(centers: Tensor) -> Tensor:
    """Centre and size -> corners."""
    half = centers[..., 2:] / 2
    return torch.cat([centers[..., :2] - half, centers[..., :2] + half], -1)


def centers(boxes: Tensor) -> Tensor:
    """Corners -> centre and size."""
    return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)


def small(**settings) -> RefineDet:
    """A detector of which only settings and functions are used."""
    with torch.device("meta"):
        return RefineDetConfig(**settings).build()


@pytest.mark.parametrize(("name", "step"), [("320", 41), ("512", 101), ("1024", 401), ("384x512", 23)])
def test_rd_03_priors(name: str, step: int) -> None:
    """Centre and size are clamped, each by itself."""
    height, width = (int(side) for side in (name.split("x") * 2)[:2])
    strides = (8, 16, 32, 64, 128)[: 5 if name == "1024" else 4]
    maps = [torch.zeros(1, 1, height // s, width // s, dtype=torch.float64) for s in strides]
    boxes = small().anchors(L.grid(maps, strides, offset=0.5), (width, height))
    mine = centers(boxes) / torch.tensor([width, height] * 2)
    assert difference(mine[::step], CASE.tensor(f"priors/{name}/rows")) < TOLERANCE
    assert difference(mine.sum(0), CASE.tensor(f"priors/{name}/sum")) < TOLERANCE


def test_rd_01_where_the_second_look_reads() -> None:
    """Points, offsets, and what a deformable convolution reads there."""
    given = CASE.tensor("align/arm_loc")
    offsets = small().offsets(given).unflatten(1, (3, 18))
    assert difference(offsets, CASE.tensor("align/offsets")) < TOLERANCE
    deltas = given.unflatten(1, (3, 4)).movedim(2, -1)
    sides = 4 * torch.tensor([[1, 1], [2**0.5, 0.5**0.5], [0.5**0.5, 2**0.5]])[:, None, None].double()
    points = sampled(deltas, sides).flip(-1).flatten(-2).movedim(-1, 2)
    assert difference(points, CASE.tensor("align/points")) < TOLERANCE
    x, weight = CASE.tensor("align/feature"), CASE.tensor("align/weight")
    read = [deform_conv2d(x, one, weight, padding=1) for one in offsets.unbind(1)]
    assert difference(torch.stack(read, 1), CASE.tensor("align/output")) < TOLERANCE


def test_rd_04_boxes_are_coded_with_a_little_more() -> None:
    """Decoded once and twice, and encoded."""
    priors, loc = corners(CASE.tensor("code/priors")), CASE.tensor("code/loc")
    once = moved(priors, loc)
    assert difference(once, CASE.tensor("code/decode")) < TOLERANCE
    assert difference(moved(once, loc.flip(0)), CASE.tensor("code/decode_twice")) < TOLERANCE
    coded = encode(priors, CASE.tensor("code/gt"), center_std=0.1, size_std=0.2, extra=EXTRA)
    assert difference(coded, CASE.tensor("code/encode")) < TOLERANCE


@pytest.mark.parametrize("kind", ["prior", "arm"])
def test_rd_05_matching(kind: str) -> None:
    """Of two objects with one best prior the later keeps it."""
    boxes = corners(CASE.tensor("match/priors"))
    if kind == "arm":
        boxes = moved(boxes, CASE.tensor("match/arm_loc"))
    labels = CASE.tensor("match/labels").long() - 1
    targets = Targets.pad([CASE.tensor("match/gt")], [labels], [(320, 320)])
    assigned = best_prior(boxes[None] * 320, scaled(targets, 320), positive=0.5)
    rows = assigned.positive[0].nonzero()[:, 0]
    assert rows.tolist() == CASE.tensor(f"match/{kind}/pos").tolist()
    found = assigned.labels(targets)[0, rows] + 1
    assert found.tolist() == CASE.tensor(f"match/{kind}/label").tolist()
    wanted = encode(boxes, assigned.boxes(targets)[0], center_std=0.1, size_std=0.2, extra=EXTRA)[rows]
    assert difference(wanted, CASE.tensor(f"match/{kind}/target")) < TOLERANCE


def scaled(targets: Targets, side: float) -> Targets:
    """Boxes in pixels of a square image."""
    return Targets(
        boxes=targets.boxes * side, labels=targets.labels, valid=targets.valid, sizes=targets.sizes
    )


def stored_outputs(*, refine: bool = True, believed: bool = True) -> RefineDetOutputs:
    """Of two images; every input of a loss has a gradient."""
    first_logits, first_deltas, logits, deltas = (
        CASE.tensor(f"loss/{name}").requires_grad_()
        for name in ("arm_conf", "arm_loc", "odm_conf", "odm_loc")
    )
    if not believed:
        first_logits = first_logits.detach() + torch.tensor([50.0, -50.0])
    grid = L.grid([torch.zeros(1, 1, 5, 5)], [64], offset=0.5)
    boxes = corners(CASE.tensor("loss/priors")) * 320
    return RefineDetOutputs(
        grid, boxes, *((first_logits, first_deltas) if refine else (None, None)), logits, deltas
    )


def stored_targets() -> Targets:
    """Of both images, in pixels."""
    objects = [CASE.tensor(f"loss/gt/{i}") for i in (0, 1)]
    boxes, labels = [one[:, :4] * 320 for one in objects], [one[:, 4].long() - 1 for one in objects]
    return Targets.pad(boxes, labels, [(320, 320)] * 2)


def test_rd_06_losses_and_their_gradients() -> None:
    """All four, each input's gradient; what the first look does not believe in is no positive."""
    out = stored_outputs()
    losses = small(num_classes=5).loss(out, stored_targets())
    assert set(losses) == {"arm_loc", "arm_conf", "odm_loc", "odm_conf"}
    for name, value in losses.items():
        assert difference(value, CASE.tensor(f"loss/value/{name}")) < TOLERANCE
    torch.stack(list(losses.values())).sum().backward()
    for name, one in (
        ("arm_loc", out.first_deltas),
        ("arm_conf", out.first_logits),
        ("odm_loc", out.deltas),
        ("odm_conf", out.logits),
    ):
        assert difference(one.grad, CASE.tensor(f"loss/grad/{name}")) < TOLERANCE


def test_rd_07_without_positives_a_look_costs_nothing() -> None:
    """Nothing is believed in: no positive in the batch."""
    losses = small(num_classes=5).loss(stored_outputs(believed=False), stored_targets())
    mine = torch.stack([losses["odm_loc"], losses["odm_conf"]])
    assert difference(mine, CASE.tensor("loss/all_dropped")) < TOLERANCE


def test_without_refinement_priors_are_classified() -> None:
    detector = small(num_classes=5, align=False, refine=False)
    losses = detector.loss(stored_outputs(refine=False), stored_targets())
    assert set(losses) == {"odm_loc", "odm_conf"}
    assert difference(torch.stack(list(losses.values())), CASE.tensor("loss/worefine")) < TOLERANCE


def suppressed(boxes: Tensor, *, iou: float, top: int, plus_one: bool) -> Kept:
    scores = CASE.tensor("nms/dets")[:, 4]
    return per_class_nms(
        boxes[None], scores[None, :, None], score=0.0, iou=iou, top=top, keep=500, plus_one=plus_one
    )


def test_rd_08_hard_suppression() -> None:
    """In pixels with the last one counted, and without, of all and of the best fifty."""
    boxes = CASE.tensor("nms/dets")[:, :4]
    for name, kept in {
        "hard_049_plus1": suppressed(boxes, iou=0.49, top=1000, plus_one=True),
        "hard_045_normalised": suppressed(boxes / 300, iou=0.45, top=1000, plus_one=False),
        "hard_045_normalised_top50": suppressed(boxes / 300, iou=0.45, top=50, plus_one=False),
    }.items():
        assert kept.row[0].tolist() == CASE.tensor(f"nms/{name}").tolist()


def test_rd_09_soft_suppression() -> None:
    """Boxes in the order in which they are taken, with their weakened scores."""
    rows = CASE.tensor("nms/dets")
    order = rows[:, 4].argsort(descending=True, stable=True)[None]
    every = Kept(
        order,
        torch.zeros_like(order),
        rows[order[0], 4][None],
        torch.tensor([len(rows)]),
        torch.tensor([False]),
    )
    kept = soft_nms(rows[None, :, :4], every, iou=0.3, least=0.01, plus_one=True)
    mine = torch.cat([rows[kept.row[0], :4], kept.score[0, :, None]], 1)
    assert difference(mine, CASE.tensor("nms/soft")) < TOLERANCE


def voc_source(classes: int) -> Source:
    """The stored objects; boxes are as readers make them of VOC's files."""
    rows = CASE.arrays["voc/gt"].astype(np.float64)
    samples = []
    for image in range(1 + int(max(rows[:, 0].max(), CASE.arrays["voc/dets"][:, 0].max()))):
        mine = rows[rows[:, 0] == image]
        boxes = mine[:, 2:6] - np.array([1, 1, 0, 0])
        samples.append(
            Sample(
                id=image + 5,
                path=Path(f"{image}.jpg"),
                height=500,
                width=500,
                boxes=boxes,
                labels=mine[:, 1].astype(np.int64),
                crowd=mine[:, 6] == 1,
                ignore=np.zeros(len(mine), np.bool_),
                area=(boxes[:, 2:] - boxes[:, :2]).prod(1),
            )
        )
    names = tuple(f"class {i}" for i in range(classes))
    return Source(name="voc", samples=samples, classes=names, category_ids=tuple(range(classes)), file=None)


def voc_rows() -> Rows:
    """The stored detections, whose right and lower corners name pixels; here they are edges."""
    rows = torch.from_numpy(CASE.arrays["voc/dets"]).double()
    parts = []
    for image in rows[:, 0].unique().long().tolist():
        mine = rows[rows[:, 0] == image]
        boxes = mine[:, 2:6] + torch.tensor([0, 0, 1, 1])
        parts.append(Rows.of(image + 5, ImageDetections(boxes, mine[:, 6], mine[:, 1].long())))
    return Rows.join(parts)


def test_rd_15_the_metric_of_voc() -> None:
    """Curves, both averages of each class, and the mean in which classes that say nothing count -1."""
    source, rows = voc_source(3), voc_rows()
    curves = precision_curves(source, rows)
    for i, curve in enumerate(curves):
        assert np.allclose(curve.recall, CASE.arrays[f"voc/{i}/recall"], rtol=0, atol=1e-6)
        assert np.allclose(curve.precision, CASE.arrays[f"voc/{i}/precision"], rtol=0, atol=1e-6)
        mine = [Voc07().average(curve), Voc().average(curve)]
        assert np.allclose(mine, CASE.arrays[f"voc/{i}/ap"], rtol=0, atol=1e-6)
    report = Voc07().report(source, rows)
    assert report.value == pytest.approx(np.mean([Voc07().average(one) for one in curves]))


def test_rd_15_a_class_without_detections() -> None:
    """Nothing in the authors' code is 0: such a class counts -1 there, and 0 here unless asked."""
    source = voc_source(3)
    rows = voc_rows()
    first = rows.label == 0
    some = Rows(rows.image[first], rows.label[first], rows.score[first], rows.box[first])
    theirs, ours = (Voc07(silent=silent).report(source, some) for silent in (-1.0, 0.0))
    assert theirs.per_class["class 1"] == float(CASE.arrays["voc/no_detection_ap"])
    assert ours.per_class["class 1"] == 0
    assert theirs.value == pytest.approx(ours.value - 2 / 3)


@pytest.mark.parametrize(("data", "steps"), [("voc", 518), ("coco", 100)])
def test_learning_rates(data: str, steps: int) -> None:
    """Warm-up over ten epochs, and drops."""
    recipe: Recipe = ENTRIES[f"refinedetpp_512_vgg_{data}"].recipe
    lr, _ = learning_rate(recipe, 32)
    rate = plan(recipe.schedule, steps, lr=lr)
    mine = [lr * rate.factor(int(step)) for step in CASE.arrays[f"lr/{data}/iteration"]]
    assert np.allclose(mine, CASE.arrays[f"lr/{data}/value"], rtol=1e-6, atol=0)


def voted(kind: str, rows: Tensor) -> Tensor:
    """What becomes of a list of one class [n, 5], in pixels of the file."""
    parts = [
        ImageDetections(one[:, :4], one[:, 4], torch.zeros(len(one), dtype=torch.int64))
        for one in (rows, rows[:0])
    ]
    merged = merge(parts, parse(f"8,9,{kind}", Stretch()))
    return torch.cat([merged.boxes, merged.scores[:, None]], 1)


def test_rd_10_voting() -> None:
    """Boxes of one class become means, hard and soft; one alone stays as it is."""
    rows = CASE.tensor("nms/dets")
    stored = CASE.tensor("nms/vote")
    stored = stored[stored[:, 4].argsort(descending=True, stable=True)]
    assert difference(voted("hard_vote", rows), stored) < TOLERANCE
    assert difference(voted("soft_vote", rows), CASE.tensor("nms/soft_vote")) < TOLERANCE
    assert difference(voted("hard_vote", rows[:1]), CASE.tensor("nms/vote_single")) < TOLERANCE


@pytest.mark.parametrize(
    ("data", "height", "width", "preset"),
    [("voc", 240, 320, "refinedet_voc"), ("coco", 300, 280, "refinedet_coco")],
)
def test_rd_10_several_scales(data: str, height: int, width: int, preset: str) -> None:
    """The sizes of all passes, which boxes of each are believed, mirroring, and the vote of each class."""
    rule = Stretch(height=512, width=512)
    views = parse(PRESETS[preset], rule)
    sizes = [view.resize(rule, (height, width)) for view in views.views]
    ratio = (384, 512) if height < width else (512, 384)
    square = [512, None, 256, 384, 896, 768, *([640, 1024, 1152] if data == "coco" else [])]
    wanted = [ratio if side is None else (side, side) for side in square for _ in range(2)]
    assert [(size.height, size.width) for size in sizes] == wanted
    assert [view.mirrored for view in views.views] == [False, True] * len(square)
    parts = []
    for number, view in enumerate(views.views):
        rows = CASE.tensor(f"merge/{data}/pass/{number:02d}")
        boxes = rows[:, :4]
        if view.mirrored:  # the stored ones are on the mirrored image
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        found = ImageDetections(boxes, rows[:, 4], rows[:, 5].long())
        parts.append(found.pick(view.believes(boxes, boxes)))
    merged = merge(parts, views)
    for label in (1, 2, 3):
        mine = torch.cat([merged.boxes, merged.scores[:, None]], 1)[merged.labels == label]
        stored = CASE.tensor(f"merge/{data}/out/{label}")
        stored = stored[stored[:, 4].argsort(descending=True, stable=True)]
        assert difference(mine, stored) < TOLERANCE


# -- augmentation: images are stored as blue, green, red -----------------------------------------

GREY = 1e-3  # levels of 255: the published colours and sizes are computed in float32


def start() -> Picture:
    image = torch.from_numpy(np.ascontiguousarray(recipe.image(41, 48, 64)))
    pixels = (image if image.shape[0] == 3 else image.permute(2, 0, 1)).float()
    boxes, labels = CASE.tensor("aug/boxes"), CASE.tensor("aug/labels").long()
    return Picture(image=pixels, boxes=boxes, labels=labels)


def assert_equal(mine: Picture, name: str) -> None:
    stored = CASE.tensor(f"aug/{name}/image").permute(2, 0, 1).flip(0)
    assert mine.image.shape == stored.shape
    assert float((mine.image.double() - stored).abs().max()) < GREY
    assert torch.allclose(mine.boxes.double(), CASE.tensor(f"aug/{name}/boxes"), rtol=0, atol=1e-5)
    assert mine.labels.tolist() == CASE.tensor(f"aug/{name}/labels").long().tolist()


FILL = (123.0, 117.0, 104.0)


def test_expand() -> None:
    assert_equal(placed(start(), 2.3, 17.6, 40.2, FILL), "expand")


def test_rd_14_the_least_overlap_of_a_crop_rejects_nothing() -> None:
    w, h, left, top = 40.7, 33.2, 12.9, 8.4
    cut = cut_out(start(), (int(left), int(top), int(left + w), int(top + h)))
    assert_equal(cut, "crop")
    assert_equal(cut, "crop_min_iou")


def test_mirror() -> None:
    assert_equal(flip(start()), "mirror")


def test_colours() -> None:
    """Contrast before saturation and hue, and after them; channels change places at last."""
    image = start().image
    first = recoloured((image + 12.5) * 0.8, saturation=1.3, hue=-9.25).flip(0)[[1, 2, 0]]
    last = (recoloured(image - 20.25, saturation=0.6, hue=15.5) * 1.4).flip(0)[[2, 1, 0]]
    for mine, name in ((first, "first"), (last, "last")):
        stored = CASE.tensor(f"aug/photo_contrast_{name}/image").permute(2, 0, 1)
        assert float((mine.double() - stored).abs().max()) < GREY


def test_the_whole_chain() -> None:
    """Colours, canvas, part, mirror, resize; only then the mean is taken off."""
    now = start()
    coloured = Picture(
        image=recoloured(now.image + 6, saturation=1.0, hue=5.0), boxes=now.boxes, labels=now.labels
    )
    wide = placed(coloured, 1.6, 10.2, 7.9, FILL)
    w, h, left, top = 60.3, 50.7, 6.2, 8.9
    cut = cut_out(wide, (int(left), int(top), int(left + w), int(top + h)))
    small = resize(flip(cut), Stretch(height=96, width=96))
    mine = small.image - torch.tensor(FILL)[:, None, None]
    stored = CASE.tensor("aug/whole/image").permute(2, 0, 1).flip(0)
    assert float((mine.double() - stored).abs().max()) < GREY
    boxes = CASE.tensor("aug/whole/boxes") * 96
    assert torch.allclose(small.boxes.double(), boxes, rtol=0, atol=1e-4)
    assert small.labels.tolist() == CASE.tensor("aug/whole/labels").long().tolist()
