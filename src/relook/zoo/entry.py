"""A published model: its name, its settings, its recipe and its figures."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, Protocol, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from relook.detector import Detector
from relook.recipe import Recipe

T = TypeVar("T")


class DetectorConfig(Protocol):
    """Any frozen dataclass that can build its detector."""

    @property
    def num_classes(self) -> int: ...

    def build(self) -> Detector[Any]: ...


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that somebody published. It is theirs until relook has measured it again."""

    dataset: str  # "coco/val2017"
    metric: str  # "AP"
    value: float
    source: str  # who published it


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    name: str
    paper: str  # arXiv number
    detector: DetectorConfig
    recipe: Recipe
    layout: Literal["mmdet", "relook"]  # whose names the published file's keys carry; see zoo.layouts
    config: str = ""  # the published configuration's own name
    publisher: str = "relook"
    figures: tuple[Figure, ...] = ()
    licence: str = "Apache-2.0"  # of the publisher's code and weights
    input: tuple[int, int] = (800, 1333)  # height, width of a typical test image, for counting operations

    def figure(self, metric: str, dataset: str) -> float | None:
        """The published value, or None where none was published."""
        found = [f.value for f in self.figures if (f.metric, f.dataset) == (metric, dataset)]
        return found[0] if found else None


def override(settings: T, changes: Mapping[str, object]) -> T:
    """A copy of frozen settings with dotted fields changed: {"recipe.schedule.epochs": "24"}.

    Text is read as the field's type, other values are taken as they are.

    Raises:
        ValueError: for a field that is not there (with the nearest that is) or a text that does not fit.
    """
    for path, value in changes.items():
        settings = _changed(settings, path, path.split("."), value)
    return settings


def _changed(node: T, path: str, rest: list[str], value: object) -> T:
    if not is_dataclass(node) or isinstance(node, type):
        raise ValueError(f"{path}: nothing below {rest[0]!r} can be set")
    names = [f.name for f in fields(node)]
    if rest[0] not in names:
        near = get_close_matches(rest[0], names, n=1)
        raise ValueError(
            f"{path}: {type(node).__name__} has no {rest[0]!r}; "
            + (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}")
        )
    new = value
    if len(rest) > 1:
        new = _changed(getattr(node, rest[0]), path, rest[1:], value)
    elif isinstance(value, str):
        new = _parse(value, get_type_hints(type(node))[rest[0]], path)
    return cast("T", replace(cast("Any", node), **{rest[0]: new}))


def _parse(text: str, kind: Any, path: str) -> object:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        if text not in inner:
            raise ValueError(f"{path}: expected one of {', '.join(map(str, inner))}, got {text!r}")
        return text
    if origin in (Union, UnionType):
        if NoneType in inner and text.lower() in ("none", "null"):
            return None
        return _parse(text, next(k for k in inner if k is not NoneType), path)
    if origin is tuple:
        parts = [part for part in text.strip("()[]").split(",") if part.strip()]
        kinds = [inner[0]] * len(parts) if inner[-1] is Ellipsis else list(inner)
        if len(parts) != len(kinds):
            raise ValueError(f"{path}: expected {len(kinds)} values with commas between, got {text!r}")
        return tuple(_parse(part.strip(), k, path) for part, k in zip(parts, kinds, strict=True))
    return _parse_plain(text, kind, path)


def _parse_plain(text: str, kind: Any, path: str) -> object:
    words = {"true": True, "false": False}
    if kind is bool:
        if text.lower() not in words:
            raise ValueError(f"{path}: expected true or false, got {text!r}")
        return words[text.lower()]
    if kind in (int, float, str):
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"{path}: expected {kind.__name__}, got {text!r}") from None
    raise ValueError(f"{path}: {kind} cannot be set from text; write it in Python")
