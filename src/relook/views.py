"""Looks at an image at several sizes and mirrored, and makes one answer of what each of these views shows."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import torch
from torch import Tensor
from torchvision.ops import nms

from relook.data.transforms.sizes import only_short
from relook.ops.boxes import area, pairwise_iou, size
from relook.recipe import KeepRatio, Size, Stretch
from relook.types import ImageDetections

Merge = Literal["vote", "nms", "hard_vote", "soft_vote"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How boxes of a class become one, as published."""

    iou: float  # two boxes that overlap by this are one object
    faint: float | None = None  # what a vote has weakened below this is gone; None: all that was merged
    plus_one: bool = False  # sides count the last pixel
    keep: int = 1000  # objects an image after merging


RULES: dict[Merge, Rule] = {
    "vote": Rule(iou=0.66, faint=0.05),
    "nms": Rule(iou=0.6),
    "hard_vote": Rule(iou=0.45, plus_one=True, keep=1_000_000),
    "soft_vote": Rule(iou=0.45, plus_one=True, keep=1_000_000, faint=0.01),
}

_REFINEDET = "100%+flip,75%/100%+flip,50%+flip,75%+flip,175%:<128+flip,150%:<192+flip"
PRESETS = {  # in the words of `parse`, whose doc explains them
    "flip": "100%+flip,nms",
    "scales": "75%+flip,100%+flip,125%+flip,vote",
    "authors": "400x667:96-+flip,500x833:96-+flip,600x1000:64-+flip,640x1067:64-+flip,700x1167:64-+flip,"
    "800x1333+flip,900x1500+flip,1000x1667+flip,1100x1833:0-256+flip,1200x2000:0-256+flip,"
    "1300x2167:0-192+flip,1400x2333:0-192+flip,1800x3000:0-96+flip,vote",
    # of RefineDet++'s authors, for VOC and for COCO (docs/quirks.md, rd-10)
    "refinedet_voc": f"{_REFINEDET},hard_vote",
    "refinedet_coco": f"{_REFINEDET},125%:<224+flip,200%:<96+flip,225%:<64+flip,soft_vote",
}

