"""Small detectors learn generated shapes from nothing, in a time that a person waits."""

from pathlib import Path

import pytest

import relook


@pytest.mark.slow
@pytest.mark.parametrize(("model", "epochs", "least"), [("centernet2_nano", 2, 0.80)])
def test_a_small_detector_learns_shapes(model: str, epochs: int, least: float, tmp_path: Path) -> None:
    """AP50 on pictures that it has not seen, with those of `make demo`, in at most 1.6 times its time."""
    result = relook.train(
        model=model,
        data="shapes:train=2000,val=200",
        epochs=epochs,
        out=tmp_path / "run",
        workers=0,
        tensorboard=False,
    )
    assert result.report is not None
    assert result.report.numbers["AP50"] >= least
