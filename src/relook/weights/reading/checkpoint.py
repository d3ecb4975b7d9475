"""Weights in and out: published checkpoints read without running their code, and relook's own files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType] (an untyped PathLike)
from torch import Tensor

from relook.archives import CHECKSUM, CheckpointError, checksum, kind
from relook.escaping import printable
from relook.files import whole_file
from relook.weights.reading.pickled import STAND_INS, Array, named_globals, unpickle

State = dict[str, Tensor]

KEY: Final = "relook"  # of the metadata of our safetensors files
FORMAT: Final = 2  # raised when an older relook could not read the description
LARGEST_DESCRIPTION: Final = 16_000_000  # characters; what follows is cut off
PLACES: Final = ("state_dict", "model", "model_state_dict", "ema_state_dict")  # where frameworks keep weights


# -- what a file holds -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What our own weights file says about itself: enough to build the detector and to prepare its input."""

    model: str  # name of a catalog entry, or module:NAME of the user's own
    settings: dict[str, str] = field(default_factory=dict[str, str])  # dotted changes to the entry
    classes: tuple[str, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict[str, Any])  # all of it, as plain values
    relook_version: str = ""

    def metadata(self) -> dict[str, str]:
        """The metadata of a safetensors file."""
        return {KEY: json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True), "format": "pt"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The weights of a file and what else was learnt on the way."""

    path: Path
    state: State
    place: str = ""  # the entry under which the weights lay; "" for the top of the file
    description: Description | None = None  # only our own files have one
    classes: tuple[str, ...] = ()  # names that the file gives to its classes
    config: str = ""  # the training configuration as the old frameworks keep it, as text
    epoch: int | None = None
    stand_ins: tuple[str, ...] = ()  # foreign objects that were replaced by harmless values
    notes: tuple[str, ...] = ()  # what was left aside, in words
    not_finite: tuple[str, ...] = ()  # tensors with NaN or infinity

    def unsound(self) -> str:
        """What is wrong with the numbers themselves, in words; empty when all are finite."""
        if not self.not_finite:
            return ""
        return (
            f"{len(self.not_finite)} of {len(self.state)} tensors hold NaN or infinity, "
            f"{printable(self.not_finite[0], 200)} first: what such weights find is worthless; take an "
            "earlier file of that training"
        )


# -- reading -----------------------------------------------------------------------------------------------


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Reads a published checkpoint (torch's zip or older format, or safetensors) without running its code.

    Raises:
        CheckpointError: when the file is absent, broken, something else, or would have to run code.
    """
    path = Path(path)
    found = kind(path)
    if found == "safetensors":
        return _read_safetensors(path)
    if found != "torch":
        raise CheckpointError(f"{path} is {found}, not a checkpoint; give a .pth, .pt or .safetensors file")
    content = unpickle(path)
    own = _own_run(content)
    place, state = _find_state(own or content, path)
    _refuse_larger(path, state)
    meta = _meta(content)
    description = _describe(path, own["description"]) if own else None
    return Checkpoint(
        path=path,
        state=_plain_names(state),
        place=place,
        description=description,
        classes=_class_names(meta) if description is None else description.classes,
        config=_text(meta, "config", "cfg"),
        epoch=meta["epoch"] if isinstance(meta.get("epoch"), int) else None,
        stand_ins=tuple(sorted(named_globals(path) & set(STAND_INS))),
        notes=() if own else _notes(content, place, state),
        not_finite=_not_finite(state),
    )


def _own_run(content: object) -> dict[str, Any]:
    """The weights and the description in a last.ckpt of relook's; averaged weights where it has some."""
    node = _mapping(content)
    said = _mapping(node.get(KEY)).get("description")
    if not isinstance(said, str) or not said:
        return {}
    averaged = _mapping(_mapping(node.get("callbacks")).get("Ema")).get("weights")
    return {"description": said, "state_dict": averaged or node.get("state_dict")}


