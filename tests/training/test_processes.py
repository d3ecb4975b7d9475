import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from tiny_detector import RECIPE, TinyDetector, tiny, tiny_data
from relook.training.fit import fit
from relook.train_settings import TrainSettings

folder, broken = Path(sys.argv[1]), int(sys.argv[2])

class Breaking(TinyDetector):
    calls = 0
    def loss(self, outputs, targets):
        losses = super().loss(outputs, targets)
        self.calls += 1
        if self.calls == broken and os.environ.get("LOCAL_RANK", "0") == "1":
            losses["cls"] = losses["cls"] / 0
        return losses

torch.manual_seed(int(os.environ.get("LOCAL_RANK", "0")))  # the first process's weights win
detector = Breaking()
settings = TrainSettings(
    out=folder, workers=0, epochs=2, devices="cpu:2", ema=0.9, log_every=1, tensorboard=False
)
result = fit(detector, RECIPE, tiny_data(), tiny_data(7, "val"), settings, {})
rank = int(os.environ.get("LOCAL_RANK", "0"))
torch.save(detector.state_dict(), folder / f"rank{rank}.pt")
(folder / f"rank{rank}.json").write_text(json.dumps([result.best_ap, result.steps, result.epochs]))
"""


def two(folder: Path, *, torchrun: bool, broken: int = 0) -> subprocess.CompletedProcess[str]:
    script = folder / "two.py"
    script.write_text(SCRIPT)
    environment: dict[str, Any] = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    started = [sys.executable]
    if torchrun:
        started += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*started, str(script), str(folder / "run"), str(broken)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    """Under torchrun: equal weights everywhere, one set of results, the batch shared out."""
    done = two(tmp_path, torchrun=True)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    first, second = (torch.load(run / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in first:
        if "running" not in name and "num_batches" not in name:  # batch statistics are each process's own
            assert torch.equal(first[name], second[name])
    assert (run / "rank0.json").read_text() == (run / "rank1.json").read_text()
    saved = load_file(run / "last.safetensors")
    assert all(torch.equal(saved[name], first[name]) for name in first)
    resolved = yaml.safe_load((run / "settings.yaml").read_text())["resolved"]
    assert (resolved["batch"], resolved["total_batch"], resolved["lr"]) == (2, 4, 0.02)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [row["epoch"] for row in rows if row["kind"] == "validation"] == [1, 2]
    assert done.stderr.count("training is complete") == 1


def test_all_processes_stop_at_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    """Started by ourselves: one names its loss and keeps its batch; the other ends too, at the same step."""
    done = two(tmp_path, torchrun=False, broken=3)
    assert done.returncode != 0
    assert "cls is inf" in done.stderr
    assert "another process" in done.stderr
    assert [p.name for p in (tmp_path / "run" / "nonfinite").iterdir()] == ["step-00000003-process-1"]
