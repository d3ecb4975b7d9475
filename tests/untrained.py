"""Weights of small models that nobody trained, for tests that need a file rather than a good answer."""

from pathlib import Path

import torch

from relook.data.shapes import CLASSES
from relook.detectors.centernet2 import CenterNet2
from relook.detectors.mask_rcnn import MaskRCNN
from relook.weights.models import by_name
from relook.weights.reading.checkpoint import save_weights


def untrained(path: Path, name: str, *, keep: int) -> Path:
    """A weights file of that model for the classes of shapes, which finds `keep` objects everywhere."""
    torch.manual_seed(0)
    model = by_name(name, {"detector.keep": str(keep)}).with_classes(CLASSES)
    detector = model.entry.detector.build()
    with torch.no_grad():
        if isinstance(detector, CenterNet2):
            detector.head.heat.bias.add_(6)
        elif isinstance(detector, MaskRCNN):
            detector.box_head.cls.weight.mul_(30)
        else:
            detector.head.cls_out.bias.add_(4)
    save_weights(path, detector.state_dict(), model.describe())
    return path
