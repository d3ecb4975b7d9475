"""Which model a file holds, and its weights into a detector: strict, with a report."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor

from relook.detector import Detector
from relook.zoo.catalog import ENTRIES
from relook.zoo.checkpoint import Checkpoint, State, read_checkpoint
from relook.zoo.entry import DetectorConfig, Entry
from relook.zoo.layouts import LAYOUTS, rename
from relook.zoo.pickled import CheckpointError

Shape = tuple[int, ...]
COUNTER: Final = "num_batches_tracked"  # of batch normalisation; some files lack it and nothing depends on it
SHOWN: Final = 5  # names in a message, of each kind

TRAINING_ONLY: Final = frozenset(  # settings of detectors that say how to train; predictions do not see them
    {
        "gradient_scale",
        "moment_scale",
        "deform_std",
        "start_reach",
        "init_assign",
        "refine_assign",
        "object_scale",
        "positive_iou",
        "negative_iou",
        "atss_candidates",
        "box_loss",
        "beta",
        "init_weight",
        "refine_weight",
        "frozen",
        "freeze_statistics",
    }
)


# -- comparing names and shapes ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How the tensors of a file differ from those of a detector."""

    layout: str  # whose names the file's keys carry
    missing: tuple[str, ...] = ()  # of the detector, not in the file
    unexpected: tuple[str, ...] = ()  # in the file (by its own name), not in the detector
    mismatched: tuple[str, ...] = ()  # "name: file [20, 256], detector [80, 256]"

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.mismatched)

    def sentence(self) -> str:
        """All kinds of differences, the first few of each by name."""
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.mismatched),
        )
        return "; ".join(f"{len(names)} {kind} ({_few(names)})" for kind, names in kinds if names)


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


class _Contents:
    """Names and shapes of a file; the names as each layout reads them, worked out once."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.shapes = _shapes(state)
        self._named: dict[str, dict[str, str]] = {}

    def named(self, layout: str) -> dict[str, str]:
        """Key of the file -> our name."""
        if layout not in self._named:
            self._named[layout] = rename(self.shapes, layout)
        return self._named[layout]

    def renamed(self, layout: str) -> dict[str, Shape]:
        """Our name -> shape."""
        named = self.named(layout)
        return {named[key]: shape for key, shape in self.shapes.items()}


def _difference(theirs: _Contents, ours: Mapping[str, Shape], layout: str) -> Difference:
    named, shapes = theirs.named(layout), theirs.renamed(layout)
    return Difference(
        layout=layout,
        missing=tuple(name for name in ours if name not in shapes and not name.endswith(COUNTER)),
        unexpected=tuple(k for k, name in named.items() if name not in ours and not name.endswith(COUNTER)),
        mismatched=tuple(
            f"{name}: file {list(shapes[name])}, detector {list(shape)}"
            for name, shape in ours.items()
            if name in shapes and shapes[name] != shape
        ),
    )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: tuple(value.shape) for name, value in state.items()}


@cache
def model_shapes(config: DetectorConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of a detector, which is built without memory."""
    with torch.device("meta"):
        return _shapes(config.build().state_dict())


# -- loading -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What `load_published` did. Of weights nothing was missing or unexpected, or it would have raised."""

    tensors: int  # loaded
    layout: str  # whose names the file's keys carried
    missing: tuple[str, ...] = ()  # batch counters that the file lacks; nothing depends on them
    unexpected: tuple[str, ...] = ()  # batch counters that the detector lacks
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
    ours = _shapes(detector.state_dict())
    contents = _Contents(given.state)
    fit = min((_difference(contents, ours, layout) for layout in LAYOUTS), key=len)
    if len(fit):
        raise CheckpointError(
            f"{given.path} does not fit {type(detector).__name__} with {detector.num_classes} classes: "
            f"{fit.sentence()}. {_advice(given)}"
        )
    named = contents.named(fit.layout)
    state = {named[key]: value for key, value in given.state.items() if named[key] in ours}
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


def load_start(detector: Detector[Any], config: DetectorConfig, source: Path | str) -> str:
    """Starts a detector from weights of the same model, made for these or for other classes.

    Tensors whose shape depends on the number of classes keep their random start where that number differs.

    Args:
        detector: built by `config`.
        config: its settings.
        source: a weights file of ours or a published checkpoint.

    Returns:
        What was loaded, in words.

    Raises:
        CheckpointError: when the file holds another model.
    """
    given = read_checkpoint(source)
    ours = detector.state_dict()
    contents = _Contents(given.state)
    fit = min((_difference(contents, _shapes(ours), layout) for layout in LAYOUTS), key=len)
    by_class = {name for name, *_ in _growing(config)}
    left = [m for m in fit.mismatched if m.split(":")[0] in by_class]
    if len(fit) > len(left):
        raise CheckpointError(
            f"{given.path} does not fit {type(detector).__name__}: {fit.sentence()}. {_advice(given)}"
        )
    named = contents.named(fit.layout)
    skipped = by_class if left else set[str]()
    state = {named[k]: v for k, v in given.state.items() if named[k] in ours and named[k] not in skipped}
    detector.load_state_dict({**ours, **state}, strict=True)
    words = f"{len(state)} tensors from {given.path}"
    return f"{words}; {len(skipped)} that depend on the classes start anew" if skipped else words


