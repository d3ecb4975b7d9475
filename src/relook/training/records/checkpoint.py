"""What a training leaves on disk, whole or not at all: weights, state to resume, a batch that broke it."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor
from typing_extensions import override

from relook.files import whole_file
from relook.types import Targets


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's way to the disk: written beside, then renamed; read without executing anything."""

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        with whole_file(path) as beside:
            torch.save(checkpoint, beside)

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return {**checkpoint, "callbacks": renamed_state(checkpoint.get("callbacks", {}))}


_RENAMED = {"worse": "epochs_without_gain", "owed": "pending_validation"}


def renamed_state(callbacks: Mapping[str, Any]) -> dict[str, Any]:
    """The callbacks' part of a last.ckpt with today's names: runs that began with relook 0.1 can go on."""
    states = {"ValidateAndSave" if key == "Keeper" else key: value for key, value in callbacks.items()}
    kept = states.get("ValidateAndSave")
    if isinstance(kept, Mapping):
        names = cast("Mapping[str, Any]", kept)
        states["ValidateAndSave"] = {_RENAMED.get(name, name): value for name, value in names.items()}
    return states


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a state dict as safetensors with `metadata`, from whatever device it is on."""
    # cloned: safetensors refuses tensors that share memory
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with whole_file(path) as beside:
        safetensors.torch.save_file(plain, beside, metadata=dict(metadata))


def save_batch(folder: Path, images: Tensor, targets: Targets, facts: Mapping[str, Any]) -> None:
    """Writes a batch so that `read_batch` gives it back: batch.safetensors, and `facts` as batch.json."""
    tensors = {"images": images, **_tensors(targets)}
    write_safetensors(folder / "batch.safetensors", tensors, {})
    with whole_file(folder / "batch.json") as beside:
        beside.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def read_batch(folder: Path | str) -> tuple[Tensor, Targets]:
    """The images [B, 3, H, W] and targets of a batch that `save_batch` wrote."""
    tensors = safetensors.torch.load_file(Path(folder) / "batch.safetensors")
    images = tensors.pop("images")
    return images, Targets(**tensors)


def _tensors(targets: Targets) -> dict[str, Tensor]:
    values = {f.name: getattr(targets, f.name) for f in fields(targets)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
