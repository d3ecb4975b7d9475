"""Parameters and multiply-adds of the models."""

import math

import pytest
import torch
from torch import nn

from relook.zoo.catalog import ENTRIES, find
from relook.zoo.cost import _kept, _settings, cost, count


@pytest.mark.parametrize(
    "name", ["reppoints_nano", "reppoints_v1_r50_fpn_1x", "reppoints_v1_r101_fpn_dcnv2_giou_2x"]
)
def test_what_is_kept_is_what_is_counted(name: str):
    """figures.json holds the answers of today's code (else run `python -m relook.zoo.cost`)."""
    assert cost(find(name)) == count(find(name))


def test_figures_are_kept_for_the_published_models():
    """So that `relook models` answers at once; changed settings are noticed and counted anew."""
    current = [
        name for name, entry in ENTRIES.items() if _kept().get(name, {}).get("settings") == _settings(entry)
    ]
    published = [name for name, entry in ENTRIES.items() if entry.config]
    assert set(published) <= set(current)


def test_parameters_are_those_of_the_model():
    """Against the built model."""
    entry = find("reppoints_nano")
    assert cost(entry).parameters == sum(p.numel() for p in entry.detector.build().parameters())


def test_multiply_adds_are_those_added_up_by_hand():
    """Added up from the shapes of all convolutions, the deformable ones too."""
    entry = find("reppoints_nano")
    detector = entry.detector.build().eval()
    found = count(entry)
    total = 0

    def note(module: nn.Conv2d, _: object, out: torch.Tensor) -> None:
        nonlocal total
        total += out[0, 0].numel() * math.prod(module.weight.shape)

    for module in detector.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        outputs = detector(torch.zeros(1, 3, found.height, found.width))
    # the two deformable convolutions are called as functions: they see every point of the grid once
    deformable = sum(math.prod(c.weight.shape) for c in (detector.head.cls_conv, detector.head.refine_conv))
    total += deformable * outputs.logits.shape[1]
    assert found.multiply_adds == total