# -- which model is it? --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model of the catalog, with the number of classes at which a file comes nearest to it."""

    entry: Entry
    classes: int
    difference: Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a file may be."""

    exact: tuple[
        Candidate, ...
    ] = ()  # every name and shape fits; what the file says of itself decided between
    nearest: Candidate | None = None  # without an exact one: the model with the fewest differences
    hints: tuple[str, ...] = field(default=())  # what decided, in words

    @property
    def certain(self) -> bool:
        """Whether the predictions of all exact candidates are the same, so that any of them will do."""
        return len({_seen_in_prediction(c.entry) for c in self.exact}) == 1


def identify(checkpoint: Checkpoint, among: Iterable[Entry] | None = None) -> Identity:
    """Which models of the catalog a file may hold, from its names, its shapes and what it says of itself.

    Args:
        checkpoint: from `read_checkpoint`.
        among: only these entries; without them the whole catalog.
    """
    theirs = _Contents(checkpoint.state)
    candidates = [_candidate(theirs, entry) for entry in (ENTRIES.values() if among is None else among)]
    exact = [c for c in candidates if not len(c.difference)]
    if not exact:
        return Identity(nearest=min(candidates, key=lambda c: len(c.difference), default=None))
    said: list[str] = []
    for hint in (_by_name, _by_config):
        exact, words = hint(checkpoint, exact)
        said += words
    return Identity(exact=tuple(exact), hints=tuple(said))


def _candidate(theirs: _Contents, entry: Entry) -> Candidate:
    best: Candidate | None = None
    for layout in dict.fromkeys((entry.layout, "relook")):
        classes = _classes(theirs, entry.detector, layout)
        config = _with_classes(entry.detector, classes)
        difference = _difference(theirs, model_shapes(config), layout)
        if best is None or len(difference) < len(best.difference):
            best = Candidate(entry=entry, classes=classes, difference=difference)
    return cast("Candidate", best)


def _with_classes(config: DetectorConfig, classes: int) -> DetectorConfig:
    return cast("DetectorConfig", replace(cast("Any", config), num_classes=classes))


def _classes(theirs: _Contents, config: DetectorConfig, layout: str) -> int:
    """The number of classes of a file, from the sides that grow when a model gets one more class.

    Their own number where they say none or contradict each other.
    """
    shapes = theirs.renamed(layout)
    counts: set[int] = set()
    for name, side, per_class, base in _growing(config):
        shape = shapes.get(name)
        if shape is not None and len(shape) > side:
            whole, rest = divmod(shape[side] - base, per_class)
            counts.add(whole if rest == 0 and whole > 0 else -1)
    return counts.pop() if len(counts) == 1 and -1 not in counts else config.num_classes


@cache
def _growing(config: DetectorConfig) -> tuple[tuple[str, int, int, int], ...]:
    """(name, which side, growth per class, size at no class) of the tensors that depend on the classes."""
    classes = config.num_classes
    now, more = model_shapes(config), model_shapes(_with_classes(config, classes + 1))
    return tuple(
        (name, side, bigger - size, size - classes * (bigger - size))
        for name, shape in now.items()
        for side, (size, bigger) in enumerate(zip(shape, more[name], strict=True))
        if bigger != size
    )


def _seen_in_prediction(entry: Entry) -> str:
    """All settings that a prediction depends on, as text to compare."""
    recipe = {"pixels": asdict(entry.recipe.pixels), "size": asdict(entry.recipe.test_size)}
    return repr(
        (type(entry.detector).__name__, _without_training(asdict(cast("Any", entry.detector))), recipe)
    )


def _without_training(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_training(cast("dict[str, Any]", value)) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name not in TRAINING_ONLY
    }


# What a file says of itself: its name and the configuration that the old frameworks keep in it. Each hint is
# used only where it leaves a candidate.


def _by_name(checkpoint: Checkpoint, among: list[Candidate]) -> tuple[list[Candidate], list[str]]:
    """The name of the published configuration in the file's name or in its work_dir or exp_name."""
    said = [
        checkpoint.path.name,
        *re.findall(r"(?:work_dir|exp_name)\s*=\s*['\"]([^'\"]+)", checkpoint.config),
    ]
    text = " ".join(map(_plain, said))
    fitting = {
        c.entry.name: max(len(name) for name in _names(c.entry) if name in text or not name) for c in among
    }
    longest = max(fitting.values())
    chosen = [c for c in among if fitting[c.entry.name] == longest]
    if longest == 0 or len(chosen) == len(among):
        return among, []
    return chosen, ["its name"]


def _names(entry: Entry) -> tuple[str, ...]:
    published = entry.config.rsplit("/", 1)[-1].removesuffix("_coco")
    return ("", _plain(entry.name), _plain(published)) if published else ("", _plain(entry.name))


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower())


_FACTS: Final = {  # what to look for in a configuration's text, and the setting that it tells
    "box": r"transform_method\s*=\s*['\"](\w+)",
    "nms": r"nms\s*=\s*dict\([^)]*iou_thr(?:eshold)?\s*=\s*([\d.]+)",
    "box_loss": r"loss_bbox_refine\s*=\s*dict\([^)]*type\s*=\s*['\"](\w+)",
    "epochs": r"(?:total_epochs|max_epochs)\s*=\s*(\d+)",
}
_WORDS: Final = {"GIoULoss": "giou", "SmoothL1Loss": "smooth_l1"}


def _by_config(checkpoint: Checkpoint, among: list[Candidate]) -> tuple[list[Candidate], list[str]]:
    said: list[str] = []
    for fact, pattern in _FACTS.items():
        match = re.search(pattern, checkpoint.config)
        if match is None:
            continue
        value = _WORDS.get(match[1], match[1])
        chosen = [c for c in among if _fact(c.entry, fact) in (value, None)]
        if chosen and len(chosen) < len(among):
            among = chosen
            said.append(f"{fact} {value} in its configuration")
    return among, said


def _fact(entry: Entry, fact: str) -> str | None:
    settings: dict[str, Any] = asdict(cast("Any", entry.detector))
    value = entry.recipe.schedule.epochs if fact == "epochs" else settings.get(fact)
    return None if value is None else str(value)
