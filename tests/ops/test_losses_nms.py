"""Losses and suppression against slow twins."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import twins
from relook.ops import nms
from relook.ops.losses import focal, giou_plus_one, smooth_l1
from relook.ops.nms import FIRST, class_nms, class_pairs, grouped_nms
from relook.ops.suppression.per_class import per_class_nms, together
from strategies import box_lists


@settings(deadline=None, max_examples=60)
@given(box_lists(least=2, most=2, sorted_corners=False))
def test_giou_is_the_twin(boxes: Tensor) -> None:
    """With +1 on every extent, also for inverted boxes."""
    a, b = boxes / 64
    expected = twins.giou_plus_one(a.tolist(), b.tolist())
    assert giou_plus_one(a, b).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.floats(-9, 9), st.booleans())
def test_focal_is_its_formula(logit: float, hit: bool) -> None:
    """-alpha_t (1 - p_t)^2 log p_t."""
    p = 1 / (1 + math.exp(-logit))
    expected = -0.25 * (1 - p) ** 2 * math.log(p) if hit else -0.75 * p**2 * math.log(1 - p)
    mine = focal(torch.tensor(logit, dtype=torch.float64), torch.tensor(float(hit), dtype=torch.float64))
    assert mine.item() == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_smooth_l1_is_continuous_at_its_knee() -> None:
    """Quadratic below beta, linear above, equal in value and slope where they meet."""
    e = torch.tensor([-1.0, -0.11, 0.0, 0.05, 0.11, 0.5], dtype=torch.float64)
    expected = [1 - 0.055, 0.055, 0, 0.5 * 0.05**2 / 0.11, 0.055, 0.5 - 0.055]
    assert smooth_l1(e, beta=0.11).tolist() == pytest.approx(expected)


@settings(deadline=None, max_examples=60)
@given(box_lists(least=1, most=8, sorted_corners=False), st.data())
def test_class_nms_is_the_twin(boxes: Tensor, data: st.DataObject) -> None:
    """The survivors in the twin's order; inverted boxes neither suppress nor are suppressed."""
    places = data.draw(st.permutations(range(2 * len(boxes))))
    scores = (torch.tensor(places, dtype=torch.float64) / (2 * len(boxes))).reshape(-1, 2)
    keep = data.draw(st.integers(1, 6))
    kept = class_nms(boxes[None], class_pairs(scores[None]), score=0.1, iou=0.5, keep=keep)
    expected = twins.class_nms(boxes.tolist(), scores.tolist(), 0.1, 0.5, keep)
    count = int(kept.count)
    found = list(zip(kept.row[0, :count].tolist(), kept.label[0, :count].tolist(), strict=True))
    assert found == expected
    assert (kept.score[0, count:] == 0).all()


def test_nms_is_exact_however_many_candidates_there_are() -> None:
    """The first thousand candidates are one heap and one survivor; the rest of the answer lies far below."""
    random = torch.Generator().manual_seed(0)
    heap = torch.tensor([[10.0, 10, 50, 50]]) + torch.rand(3 * FIRST, 4, generator=random)
    apart = torch.stack([torch.tensor([100.0 * i, 300, 100.0 * i + 50, 350]) for i in range(30)])
    boxes = torch.cat([heap, apart]).double()[None]
    scores = torch.linspace(0.9, 0.1, boxes.shape[1], dtype=torch.float64)[None, :, None]
    kept = class_nms(boxes, class_pairs(scores), score=0.05, iou=0.5, keep=20)
    assert kept.row[0].tolist() == [0, *range(3 * FIRST, 3 * FIRST + 19)]


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_nms_without_images_boxes_or_classes(shape: tuple[int, int, int]) -> None:
    """Nothing in, nothing out, for each image."""
    images, boxes, _ = shape
    kept = class_nms(
        torch.zeros(images, boxes, 4), class_pairs(torch.zeros(shape)), score=0.1, iou=0.5, keep=3
    )
    assert kept.count.tolist() == [0] * images


def test_nms_of_nothing() -> None:
    """No pair above the threshold: no detection, and the shape stays."""
    kept = class_nms(torch.rand(2, 5, 4), class_pairs(torch.zeros(2, 5, 3)), score=0.05, iou=0.5, keep=4)
    assert kept.count.tolist() == [0, 0]
    assert kept.score.shape == (2, 4)


