"""Two runs compared bit for bit, and sittings of a run in processes of their own that may be killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last.ckpt", weights_only=True)


def assert_same_run(one: Path, two: Path) -> None:
    """Weights, averages, optimiser, counters and metrics are equal bit for bit."""
    a, b = state(one), state(two)
    if b["callbacks"]["ValidateAndSave"]["pending_validation"] == (
        4,
        12,
    ):  # nothing was left to do but this validation, which is done
        b["callbacks"]["ValidateAndSave"] = {
            **b["callbacks"]["ValidateAndSave"],
            "pending_validation": None,
            "epochs_without_gain": 3,
        }
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "epoch", "global_step"):
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)
    for name in ("last", "best"):
        with (
            safe_open(one / f"{name}.safetensors", "pt") as x,
            safe_open(two / f"{name}.safetensors", "pt") as y,
        ):
            assert x.metadata() == y.metadata()
            assert all(torch.equal(x.get_tensor(key), y.get_tensor(key)) for key in x.keys())  # noqa: SIM118
    timeless = [
        [
            {k: v for k, v in json.loads(line).items() if k not in {"seconds", "images_per_second"}}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (one, two)
    ]
    assert timeless[0] == timeless[1]


_SERVER = """
import json, os, signal, sys, traceback
from pathlib import Path
import torch
import relook.training.fit as fit_module
from relook.train_settings import TrainSettings
from tiny_detector import RECIPE, tiny, tiny_data
torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        status, words = 0, ""
        said = os.open(asked.pop("said"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1), os.dup2(said, 2)
        seed = asked.pop("start")
        paths = {name: Path(asked.pop(name)) for name in ("out", "resume") if name in asked}
        try:
            settings = TrainSettings(**{**asked, **paths})
            fit_module.fit(tiny(seed), RECIPE, tiny_data(), tiny_data(6, "val"), settings, {})
        except SystemExit as error:
            status = error.code
        except KeyboardInterrupt:
            status = 130
        except BaseException as error:
            status = 1
            print(type(error).__name__, error)
        sys.stdout.flush()
        os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Sittings:
    """Sittings of tiny runs, each in a process forked from one that has everything imported."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready\n"

    def start(self, out: Path, *, start: int = 0, said: Path | None = None, **settings: Any) -> int:
        """Begins one; its process."""
        assert self.server.stdin is not None
        asked = {
            "out": str(out),
            "start": start,
            "said": str(said or out.with_suffix(".txt")),
            "workers": 0,
            "log_every": 2,
            "progress": False,
            "tensorboard": False,
            "ema": 0.9,
            **{name: str(value) if isinstance(value, Path) else value for name, value in settings.items()},
        }
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        return int(self._line())

    def wait(self) -> int:
        """The exit status of the last one; minus the signal that ended it."""
        return int(self._line())

    def _line(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline()

    def close(self) -> None:
        """Ends all."""
        self.server.kill()
        self.server.communicate()


def kill(process: int) -> None:
    """At once, wherever it is, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
