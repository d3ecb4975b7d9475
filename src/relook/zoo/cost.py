"""What a model costs: its parameters and the multiply-adds for one image, counted without memory.

Counting a large model takes half a second, so the answers for the catalog are kept in figures.json, each with
the settings that it belongs to; other settings are counted anew. `python -m relook.zoo.cost` writes the file.
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from relook.detector import Detector
from relook.detectors.centernet2 import CenterNet2
from relook.detectors.mask_rcnn import MaskRCNN
from relook.files import whole_file
from relook.zoo.catalog import ENTRIES
from relook.zoo.entry import Entry

FILE: Final = Path(__file__).with_name("figures.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one model at one input."""

    parameters: int
    multiply_adds: int  # of convolutions and matrix products; what papers call FLOPs, half of what torch does
    height: int  # network input, padded
    width: int


def cost(entry: Entry) -> Cost:
    """Parameters, and multiply-adds at the entry's input."""
    kept = _kept().get(entry.name)
    if kept is not None and kept["settings"] == _settings(entry):
        return Cost(**kept["cost"])
    return count(entry)


def count(entry: Entry) -> Cost:
    """The same, counted now."""
    with torch.device("meta"):
        detector = entry.detector.build().eval()
        step = math.lcm(detector.stride, entry.recipe.pixels.pad)
        height, width = (-(-side // step) * step for side in entry.input)
        images = torch.empty(1, 3, height, width)
    formulas = {torch.ops.torchvision.deform_conv2d: _deformable}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        _look(detector, images)
    return Cost(
        parameters=sum(p.numel() for p in detector.parameters()),
        multiply_adds=counter.get_total_flops() // 2,
        height=height,
        width=width,
    )


def _look(detector: Detector[Any], images: Tensor) -> None:
    """All of the network's work for one image: of two-stage detectors also the second look at proposals."""
    outputs = detector(images)
    if isinstance(detector, CenterNet2):
        rois = images.new_zeros(1, detector.config.test_proposals, 4)
        detector.cascade(outputs, rois, torch.zeros(1, 2, dtype=torch.int64, device=images.device))
    if isinstance(detector, MaskRCNN):
        detector.second(outputs.pyramid, images.new_zeros(1, detector.config.proposals, 4))
        labels = torch.zeros(1, detector.config.keep, dtype=torch.int64, device=images.device)
        detector.masks(outputs.pyramid, images.new_zeros(1, detector.config.keep, 4), labels)


def _deformable(_: Any, weight: torch.Size, *__: Any, out_shape: torch.Size, **___: Any) -> int:
    """Two for each multiply-add of the matrix product; interpolation is not counted, as in the papers."""
    return 2 * out_shape[0] * out_shape[2] * out_shape[3] * math.prod(weight)


def _settings(entry: Entry) -> str:
    return f"{entry.detector!r} at {entry.input}"


@cache
def _kept() -> dict[str, dict[str, Any]]:
    return cast("dict[str, dict[str, Any]]", json.loads(FILE.read_text())) if FILE.exists() else {}


def write() -> None:
    """Counts every model of the catalog anew and writes figures.json."""
    rows: dict[str, Any] = {}
    for name, entry in ENTRIES.items():
        found = count(entry)
        facts = {key: getattr(found, key) for key in Cost.__dataclass_fields__}
        rows[name] = {"cost": facts, "settings": _settings(entry)}
    with whole_file(FILE) as beside:
        beside.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    write()
