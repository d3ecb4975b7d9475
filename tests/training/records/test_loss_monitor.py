import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from relook.train_settings import TrainSettings
from relook.training.fit import fit
from relook.training.records.checkpoint import read_batch
from relook.training.records.loss_monitor import NonFiniteLoss
from tiny_detector import RECIPE, TinyDetector, tiny, tiny_data


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_tells(tmp_path: Path, value: float) -> None:
    """It names the term, the images and the step, keeps the batch, and never touches the weights."""
    calls: list[tuple[Any, Any]] = []

    class Breaking(TinyDetector):
        def forward(self, images: Any) -> Any:
            self.images = images
            return super().forward(images)

        def loss(self, outputs: Any, targets: Any) -> Any:
            losses = super().loss(outputs, targets)
            calls.append((self.images.clone(), targets))
            if len(calls) == 5:
                self.before = {k: v.clone() for k, v in self.state_dict().items()}
                losses["box"] = losses["box"] * value
            return losses

    torch.manual_seed(0)
    detector = Breaking()
    settings = TrainSettings(out=tmp_path, workers=0, progress=False, tensorboard=False)
    with pytest.raises(NonFiniteLoss) as caught:
        fit(detector, RECIPE, tiny_data(), None, settings, {})
    folder = tmp_path / "nonfinite" / "step-00000005-process-0"
    facts = json.loads((folder / "batch.json").read_text())
    assert facts["not_finite"] == ["box"]
    assert facts["losses"]["box"] == str(value)
    assert facts["step"] == 5
    assert len(facts["ids"]) == len(facts["paths"]) == 4
    for said in ("box is " + str(value), "step 5", facts["paths"][0], str(folder)):
        assert said in str(caught.value)
        assert said in (tmp_path / "train.log").read_text()
    images, targets = read_batch(folder)
    assert torch.equal(images, calls[-1][0])
    assert torch.equal(targets.boxes, calls[-1][1].boxes)
    assert targets.valid.dtype == torch.bool
    assert torch.isfinite(torch.stack([*tiny().loss(tiny()(images), targets).values()])).all()
    for name, now in detector.named_parameters():
        assert torch.equal(now, detector.before[name])
    assert (
        load_file(tmp_path / "last.safetensors").keys() == detector.state_dict().keys()
    )  # of the first epoch


def test_an_infinite_gradient_is_no_infinite_loss(tmp_path: Path) -> None:
    """Only losses are judged; what a gradient does is the business of clipping and of loss scaling."""

    class Steep(TinyDetector):
        def loss(self, outputs: Any, targets: Any) -> Any:
            losses = super().loss(outputs, targets)
            return {**losses, "steep": (outputs.logits.sum() * 0).abs().sqrt()}  # 0, slope NaN

    torch.manual_seed(0)
    settings = TrainSettings(out=tmp_path, workers=0, epochs=1, progress=False, tensorboard=False)
    with pytest.raises(NonFiniteLoss, match="cls is nan"):  # one step later, through the weights
        fit(Steep(), RECIPE, tiny_data(), None, settings, {})
