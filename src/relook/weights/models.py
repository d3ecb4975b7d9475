"""A model by its name or from its file: settings, detector, recipe and class names together."""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from relook.archives import CheckpointError
from relook.detector import Detector
from relook.escaping import printable
from relook.metrics.named import metric_named
from relook.recipe import Recipe, sizes_at
from relook.settings import BadValue, UnknownField, override, restored
from relook.weights.identify import Candidate, Identity, identify
from relook.weights.loading import LoadReport, load_published
from relook.weights.reading.checkpoint import Checkpoint, Description, read_checkpoint
from relook.zoo.catalog import find
from relook.zoo.classes import COCO
from relook.zoo.entry import Entry
from relook.zoo.limits import check


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A named entry with changes, and what its classes are called."""

    name: str  # in the catalog, or module:NAME
    entry: Entry  # with the changes
    settings: dict[str, str] = field(default_factory=dict[str, str])  # the changes
    classes: tuple[str, ...] = ()

    def describe(self) -> Description:
        """For the weights file."""
        return Description(
            model=self.name,
            settings=self.settings,
            classes=self.classes,
            recipe=asdict(self.entry.recipe),
            relook_version=version("relook"),
        )

    def change(self, settings: Mapping[str, str]) -> "Model":
        """With further dotted changes: {"detector.score": "0.01", "recipe.test_size.short": "600"}.

        Raises:
            ValueError: for a setting that is not there (with the nearest that is) or a value that cannot be.
        """
        for key in settings:
            if key.partition(".")[0] not in ("detector", "recipe"):
                raise ValueError(
                    f"{key}: settings begin with detector. or recipe., as detector.{key.split('.')[-1]}"
                )
        changed = override(self.entry, settings)
        if ":" not in self.name:  # what numbers an entry of one's own may have is its own business
            check(changed.detector)
        return replace(self, entry=changed, settings={**self.settings, **settings})

    def sized(self, side: int | None) -> "Model":
        """Trained and tested on images of another size (`relook.recipe.sizes_at`); None changes nothing."""
        return self if side is None else self.change(sizes_at(self.entry.recipe, side))

    def with_classes(self, classes: tuple[str, ...]) -> "Model":
        """For other classes."""
        changed = self.change({"detector.num_classes": str(len(classes))})
        return replace(changed, classes=classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model with its weights."""

    model: Model
    detector: Detector[Any]
    report: LoadReport
    note: str = ""  # how the file was recognised, in words


def by_name(name: str, settings: Mapping[str, str] | None = None) -> Model:
    """A model of the catalog, or `module:NAME`, an `Entry` of one's own.

    Raises:
        ValueError: when there is none of that name; the message has the nearest names.
    """
    found = _own(name) if ":" in name else find(name)
    model = Model(name=name, entry=found, classes=_usual_classes(found.detector.num_classes))
    return model.change(settings or {})


def _own(name: str) -> Entry:
    place, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if (
        here not in sys.path
    ):  # a module beside one's work, as with `python -m`; last, so that it hides nothing
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(place), attribute)
    except ImportError as error:
        raise ValueError(
            f"--model {name}: the module {place!r} cannot be imported ({error}); run relook where it can be"
        ) from error
    except AttributeError as error:
        raise ValueError(f"--model {name}: {place} has no {attribute!r}") from error
    if not isinstance(found, Entry):
        kind = type(found).__name__
        raise TypeError(f"--model {name}: {attribute} is a {kind}, not a relook.zoo.entry.Entry")
    return found


def _usual_classes(count: int) -> tuple[str, ...]:
    """COCO's names for its 80 classes; numbers for another count."""
    return COCO if count == len(COCO) else tuple(f"class {i}" for i in range(count))


# -- from a file -----------------------------------------------------------------------------------------


def open_weights(
    file: Path | str,
    name: str | None = None,
    settings: Mapping[str, str] | None = None,
    *,
    size: int | None = None,
) -> Loaded:
    """Builds the detector that a weights file belongs to, and loads it.

    Args:
        file: one of ours, which says what it is, or a published checkpoint.
        name: which model it is; needed where a published checkpoint could be several.
        settings: dotted changes that keep the shapes of the weights.
        size: how large the network sees images; see `relook.recipe.sizes_at`.

    Raises:
        CheckpointError: when the file cannot be read, is of no known model, or could be several.
    """
    checkpoint = read_checkpoint(file)
    if checkpoint.description is not None:
        model, note = _described(checkpoint, checkpoint.description, name), "it says so"
    else:
        model, note = _recognised(checkpoint, name)
    model = model.sized(size).change(settings or {})
    if checkpoint.description is not None:
        refuse_larger(model, checkpoint)
    detector = model.entry.detector.build()
    return Loaded(model=model, detector=detector, report=load_published(detector, checkpoint), note=note)


