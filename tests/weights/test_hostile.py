"""Weights files that were made to harm, or were harmed: one sentence each, soon, and in little memory."""

import codecs
import json
import os
import random
import socket
import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from commands import run
from relook.archives import MOST_OPERATIONS, CheckpointError
from relook.weights.models import by_name, open_weights
from relook.weights.reading.checkpoint import read_checkpoint, save_weights

SECONDS = 5.0


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return _model().entry.detector.build().state_dict()


def _model() -> Any:
    return by_name("reppoints_nano").with_classes(("cat", "dog"))


def described(path: Path, state: dict[str, Tensor], place: str = "", value: object = None) -> Path:
    """A file of ours whose description is changed in one place."""
    facts: Any = json.loads(_model().describe().metadata()["relook"])
    node = facts
    *above, last = place.split("/")
    for name in above:
        node = node[name]
    if place:
        node[last] = value
    save_file(state, path, metadata={"relook": json.dumps(facts)})
    return path


@pytest.fixture
def soon() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SECONDS


# -- what a file says of itself --------------------------------------------------------------------------


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("recipe/pixels/order", "x", "its Pixels.order is 'x', which cannot be"),
        ("recipe/pixels/std", [0, 0, 0], "each must be more than 0"),
        ("recipe/pixels/pad", 10**9, "pad=1000000000: it must be 1 to 4096"),
        ("recipe/test_size/short", 0, "its KeepRatio.short is 0"),
        ("recipe/test_size/short", [0], "short=0: give sides of at least 1 pixel"),
        ("recipe/test_size/short", [10**9], "short=1000000000: give sides of at most 20000 pixels"),
        ("recipe/test_size/long", 10**12, "long=1000000000000: it must be 1 to 1000000"),
        ("recipe/test_size", {"kind": "stretch", "height": 10**6}, "height=1000000: it must be 1 to 20000"),
        ("recipe/metric", "nope", "'nope' is no metric"),
        ("settings/detector.num_classes", "1000000000", "must be a whole number from 1 to 20000"),
        ("settings/detector.num_classes", "19999", "names 2 classes for a network of 19999"),
        ("settings/detector.num_classes", "0", "must be a whole number from 1 to 20000"),
        ("settings/detector.width", "90000", "describes a network far larger than the weights in it"),
        ("settings/detector.tower", "100", "describes a network far larger than the weights in it"),
        ("settings/detector.tower", "1000000", "must be a whole number from 0 to 100"),
        ("settings/detector.extra_levels", "100000", "must be a whole number from 0 to 8"),
        ("settings/detector.keep", "-3", "detector.keep=-3: it must be a whole number from 1 to"),
        ("settings/detector.score", "nan", "detector.score=nan: it must lie between 0 and 1"),
        ("settings/detector.norm_groups", "7", "make no network .*divisible"),
        ("settings/detector.backbone.name", "resnet152", "far larger than the weights"),
        ("settings/detector.backbone.name", "hf-hub:evil/evil", "timm has no network 'hf-hub:evil/evil'"),
        ("settings/detector.backbone.name", "local-dir:/tmp", "timm has no network 'local-dir:/tmp'"),
        ("settings/detector.backbone.name", "../../etc", "timm has no network"),
        ("settings/detector.nothing", "1", "has no 'nothing'"),
        ("classes", ["a", "b", "c"], "names 3 classes for a network of 2"),
        ("model", "nope", "no model is called 'nope'"),
        ("model", "os:system", "may not make relook import a module"),
        ("format", "x", "its description cannot be read"),
    ],
)
def test_a_description_is_checked_before_anything_is_built(
    tmp_path: Path, state: dict[str, Tensor], place: str, value: object, words: str
) -> None:
    """Nothing is fetched, imported or allocated for what a file says of itself."""
    file = described(tmp_path / "x.safetensors", state, place, value)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_weights(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 800


def test_names_are_shown_and_not_obeyed(
    tmp_path: Path, state: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of classes and of tensors: control characters are escaped, and a name without end is cut."""
    names = ["\x1b[31mred\x9b2J\u202e", "b" * 100_000]
    file = described(tmp_path / "x.safetensors", state, "classes", names)
    out, _ = run(capsys, "doctor", file)
    assert "\\x1b[31mred\\x9b2J\\u202e" in out
    assert out.isascii()
    assert max(map(len, out.splitlines())) < 1000
    out, _ = run(capsys, "doctor", file, "--json")
    assert json.loads(out)["classes"] == names
    assert not set(out) & {"\x1b", "\x9b", "\u202e"}
    odd = {**state, "evil\x1b]0;title\x07\n": torch.zeros(1), "c" * 100_000: torch.zeros(1)}
    torch.save(odd, tmp_path / "odd.pth")
    out, _ = run(capsys, "doctor", tmp_path / "odd.pth", status=1)
    assert "\\x1b]0;title\\x07" in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) < 5000
    _, err = run(capsys, "predict", tmp_path, "--weights", tmp_path / "odd.pth", status=2)
    assert "\x1b" not in err
    assert len(err) < 5000


# -- numbers that are none -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_wherever_they_are_used(
    tmp_path: Path, state: dict[str, Tensor], capsys: pytest.CaptureFixture[str], value: float
) -> None:
    """By doctor, convert, predict and eval, which says so before it finds that the classes are others."""
    name = "head.cls_out.bias"
    bad = {**state, name: state[name].clone().index_fill_(0, torch.tensor([1]), value)}
    file = described(tmp_path / "bad.safetensors", bad)
    words = f"1 of {len(state)} tensors hold NaN or infinity, {name} first"
    assert words in run(capsys, "doctor", file, status=1)[0]
    assert json.loads(run(capsys, "doctor", file, "--json", status=1)[0])["not_finite"] == [name]
    assert words in run(capsys, "convert", file, tmp_path / "new.safetensors")[1]
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "a.png")
    out = tmp_path / "out"
    assert words in run(capsys, "predict", tmp_path / "pictures", "--weights", file, "--out", out)[1]
    assert words in run(capsys, "eval", "--weights", file, "--data", "shapes", "--out", out, status=2)[1]
    good = described(tmp_path / "good.safetensors", state)
    assert "NaN" not in "".join(run(capsys, "doctor", good))


# -- the files themselves --------------------------------------------------------------------------------


def _deflated(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({**state, "more": torch.zeros(20_000_000)}, path.with_suffix(".whole"))
    with (
        zipfile.ZipFile(path.with_suffix(".whole")) as whole,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in whole.namelist():
            new.writestr(name, whole.read(name))
    assert path.stat().st_size < 20_000_000


def _overlapping(path: Path, _state: dict[str, Tensor]) -> None:
    """A thousand entries of one megabyte, all in the same place."""
    torch.save({"more": torch.zeros(250_000)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        first = next(one for one in archive.infolist() if one.file_size > 900_000)
        for n in range(1000):
            again = zipfile.ZipInfo(f"archive/data/{n + 10}")
            again.header_offset, again.file_size = first.header_offset, first.file_size
            again.compress_size, again.CRC = first.compress_size, first.CRC
            archive.filelist.append(again)
        archive._didModify = True


def _operations(path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, path)
    with zipfile.ZipFile(path.with_suffix(".new"), "w") as new, zipfile.ZipFile(path) as old:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                content = b"\x80\x02" + b"}0" * MOST_OPERATIONS + content[2:]
            new.writestr(name, content)
    path.with_suffix(".new").rename(path)


def _expanded(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({**state, "more": torch.zeros(1).expand(10**12)}, path)


def _windows(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({**state, "more": torch.zeros(200_000).as_strided((100_000, 100_000), (1, 1))}, path)


class _Allocated:
    def __init__(self, function: Any, size: int) -> None:
        self.function, self.size = function, size

    def __reduce__(self) -> Any:
        return self.function, (self.size,)


def _bytes(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({**state, "more": _Allocated(bytearray, 10**13)}, path)


def _tensor(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({**state, "more": _Allocated(torch.Tensor, 10**13)}, path)


def _old(path: Path, _state: dict[str, Tensor]) -> None:
    """The format before torch 1.6, with a storage that says it is a terabyte."""
    torch.save({"more": torch.zeros(10)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"K\n", b"\x8a\x06" + (10**12).to_bytes(6, "little")))


def _many(path: Path, _state: dict[str, Tensor]) -> None:
    """A header that names 200,000 tensors without content."""
    rows = {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(200_000)}
    header = json.dumps(rows).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def _header(path: Path, _state: dict[str, Tensor]) -> None:
    path.write_bytes(struct.pack("<Q", 10**9) + b'{"a": 1}')


def _names(path: Path, state: dict[str, Tensor]) -> None:
    """Lists in lists, each twice, as the names of classes: few bytes, and a text without end."""
    names: Any = ["a"]
    for _ in range(60):
        names = [names, names]
    torch.save({"state_dict": state, "meta": {"CLASSES": [names]}, "other": {("a",): 1}}, path)


def _tuples(path: Path, state: dict[str, Tensor]) -> None:
    """A key of tuples in tuples, each twice, whose hash would take for ever."""
    torch.save(state, path)
    key = b"K\x01q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(40))
    with zipfile.ZipFile(path.with_suffix(".new"), "w") as new, zipfile.ZipFile(path) as old:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                content = b"\x80\x02}" + key + b"K\x01s0" + content[2:]
            new.writestr(name, content)
    path.with_suffix(".new").rename(path)


def _deep(path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, path)
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    with zipfile.ZipFile(path.with_suffix(".new"), "w") as new, zipfile.ZipFile(path) as old:
        for name in old.namelist():
            new.writestr(name, deep if name.endswith("data.pkl") else old.read(name))
    path.with_suffix(".new").rename(path)


def _arrays(path: Path, _state: dict[str, Tensor]) -> None:
    """Names of one array of a megabyte, as numpy's objects are kept by old frameworks."""
    shared = np.zeros(1_000_000, np.uint8)
    torch.save({"state_dict": {f"a{n}": shared for n in range(1100)}}, path)
    assert path.stat().st_size < 3_000_000


class _Encoded:
    """A text that is encoded again and again, twice as long each time."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __reduce__(self) -> Any:
        inner: Any = "a" if self.times == 0 else _Encoded(self.times - 1)
        return codecs.encode, (inner, "hex" if self.times else "latin1")


def _encoded(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({**state, "more": _Encoded(40)}, path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_deflated, "is compressed, which torch's files are not"),
        (_overlapping, "says that it holds .* bytes in its"),
        (_operations, "needs more than 1,000,000 operations"),
        (_expanded, "its tensors would fill 4,000,0"),
        (_windows, "its tensors would fill 40,0"),
        (_bytes, "broken or cut short"),
        (_arrays, "x.pth: its arrays would fill more than a gigabyte"),
        (_encoded, "broken or cut short"),
        (_tensor, "broken|would fill"),
        (_old, "broken or cut short"),
        (_many, "more than 100,000 tensors, more than any network"),
        (_header, "is not a whole safetensors file"),
        (_tuples, "needs more than 1,000,000 operations"),
        (_deep, "holds a list|broken"),
    ],
)
def test_a_small_file_does_not_fill_the_memory(
    tmp_path: Path, state: dict[str, Tensor], make: Any, words: str
) -> None:
    """Sizes are compared before anything is read."""
    file = tmp_path / "x.pth"
    make(file, state)
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(file)
    assert time.monotonic() - began < SECONDS


def test_names_without_end_are_no_names(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """What is no text is not made one."""
    _names(tmp_path / "x.pth", state)
    began = time.monotonic()
    assert read_checkpoint(tmp_path / "x.pth").classes == ()
    assert time.monotonic() - began < SECONDS


def test_tensors_that_are_no_plain_ones_are_left_aside(tmp_path: Path) -> None:
    """A sparse one would be filled with zeros, one without memory with anything."""
    places, ones = torch.zeros(2, 1, dtype=torch.int64), torch.ones(1)
    sparse = torch.sparse_coo_tensor(places, ones, (10**6, 10**6), check_invariants=True)
    torch.save({"a": ones, "b": sparse, "c": torch.empty(10**6, device="meta")}, tmp_path / "x.pth")
    assert list(read_checkpoint(tmp_path / "x.pth").state) == ["a"]


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device", "socket", "folder"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    """Others would wait, or never end."""
    file = tmp_path / "x.pth"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file = Path("/dev/zero")
    elif kind == "link to a device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    else:
        socket.socket(socket.AF_UNIX).bind(str(file))
    with pytest.raises(CheckpointError, match=rf"is a {kind.removeprefix('link to a ')}"):
        read_checkpoint(file)


@pytest.mark.parametrize("flips", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path, flips: int) -> None:
    """Of a checkpoint in torch's format: its records carry checksums."""
    few = {"a": torch.randn(64, 64), "b": torch.arange(1000)}
    torch.save(few, tmp_path / "whole.pth")
    whole, dice, noticed = (tmp_path / "whole.pth").read_bytes(), random.Random(1), 0
    for n in range(flips):
        damaged = bytearray(whole)
        damaged[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        (tmp_path / "x.pth").write_bytes(damaged)
        try:
            found = read_checkpoint(tmp_path / "x.pth").state
        except CheckpointError:
            noticed += 1
            continue
        assert {name: value.tolist() for name, value in found.items()} == {
            name: value.tolist() for name, value in few.items()
        }, n
    assert noticed > 0.75 * flips


def test_a_flipped_bit_of_our_own_weights_is_noticed(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """They carry a checksum of all numbers, which a file of another program need not have."""
    file = tmp_path / "x.safetensors"
    save_weights(file, state, _model().describe())
    whole, dice = file.read_bytes(), random.Random(2)
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    places = [dice.randrange(header) for _ in range(100)] + [dice.randrange(len(whole)) for _ in range(20)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << dice.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(
            CheckpointError, match=r"is not what was written|is not a whole|cannot be read|neither"
        ):
            read_checkpoint(file)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.complex64])
def test_weights_that_are_no_numbers_with_a_point_are_refused(
    tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """They would be taken for some, and find nothing."""
    name = "head.cls_out.weight"
    file = described(tmp_path / "x.safetensors", {**state, name: state[name].to(dtype)})
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        open_weights(file)


def test_numbers_that_are_infinite_in_32_bits_are_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """As float64 they are finite."""
    name = "head.cls_out.bias"
    file = described(tmp_path / "x.safetensors", {**state, name: state[name].double() + 1e39})
    assert read_checkpoint(file).not_finite == (name,)
