"""What a verb takes: a frozen dataclass of options, read from the command line and from YAML files."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import jsonargparse


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


def changes(texts: Sequence[str]) -> dict[str, str]:
    """("detector.keep=50",) -> {"detector.keep": "50"}."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise Wrong(f"--set {text}: write NAME=VALUE, such as --set detector.keep=50")
        pairs[name.strip()] = value.strip()
    return pairs


class _Parser(jsonargparse.ArgumentParser):
    """Says what is wrong in one sentence and leaves ending the program to its caller."""

    verb: Verb

    def error(self, message: str, ex: Exception | None = None) -> Any:  # noqa: ARG002 (jsonargparse's signature)
        raise Wrong(_sentence(self.verb, message))


def parse(verb: Verb, given: Sequence[str]) -> Any:
    """The options that were given, or None when help was asked for and shown."""
    parser = _parser(verb)
    if {"-h", "--help"} & set(given):
        parser.print_help(sys.stdout)
        return None
    namespace = parser.parse_args(_added(verb, given))
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
    )
    parser.verb = verb
    parser.add_argument("--config", action="config", help="a YAML file with any of these options; flags win")
    hints = get_type_hints(verb.options)
    for f in fields(verb.options):
        _add(parser, f, hints[f.name])
    return parser


def _add(parser: _Parser, f: "Field[Any]", kind: Any) -> None:
    many, positional = f.metadata.get("many", False), f.metadata.get("positional", False)
    flag = f.name if positional else f"--{f.name.replace('_', '-')}"
    about: dict[str, Any] = {"help": _help(f, parser.verb)}
    if not positional:
        about["dest"] = f.name
    if kind is bool and f.default is False and "help" in f.metadata:
        parser.add_argument(flag, action="store_true", **about)
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


def _sentence(verb: Verb, message: str) -> str:
    known = [f.name for f in fields(verb.options)] + ["config"]
    if match := re.search(r"(?:[Uu]nrecognized arguments|Unknown option).*?: (.*)", message):
        word = next((w for w in match[1].split() if w.startswith("-")), match[1].split()[0])
        return _nearest(word.partition("=")[0], [_flag(verb, name) for name in known])
    if match := re.search(r"(?:Option|Key) '([^']+)' is not (?:accepted|expected)", message):
        return _nearest(match[1], known)
    if match := re.search(r"arguments are required: (.*)", message):
        return "; ".join(
            f"{_flag(verb, name)} is needed: {_about(verb, name)}" for name in match[1].split(", ")
        )
    if match := re.search(r"File does not exist: '?([^'\n]+)", message):
        return f"--config: there is no file {match[1]}"
    if match := re.search(r'Parser key "([^"]+)"', message):
        return _unfit(verb, match[1], message)
    return " ".join(message.split())


def _unfit(verb: Verb, name: str, message: str) -> str:
    given = re.search(r"(?:Given value: |Got value: )(.*)", message)
    kind = get_type_hints(verb.options).get(name)
    got = f", not {given[1]!r}" if given else ""
    return f"{_flag(verb, name)} takes {_words(kind)}{got}"


def _words(kind: Any) -> str:
    """A type as people say it."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    kinds = [k for k in get_args(kind) if k is not NoneType] or [kind]
    named = {int: "a whole number", float: "a number", str: "text", Path: "a path", bool: "true or false"}
    return " or ".join(named[k] if k in named else _words(k) if get_args(k) else str(k) for k in kinds)


def _nearest(word: str, known: Sequence[str]) -> str:
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
