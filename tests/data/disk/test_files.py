"""Only regular files are read, none without a limit; text of strangers is read or ends in one sentence."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relook.data.disk.places import spellings
from relook.data.disk.regular import Unusable, is_regular, read_bytes
from relook.data.disk.text import TWICE, read_json, read_lines, read_text, read_xml, read_yaml


def test_what_is_no_regular_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "large").write_bytes(b"x" * 11)
    kinds = {
        "pipe": "is a pipe, not a file",
        "device": "is a device, not a file",
        "loop": "cannot be read",
        ".": "is a folder, not a file",
        "nowhere": "there is no such file",
        "zero\0byte": "holds a zero byte",
        "n" * 400: "cannot be read",
        "large": "holds 0 kB, more than the 0 kB that are read",
    }
    for name, what in kinds.items():
        with pytest.raises(Unusable, match=what):
            read_bytes(tmp_path / name, 10)
        assert is_regular(tmp_path / name) == (name == "large")


@pytest.mark.parametrize("deep", ["[" * 1_000_000, "{a: " * 200_000, "- " * 400_000, "? " * 400_000])
def test_a_deep_yaml_is_answered_at_once(deep: str, tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(deep[: 380 << 10])
    started = time.monotonic()
    with pytest.raises(Unusable, match=r"is nested too deep|is no YAML"):
        read_yaml(file)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "deep", ['{"a":' + "[" * 1_000_000 + "]" * 1_000_000 + "}", '{"a":' * 500_000 + "1" + "}" * 500_000]
)
def test_a_deep_json_is_answered_at_once(deep: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(deep)
    started = time.monotonic()
    with pytest.raises(Unusable, match="is nested too deep"):
        read_json(file)
    assert time.monotonic() - started < 5


def test_yaml_that_grows_by_itself_does_not(tmp_path: Path) -> None:
    """Aliases of aliases stay links, mappings are not merged, tags make nothing."""
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    merged = ["m0: &m0 {k: v}"] + [
        f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 12)
    ]
    file = tmp_path / "data.yaml"
    file.write_text("\n".join([*rows, *merged, "t: !!python/object/apply:os.getcwd []"]))
    started = time.monotonic()
    said = read_yaml(file)
    assert time.monotonic() - started < 5
    assert said["a0"] == ["x"] * 9
    assert said["t"] == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: 1\na: 2\n", "the key a is there twice"),
        ("a: [1\n", "is no YAML"),
        ("a: b: c\n", "is no YAML"),
        ("&a [*a, *b]", "is no YAML"),
        ("{[a]: 1}", "is no YAML"),
        ("a: 1\n--- \nb: 2\n", "is no YAML"),
    ],
)
def test_yaml_with_a_mistake(text: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(text)
    with pytest.raises(Unusable, match=what):
        read_yaml(file)


def test_an_xml_of_entities_or_without_end_is_answered_at_once(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    texts = [
        f'<!DOCTYPE a [<!ENTITY e0 "xxxxxxxxxx">{entities}]><a>&e11;</a>',
        '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a>&e;</a>',
        "<a>" * 500_000,
    ]
    for text in texts:
        (tmp_path / "a.xml").write_text(text)
        started = time.monotonic()
        with pytest.raises(Unusable, match=r"is no XML|declares entities"):
            read_xml(tmp_path / "a.xml")
        assert time.monotonic() - started < 5


def test_a_json_that_is_none_by_its_ends_is_not_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b'{"a": 1}')
    os.truncate(file, 3 << 30)  # zeros that fill no disk
    started = time.monotonic()
    with pytest.raises(Unusable, match=r"does not end with \}"):
        read_json(file)
    assert time.monotonic() - started < 1
    file.write_text("[1]")
    with pytest.raises(Unusable, match=r"does not begin with \{"):
        read_json(file)


def test_an_object_with_a_key_twice_says_so(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a": [{"b": 1, "b": 2}, {"b": 1, "c": 2}]}')
    first, second = read_json(file)["a"]
    assert first[TWICE] == "b"
    assert TWICE not in second


def test_lines_end_where_lines_end(tmp_path: Path) -> None:
    """Names may hold the signs at which str.splitlines splits, too."""
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\r\n  two\x0bthree \n\n\rfi\u2028ve".encode())
    assert read_lines(file) == ("one", "two\x0bthree", "fi\u2028ve")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=50))
def test_text_survives_every_encoding_that_has_a_mark(text: str) -> None:
    import tempfile  # noqa: PLC0415

    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "a.txt"
            file.write_bytes(text.encode(encoding))
            assert read_text(file) == text


@given(st.text(max_size=30))
def test_a_name_is_first_taken_as_it_stands(name: str) -> None:
    """And no spelling is given twice, is empty or holds a zero byte."""
    forms = [form for form, _ in spellings(name)]
    assert len(set(forms)) == len(forms)
    assert all(form and "\0" not in form for form in forms)
    if name and "\0" not in name:
        assert forms[0] == name
        assert not next(iter(spellings(name)))[1]