_PIECE = re.compile(
    r"(?P<short>\d+)(?:(?P<percent>%)(?:/(?P<other>\d+)%)?|x(?P<long>\d+))?"
    r"(?::(?P<smallest>\d*)-(?P<largest>\d*)|:<(?P<below>\d+))?(?P<flip>\+flip)?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One way to look at an image, and which of the boxes found so are believed.

    Raises:
        ValueError: when a size or range cannot be.
    """

    short: int  # pixels of the network's input: the shorter side becomes this ...
    long: int  # ... unless the longer would pass this; where images are stretched: height and width
    mirrored: bool = False
    smallest: float = (
        0.0  # square root of a box's area, in pixels of the network's input; the ends belong to it
    )
    largest: float = math.inf
    below: float = math.inf  # the shorter side of a box, in pixels of the file and the last one counted
    turned: bool = False  # where images are stretched: `short` is the side that is shorter in the file

    def __post_init__(self) -> None:
        if min(self.short, self.long) < 1:
            raise ValueError(
                f"a view's sides cannot be {self.short} and {self.long} pixels; each has at least 1"
            )
        if not 0 <= self.smallest <= self.largest:
            raise ValueError(
                f"a view's boxes cannot be from {self.smallest:g} to {self.largest:g} pixels large; "
                "write the smaller number first, such as 96-256"
            )

    def resize(self, rule: Size, image: tuple[int, int] = (0, 1)) -> Size:
        """The rule with this view's sizes, for an image of that (height, width), which only some ask."""
        if isinstance(rule, Stretch):
            upright = self.turned and image[0] >= image[1]
            sides = (self.long, self.short) if upright else (self.short, self.long)
            return replace(rule, height=sides[0], width=sides[1])
        return replace(rule, short=(self.short,), long=self.long)

    def believes(self, boxes: Tensor, originals: Tensor) -> Tensor:
        """Which boxes [N] bool; all of them where no range is given.

        Args:
            boxes: [N, 4] in pixels of the network's input.
            originals: the same in pixels of the file.
        """
        believed = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
        if self.below < math.inf:
            believed &= size(originals).amin(1) + 1 < self.below
        if (self.smallest, self.largest) != (0, math.inf):  # otherwise inverted boxes too, as without views
            extent = area(boxes.double())
            believed &= (extent >= self.smallest**2) & (extent <= self.largest**2)
        return believed


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Several views of each image, and how their answers become one.

    vote: of each class the best box and all that overlap it by `iou` or more become one box, their mean
        weighted by score; then the same with the rest. Those that were merged stay too, with their score
        times (1 - overlap), if that leaves them 0.05.
    nms: of each class the best box stays and those that overlap it by more than `iou` go.
    hard_vote: as vote, at another overlap, but nothing that was merged stays.
    soft_vote: as vote, at another overlap; what was merged stays if that leaves it 0.01.
    """

    views: tuple[View, ...]
    merge: Merge = "vote"
    iou: float = RULES["vote"].iou
    keep: int = RULES["vote"].keep  # the best so many of an image stay

    def __post_init__(self) -> None:
        if not self.views:
            raise ValueError("there is no view; give at least one, such as 800")
        if self.views[0].turned:
            raise ValueError(
                "the first view cannot depend on the image, as 75%/100% does; name another first"
            )

    def __len__(self) -> int:
        return len(self.views)


def recipe_view(size: Size) -> Views:
    """The one view that a recipe itself asks for.

    Raises:
        ValueError: when the rule has several shorter sides.
    """
    short, long = _sides(size)
    return Views(views=(View(short=short, long=long),))


def _sides(size: Size) -> tuple[int, int]:
    """The two sides of a `View` that is the rule's own."""
    if isinstance(size, KeepRatio):
        return only_short(size), size.long
    return size.height, size.width


# -- what people write ---------------------------------------------------------------------------------


def parse(text: str, size: Size) -> Views:
    """Views from a preset or a list: "scales", "600,800+flip", "400:96-,800,1800x3000:0-96+flip,nms".

    A list has commas between its pieces, which are, in any order:
        800           the shorter side in pixels; the longer may become what `size` has in proportion; where
                      images are stretched: the height, and the width in proportion
        800x1333      both
        75%           both sides of `size`, smaller
        75%/100%      where images are stretched: the side that is shorter in the file, and the other
        ...:96-       only boxes that are at least 96 pixels large, as the network sees them; :-96, :32-96
        ...:<128      only boxes whose shorter side is below 128 pixels in the file
        ...+flip      the same view once more, mirrored
        scales        what a preset (`PRESETS`) is short for
        vote, nms     how views are merged, also hard_vote and soft_vote; the last one counts, and it is vote
                      without any

    Args:
        text: such a list.
        size: the recipe's `test_size`.

    Raises:
        ValueError: when a piece is none of these.
    """
    pieces: list[str] = []
    for piece in text.replace(" ", "").split(","):
        pieces += PRESETS[piece].split(",") if piece in PRESETS else [piece]
    merge: Merge = "vote"
    views: list[View] = []
    for piece in pieces:
        if piece in get_args(Merge):
            merge = cast("Merge", piece)
        else:
            views += _views(piece, size)
    if not views:
        raise ValueError(f"views {text!r} name no size; {_grammar()}")
    rule = RULES[merge]
    return Views(views=tuple(dict.fromkeys(views)), merge=merge, iou=rule.iou, keep=rule.keep)


def _views(piece: str, size: Size) -> list[View]:
    """One size of a list: a view, or two."""
    found = _PIECE.fullmatch(piece)
    if found is None:
        raise ValueError(f"{piece!r} is no view; {_grammar()}")
    (full, limit), number = _sides(size), int(found["short"])
    short = int(full * number / 100 + 0.5) if found["percent"] else number
    try:
        view = View(
            short=short,
            long=int(found["long"] or limit * int(found["other"] or 100 * short / full) / 100 + 0.5),
            smallest=float(found["smallest"] or 0),
            largest=float(found["largest"] or math.inf),
            below=float(found["below"] or math.inf),
            turned=found["other"] is not None,
        )
    except ValueError as error:
        raise ValueError(f"{piece!r}: {error}") from None
    return [view, replace(view, mirrored=True)] if found["flip"] else [view]


def _grammar() -> str:
    return (
        f"write {', '.join(PRESETS)} or a list such as 600,800+flip or 400:96-,1800x3000:0-96,nms "
        "(SHORT, SHORTxLONG or PERCENT%, then :SMALLEST-LARGEST or :<SIDE and +flip as you like; last vote, "
        "nms, hard_vote or soft_vote)"
    )


# -- from views to one answer --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How a point of a view's network input becomes one of the original image."""

    width: int  # of the network's input, without padding
    scale: tuple[float, float]  # (x, y) pixels of the network's input per pixel of the original
    mirrored: bool = False

    def points(self, points: Tensor) -> Tensor:
        """[..., 2] x, y in pixels of the network's input -> float64 in pixels of the original.

        Mirrored back first, then divided by the true ratio of each axis; nothing is clipped.
        """
        x, y = points.double().unbind(-1)
        ratio = torch.tensor(self.scale, dtype=torch.float64)
        return torch.stack([self.width - x if self.mirrored else x, y], -1) / ratio

    def boxes(self, boxes: Tensor) -> Tensor:
        """[N, 4] likewise; left comes first again where the view was mirrored."""
        corners = self.points(boxes.reshape(-1, 2, 2)).flatten(1)
        return corners[:, [2, 1, 0, 3]] if self.mirrored else corners


def to_original(found: ImageDetections, place: Placement) -> ImageDetections:
    """Detections in pixels of a view's network input -> float64, in pixels of the original."""
    masks = found.masks.flip(-1) if place.mirrored and found.masks is not None else found.masks
    return ImageDetections(place.boxes(found.boxes), found.scores.double(), found.labels, masks, found.origin)


def merge(found: Sequence[ImageDetections], views: Views) -> ImageDetections:
    """What several views show of one image, in its own pixels -> one answer, best first.

    Masks and `origin` are those of the box that a merged box grew from. What a single view shows is the
    answer.

    Args:
        found: one for each view; of one type, float64 as from `to_original`.
        views: how they become one.
    """
    if len(found) == 1:
        return found[0]
    every = _join(found)
    every = every.pick(every.scores.argsort(descending=True, stable=True))
    step = _suppress if views.merge == "nms" else _vote
    labels = cast("list[int]", every.labels.unique().tolist())
    classes = [every.pick(every.labels == label) for label in labels]
    merged = _join([every.pick(every.labels[:0]), *(step(one, views) for one in classes)])
    return merged.pick(merged.scores.argsort(descending=True, stable=True)[: views.keep])


def _suppress(found: ImageDetections, views: Views) -> ImageDetections:
    """Greedy suppression within one class."""
    return found.pick(nms(found.boxes, found.scores, views.iou))


def _vote(found: ImageDetections, views: Views) -> ImageDetections:
    """Box voting within one class, best first, in the soft form that the RepPoints V2 authors test with.

    Their `bboxes_vote` (Scalsol/RepPointsV2, mmdet/models/detectors/reppoints_v2_detector.py) is ATSS's
    `soft_bbox_vote` (sfzhang15/ATSS, atss_core/engine/bbox_aug_vote.py) without +1 in the sides. One thing is
    not followed: both lose the only box of a class, which stays here as it is.

    RefineDet++'s authors vote with +1 in the sides, and for VOC nothing but the means stays.
    """
    rule = RULES[views.merge]
    compared = found.boxes + found.boxes.new_tensor([0, 0, 1, 1]) if rule.plus_one else found.boxes
    leader, overlap = _clusters(compared, views.iou)
    weight = torch.zeros_like(found.scores).index_add(0, leader, found.scores)
    total = torch.zeros_like(found.boxes).index_add(0, leader, found.boxes * found.scores.unsqueeze(1))
    leads = leader == torch.arange(len(leader))
    alone = leader.bincount(minlength=len(leader)) == 1  # exact, where x * s / s may not be
    mean = torch.where(alone.unsqueeze(1), found.boxes, total / weight.unsqueeze(1))
    strong = ImageDetections(mean, found.scores, found.labels, found.masks, found.origin).pick(leads)
    if rule.faint is None:
        return strong
    weakened = found.scores * (1 - overlap)  # 0 for leaders
    faint = ImageDetections(found.boxes, weakened, found.labels, found.masks, found.origin)
    return _join([strong, faint.pick(weakened >= rule.faint)])


def _clusters(boxes: Tensor, iou: float) -> tuple[Tensor, Tensor]:
    """Boxes [N, 4], best first -> of each the first of its cluster [N] int64, and its IoU with that one [N].

    The first box takes all that overlap it by `iou` or more, the first of the rest the same, and so on. A box
    leads when none before it both leads and overlaps it. Applied to all boxes at once, over and over, this
    rule is right for one more box each time at least, and nearly always for all after a few times.
    """
    overlap = pairwise_iou(boxes, boxes).fill_diagonal_(1)
    near = (overlap >= iou).triu(1)  # [before, after]
    leads, before = torch.ones(len(boxes), dtype=torch.bool), None
    while before is None or not leads.equal(before):
        leads, before = ~(near & leads.unsqueeze(1)).any(0), leads
    taken = (near & leads.unsqueeze(1)).byte().argmax(0)  # the first of equals
    leader = torch.where(leads, torch.arange(len(boxes)), taken)
    return leader, overlap.gather(0, leader.unsqueeze(0)).squeeze(0)


def _join(parts: Sequence[ImageDetections]) -> ImageDetections:
    masks = [part.masks for part in parts if part.masks is not None]
    origin = [part.origin for part in parts if part.origin is not None]
    return ImageDetections(
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat(masks) if masks else None,
        torch.cat(origin) if origin else None,
    )
