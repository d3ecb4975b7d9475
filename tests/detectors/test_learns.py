"""Small detectors learn generated shapes from nothing, in a time that a person waits."""

from pathlib import Path

import pytest

import relook


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "epochs", "least"),
    [("centernet2_nano", 2, {"AP50": 0.80}), ("mask_rcnn_nano", 2, {"AP50": 0.75, "segm AP50": 0.70})],
)
def test_a_small_detector_learns_shapes(
    model: str, epochs: int, least: dict[str, float], tmp_path: Path
) -> None:
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
    for name, value in least.items():
        assert result.report.numbers[name] >= value
