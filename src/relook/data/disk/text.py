"""Text files in whatever encoding they say, UTF-8 where they say none; never the locale's."""

import codecs
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import yaml
from typing_extensions import override

from relook.data.disk.regular import (
    LARGEST_JSON,
    LARGEST_LABELS,
    LARGEST_LIST,
    LARGEST_SETTINGS,
    Unusable,
    read_bytes,
    read_ends,
)

_DEEPEST = 100  # levels of a YAML file

TWICE: Final = "\0twice"
"""In an object of a JSON file that has a key twice: that key. No file's own key begins so."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DECLARED = re.compile(rb"""\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([^"']{1,40})["']""")
_NO_TEXT = frozenset({"punycode", "idna", "unicode_escape", "raw_unicode_escape", "undefined"})  # nor quick
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030"}  # what writes "gb2312" often means its extensions


def read_text(path: Path, most: int = LARGEST_LABELS) -> str:
    """A text file; a byte order mark is skipped.

    Raises:
        Unusable: when it cannot be read, or is not UTF-8 and has no mark.
    """
    return decoded(read_bytes(path, most), path)


def decoded(data: bytes, path: Path) -> str:
    """Bytes of a text file -> text, as `read_text`."""
    mark, encoding = next((one for one in _MARKS if data.startswith(one[0])), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        what = f"is no text in UTF-8 (byte 0x{data[error.start]:02x} in line {line})"
        raise Unusable(path, what, f"save it as UTF-8{_converter(data)}") from None
    if "\0" in text:
        raise Unusable(path, "holds zero bytes, as no text does", "save it as text in UTF-8")
    return text


def _converter(data: bytes) -> str:
    """The command that would do it, for the likeliest of other encodings."""
    for name in ("GBK", "CP1252"):
        try:
            data.decode(name)
        except UnicodeDecodeError:
            continue
        return f", as `iconv -f {name} -t UTF-8` does if it is {name}"
    return ""


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file that are not empty, without blanks around them."""
    return tuple(line.strip() for line in split_lines(read_text(path, LARGEST_LIST)) if line.strip())


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names of classes 0, 1, 2 ..., one a line.

    Raises:
        Unusable: as `read_text`, and for a blank line before the last name, for lines count.
    """
    lines = [line.strip() for line in split_lines(read_text(path, LARGEST_LIST))]
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        what = f"line {lines.index('') + 1} is blank, though classes are numbered by their lines"
        raise Unusable(path, what, "name that class, or remove the line if it is none")
    return tuple(lines)


def to_number(word: str) -> float:
    """A number as data have it; NaN for what only Python takes for one: 1_000, digits of other scripts."""
    try:
        return float(word) if word.isascii() and "_" not in word else math.nan
    except ValueError:
        return math.nan


def split_lines(text: str) -> list[str]:
    """At the ends of lines alone: str.splitlines also splits at signs that names may hold."""
    return re.split(r"\r\n|\r|\n", text)


# -- JSON ----------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object. An object with a key twice says so under `TWICE`.

    Raises:
        Unusable: when it cannot be read, is no JSON or no object.
    """
    fix = "write it again from its origin"
    head, tail = read_ends(path, LARGEST_JSON)  # before all of what may be gigabytes
    if not head.lstrip(b"\xef\xbb\xbf\xfe\xff\0 \t\r\n").startswith(b"{"):
        raise Unusable(path, "is no JSON object: it does not begin with {", fix)
    if not tail.rstrip(b"\0 \t\r\n").endswith(b"}") or tail.endswith(b"\0\0\0\0"):
        raise Unusable(path, "is no JSON object: it does not end with }", fix)
    data = read_bytes(path, LARGEST_JSON)
    try:
        text = data.decode(json.detect_encoding(data))
        data = b""  # which is as large again
        whole: Any = json.loads(text, object_pairs_hook=_noticed)
    except UnicodeDecodeError:
        decoded(data, path)
        raise Unusable(path, "is no text in UTF-8, UTF-16 or UTF-32", "save it as UTF-8") from None
    except RecursionError:
        raise Unusable(path, "is nested too deep to be annotations", fix) from None
    except ValueError as error:
        if "digits" in str(error):
            raise Unusable(path, "holds a whole number of thousands of digits", fix) from None
        raise Unusable(path, f"is no JSON ({' '.join(str(error).split())[:200]})", fix) from None
    return cast("dict[str, Any]", whole)


def _noticed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; of a key that comes twice the last value stays, and the object tells of it."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        found[TWICE] = next(key for key, _ in pairs if key in seen or seen.add(key))
    return found


# -- YAML ----------------------------------------------------------------------------------------------


if TYPE_CHECKING:
    _Loader = yaml.BaseLoader
else:
    _Loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # libyaml's, ten times as quick


class _Plain(_Loader):
    """All values as text, as they were written: `no` stays "no", and a long number costs nothing.

    It knows no tags and no merging of mappings, by which a small file grows without end.
    """

    @override
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
        twice = (
            next((key for n, key in enumerate(keys) if key in keys[:n]), None) if len(keys) < 1000 else None
        )
        if twice is not None or len(set(keys)) < len(keys):
            raise yaml.MarkedYAMLError(
                problem=f"the key {twice or ''} is there twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


def _is_deep(text: str) -> bool:
    """Whether YAML may be nested deeper than settings are: the quick reader would end the process."""
    depth = deepest = 0
    for sign in re.findall(r"[\[{\]}]", text):
        depth += 1 if sign in "[{" else -1
        deepest = max(deepest, depth)
    indents = max((len(m[0]) for m in re.finditer(r"^[ ?:-]+", text, re.MULTILINE)), default=0)
    return deepest > _DEEPEST or indents > 4 * _DEEPEST


def read_yaml(path: Path) -> Any:
    """A YAML file of settings: mappings, lists and texts; numbers are texts, too.

    Raises:
        Unusable: when it cannot be read, is no YAML, has a key twice or is nested too deep.
    """
    text = read_text(path, LARGEST_SETTINGS)
    if _is_deep(text):
        raise Unusable(path, "is nested too deep to be settings", "write it again by hand")
    try:
        return yaml.load(text, Loader=_Plain)  # noqa: S506 (makes texts, lists and mappings only)
    except RecursionError:
        raise Unusable(path, "is nested too deep to be settings", "write it again by hand") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        words = " ".join(str(error).replace('in "<unicode string>",', "in").split())[:200]
        raise Unusable(path, f"is no YAML ({words})", "mend that line") from None


# -- XML -----------------------------------------------------------------------------------------------


def read_xml(path: Path) -> ET.Element:
    """The root of an XML file, in the encoding that it declares.

    Raises:
        Unusable: when it cannot be read, is no XML, or declares an encoding that it does not have or that is
            not known.
    """
    text = _declared(read_bytes(path, LARGEST_LABELS), path).lstrip()
    if "<!ENTITY" in text:
        raise Unusable(path, "declares entities, which annotations do not need", "write it without")
    try:
        return ET.fromstring(text)  # noqa: S314 (entities were refused)
    except ET.ParseError as error:
        fix = "write it again from its origin or remove it"
        raise Unusable(path, f"is no XML ({error})", fix) from None


def _codec(name: str) -> str:
    """A codec of text by its own name.

    Raises:
        LookupError: when there is none, or it is one of something else.
    """
    known = codecs.lookup(name).name
    if known.replace("-", "_") in _NO_TEXT:
        raise LookupError(name)
    return known


def _declared(data: bytes, path: Path) -> str:
    """Text by the encoding that the first line names."""
    said = _DECLARED.match(data[:400])
    if said is None or data.startswith(tuple(mark for mark, _ in _MARKS)):
        return decoded(data, path)
    name = said[1].decode("ascii", "replace")
    fix = "save it as UTF-8 and let its first line say so"
    try:
        known = _codec(_WIDER.get(name.lower(), name))
        wide = known.startswith(("utf-16", "utf-32"))  # but the line that says so was just read byte by byte
        return data.decode("utf-8" if wide else known)
    except UnicodeError:
        raise Unusable(path, f"says that it is {name}, but is not", fix) from None
    except (LookupError, ValueError, AssertionError):
        raise Unusable(path, f"says that its encoding is {name}, which is not known", fix) from None