def _mapping(node: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", node) if isinstance(node, Mapping) else {}


MOST_TENSORS: Final = 100_000
ALWAYS_READ: Final = 1 << 30  # bytes that tensors may fill, however small their file


def _refuse_larger(path: Path, state: Mapping[str, Tensor]) -> None:
    """Refuses tensors that would fill far more memory than their file: strides may repeat one number."""
    size, total = path.stat().st_size, sum(value.numel() * value.element_size() for value in state.values())
    if len(state) > MOST_TENSORS:
        raise CheckpointError(f"{path} holds {len(state):,} tensors, more than any network has")
    if total > max(4 * size, ALWAYS_READ):
        raise CheckpointError(
            f"{path} holds {size:,} bytes, and its tensors would fill {total:,}; save its state dict again "
            "with plain tensors"
        )


def _not_finite(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of tensors with NaN or infinity, or numbers that are infinite in 32 bits, as networks compute."""
    return tuple(
        name
        for name, value in state.items()
        if value.is_floating_point() and not bool(torch.isfinite(_distinct(value).float()).all())
    )


def _distinct(value: Tensor) -> Tensor:
    """Without the sides along which one number is repeated."""
    for side, stride in enumerate(value.stride()):
        if stride == 0 and value.shape[side] > 1:
            value = value.narrow(side, 0, 1)
    return value


def save_weights(path: Path | str, state: Mapping[str, Tensor], description: Description) -> None:
    """Writes weights that describe themselves, whole or not at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    said = description.metadata()
    with whole_file(path) as beside:
        save_file(tensors, beside, metadata={**said, CHECKSUM: checksum(tensors, said)})


def _read_safetensors(path: Path) -> Checkpoint:
    if _header(path).count(b'"data_offsets"') > MOST_TENSORS:
        raise CheckpointError(f"{path} holds more than {MOST_TENSORS:,} tensors, more than any network")
    try:
        with cast("Any", safe_open)(path, framework="pt") as file:  # safetensors ships no types for it
            metadata: dict[str, str] = file.metadata() or {}
            names: list[str] = list(file.keys())
            state: State = {name: file.get_tensor(name) for name in names}
            state = {name: value for name, value in state.items() if _is_plain(value)}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); copy or download it again"
        ) from None
    description = _describe(path, metadata[KEY]) if KEY in metadata else None
    if CHECKSUM in metadata and metadata[CHECKSUM] != checksum(state, metadata):
        raise CheckpointError(
            f"{path}: it is not what was written: it is damaged (copy or download it again) "
            f"or another program changed it and kept {CHECKSUM!r} in its metadata (save it without)"
        )
    return Checkpoint(
        path=path,
        state=_plain_names(state),
        description=description,
        classes=() if description is None else description.classes,
        not_finite=_not_finite(state),
    )


def _header(path: Path) -> bytes:
    """The names and sizes of a safetensors file, as far as the format allows."""
    with path.open("rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), 100_000_000))


def _describe(path: Path, text: str) -> Description:
    try:
        facts = cast("dict[str, Any]", json.loads(text[:LARGEST_DESCRIPTION]))
        newer = facts["format"] > FORMAT
        said = (
            None
            if newer
            else Description(
                model=str(facts["model"]),
                settings={str(k): str(v) for k, v in facts.get("settings", {}).items()},
                classes=names_of(facts.get("classes", ())),
                recipe=_recipe(dict(facts.get("recipe", {})), facts["format"]),
                relook_version=str(facts.get("relook_version", "")),
            )
        )
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: its description cannot be read ({error!r}); write the file again"
        ) from None
    if said is None:
        raise CheckpointError(
            f"{path} was written by relook {facts.get('relook_version', '?')}, which is newer than this; "
            "upgrade with `pip install --upgrade relook`"
        )
    return said


def names_of(given: Iterable[object]) -> tuple[str, ...]:
    """Names of classes as a file gives them.

    Raises:
        TypeError: when one is no text.
    """
    names = tuple(given)
    if not all(isinstance(name, str) for name in names):
        raise TypeError("names of classes that are no text")
    return cast("tuple[str, ...]", names)


def _recipe(kept: dict[str, Any], form: int) -> dict[str, Any]:
    """The recipe as it is written today, from any format that files were written in.

    Format 1 knew one way to resize, and one record for augmentation, selection and grouping.
    """
    if form >= 2 or not kept:
        return kept
    changed = dict(kept)
    for name in ("train_size", "test_size"):
        if name in changed:
            changed[name] = {"kind": "keep_ratio", **changed[name]}
    old = changed.pop("augment", None)
    if old is not None:
        jitter = [{"kind": "jitter", "strength": old["jitter"]}] if old["jitter"] else []
        changed["augment"] = [*jitter, {"kind": "resize"}, {"kind": "flip", "probability": old["flip"]}]
        changed["group_by"] = old["group_by"]
        changed["selection"] = {"min_side": old["min_side"], "need": old["need"]}
    return changed


# -- from a file's content to weights --------------------------------------------------------------------


