"""Files of CenterNet2: one that can be two models, and detectron2's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import relook
from published import manifests
from relook.archives import CheckpointError
from relook.backbones.resnet import ResNetConfig
from relook.cli import main
from relook.detectors.centernet2 import CenterNet2Config
from relook.weights.identify import identify
from relook.weights.models import open_weights
from relook.weights.reading.checkpoint import Checkpoint, read_checkpoint
from relook.zoo.catalog import find

FORK, ORIGINAL = "centernet2_cascade_res50_fpn_1x_coco", "original/CenterNet2_R50_1x"
BOTH = ["centernet2_cascade_r50_fpn_1x", "centernet2_cascade_r50_fpn_1x_traincommit"]


def state(config: str) -> dict[str, Tensor]:
    """Names and shapes of a published file; each tensor is one number, repeated."""
    return {key: torch.zeros(()).expand(shape) for key, shape in manifests("centernet2")[config]}


@pytest.mark.parametrize("name", ["epoch_12.pth", f"{FORK}.pth", f"{BOTH[0]}.pth", f"{BOTH[1]}.pth"])
def test_cn_20_no_name_decides_between_two_readings(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the file is called, doctor names both and how to decide; loading asks which one it is."""
    path = tmp_path / name
    torch.save({"state_dict": state(FORK), "meta": {"epoch": 12, "config": "total_epochs = 12"}}, path)
    assert main(["doctor", str(path)]) == 0
    out = capsys.readouterr().out
    assert all(model in out for model in BOTH)
    assert "the file alone cannot tell" in out
    assert "evaluation on COCO val2017 decides" in out
    assert "--model" in out
    assert main(["doctor", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["models"], facts["certain"], facts["num_classes"]) == (BOTH, False, 80)
    assert len(facts["doubts"]) == 1
    with pytest.raises(CheckpointError, match=r"which predict differently.*--model.*COCO val2017 decides"):
        open_weights(path)


@pytest.mark.parametrize("entry", BOTH)
def test_each_reading_loads_the_file(entry: str, tmp_path: Path) -> None:
    """By name; the settings of that name are in the detector."""
    path = tmp_path / "a.pth"
    torch.save({"state_dict": state(FORK)}, path)
    loaded: Any = open_weights(path, entry)
    assert (loaded.report.tensors, loaded.report.missing, loaded.report.unexpected) == (383, (), ())
    assert loaded.detector.config == relook.entry(entry).detector


def test_a_file_of_detectron2_is_recognised_and_loads(tmp_path: Path) -> None:
    """Weights under `model`, beside optimiser and iteration; means of pixels in it are of no use here."""
    held = state(ORIGINAL)
    held |= {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    path = tmp_path / "CenterNet2_R50_1x.pth"
    torch.save({"model": held, "optimizer": {}, "scheduler": {}, "iteration": 90_000}, path)
    checkpoint = read_checkpoint(path)
    identity = identify(checkpoint)
    assert [c.entry.name for c in identity.exact] == ["centernet2_original_r50_fpn_1x"]
    assert identity.certain
    loaded = open_weights(path)
    assert (loaded.report.layout, loaded.report.tensors) == ("detectron2", 330)
    assert loaded.report.unexpected == ("pixel_mean", "pixel_std")
    assert all(name.endswith("num_batches_tracked") for name in loaded.report.missing)
    assert loaded.model.entry.recipe.pixels.order == "bgr"
    assert loaded.model.entry.recipe.test_size.antialias


def test_other_classes_of_detectron2s_files() -> None:
    """The authors' model for Objects365 is the same with 365 classes."""
    identity = identify(Checkpoint(path=Path("a.pth"), state=state("original/O365_CenterNet2_R50_1x")))
    assert [(c.entry.name, c.classes) for c in identity.exact] == [("centernet2_original_r50_fpn_1x", 365)]


def test_settings_called_training_only_do_not_change_predictions() -> None:
    """The reason why files that differ in them alone are taken for the same."""
    resnet = ResNetConfig(name="resnet10t", frozen=2)
    config = CenterNet2Config(backbone=resnet, width=16, hidden=16, tower=1, num_classes=3)
    changed = replace(
        config,
        fc_start="detectron2",
        size_from=(0, 0, 0, 0, 0),
        size_to=(1, 1, 1, 1, 1),
        heat_overlap=0.5,
        heat_radius=1.0,
        giou_extra=1.0,
        train_top=10,
        train_proposals=10,
        proposal_gradient=False,
        stage_iou=(0.5, 0.5, 0.5),
        roi_samples=8,
        positive_fraction=0.5,
        resample=False,
        roi_beta=0.0,
        feature_gradient=1.0,
        backbone=replace(resnet, frozen=0, freeze_statistics=False, frozen_norms=True),
    )
    named = find(BOTH[0]).family.training_only
    differing = {name for name in named if hasattr(config, name)}
    assert all(getattr(config, name) != getattr(changed, name) for name in differing)
    torch.manual_seed(0)
    one, other = config.build().eval(), changed.build().eval()
    torch.nn.init.constant_(one.head.heat.bias, 1.0)
    other.load_state_dict(one.state_dict())
    images, sizes = torch.randn(1, 3, 128, 128), torch.tensor([[128, 128]])
    with torch.no_grad():
        mine, theirs = (d.predict(d(images), sizes) for d in (one, other))
    assert mine.count > 0
    assert torch.equal(mine.boxes, theirs.boxes)
    assert torch.equal(mine.scores, theirs.scores)
