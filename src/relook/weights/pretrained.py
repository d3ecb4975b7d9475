"""ImageNet weights for a detector's backbone: from a local file, or through timm's hub."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
from huggingface_hub import constants
from torch import Tensor, nn

from relook.weights.published import offline
from relook.weights.reading.checkpoint import read_checkpoint
from relook.weights.shapes import wiring
from relook.zoo.catalog import ENTRIES


def load_backbone(detector: nn.Module, source: str) -> int:
    """Fills `detector.backbone` with ImageNet weights and says how many tensors it took.

    Args:
        detector: anything with a `backbone` of `relook.backbones`, whose settings know its files.
        source: a file (torchvision's, timm's or tonylins' key names; .pth or .safetensors), or timm's name of
            the weights with its tag, as "resnet50.tv_in1k".

    Raises:
        ValueError: when the file does not fit the backbone, or the hub cannot be reached.
    """
    backbone = cast("Any", detector).backbone
    if Path(source).suffix in (".pth", ".pt", ".safetensors", ".bin") or Path(source).exists():
        given: Mapping[str, Tensor] = read_checkpoint(source).state
    else:
        given = _from_hub(source)
    state: dict[str, Tensor] = backbone.config.file_state(given)
    wanted: dict[str, Tensor] = backbone.state_dict()
    missing = [
        k for k in wanted if k not in state and not backbone.config.starts_anew(k) and "num_batches" not in k
    ]
    if missing:
        raise ValueError(
            f"{source}: {len(missing)} of the backbone's {len(wanted)} tensors are not in it, {missing[0]!r} "
            "first; give weights of the same architecture, or `--backbone-weights none` to start from scratch"
        )
    odd = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    if odd:
        raise ValueError(
            f"{source}: {odd[0]!r} has shape {list(state[odd[0]].shape)} there and "
            f"{list(wanted[odd[0]].shape)} here; give weights of the same architecture"
        )
    backbone.load_state_dict({k: v for k, v in state.items() if k in wanted}, strict=False)
    return sum(k in state for k in wanted)


def backbones_of(state: Mapping[str, Tensor]) -> list[str]:
    """Models of the catalog whose backbone can start from these ImageNet weights, one for each backbone.

    Nothing is built: names and shapes are compared with the table of all models. Of several the largest are
    named, since a deep network's file also holds all that a shallow one needs.
    """
    found: dict[str, tuple[int, str]] = {}
    for entry in ENTRIES.values():
        config = cast("Any", entry.detector).backbone
        given = {name: tuple(value.shape) for name, value in config.file_state(state).items()}
        wanted = {
            name.removeprefix("backbone."): shape
            for name, shape in wiring(entry).shapes.items()
            if name.startswith("backbone.")
        }
        fits = all(
            given.get(name) == shape
            or (name not in given and (config.starts_anew(name) or "num_batches" in name))
            for name, shape in wanted.items()
        )
        if fits:
            found.setdefault(repr(config), (len(wanted), entry.name))
    most = max((count for count, _ in found.values()), default=0)
    return [name for count, name in found.values() if count == most]


def _from_hub(name: str) -> dict[str, Tensor]:
    why_not = "RELOOK_OFFLINE is set" if offline() else _silent(constants.ENDPOINT)
    before = constants.HF_HUB_OFFLINE
    # what was fetched before is found all the same; the rest fails at once, not after minutes of retries
    constants.HF_HUB_OFFLINE = before or bool(why_not)
    try:
        model: Any = timm.create_model(name, pretrained=True)  # pyright: ignore[reportUnknownVariableType]
    except Exception as error:
        why_not = why_not or f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"the ImageNet weights {name!r} are not on this machine and could not be fetched "
            f"({why_not:.200}); download them where there is a network and give the file as "
            "`--backbone-weights FILE`, or say `--backbone-weights none` to start from scratch"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before
    return cast("nn.Module", model).state_dict()


def _silent(address: str, seconds: float = 5.0) -> str:
    """Why nobody answers at an address, in words; empty where somebody does, or a proxy is asked."""
    if getproxies():
        return ""
    place = urlsplit(address)
    try:
        port = place.port or (80 if place.scheme == "http" else 443)
        socket.create_connection((place.hostname or "", port), timeout=seconds).close()
    except OSError:
        return f"{place.hostname} does not answer"
    return ""
