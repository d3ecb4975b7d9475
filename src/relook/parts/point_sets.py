"""What RepPoints V1 and V2 share: towers, nine points as channels, the look at them, and their losses."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from relook.assign.assignment import Assignment
from relook.ops import levels as L
from relook.ops.deform_conv import deform_conv2d
from relook.ops.losses import focal, giou_plus_one, smooth_l1
from relook.parts.fpn import FPN
from relook.types import Detections, Look, Targets, to_float32

POINTS = 9  # a 3 x 3 deformable kernel samples nine places
PRIOR = -4.59512  # bias of a logit whose score starts at 0.01


def point_pyramid(channels: Sequence[int], width: int, *, extra: int, groups: int) -> FPN:
    """RepPoints' pyramid: coarse levels from the backbone's last map, and no ReLU (docs/quirks.md, rp-15)."""
    return FPN(channels, width, extra=extra, source="input", norm_groups=groups, relu_before_extra=False)


def tower(width: int, depth: int, groups: int) -> nn.Sequential:
    """3x3 convolutions [B, width, h, w], each with group normalisation (groups 0: a bias) and ReLU."""
    return nn.Sequential(*(conv_norm_relu(width, width, 3, groups) for _ in range(depth)))


def conv_norm_relu(cin: int, cout: int, kernel: int, groups: int) -> nn.Sequential:
    """Convolution that keeps the size, group normalisation (groups 0: a bias instead), ReLU."""
    return conv_norm(cin, cout, kernel, groups).append(nn.ReLU())


def conv_norm(cin: int, cout: int, kernel: int, groups: int) -> nn.Sequential:
    """The same without ReLU."""
    conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=groups == 0)
    return nn.Sequential(conv, *([nn.GroupNorm(groups, cout)] if groups else []))


def plain_kernel() -> Tensor:
    """Where a plain 3 x 3 kernel looks, as [1, 18, 1, 1] of y, x pairs."""
    side = torch.tensor([-1.0, 0.0, 1.0])
    return torch.cartesian_prod(side, side).reshape(1, -1, 1, 1)


def sample_at_points(x: Tensor, where: Tensor, conv: nn.Conv2d) -> Tensor:
    """The convolution at its nine taps, each moved by `where` [B, 18, h, w] (y, x pairs, in cells)."""
    return deform_conv2d(x, where, conv.weight, padding=1)


def point_rows(x: Tensor) -> Tensor:
    """[B, P, 18] of y, x pairs (the deformable convolution's order) -> [B, P, 9, 2] of x, y."""
    return x.reshape(*x.shape[:-1], POINTS, 2).flip(-1)


def point_pixels(grid: L.Grid, points: Tensor, chosen: Tensor) -> Tensor:
    """Offsets [B, P, 9, 2] in strides, rows chosen [B, K] -> where they lie [B, K, 9, 2], in pixels."""
    stride, place = grid.stride[chosen][..., None, None], grid.points[chosen][:, :, None]
    return L.gather_rows(to_float32(points), chosen) * stride + place


def point_looks(grid: L.Grid, init: Tensor, refine: Tensor, found: Detections) -> tuple[Look, Look]:
    """Offsets [B, P, 9, 2] in strides of both looks -> the points of each detection, in pixels."""
    if found.origin is None:
        raise ValueError("these detections do not say which rows they came from; take them from `predict`")
    first = Look(
        title="first look",
        caption="Nine points for each object, all told by one place of the feature map.",
        points=point_pixels(grid, init, found.origin),
    )
    second = Look(
        title="second look",
        caption="The features were read again at those points, which moved.",
        points=point_pixels(grid, refine, found.origin),
        joined=True,
    )
    return first, second


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """x itself, whose gradient is multiplied by scale."""
    still = x.detach()
    return still + scale * (x - still)  # the second part is exactly zero: values stay as they are


def init_normal(module: nn.Module, std: float = 0.01) -> None:
    """Every convolution of a module starts normal with zero bias."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def init_kaiming(module: nn.Module) -> None:
    """Every convolution of a module, none of which has a bias, starts Kaiming-normal by its outputs."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def init_prior(conv: nn.Conv2d) -> None:
    """The convolution's logits start where a score is 0.01 (arXiv:1708.02002, section 4.1)."""
    nn.init.constant_(cast("Tensor", conv.bias), PRIOR)


def init_grid(conv: nn.Conv2d, reach: float) -> None:
    """The nine points start as a 3 x 3 grid, `reach` strides to each side of their location.

    Opposite corners come first, and the other two next: the box of any kind is then that of the grid.
    """
    grid = plain_kernel().reshape(POINTS, 2)[[0, 8, 2, 6, 1, 3, 4, 5, 7]]
    with torch.no_grad():
        cast("Tensor", conv.bias).copy_(reach * grid.flatten())


def class_loss(logits: Tensor, assigned: Assignment, targets: Targets) -> Tensor:
    """Focal loss of logits [B, P, C] over all points that are not ignored, per positive -> scalar."""
    classes = torch.arange(logits.shape[-1], device=logits.device)
    target = (assigned.labels(targets)[..., None] == classes) & assigned.positive[..., None]  # [B, P, C]
    error = focal(logits, target.to(logits.dtype)).sum(-1)
    return torch.where(assigned.ignored, 0, error).sum() / assigned.count()


def box_loss(
    boxes: Tensor,
    assigned: Assignment,
    targets: Targets,
    *,
    unit: Tensor,
    kind: Literal["smooth_l1", "giou"],
    beta: float,
) -> Tensor:
    """Error of the positive ones of boxes [B, P, 4], measured in units [P] pixels, per positive -> scalar."""
    wanted = assigned.boxes(targets).to(boxes.dtype)
    # elsewhere the box stands for itself, so that nothing odd flows back through the mask
    boxes = torch.where(assigned.positive[..., None], boxes, wanted) / unit[:, None]
    wanted = wanted / unit[:, None]
    plain = kind == "smooth_l1"
    error = smooth_l1(boxes - wanted, beta=beta).sum(-1) if plain else giou_plus_one(boxes, wanted)
    return torch.where(assigned.positive, error, 0).sum() / assigned.count()
