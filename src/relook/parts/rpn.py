"""Region Proposal Network (Faster R-CNN, arXiv:1506.01497, section 3.1): the first look of Mask R-CNN."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relook.assign.assignment import Assignment
from relook.ops import boxes as B
from relook.ops import levels as L
from relook.ops.box_coder import decode, encode
from relook.ops.losses import smooth_l1
from relook.ops.nms import box_nms
from relook.ops.sampling import Budget, balanced_sample
from relook.parts.box_head import Proposals
from relook.parts.point_sets import init_normal
from relook.types import Targets, record, to_float32


class RPNHead(nn.Module):
    """One level: features [B, width, h, w] -> logits [B, A, h, w], deltas [B, A * 4, h, w]."""

    def __init__(self, width: int, anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.cls = nn.Conv2d(width, anchors, 1)
        self.reg = nn.Conv2d(width, anchors * 4, 1)
        init_normal(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.conv(x))
        return self.cls(x), self.reg(x)


@record
class AnchorLook:
    """What the first look says of all N anchors of a batch."""

    anchors: Tensor  # [N, 4] pixels
    logits: Tensor  # [B, N] is anything here?
    deltas: Tensor  # [B, N, 4] dx, dy, dw, dh
    lengths: tuple[int, ...]  # anchors of each level; they sum to N


def rpn_loss(
    look: AnchorLook, assigned: Assignment, targets: Targets, budget: Budget
) -> tuple[Tensor, Tensor]:
    """Binary cross entropy and L1 over anchors drawn by lot, per anchor drawn.

    The divisor counts at least one positive and one negative an image (docs/quirks.md, dp-14).

    Args:
        look: what was said.
        assigned: of the anchors.
        targets: ground truth.
        budget: anchors of an image that are trained on.
    """
    negative = ~(assigned.positive | assigned.ignored)
    drawn = balanced_sample(assigned.positive, negative, budget)
    hit = assigned.positive.gather(1, drawn.index) & drawn.chosen
    miss = drawn.chosen & ~hit
    count = (hit.sum(1).clamp(min=1) + miss.sum(1).clamp(min=1)).sum()
    said = to_float32(look.logits).gather(1, drawn.index)
    error = F.binary_cross_entropy_with_logits(said, hit.to(said.dtype), reduction="none")
    cls = torch.where(drawn.chosen, error, 0).sum() / count
    wanted = L.gather_rows(assigned.boxes(targets), drawn.index)
    change = encode(look.anchors[drawn.index], wanted, center_std=1, size_std=1)
    away = smooth_l1(to_float32(L.gather_rows(look.deltas, drawn.index)) - change, beta=0).sum(-1)
    return cls, torch.where(hit, away, 0).sum() / count


@torch.no_grad()
def rpn_proposals(look: AnchorLook, sizes: Tensor, *, top: int, keep: int, iou: float) -> Proposals:
    """The `top` likeliest anchors of each level, moved, clipped, suppressed level by level; the `keep` best.

    Args:
        look: what was said.
        sizes: [B, 2] (height, width) of the images without padding.
        top: anchors of each level before suppression.
        keep: proposals of an image, of all levels together.
        iou: an anchor goes when it overlaps a better one of its level by more than this.
    """
    scores = to_float32(look.logits).sigmoid()
    rows = L.top_per_level(scores, look.lengths, top)  # [B, K]
    deltas = to_float32(L.gather_rows(look.deltas, rows))
    boxes = B.clip(decode(look.anchors[rows], deltas, center_std=1, size_std=1), sizes)
    counts = [min(top, n) for n in look.lengths]
    level = torch.cat([torch.full((n,), i, device=rows.device) for i, n in enumerate(counts)])
    apart = boxes + (level * (boxes.flatten(1).amax(1, keepdim=True) + 1)).unsqueeze(-1)
    kept = box_nms(apart, scores.gather(1, rows), iou=iou, keep=keep)
    return Proposals(L.gather_rows(boxes, kept.row), kept.score, rows.gather(1, kept.row), kept.truncated)
