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
from relook.weights.compare import Contents, Difference, Shape, all_layouts, difference, shapes
from relook.weights.identify import identify
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
    state = {
        named[key]: value.reshape(ours[named[key]])  # one number alone: [1] or []
        for key, value in given.state.items()
        if named[key] in ours
    }
    own = detector.state_dict()
    counters = {name: own[name] for name in ours if name not in state}
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
    """Starts a detector from weights of the same model, made for these or for other classes.

    Tensors whose shape depends on the number of classes keep their random start where that number differs, or
    where the file gives its classes other names or another order.

    Args:
        detector: built by `config`.
        config: its settings.
        source: a weights file of ours or a published checkpoint.
        classes: what the detector's classes are called, where that is known.

    Returns:
        What was loaded, in words.

    Raises:
        CheckpointError: when the file holds another model.
    """
    given = read_checkpoint(source)
    _warn(given)
    ours = detector.state_dict()
    contents = Contents(given.state)
    fit, layout = _best(contents, shapes(ours))
    by_class = {one.name for one in built(config).growing}
    left = [m for m in fit.mismatched if m.split(":")[0] in by_class]
    if len(fit) > len(left):
        raise CheckpointError(
            f"{given.path} does not fit {type(detector).__name__}: {fit.sentence()}. {_advice(given)}"
        )
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
    return f"{words}; {len(skipped)} that depend on the classes start anew" if skipped else words
