"""What a verb takes: a frozen dataclass of options, read from the command line and from YAML files."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, cast, get_args, get_origin, get_type_hints

import jsonargparse
import yaml

from relook.cli.elsewhere import named_elsewhere
from relook.data.disk.regular import LARGEST_SETTINGS, Unusable, read_bytes


class Wrong(ValueError):  # noqa: N818 (what the asker did)
    """Arguments that cannot be; the message is one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One verb of the command line."""

    name: str
    does: str  # one sentence or two
    example: str  # commands to type
    options: type[Any]  # a frozen dataclass; its fields are the options
    run: Callable[[Any], int]  # options -> exit status


def option(help: str, *, default: Any = MISSING, many: bool = False, positional: bool = False) -> Any:  # noqa: A002
    """A field of an options dataclass.

    Args:
        help: for --help.
        default: without it the option must be given.
        many: may be given several times; a tuple.
        positional: given without a name in front.
    """
    facts = {"help": help, "many": many, "positional": positional}
    if default is MISSING:
        return field(metadata=facts)
    return field(default=default, metadata=facts)


def settings_option() -> Any:
    """The option --set, the same for all verbs that have it."""
    return option(
        "change a setting of the model or its recipe: --set detector.keep=50; may be repeated",
        default=(),
        many=True,
    )


SIZE: Final = (
    "how large the network sees pictures: the shorter side in pixels, of models that stretch pictures both; "
    "other lengths of the recipe go with it"
)
MAX_PIXELS: Final = "pixels of the largest picture that is read (default: 178956970); larger ones are skipped"


WEIGHTS: Final = (
    "a weights file of relook, its last.ckpt, or a published checkpoint; without it the published file of "
    "--model is fetched, where `relook models` says so"
)
MODEL: Final = "which model it is, where the file leaves a choice"
OVERWRITE: Final = "replace what is there in the folder of results, be it written by relook or not"


def limit_pixels(most: int | None) -> None:
    """Sets the limit on the size of pictures for this process and those that it starts."""
    said = os.environ.get("RELOOK_MAX_PIXELS", "")
    if said and not (said.isascii() and said.isdecimal() and int(said) > 0):
        raise Wrong(f"RELOOK_MAX_PIXELS={said} is no number of pixels; write one such as 400000000")
    if most is None:
        return
    if most < 1:
        raise Wrong(f"--max-pixels {most}: write how many pixels a picture may have, such as 400000000")
    os.environ["RELOOK_MAX_PIXELS"] = str(most)


def named_weights(weights: str | None, model: str | None) -> str:
    """The file or the model that was named; one of them must be."""
    if weights is None and model is None:
        raise Wrong(f"--weights is needed: {WEIGHTS}")
    return model or str(weights)


def changes(texts: Sequence[str]) -> dict[str, str]:
    """("detector.keep=50",) -> {"detector.keep": "50"}."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise Wrong(f"--set {text}: write NAME=VALUE, such as --set detector.keep=50")
        pairs[name.strip()] = value.strip()
    return pairs


class _Refused(Exception):  # noqa: N818 (what jsonargparse did)
    """jsonargparse's own words, which are for programmers."""


class _Parser(jsonargparse.ArgumentParser):
    """Leaves the words of a mistake, and ending the program, to its caller."""

    def error(self, message: str, ex: Exception | None = None) -> Any:  # noqa: ARG002 (jsonargparse's signature)
        raise _Refused(message)


def parse(verb: Verb, given: Sequence[str]) -> Any:
    """The options that were given, or None when help was asked for and shown.

    Raises:
        Wrong: when they cannot be, with what is wrong in one sentence.
    """
    parser = _parser(verb)
    if {"-h", "--help"} & set(given):
        parser.print_help(sys.stdout)
        return None
    _refuse_unknown(verb, given)
    try:
        namespace = parser.parse_args(_added(verb, given))
    except _Refused as refused:
        raise Wrong(_why(verb, given, str(refused))) from None
    values: dict[str, Any] = {f.name: namespace[f.name] for f in fields(verb.options)}
    return verb.options(
        **{k: tuple(cast("list[Any]", v)) if isinstance(v, list) else v for k, v in values.items()}
    )


