"""Frozen settings from text and back from JSON: what `--set` writes and what weights files keep.

Knows dataclasses, tuples, choices, and unions of records that tell themselves apart by a field `kind`.
"""

import ast
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


class UnknownField(ValueError):  # noqa: N818 (what was met)
    """A field of stored settings that this version does not know."""


class BadValue(ValueError):  # noqa: N818 (what was met)
    """A stored value that its field cannot have."""


# -- from text -------------------------------------------------------------------------------------------


def override(settings: T, changes: Mapping[str, object]) -> T:
    """A copy of frozen settings with dotted fields changed: {"recipe.schedule.epochs": "24"}.

    Text is read as the field's type, other values are taken as they are. A record of several kinds is written
    as a call, "stretch(height=512)", and a step in a tuple of such records is named by its kind:
    {"recipe.augment.flip.probability": "0.3"}.

    Raises:
        ValueError: for a field that is not there (with the nearest that is) or a text that does not fit.
    """
    groups: dict[str, dict[str, object]] = {}
    for path, value in changes.items():
        above, _, name = path.rpartition(".")
        groups.setdefault(above, {})[name] = value
    for above in sorted(groups, key=lambda path: path.count(".")):  # a record whole before what is in it
        for path, value in _together(settings, above, groups[above]).items():
            settings = _changed(settings, path, path.split("."), value)
    return settings


def _together(settings: Any, above: str, given: Mapping[str, object]) -> dict[str, object]:
    """Several fields of one record become one change of it, because some fit only together."""
    node = settings
    for name in filter(None, above.split(".")):
        node = getattr(node, name, None)
    if not above or len(given) == 1 or not is_dataclass(node) or "kind" in given:
        return {f"{above}.{name}" if above else name: value for name, value in given.items()}
    read: dict[str, object] = {}
    for name, value in given.items():
        path = f"{above}.{name}"
        kind = _field_type(cast("type[Any]", type(node)), name, path)
        read[name] = _parse(value, kind, path) if isinstance(value, str) else value
    try:
        return {above: replace(cast("Any", node), **read)}
    except ValueError as error:
        raise ValueError(f"{above}: {error}") from None


