"""Where a training runs: devices, machines, and the processes that share it."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.rank_zero import rank_zero_only

from relook.train_settings import TrainSettings


@dataclass(frozen=True, slots=True)
class Machines:
    """Which devices train."""

    accelerator: Literal["cpu", "gpu"]
    devices: int  # on each node
    nodes: int

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.devices * self.nodes

    def describe(self) -> str:
        """In words, for the log."""
        one = "GPU" if self.accelerator == "gpu" else "CPU process"
        many = one + ("s" if one == "GPU" else "es")
        each = f"{self.devices} {one if self.devices == 1 else many}"
        return each if self.nodes == 1 else f"{each} on each of {self.nodes} machines"


def machines(settings: TrainSettings) -> Machines:
    """What `--devices` and `--nodes` mean here; under torchrun and SLURM the processes are counted there.

    Raises:
        ValueError: when there are not so many devices, or the word is not known.
    """
    kind, _, count = str(settings.devices).partition(":")
    if kind.isdigit():
        kind, count = "auto", kind
    gpus = torch.cuda.device_count()
    if kind not in {"auto", "cpu", "gpu"} or (count and not (count.isdigit() and int(count))):
        raise ValueError(
            f"devices={settings.devices!r} is not known; say auto, cpu, gpu (for cuda too), a number, cpu:2 "
            "or gpu:2"
        )
    if kind == "gpu" and not gpus:
        raise ValueError(f"devices={settings.devices!r}, but torch finds no GPU here; use --devices cpu")
    gpu = kind == "gpu" or (kind == "auto" and gpus > 0)
    if settings.precision == "fp16" and not gpu:
        raise ValueError("precision fp16 needs a GPU; on CPUs use --precision bf16 or 32")
    local, nodes = _started_by_others()
    if settings.nodes > 1 and not nodes and "NODE_RANK" not in os.environ:
        raise ValueError(
            f"nodes={settings.nodes}: start a process for each device by torchrun or SLURM, which count the "
            f"machines themselves; docs/how-to/train.md has the commands"
        )
    devices = local or int(count or (gpus if gpu else 1))
    if not local:
        devices = _as_many_as_can_be(devices, settings)
    if gpu and devices > gpus:
        raise ValueError(f"{devices} GPUs are asked for, but torch finds {gpus}; use --devices {gpus}")
    return Machines("gpu" if gpu else "cpu", devices, nodes or settings.nodes)


def _as_many_as_can_be(devices: int, settings: TrainSettings) -> int:
    """One device alone where this program cannot be started once more, unless more were asked for."""
    if devices == 1 or _can_start_again():
        return devices
    if settings.devices == "auto":
        return 1
    raise ValueError(
        f"devices={settings.devices!r} starts this program once for each of {devices} devices, which only a "
        "program in a file can be; put it into a script, or train from the command line"
    )


def _can_start_again() -> bool:
    """Whether this program is a file: not what is typed, piped into Python, or in a notebook."""
    return Path(sys.argv[0]).is_file() and not hasattr(sys, "ps1")


def started_by_lightning() -> bool:
    """Whether the first process of a training has started this one beside it."""
    others = TorchElasticEnvironment.detect() or SLURMEnvironment.detect()
    return not others and os.environ.get("LOCAL_RANK", "0") != "0"


def _started_by_others() -> tuple[int, int]:
    """(processes on this node, nodes) as torchrun or SLURM started them; zeros when they did not."""
    if TorchElasticEnvironment.detect():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    if SLURMEnvironment.detect():
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return max(1, int(os.environ["SLURM_NTASKS"]) // nodes), nodes
    return 0, 0


def is_first() -> bool:
    """Whether this is the process that writes; asked before the processes know each other."""
    return cast("Any", rank_zero_only).rank == 0 and os.environ.get("NODE_RANK", "0") == "0"
