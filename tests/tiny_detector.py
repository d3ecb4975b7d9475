"""A detector small enough for unit tests, and data for it: shapes of four classes on 64-pixel images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relook.data.sample import Source
from relook.data.shapes import shapes
from relook.detector import Detector
from relook.recipe import KeepRatio, Optimizer, Pixels, Recipe, Schedule, Selection
from relook.types import Detections, Losses, Targets, record

RECIPE = Recipe(
    batch=4,
    optimizer=Optimizer(kind="sgd", lr=0.02, clip=35.0),
    schedule=Schedule(epochs=4, warmup_steps=3, warmup_reach=3, drops=(3,)),
    pixels=Pixels(pad=8),
    train_size=KeepRatio(short=(64,), long=64),
    test_size=KeepRatio(short=(64,), long=64),
    selection=Selection(min_side=8),
)


@record
class TinyOutputs:
    logits: Tensor  # [B, P, C]
    boxes: Tensor  # [B, P, 4] pixels


class TinyDetector(Detector[TinyOutputs]):
    """One cell of 8 x 8 pixels, one box; learns which cells hold the middle of an object."""

    stride = 8

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 4, stride=4),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 2, stride=2),
            nn.ReLU(),
        )
        self.head = nn.Conv2d(16, num_classes + 4, 1)
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, images: Tensor) -> TinyOutputs:
        raw = self.head(self.body(images) * self.frozen).float()
        height, width = raw.shape[-2:]
        raw = raw.flatten(2).transpose(1, 2)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        middle = torch.stack([x, y], -1).reshape(-1, 2).to(raw) * 8 + 4
        half = raw[..., self.num_classes :].exp() * 8
        boxes = torch.cat([middle - half[..., :2], middle + half[..., 2:]], -1)
        return TinyOutputs(raw[..., : self.num_classes], boxes)

    def loss(self, outputs: TinyOutputs, targets: Targets) -> Losses:
        boxes, valid = targets.boxes, targets.valid
        found = (outputs.boxes[..., :2] + outputs.boxes[..., 2:]) / 2
        middle = (boxes[..., :2] + boxes[..., 2:]) / 2
        far = (found[:, None] - middle[:, :, None]).abs().sum(-1).masked_fill(~valid[..., None], 1e9)
        near = (far < 12) & valid[..., None]  # [B, M, P]
        wanted = torch.zeros_like(outputs.logits)
        hot = F.one_hot(targets.labels, self.num_classes).to(wanted)
        wanted = (near.to(wanted).transpose(1, 2) @ hot).clamp(max=1)
        error = (outputs.boxes[:, None] - boxes[:, :, None]).abs().sum(-1) / 64
        count = near.sum().clamp(min=1)
        return {
            "cls": F.binary_cross_entropy_with_logits(outputs.logits, wanted, reduction="sum") / count,
            "box": torch.where(near, error, 0).sum() / count,
        }

    def predict(self, outputs: TinyOutputs, sizes: Tensor) -> Detections:
        scores, labels = outputs.logits.sigmoid().max(-1)
        best, index = scores.topk(min(10, scores.shape[1]))
        return Detections(
            outputs.boxes.gather(1, index[..., None].expand(-1, -1, 4)),
            best,
            labels.gather(1, index),
            torch.full((len(scores),), best.shape[1], device=best.device),
            origin=index,
        )


def tiny(seed: int = 0) -> TinyDetector:
    torch.manual_seed(seed)
    return TinyDetector()


def tiny_data(count: int = 12, split: str = "train") -> Source:
    return shapes(count, seed=3, split=split, side=64)