@settings(deadline=None, max_examples=60)
@given(box_lists(least=1, most=8, sorted_corners=True), st.data())
def test_per_class_nms_is_the_twin(boxes: Tensor, data: st.DataObject) -> None:
    """Two images, three classes: caps for each class before and after, +1 sides, best first."""
    images: list[Tensor] = []
    for _ in range(2):
        places = data.draw(st.permutations(range(3 * len(boxes))))
        images.append((torch.tensor(places, dtype=torch.float64) / (3 * len(boxes))).reshape(-1, 3))
    top, keep = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    plus = data.draw(st.booleans())
    kept = per_class_nms(
        boxes.expand(2, -1, -1), torch.stack(images), score=0.2, iou=0.5, top=top, keep=keep, plus_one=plus
    )
    for i, scores in enumerate(images):
        expected = twins.per_class_nms(boxes.tolist(), scores.tolist(), 0.2, 0.5, top, keep, float(plus))
        n = int(kept.count[i])
        columns = (kept.score[i, :n].tolist(), kept.label[i, :n].tolist(), kept.row[i, :n].tolist())
        assert list(zip(*columns, strict=True)) == expected
        assert (kept.score[i, n:] == 0).all()
    assert kept.score.shape[1] == int(kept.count.max())


def test_per_class_nms_of_nothing() -> None:
    """Nothing above the threshold: no column at all."""
    kept = per_class_nms(torch.rand(2, 5, 4), torch.zeros(2, 5, 3), score=0.01, iou=0.5, top=9, keep=9)
    assert (kept.score.shape, kept.count.tolist()) == ((2, 0), [0, 0])


def test_one_call_for_all_groups_is_the_loop_over_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a batch is suppressed in one call, which waits once: the same survivors as image by image."""
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(3, 400, 2, generator=random) * 900
    boxes = torch.cat([corner, corner + 20 + torch.rand(3, 400, 2, generator=random) * 120], -1)
    scores = torch.rand(3, 400, generator=random)
    group = torch.arange(3).repeat_interleave(400)
    one_by_one = nms._survivors(boxes, scores, 0.5)
    calls: list[int] = []
    real = nms.torchvision.ops.nms

    def counted(*given: Tensor) -> Tensor:
        calls.append(len(given[0]))
        return real(*given)

    monkeypatch.setattr(nms.torchvision.ops, "nms", counted)
    together = grouped_nms(boxes.flatten(0, 1), scores.flatten(), group, 0.5).reshape(3, -1)
    assert calls == [1200]
    assert torch.equal(together, one_by_one)
    assert 0 < int(together.sum()) < 1200


def test_a_graph_that_leaves_candidates_out_says_so() -> None:
    """Compiled graphs take the best 5000 candidates: `truncated` tells where more could change the answer."""
    heap = torch.tensor([[10.0, 10, 50, 50]]).repeat(nms.COMPILED + 10, 1)
    apart = torch.stack([torch.tensor([100.0 * i, 300, 100.0 * i + 50, 350]) for i in range(30)])
    boxes = torch.cat([heap, apart])[None].repeat(2, 1, 1)
    scores = torch.linspace(0.9, 0.1, boxes.shape[1])[None, :, None].repeat(2, 1, 1)
    scores[1, 40:] = 0  # few candidates: nothing is left out

    class Suppression(torch.nn.Module):
        def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
            kept = class_nms(boxes, class_pairs(scores), score=0.05, iou=0.5, keep=20)
            return kept.count, kept.truncated

    count, truncated = torch.export.export(Suppression(), (boxes, scores)).module()(boxes, scores)
    assert (count.tolist(), truncated.tolist()) == ([1, 1], [True, False])
    count, truncated = Suppression()(boxes, scores)
    assert (count.tolist(), truncated.tolist()) == ([20, 1], [False, False])


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 60))
def test_groups_go_together_as_far_as_memory_allows(sizes: list[int], most: int) -> None:
    """Sums of neighbours, none larger than allowed but of a group that alone is; no group is lost or cut."""
    sums = together(sizes, most)
    assert sum(sums) == sum(sizes)
    ends = {sum(sizes[: i + 1]) for i in range(len(sizes))}
    assert {sum(sums[: i + 1]) for i in range(len(sums))} <= ends
    assert all(one <= most or one in sizes for one in sums)