def _find_state(content: object, path: Path) -> tuple[str, State]:
    if isinstance(content, Mapping):
        mapping = cast("Mapping[str, object]", content)
        for place in PLACES:
            found = _tensors(mapping.get(place), path)
            if found:
                return place, found
        found = _tensors(mapping, path)
        if found:
            return "", found
        inside = ", ".join(repr(k) for k in cast("list[object]", list(mapping))[:8] if isinstance(k, str))
        inside = inside or "nothing with a name"
        raise CheckpointError(
            f"{path} holds no weights under {', '.join(map(repr, PLACES))} or at its top; it holds {inside}"
        )
    raise CheckpointError(
        f"{path} holds a {type(content).__name__}, not a dictionary of weights; "
        "save `model.state_dict()` instead"
    )


def _tensors(node: object, path: Path) -> State:
    """A dictionary of names and tensors, or nothing."""
    if not isinstance(node, Mapping):
        return {}
    named = cast("Mapping[object, object]", node)
    arrays = [one.value for one in named.values() if isinstance(one, Array) and one.value is not None]
    if sum(array.nbytes for array in arrays) > ALWAYS_READ:  # they may all be of the same few bytes
        raise CheckpointError(
            f"{path}: its arrays would fill more than a gigabyte; save the weights as torch's tensors"
        )
    found: State = {}
    for name, value in named.items():
        if isinstance(value, Array) and value.value is not None:
            value = torch.from_numpy(value.value.copy())  # noqa: PLW2901 (the same value in torch's hands)
        if isinstance(name, str) and isinstance(value, Tensor) and _is_plain(value):
            found[name] = value
    return found


_NUMBERS: Final = frozenset(
    {
        *(
            torch.float16,
            torch.bfloat16,
            torch.float32,
            torch.float64,
            torch.float8_e4m3fn,
            torch.float8_e5m2,
        ),
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    }
)


def _is_plain(value: Tensor) -> bool:
    """Whether it is numbers in memory: not sparse, quantised, complex, or without any."""
    return value.layout == torch.strided and value.device.type == "cpu" and value.dtype in _NUMBERS


_PREFIXES: Final = ("module.", "step.detector.")  # DataParallel's, and that of our own last.ckpt


def _plain_names(state: Mapping[str, Tensor]) -> State:
    """Without what wrappers put before every name, and without copies kept by mmcv's EMA."""
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    averaged = {f"ema_{name.replace('.', '_')}" for name in state}
    return {name: value for name, value in state.items() if name not in averaged}


def _meta(content: object) -> Mapping[str, Any]:
    node = cast("Mapping[str, Any]", content).get("meta") if isinstance(content, Mapping) else None
    return cast("Mapping[str, Any]", node) if isinstance(node, Mapping) else {}


def _class_names(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """mmdetection 2 keeps CLASSES; mmdetection 3 keeps dataset_meta with CLASSES or classes."""
    inner: object = meta.get("dataset_meta")
    places: list[Mapping[str, Any]] = [meta]
    if isinstance(inner, Mapping):
        places.append(cast("Mapping[str, Any]", inner))
    for place in places:
        for key in ("CLASSES", "classes"):
            names = place.get(key)
            if isinstance(names, (list, tuple)):
                with suppress(TypeError):
                    return names_of(cast("Sequence[object]", names))
    return ()


def _text(meta: Mapping[str, Any], *keys: str) -> str:
    return next((meta[k] for k in keys if isinstance(meta.get(k), str)), "")


def _items(content: object, place: str) -> list[tuple[object, object]]:
    node = _mapping(_mapping(content).get(place) if place else content)
    return [*cast("Mapping[object, object]", node).items()]


def _odd_tensors(keys: Sequence[object]) -> list[str]:
    if not keys:
        return []
    few = ", ".join(printable(str(key), 100) for key in keys[:3] if isinstance(key, str))
    return [f"left aside: {len(keys)} tensors that are sparse, quantised, complex or empty ({few})"]


def _notes(content: object, place: str, state: State) -> tuple[str, ...]:
    odd = [key for key, value in _items(content, place) if isinstance(value, Tensor) and not _is_plain(value)]
    notes = _odd_tensors(odd)
    if isinstance(content, Mapping):
        others = (
            [k for k in cast("Mapping[object, object]", content) if k not in {place, "meta"}] if place else []
        )
        if "ema_state_dict" in others:
            notes.append("averaged weights (ema_state_dict) are in the file too and were left aside")
        rest = [printable(k, 200) for k in others if isinstance(k, str) and k != "ema_state_dict"]
        if rest:
            notes.append(f"left aside: {', '.join(rest)}")
    copies = len(state) - len(_plain_names(state))
    if copies:
        notes.append(f"left aside: {copies} averaged copies (ema_...)")
    return tuple(notes)
