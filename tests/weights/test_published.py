"""Published files that come by themselves, from a server on this machine: whole, cut, wrong, silent."""

import gzip
import hashlib
import json
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import relook
from commands import run
from relook.api import begin
from relook.archives import CheckpointError
from relook.weights import published as module
from relook.weights.models import by_name
from relook.weights.published import published
from relook.zoo import catalog

NAME = "reppoints_moment_r50_fpn_gn_head_gn_1x"
MANIFESTS = Path(__file__).parents[1] / "golden" / "reppoints" / "manifests.json.gz"


class Server:
    """Gives one file, in a way that a test chooses."""

    def __init__(self, content: bytes) -> None:
        self.content, self.way, self.asked = content, "whole", 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked += 1
                if server.way == "silent":
                    time.sleep(3)
                    return
                if server.way == "nonsense":
                    self.wfile.write(b"nonsense\r\n\r\n")
                    return
                if server.way == "lost":
                    self.send_response(302)
                    self.send_header("Location", "http://[::1/x.pth")
                    self.end_headers()
                    return
                self.send_response(404 if server.way == "absent" else 200)
                length = "abc" if server.way == "odd length" else str(len(server.content))
                self.send_header("Content-Length", length)
                self.end_headers()
                half = len(server.content) // 2
                body = {"cut": server.content[:half], "other": server.content[::-1], "absent": b""}
                self.wfile.write(body.get(server.way, server.content))

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of that model with the publisher's names, as small as zeros that share their memory."""
    path = tmp_path_factory.mktemp("published") / "x.pth"
    manifest = json.loads(gzip.decompress(MANIFESTS.read_bytes()))[catalog.find(NAME).config]
    torch.save({"state_dict": {key: torch.zeros(()).expand(shape) for key, shape in manifest}}, path)
    return path.read_bytes()


@pytest.fixture
def server(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """It is where the catalog says that the file is, and torch's cache is empty."""
    server = Server(content)
    digest = hashlib.sha256(content).hexdigest()[:8]
    entry = replace(catalog.find(NAME), weights=f"{server.address}/a%2Bb_20200329-{digest}.pth")
    monkeypatch.setitem(catalog.ENTRIES, NAME, entry)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "RELOOK_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.http.shutdown()


def folder(tmp_path: Path) -> Path:
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_a_file_is_fetched_once_and_verified_each_time(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Into the folder that torch.hub uses, under the name that it would give; a damaged one comes again."""
    caplog.set_level("INFO", "relook.api")
    file = published(NAME)
    assert file.parent == folder(tmp_path)
    assert file.name.startswith("a%2Bb_20200329-")
    assert f"fetching {server.address}/a%2Bb" in caplog.text
    assert published(NAME) == file
    assert server.asked == 1
    file.write_bytes(file.read_bytes()[:-9])
    assert published(NAME).read_bytes() == server.content
    assert server.asked == 2
    assert "is not whole and is fetched again" in caplog.text
    assert [one.name for one in folder(tmp_path).iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("cut", "is cut short or not the published file|could not be fetched"),
        ("other", "cut short or not the published file: its SHA-256 begins with"),
        ("absent", "could not be fetched .*404"),
        ("silent", "could not be fetched .*(timed out|closed)"),
        ("nonsense", "could not be fetched"),
        ("odd length", "could not be fetched"),
        ("lost", "could not be fetched"),
        ("gone", "could not be fetched .*refused"),
    ],
)
def test_what_is_not_the_file_is_told_and_nothing_is_left(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, words: str
) -> None:
    """One sentence with the address and the folder to put the file into."""
    monkeypatch.setattr(module, "SECONDS", 1.0)
    server.way = way
    if way == "gone":
        server.http.shutdown()
        server.http.server_close()
    with pytest.raises(CheckpointError, match=words) as caught:
        published(NAME)
    said = str(caught.value)
    assert f"download {catalog.find(NAME).weights} " in said
    assert said.endswith(f"put it into {folder(tmp_path)}")
    assert "\n" not in said
    assert socket.getdefaulttimeout() is None
    assert not list(folder(tmp_path).iterdir())


def test_nothing_is_fetched_offline(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """RELOOK_OFFLINE=1; a file that is there already is used."""
    monkeypatch.setenv("RELOOK_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="RELOOK_OFFLINE is set"):
        published(NAME)
    assert server.asked == 0
    monkeypatch.setenv("RELOOK_OFFLINE", "")
    file = published(NAME)
    monkeypatch.setenv("RELOOK_OFFLINE", "1")
    assert published(NAME) == file
    assert server.asked == 1


def test_models_by_name_are_ready_in_python_and_on_the_command_line(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """load, predict, eval, and train's start."""
    look = relook.load(NAME, size=64)
    assert len(look.classes) == 80
    Image.new("RGB", (64, 64)).save(tmp_path / "street.png")
    out = tmp_path / "out"
    run(capsys, "predict", tmp_path / "street.png", "--model", NAME, "--size", 64, "--out", out)
    assert len(json.loads((out / "detections.json").read_text())["categories"]) == 80
    model = by_name(NAME).with_classes(("cat", "dog"))
    words = begin(model.entry.detector.build(), model, "auto", "published")
    assert str(folder(tmp_path)) in words
    assert "depend on the classes start anew" in words
    assert server.asked == 1
    _, err = run(capsys, "eval", "--data", "shapes", "--model", NAME, "--out", tmp_path / "e", status=2)
    assert "fetching" not in err  # it is there; the data have other classes


def test_what_only_a_person_can_fetch_names_the_page(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """And what nobody published says so."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    picture = tmp_path / "a.png"
    _, err = run(capsys, "predict", picture, "--model", "reppoints_v2_r50_fpn_1x", status=2)
    assert "download it by hand from https://github.com/Scalsol/RepPointsV2" in err
    _, err = run(capsys, "predict", picture, "--model", "reppoints_nano", status=2)
    assert "nobody has published weights of reppoints_nano" in err
    _, err = run(capsys, "predict", picture, status=2)
    assert "--weights is needed" in err


def test_the_list_says_which_files_come_by_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    """And every entry of somebody else has an address or a page."""
    rows = {row["name"]: row for row in json.loads(run(capsys, "models", "--json")[0])}
    fetched = [name for name, row in rows.items() if row["weights"]]
    assert len(fetched) == 10
    for name in fetched:
        address = rows[name]["weights"]
        assert address.startswith("https://download.openmmlab.com/mmdetection/v2.0/")
        assert len(address.rpartition("-")[2]) == len("12345678.pth")
    for name, row in rows.items():
        assert (row["publisher"] == "relook") == (not row["weights"] and not row["page"]), name
    out = run(capsys, "models")[0]
    assert next(line for line in out.splitlines() if line.startswith(NAME)).split()[-3] == "fetch"


def test_a_full_disk_is_named(server: Server) -> None:
    """While a file is fetched."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(server.content) // 2, hard))
    try:
        with pytest.raises(OSError, match="could not be written: file too large"):
            published(NAME)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