def refuse_larger(model: Model, checkpoint: Checkpoint) -> None:
    """Refuses settings that a file gives where they make a far larger network than the file holds.

    It is built without memory for its parameters, and given up as soon as there are too many of them.

    Raises:
        CheckpointError: with the setting that says most.
    """
    most = len(checkpoint.state) + 100
    numbers = 2 * sum(value.numel() for value in checkpoint.state.values()) + 1_000_000
    count = size = 0

    def counted(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count, size
        count, size = count + 1, size + (0 if parameter is None else parameter.numel())
        if count > most or size > numbers:
            raise _TooLarge

    hook = register_module_parameter_registration_hook(counted)
    try:
        with torch.device("meta"):
            model.entry.detector.build()
    except (ValueError, RuntimeError, TypeError, LookupError, AssertionError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: the settings in it make no network ({error!s:.200}); it was changed by hand "
            "or by another program"
        ) from None
    except _TooLarge:
        said = ", ".join(f"{name}={value}" for name, value in model.settings.items())
        raise CheckpointError(
            f"{checkpoint.path} describes a network far larger than the weights in it "
            f"({printable(said, 300)}); the file was changed by hand or by another program"
        ) from None
    finally:
        hook.remove()


class _TooLarge(Exception):  # noqa: N818 (what was met)
    pass


def _described(checkpoint: Checkpoint, said: Description, name: str | None) -> Model:
    if name is not None and name != said.model:
        raise CheckpointError(f"{checkpoint.path} holds {said.model!r}, not {name!r}; leave the name out")
    if ":" in said.model and name is None:
        raise CheckpointError(
            f"{checkpoint.path} belongs to {said.model!r}, which is not of the catalog; a weights file alone "
            f"may not make relook import a module: say `--model {said.model}` if you trust it"
        )
    # the recipe is kept whole, so that of the settings only the detector's are asked
    settings = {k: v for k, v in said.settings.items() if not (said.recipe and k.startswith("recipe."))}
    try:
        model = by_name(said.model, settings)
    except ValueError as error:
        raise CheckpointError(
            f"{checkpoint.path}: {error}. So says the file: a newer relook wrote it "
            "(`pip install --upgrade relook`), or it was changed by hand or by another program"
        ) from None
    if said.recipe:
        try:
            recipe = restored(Recipe, said.recipe)
            metric_named(recipe.metric)
        except UnknownField as error:
            raise CheckpointError(
                f"{checkpoint.path}: {error}; upgrade with `pip install --upgrade relook`"
            ) from None
        except (BadValue, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint.path}: {error}{'' if ': ' in str(error) else ', which cannot be'}; "
                "the file was changed by hand or by another program"
            ) from None
        model = replace(model, entry=replace(model.entry, recipe=recipe))
    count = model.entry.detector.num_classes
    if said.classes and len(said.classes) != count:
        raise CheckpointError(
            f"{checkpoint.path} names {len(said.classes)} classes for a network of {count}; the file was "
            "changed by hand or by another program"
        )
    return replace(model, classes=said.classes or model.classes)


def _recognised(checkpoint: Checkpoint, name: str | None) -> tuple[Model, str]:
    if name is not None:
        entry = by_name(name).entry
        identity = identify(checkpoint, [entry])
        chosen = identity.exact[0] if identity.exact else identity.nearest
        return _at(name, chosen, checkpoint), "its names and shapes fit"
    identity = identify(checkpoint)
    if not identity.exact:
        raise CheckpointError(f"{checkpoint.path} fits no model of the catalog; {_nearest(identity.nearest)}")
    names = [c.entry.name for c in identity.exact]
    if not identity.certain:
        raise CheckpointError(
            f"{checkpoint.path} could be {' or '.join(names)}, which predict differently; "
            f"say which one it is: `--model {names[0]}`{_doubts(identity)}"
        )
    note = "its names and shapes fit" + "".join(f", {hint} decided" for hint in identity.hints)
    if len(names) > 1:
        note += f"; {', '.join(names[1:])} would predict the same"
    return _at(names[0], identity.exact[0], checkpoint), note


def _doubts(identity: Identity) -> str:
    doubts = dict.fromkeys(c.entry.doubt for c in identity.exact if c.entry.doubt)
    return "".join(f"; {doubt}" for doubt in doubts)


def _at(name: str, candidate: Candidate | None, checkpoint: Checkpoint) -> Model:
    """The model with the file's number of classes and, if they fit, its names."""
    model = by_name(name)
    count = model.entry.detector.num_classes if candidate is None else candidate.classes
    named = checkpoint.classes if len(checkpoint.classes) == count else _usual_classes(count)
    same = count == model.entry.detector.num_classes
    return replace(model, classes=named) if same else model.with_classes(named)


def _nearest(candidate: Candidate | None) -> str:
    if candidate is None:
        return "the catalog is empty"
    words = candidate.difference.sentence()
    return f"nearest is {candidate.entry.name} with {candidate.classes} classes: {words}"
