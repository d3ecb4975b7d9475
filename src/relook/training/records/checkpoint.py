"""What a training leaves on disk, whole or not at all: weights, state to resume, a batch that broke it."""

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor
from typing_extensions import override

from relook.archives import CHECKSUM, CheckpointError, broken, check_torch_file, checksum, kind
from relook.escaping import printable
from relook.files import whole_file
from relook.types import Targets


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's way to the disk: written beside, then renamed; read without executing anything."""

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        with whole_file(path) as beside, beside.open("wb") as file:  # opened here: torch would hide why not
            torch.save(checkpoint, file)

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        return read_state(Path(path))


def read_state(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """The state of a run, from a file whose checksums are right, without executing anything of it.

    Args:
        path: a last.ckpt.
        mapped: tensors are read from the file when they are needed, for those who want the rest.

    Raises:
        CheckpointError: when the file is damaged or no state of a run.
    """
    found = kind(path)
    if found == "safetensors":
        raise CheckpointError(
            f"{path} holds weights, and a run goes on from its last.ckpt; to begin a new run with these "
            f"weights, say --start {path}"
        )
    if found != "torch":
        raise CheckpointError(f"{path} is {found}, not the last.ckpt of a run")
    check_torch_file(path)
    try:
        mapped = mapped and zipfile.is_zipfile(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: to read it, Python would have to run code that is in it; nothing of it was "
            f"run. relook's own last.ckpt has none ({str(error).splitlines()[0]:.100})"
        ) from None
    except (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, MemoryError):
        raise CheckpointError(broken(path)) from None
    wrong = _wrong(state)
    if wrong:
        raise CheckpointError(
            f"{path} is no state of a run of relook ({wrong}); to begin a new run with its weights, say "
            f"--start {path}"
        )
    whole = cast("dict[str, Any]", state)
    return {**whole, "callbacks": renamed_state(whole["callbacks"])}


_NEEDED: dict[str, type[Any]] = {
    "global_step": int,
    "epoch": int,
    "state_dict": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
}


def _wrong(state: object) -> str:
    """What is not as this program writes it, in words; empty when all is."""
    if not isinstance(state, dict):
        return f"it holds a {type(state).__name__}"
    held = cast("dict[str, Any]", state)
    for name, wanted in _NEEDED.items():
        if not isinstance(held.get(name), wanted):
            return f"{name!r} in it is no {wanted.__name__}" if name in held else f"{name!r} is not in it"
    if not held["optimizer_states"] or not held["loops"].get("fit_loop"):
        return "the state of its optimizer or of its loop is empty"
    odd = [name for name, value in held["state_dict"].items() if not isinstance(value, Tensor)]
    return f"{odd[0]!r:.100} in it is no tensor" if odd else ""


def network_difference(state: Mapping[str, Any], own: Mapping[str, Tensor]) -> str:
    """The first tensor in which the network of a state differs from `own`, in words; empty when none does."""
    theirs: Mapping[str, Tensor] = state["state_dict"]
    for name in dict.fromkeys([*theirs, *own]):
        plain = name.removeprefix("step.detector.")
        if name not in own:
            return f"it has {printable(plain, 200)!r}, this model has not"
        if name not in theirs:
            return f"it lacks {plain!r}"
        if theirs[name].shape != own[name].shape:
            return f"{plain!r} is {list(theirs[name].shape)} there and {list(own[name].shape)} here"
    return ""


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
        said = {**metadata, CHECKSUM: checksum(plain, metadata)}
        safetensors.torch.save_file(plain, beside, metadata=said)


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
