import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from relook.train_settings import TrainSettings
from relook.training.fit import fit
from relook.training.records.loss_monitor import NonFiniteLoss
from tiny_detector import RECIPE, TinyDetector, tiny, tiny_data

DEVICES = "gpu:1"

pytestmark = pytest.mark.gpu


def settings(folder: Path, **changed: Any) -> TrainSettings:
    return TrainSettings(
        out=folder, devices=DEVICES, workers=1, log_every=1, progress=False, tensorboard=False, **changed
    )


@pytest.mark.parametrize("precision", ["32", "bf16", "fp16"])
def test_training_on_a_gpu(tmp_path: Path, precision: Any) -> None:
    """The loss falls in every precision; what is saved is 32 bits long and readable without a GPU."""
    result = fit(
        tiny(),
        RECIPE,
        tiny_data(),
        tiny_data(6, "val"),
        settings(tmp_path, epochs=8, precision=precision),
        {},
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    saved = load_file(result.last, device="cpu")
    assert {v.dtype for v in saved.values() if v.is_floating_point()} == {torch.float32}
    assert result.report is not None
    assert result.report.images == 6


def test_resuming_on_a_gpu(tmp_path: Path) -> None:
    """Optimiser, average and counters come back to the device they were on."""
    fit(tiny(), RECIPE, tiny_data(), None, settings(tmp_path, ema=0.9, stop_after=2), {})
    result = fit(tiny(5), RECIPE, tiny_data(), None, settings(tmp_path, ema=0.9, resume=tmp_path), {})
    assert result.steps == 12


def test_a_loss_that_is_not_finite_never_reaches_the_weights(tmp_path: Path) -> None:
    """It is read while the GPU is busy with the backward pass, but before the weights change."""

    class Breaking(TinyDetector):
        calls = 0

        def loss(self, outputs: Any, targets: Any) -> Any:
            losses = super().loss(outputs, targets)
            self.calls += 1
            if self.calls == 4:
                self.before = {k: v.clone() for k, v in self.named_parameters()}
                losses["cls"] = losses["cls"] / 0
            return losses

    detector = Breaking()
    with pytest.raises(NonFiniteLoss, match="cls is inf at step 4"):
        fit(detector, RECIPE, tiny_data(), None, settings(tmp_path), {})
    for name, value in detector.named_parameters():
        assert torch.equal(value.cpu(), detector.before[name].cpu())