def _added(verb: Verb, given: Sequence[str]) -> list[str]:
    """`--set A --set B` in jsonargparse's words: `--set+=A --set+=B`."""
    several = {f"--{f.name}" for f in fields(verb.options) if f.metadata.get("many")}
    words: list[str] = []
    for word in given:
        name, equals, value = word.partition("=")
        if words and words[-1] in several:
            words[-1] = f"{words[-1]}+={word}"
        else:
            words.append(f"{name}+={value}" if equals and name in several else word)
    return words


def _parser(verb: Verb) -> _Parser:
    parser = _Parser(
        prog=f"relook {verb.name}",
        description=verb.does,
        epilog=f"example:\n{verb.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        print_config=None,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of these options; flags win")
    hints = get_type_hints(verb.options)
    for f in fields(verb.options):
        _add(parser, verb, f, hints[f.name])
    return parser


def _add(parser: _Parser, verb: Verb, f: "Field[Any]", kind: Any) -> None:
    many, positional = f.metadata.get("many", False), f.metadata.get("positional", False)
    flag = f.name if positional else f"--{f.name.replace('_', '-')}"
    about: dict[str, Any] = {"help": _help(f, verb)}
    if not positional:
        about["dest"] = f.name
    if (kind is bool and f.default is False and "help" in f.metadata) or _choices(kind):
        parser.add_argument(flag, **about, **_plain(f, kind))
        return
    if kind is bool:  # of settings that are also written in YAML or Python: --flag, --flag true, --flag false
        about |= {"nargs": "?", "const": True, "metavar": "true|false"}
    about["type"] = list[str] if many and not positional else str if positional else kind
    if positional:
        about["nargs"] = "+" if many else None if f.default is MISSING else "?"
    elif f.default is MISSING:
        about["required"] = True
    if f.default is not MISSING:
        about["default"] = list(cast("tuple[str, ...]", f.default)) if many else f.default
    if get_origin(kind) is not Literal and not positional and kind is not bool:
        about["metavar"] = _metavar(f.name, kind)
    cast("Any", parser).add_argument(
        flag, **{k: v for k, v in about.items() if v is not None or k == "default"}
    )


def _choices(kind: Any) -> tuple[str, ...]:
    """Of a tuple of words: which words there are."""
    inner = get_args(kind)[0] if get_origin(kind) is tuple else None
    return get_args(inner) if get_origin(inner) is Literal else ()


def _plain(f: "Field[Any]", kind: Any) -> dict[str, Any]:
    """How argparse itself reads a flag without a value, and one with several of some words."""
    words = _choices(kind)
    if not words:
        return {"action": "store_true"}
    default = list(cast("tuple[str, ...]", f.default))
    return {"type": str, "choices": words, "nargs": "+", "metavar": "|".join(words), "default": default}


def _help(f: "Field[Any]", verb: Verb) -> str:
    words = _about(verb, f.name).replace("%", "%%")
    if f.default is MISSING or f.default is None or f.default is False or f.default == ():
        return words
    return f"{words} (default: {f.default})"


def _metavar(name: str, kind: Any) -> str:
    kinds = set(get_args(kind)) or {kind}
    if Path in kinds:
        return "PATH"
    return "N" if int in kinds else "X" if float in kinds else name.rsplit("_", maxsplit=1)[-1].upper()


# -- mistakes in one sentence ----------------------------------------------------------------------------
# jsonargparse says that something is wrong; what it is, is found out here, so that its wording is nobody's
# business.


def _refuse_unknown(verb: Verb, given: Sequence[str]) -> None:
    """Options and keys of a YAML file that the verb does not have."""
    known = [_flag(verb, f.name) for f in fields(verb.options)] + ["--config"]
    for word in takewhile(lambda word: word != "--", given):
        name = word.partition("=")[0]
        if name.startswith("--") and len(name) > 2 and name not in known:
            raise Wrong(_nearest(name, known))
        if word == "" or (name in known and word == f"{name}="):
            raise Wrong(
                "an option or a place is given as nothing (''); say what is meant, such as . for this folder"
            )
    names = [f.name for f in fields(verb.options)]
    for key in _configured(given):
        if key.replace("-", "_") not in names:
            raise Wrong(_nearest(key, names))