def _changed(node: T, path: str, rest: list[str], value: object) -> T:
    if isinstance(node, tuple):
        return cast("T", _changed_step(cast("tuple[Any, ...]", node), path, rest, value))
    if not is_dataclass(node) or isinstance(node, type):
        raise ValueError(f"{path}: nothing below {rest[0]!r} can be set")
    kind = _field_type(type(node), rest[0], path)
    if rest == ["kind"] and _kinds(type(node)):
        whole = path.removesuffix(".kind")
        raise ValueError(f"{path}: a record of another kind is written whole: {whole}={value}(...)")
    new = value
    if len(rest) > 1:
        new = _changed(getattr(node, rest[0]), path, rest[1:], value)
    elif isinstance(value, str):
        new = _parse(value, kind, path)
    try:
        return cast("T", replace(cast("Any", node), **{rest[0]: new}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}" if len(rest) == 1 else str(error)) from None


def _field_type(record: type[Any], name: str, path: str) -> Any:
    names = [f.name for f in fields(record)]
    if name not in names:
        raise ValueError(f"{path}: {record.__name__} has no {name!r}; {_hint(name, names)}")
    return get_type_hints(record)[name]


def _changed_step(steps: tuple[Any, ...], path: str, rest: list[str], value: object) -> tuple[Any, ...]:
    """One record of a tuple of records, found by its kind."""
    kinds = [getattr(step, "kind", "") for step in steps]
    if rest[0] not in kinds or len(rest) < 2:
        whole = path.rsplit(f".{rest[0]}", 1)[0]
        steps_now = ", ".join(filter(None, kinds)) or "nothing"
        raise ValueError(
            f"{path}: there is no {rest[0]!r} with settings in {whole}, which is {steps_now}; "
            f"write the whole of it: {whole}={', '.join([*filter(None, kinds), f'{rest[0]}(...)'])}"
        )
    return tuple(
        _changed(step, path, rest[1:], value) if kind == rest[0] else step
        for step, kind in zip(steps, kinds, strict=True)
    )


def _hint(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"


def _parse(text: str, kind: Any, path: str) -> object:
    origin, inner = get_origin(kind), get_args(kind)
    if kinds := _kinds(kind):
        return _only(_records(text, kinds, path), path, text)
    if origin is Literal:
        named = {str(one): one for one in inner}
        if text not in named:
            raise ValueError(f"{path}: expected one of {', '.join(named)}, got {text!r}")
        return named[text]
    if origin in (Union, UnionType):  # of one type and None
        empty = NoneType in inner and text.lower() in ("none", "null")
        return None if empty else _parse(text, next(k for k in inner if k is not NoneType), path)
    return _parse_tuple(text, inner, path) if origin is tuple else _parse_plain(text, kind, path)


def _parse_tuple(text: str, inner: tuple[Any, ...], path: str) -> tuple[object, ...]:
    if inner[-1] is Ellipsis and (steps := _kinds(inner[0])):
        return tuple(_records(text, steps, path))
    parts = [part for part in text.strip("()[]").split(",") if part.strip()]
    if text.strip().lower() in ("none", "()"):
        parts = []
    kinds = [inner[0]] * len(parts) if inner[-1] is Ellipsis else list(inner)
    if len(parts) != len(kinds):
        raise ValueError(f"{path}: expected {len(kinds)} values with commas between, got {text!r}")
    return tuple(_parse(part.strip(), k, path) for part, k in zip(parts, kinds, strict=True))


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
    if is_dataclass(kind):
        names = ", ".join(f"{path}.{f.name}" for f in fields(kind))
        raise ValueError(f"{path}: set what is in it: {names}")
    raise ValueError(f"{path}: {kind} cannot be set from text; write it in Python")


# -- records of several kinds ----------------------------------------------------------------------------


def _kinds(hint: Any) -> tuple[type[Any], ...]:
    """The records that a hint allows, when each has a `kind` of its own; else nothing."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return cast("tuple[type[Any], ...]", options) if options and all(map(_marked, options)) else ()


def _marked(one: Any) -> bool:
    if not is_dataclass(one) or "kind" not in {f.name for f in fields(one)}:
        return False
    return len(get_args(get_type_hints(one)["kind"])) == 1  # a choice of several is a plain setting


def _records(text: str, kinds: tuple[type[Any], ...], path: str) -> list[object]:
    """The text `resize, flip(probability=0.3)` -> the records, in their order; `none` is no record."""
    named = {_kind_of(one): one for one in kinds}
    if text.strip().lower() in ("", "none", "()"):
        return []
    example = ", ".join(f"{name}(...)" for name in named)
    try:
        tree = ast.parse(f"({text.strip().removesuffix(',')},)", mode="eval").body
        parts = tree.elts if isinstance(tree, ast.Tuple) else None
        if parts is not None:
            return [_record(part, named, path, text) for part in parts]
    except (SyntaxError, RecursionError, MemoryError):
        pass
    raise ValueError(f"{path}: {text[:80]!r} cannot be read; write it as {example}")


def _kind_of(record: type[Any]) -> str:
    return str(next(f.default for f in fields(record) if f.name == "kind"))


def _record(node: ast.expr, named: Mapping[str, type[Any]], path: str, text: str) -> object:
    call = node if isinstance(node, ast.Call) else None
    name = call.func if call is not None else node
    if not isinstance(name, ast.Name) or name.id not in named or (call is not None and call.args):
        raise ValueError(f"{path}: expected {' or '.join(f'{one}(...)' for one in named)}, got {text!r}")
    kind, values = named[name.id], dict[str, object]()
    for keyword in () if call is None else call.keywords:
        if keyword.arg is None:
            raise ValueError(f"{path}: write each setting by its name, as height=512, not {text!r}")
        value = ast.unparse(keyword.value)
        try:
            ast.literal_eval(keyword.value)
        except (ValueError, TypeError):
            raise ValueError(f"{path}: {keyword.arg}={value} is no plain value") from None
        where = f"{path}.{name.id}.{keyword.arg}"
        values[keyword.arg] = _parse(value.strip("'\""), _field_type(kind, keyword.arg, where), where)
    try:
        return kind(**values)  # at once: some fields fit only together
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _only(found: list[object], path: str, text: str) -> object:
    if len(found) != 1:
        raise ValueError(f"{path}: expected one record, got {text!r}")
    return found[0]


# -- from JSON -------------------------------------------------------------------------------------------


def restored(kind: type[T], values: Mapping[str, Any]) -> T:
    """A frozen dataclass from the plain values that JSON keeps of it.

    Raises:
        UnknownField: when the values have a field or a kind that the dataclass does not have.
        BadValue: when a value cannot be.
    """
    if not isinstance(cast("object", values), Mapping):
        raise BadValue(f"its {kind.__name__} is {values!r:.40}")
    known, hints = {f.name for f in fields(cast("Any", kind))}, get_type_hints(kind)
    unknown = [name for name in values if name not in known]
    if unknown:
        raise UnknownField(f"its {kind.__name__} has {unknown[0]!r}, which this relook does not know")
    read = {name: _value(hints[name], value, f"{kind.__name__}.{name}") for name, value in values.items()}
    try:
        return kind(**read)
    except ValueError as error:
        raise BadValue(f"its {kind.__name__} has {error}") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return _restored_record(hint, cast("Mapping[str, Any]", value), where)
    if get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        inner, given = get_args(hint), cast("list[Any]", value)
        parts = [inner[0]] * len(given) if inner[-1] is Ellipsis else inner
        if len(parts) == len(given):
            return tuple(_value(part, one, where) for part, one in zip(parts, given, strict=True))
    elif _fits(hint, value):
        return value
    raise BadValue(f"its {where} is {value!r:.40}")


def _restored_record(hint: Any, value: Mapping[str, Any], where: str) -> Any:
    """A record, or the one of several that `kind` names."""
    if is_dataclass(hint):
        return restored(cast("type[Any]", hint), value)
    for option in _kinds(hint):
        if _kind_of(option) == value.get("kind"):
            return restored(option, value)
    if _kinds(hint) and "kind" in value:
        raise UnknownField(f"its {where} is a {value['kind']!r}, which this relook does not know")
    raise BadValue(f"its {where} is {value!r:.40}")


def _fits(hint: Any, value: Any) -> bool:
    """Whether a plain value of JSON may stand in a field."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(one, value) for one in inner)
    if origin is Literal:
        return value in inner
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else False
