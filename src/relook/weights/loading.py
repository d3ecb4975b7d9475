"""Weights into a detector: strict, with a report."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relook.archives import CheckpointError
from relook.detector import Detector
from relook.escaping import printable
from relook.weights.compare import COUNTER, Contents, Difference, Shape, all_layouts, difference, shapes
from relook.weights.identify import identify
from relook.weights.pretrained import backbones_of
from relook.weights.reading.checkpoint import Checkpoint, State, read_checkpoint
from relook.weights.shapes import built
from relook.zoo.entry import DetectorConfig, Layout

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What `load_published` did. No weight was missing or unexpected, or it would have raised."""

    tensors: int  # loaded
    layout: str  # whose names the file's keys carried
    missing: tuple[str, ...] = ()  # batch counters that the file lacks; nothing depends on them
    unexpected: tuple[str, ...] = ()  # batch counters that the detector lacks, and what no detector needs
    classes: tuple[str, ...] = ()  # names that the file gives to its classes
    epoch: int | None = None
    stand_ins: tuple[str, ...] = ()  # foreign objects in the file that were replaced by harmless values
    notes: tuple[str, ...] = ()  # what was left aside


def load_published(
    detector: Detector[Any], source: Path | str | Mapping[str, Tensor] | Checkpoint
) -> LoadReport:
    """Loads published weights into a detector, strictly: every tensor must fit.

    Args:
        detector: built with the settings of the published model and the file's number of classes.
        source: a checkpoint file, what `read_checkpoint` made of one, or a state dict with published names
            or ours.

    Raises:
        CheckpointError: with what is missing, unexpected or of another shape, and which model would fit.
    """
    given = _checkpoint(source)
    _warn(given)
    ours = shapes(detector.state_dict())
    contents = Contents(given.state)
    fit, layout = _best(contents, ours)
    if len(fit):
        raise CheckpointError(
            f"{given.path} does not fit {type(detector).__name__} with {detector.num_classes} classes: "
            f"{fit.sentence()}. {_advice(given)}"
        )
    named = contents.named(layout)
    _refuse_other_numbers(given, named, detector.state_dict())
    state = {
        named[key]: value.reshape(ours[named[key]])  # one number alone: [1] or []
        for key, value in given.state.items()
        if named[key] in ours
    }
    own = detector.state_dict()
    counters = {name: own[name] for name in ours if name not in state and name.endswith(COUNTER)}
    detector.load_state_dict({**state, **counters}, strict=True)
    return LoadReport(
        tensors=len(state),
        layout=fit.layout,
        missing=tuple(counters),
        unexpected=tuple(key for key in given.state if named[key] not in ours),
        classes=given.classes,
        epoch=given.epoch,
        stand_ins=given.stand_ins,
        notes=given.notes,
    )


def _best(contents: Contents, ours: Mapping[str, Shape]) -> tuple[Difference, Layout]:
    """The layout in which a file comes nearest to a detector, and how they differ."""
    tried = [(difference(contents, ours, layout), layout) for layout in all_layouts()]
    return min(tried, key=lambda one: len(one[0]))


def _refuse_other_numbers(given: Checkpoint, named: Mapping[str, str], own: State) -> None:
    """Whole numbers and truth values are no weights, though they would be taken for some."""
    for key, value in given.state.items():
        wanted = own.get(named[key])
        if wanted is not None and wanted.is_floating_point() and not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{given.path}: {printable(key, 200)!r} holds {kind}, and weights are floating-point"
            )


def _warn(given: Checkpoint) -> None:
    unsound = given.unsound()
    if unsound:
        log.warning("%s: %s", given.path, unsound)


def _checkpoint(source: Path | str | Mapping[str, Tensor] | Checkpoint) -> Checkpoint:
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, (str, Path)):
        return read_checkpoint(source)
    state: State = {name: torch.as_tensor(value) for name, value in source.items()}
    return Checkpoint(path=Path("the state dict"), state=state)


def _advice(checkpoint: Checkpoint) -> str:
    identity = identify(checkpoint)
    if identity.exact:
        best = identity.exact[0]
        return f"It fits relook.create_model({best.entry.name!r}, num_classes={best.classes})"
    return "It fits no model of the catalog; `relook doctor FILE` says more"


def load_start(
    detector: Detector[Any], config: DetectorConfig, source: Path | str, classes: Sequence[str] = ()
) -> str:
    """Starts a detector from weights of the same model, made for these or for other classes, or of another.

    Tensors whose shape depends on the number of classes keep their random start where that number differs, or
    where the file gives its classes other names or another order. Of another model its backbone and its
    pyramid are taken, each where all of it fits.

    Args:
        detector: built by `config`.
        config: its settings.
        source: a weights file of ours or a published checkpoint.
        classes: what the detector's classes are called, where that is known.

    Returns:
        What was loaded, in words.

    Raises:
        CheckpointError: when nothing in the file fits.
    """
    given = read_checkpoint(source)
    _warn(given)
    ours = detector.state_dict()
    contents = Contents(given.state)
    fit, layout = _best(contents, shapes(ours))
    by_class = {one.name for one in built(config).growing}
    left = [m for m in fit.mismatched if m.split(":")[0] in by_class]
    if len(fit) > len(left):
        return _start_from_parts(detector, given, contents, fit)
    named = contents.named(layout)
    others = bool(classes and given.classes) and tuple(classes) != given.classes
    skipped = by_class if left or others else set[str]()
    state = {
        named[key]: value.reshape(ours[named[key]].shape)
        for key, value in given.state.items()
        if named[key] in ours and named[key] not in skipped
    }
    detector.load_state_dict({**ours, **state}, strict=True)
    words = f"{len(state)} tensors from {given.path}"
    if others and not left:
        return f"{words}; {len(skipped)} start anew, for its classes have other names or another order"
    return f"{words}; {len(skipped)} that depend on the classes start anew" if skipped else words


_PARTS = {"backbone.": "backbone", "neck.": "pyramid"}  # what families have in common


def _start_from_parts(detector: Detector[Any], given: Checkpoint, contents: Contents, fit: Difference) -> str:
    """Takes what fits of another model's weights; says what."""
    ours = detector.state_dict()
    taken: dict[str, Tensor] = {}
    words: list[str] = []
    for prefix, part in _PARTS.items():
        wanted = {name: value for name, value in ours.items() if name.startswith(prefix)}
        found = _part(given, contents, wanted)
        if wanted and all(name in found or name.endswith(COUNTER) for name in wanted):
            taken |= found
            words.append(part)
    if not taken:
        classifier = backbones_of(given.state)
        if classifier:
            raise CheckpointError(
                f"{given.path} holds a classifier's weights: give it as --backbone-weights {given.path}"
            )
        raise CheckpointError(
            f"{given.path} does not fit {type(detector).__name__}: {fit.sentence()}. {_advice(given)}"
        )
    detector.load_state_dict({**ours, **taken}, strict=True)
    rest = len(ours) - len(taken)
    return f"{len(taken)} tensors ({' and '.join(words)}) of another model in {given.path}; {rest} start anew"


def _part(given: Checkpoint, contents: Contents, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a part of a detector that a file has, in whatever layout it has most of them."""
    best: dict[str, Tensor] = {}
    for layout in all_layouts():
        keys = {name: key for key, name in contents.named(layout).items()}
        found = {
            name: given.state[keys[name]]
            for name, value in wanted.items()
            if name in keys and given.state[keys[name]].shape == value.shape
        }
        best = max(best, found, key=len)
    return best