def _configured(given: Sequence[str]) -> dict[str, Any]:
    """What the YAML file of --config says; nothing without one."""
    path = next(
        (values[-1] for name, values in _values(given).items() if name == "--config" and values), None
    )
    if path is None:
        return {}
    try:
        said = yaml.safe_load(read_bytes(Path(path), LARGEST_SETTINGS).decode("utf-8"))
    except Unusable as error:
        missing = error.what == "there is no such file"
        raise Wrong(f"--config: there is no file {path}" if missing else f"--config: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Wrong(f"--config: {path} is no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(said, dict):
        raise Wrong(f"--config: {path} holds no options; write lines such as `epochs: 12`")
    return {str(key): value for key, value in cast("dict[Any, Any]", said).items()}


def _values(given: Sequence[str]) -> dict[str, list[str]]:
    """Flag -> the words after it, up to the next flag."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in given:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            found.setdefault(name, []).extend([value] if equals else [])
        elif name:
            found[name].append(word)
    return found


def _why(verb: Verb, given: Sequence[str], message: str) -> str:
    """What is wrong with options that jsonargparse refused: something lacks, or one of them does not fit."""
    values, configured = _values(given), _configured(given)
    there = {*values, *(_flag(verb, key.replace("-", "_")) for key in configured)}
    lacking = [
        f
        for f in fields(verb.options)
        if f.default is MISSING and not f.metadata.get("positional") and _flag(verb, f.name) not in there
    ]
    bare = not given or given[0].startswith("--")  # no word stands alone, in front or behind a value
    bare = bare and all(len(words) < 2 for words in values.values())
    lacking += [f for f in fields(verb.options) if _needed_place(f) and bare]
    if lacking:
        return "; ".join(f"{_flag(verb, f.name)} is needed: {_about(verb, f.name)}" for f in lacking)
    for f in fields(verb.options):
        flag = _flag(verb, f.name)
        one = configured.get(f.name, configured.get(f.name.replace("_", "-")))
        for value in values.get(flag, [] if one is None else [str(one)]):
            if not f.metadata.get("many") and not _fits(verb, f, value):
                return f"{flag} takes {_words(get_type_hints(verb.options)[f.name])}, not {value!r}"
    return " ".join(message.split())


def _needed_place(f: "Field[Any]") -> bool:
    return f.default is MISSING and bool(f.metadata.get("positional"))


def _fits(verb: Verb, f: "Field[Any]", value: str) -> bool:
    """Whether an option takes a value, tried alone."""
    parser = _Parser(print_config=None)
    _add(parser, verb, f, get_type_hints(verb.options)[f.name])
    try:
        parser.parse_args([f"--{f.name.replace('_', '-')}={value}"])
    except _Refused:
        return False
    return True


def _words(kind: Any) -> str:
    """A type as people say it."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if _choices(kind):
        return "one or more of " + ", ".join(_choices(kind))
    kinds = [k for k in get_args(kind) if k is not NoneType] or [kind]
    named = {int: "a whole number", float: "a number", str: "text", Path: "a path", bool: "true or false"}
    return " or ".join(named[k] if k in named else _words(k) if get_args(k) else str(k) for k in kinds)


def _nearest(word: str, known: Sequence[str]) -> str:
    elsewhere = named_elsewhere(word, known)
    if elsewhere:
        return f"there is no option {word}; {elsewhere}"
    near = get_close_matches(word, known, n=1)
    return f"there is no option {word}; " + (
        f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    )


def _flag(verb: Verb, name: str) -> str:
    positional = {f.name for f in fields(verb.options) if f.metadata.get("positional")}
    return name.upper() if name in positional else f"--{name.replace('_', '-')}"


def _about(verb: Verb, name: str) -> str:
    """What an option is for: its own words, or those of the docstring that documents the field."""
    for f in fields(verb.options):
        if f.name == name and "help" in f.metadata:
            return str(f.metadata["help"])
    for kind in verb.options.__mro__:
        found = re.search(
            rf"^ +{name}: (.+?)(?=^ +\w+: |\Z)", kind.__doc__ or "", flags=re.MULTILINE | re.DOTALL
        )
        if found:
            return " ".join(found[1].split())
    return ""
