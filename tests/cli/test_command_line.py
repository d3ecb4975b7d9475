"""The command line as a whole: help, mistakes, exit statuses. Verbs are tried in test_verbs.py."""

import fcntl
import importlib
import json
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

import relook as relook_package
from relook.cli import VERBS, main, running
from relook.cli.arguments import Verb, Wrong, _about, changes, option, parse, settings_option
from relook.cli.printing import table
from relook.weights.models import by_name, open_weights
from relook.weights.pretrained import load_backbone
from relook.weights.reading.checkpoint import save_weights
from untrained import untrained

RELOOK = [sys.executable, "-m", "relook"]


def relook(*given: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RELOOK, *given], check=False, capture_output=True, text=True, timeout=timeout)


# -- help ------------------------------------------------------------------------------------------


def test_the_overview_names_every_verb(capsys: pytest.CaptureFixture[str]):
    """`relook`, `relook --help` and `relook help` say the same and succeed."""
    said = []
    for given in ([], ["--help"], ["help"]):
        assert main(given) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2]
    assert all(f"    {verb} " in said[0] for verb in VERBS)
    assert said[0].count("\n  relook ") >= 4
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("relook ")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_all_its_options_and_has_an_example(
    verb: str, capsys: pytest.CaptureFixture[str]
):
    """Each option has words of help; the example begins with the verb and is one that parses."""
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    found: Verb = importlib.import_module(f"relook.cli.verbs.{verb}").VERB
    for f in fields(found.options):
        assert _about(found, f.name), f"{verb} does not explain {f.name}"
    examples = [line.strip() for line in found.example.splitlines()]
    assert all(line in out for line in examples)
    for line in examples:
        words = shlex.split(line)
        assert words[:2] == ["relook", verb]
        if "--config" not in words:
            parse(found, words[2:])
    if any(f.name == "json" for f in fields(found.options)):
        assert "--json" in out


def test_help_does_not_wait_for_torch():
    """The overview and a verb's help come without importing torch."""
    code = (
        "import sys\nfrom relook.cli import main\n"
        "for given in ([], *([v, '--help'] for v in ('train', 'predict', 'eval', 'demo'))): main(given)\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


# -- mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["trian"], "did you mean `relook train`?"),
        (["fly"], "the verbs are demo"),
        (["models", "--jsn"], "did you mean --json?"),
        (["models", "no_such*"], "no model fits"),
        (["predict", "a.jpg"], "--weights is needed"),
        (["predict", "--weights", "w"], "IMAGES is needed"),
        (
            ["predict", "a.jpg", "--weights", "w", "--batch", "many"],
            "--batch takes a whole number, not 'many'",
        ),
        (
            ["eval", "--weights", "w", "--data", "d", "--precision", "64"],
            "--precision takes one of 32, bf16, fp16",
        ),
        (["train", "--model", "m", "--data", "d", "--epochs", "0"], "epochs=0 is too small"),
        (["train", "--model", "repoints_nano", "--data", "shapes"], "near it: reppoints_nano"),
        (["train", "--model", "reppoints_nano", "--data", "/no/where"], "/no/where does not exist"),
        (["train", "--model", "reppoints_nano", "--data", "shapes", "--set", "x"], "write NAME=VALUE"),
        (
            ["predict", "a.jpg", "--config", "/no/file.yaml", "--weights", "w"],
            "there is no file /no/file.yaml",
        ),
        (["doctor", "/no/file.pth"], "there is no file /no/file.pth"),
        (["convert", "a.pth", "b.pth"], "name it b.safetensors"),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr_and_status_2(
    given: list[str], words: str, capsys: pytest.CaptureFixture[str]
):
    """Never a traceback, never anything on stdout; the sentence names the verb and the way out."""
    assert main(given) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert "Traceback" not in said.err
    assert said.err.startswith("relook")


def test_a_traceback_is_shown_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """--traceback, or RELOOK_TRACEBACK in the environment."""
    monkeypatch.setenv("RELOOK_TRACEBACK", "")
    assert main(["doctor", "/no/file.pth", "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 2, "a.txt: No such file or directory"),
        (ImportError("needs the extra train"), 2, "needs the extra train"),
        (ArithmeticError("loss cls is NaN at step 3"), 1, "loss cls is NaN"),
        (RuntimeError("odd"), 1, "RELOOK_TRACEBACK=1 relook models"),
        (KeyError("odd"), 1, "KeyError"),
    ],
)
def test_what_goes_wrong_inside_has_its_status(
    error: BaseException,
    status: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """130 interrupted, 2 for the user to fix, 1 failed; one line each."""

    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(running, "_speak", fail)
    assert main(["models"]) == status
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_ctrl_c_ends_with_a_word(tmp_path: Path):
    """SIGINT during a real run: 130, no traceback."""
    # as from a terminal: what a script starts in the background ignores SIGINT, and so do its children
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from relook.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "demo", "--out", str(tmp_path / "d")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running_demo:
        assert running_demo.stderr is not None
        assert "1 of 4" in running_demo.stderr.readline()
        time.sleep(0.3)
        running_demo.send_signal(signal.SIGINT)
        err = running_demo.stderr.read()
        status = running_demo.wait(60)
    assert status == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err


def test_a_closed_pipe_is_no_error():
    """`relook models | head -1` says nothing on stderr."""
    done = subprocess.run(
        f"{sys.executable} -m relook models | head -1",
        check=False,
        shell=True,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert done.stdout.startswith("model")
    assert done.stderr == ""


def test_stdout_carries_results_only():
    """`--json` gives one JSON document on stdout, from a process of its own."""
    done = relook("models", "reppoints_v1*", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == 9
    assert rows[0]["published_ap"] == 38.8
    assert rows[0]["parameters"] == 36849076


# -- reading options -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    files: tuple[str, ...] = option("files", many=True, positional=True)
    size: int | None = option("a number", default=None)
    mode: Literal["a", "b"] = option("a or b", default="a")
    loud: bool = option("louder", default=False)
    set: tuple[str, ...] = settings_option()


VERB = Verb(name="try", does="Tries.", example="  relook try x", options=Options, run=lambda _: 0)


def test_yaml_gives_options_and_flags_win(tmp_path: Path):
    """A file may hold any option; lists are lists; what is typed on the command line has the last word."""
    path = tmp_path / "a.yaml"
    path.write_text("size: 3\nmode: b\nloud: true\nset: [x.y=1, z=2]\n")
    assert parse(VERB, ["f", "--config", str(path)]) == Options(
        files=("f",), size=3, mode="b", loud=True, set=("x.y=1", "z=2")
    )
    assert parse(VERB, ["f", "--config", str(path), "--size", "4"]).size == 4
    path.write_text("sise: 3\n")
    with pytest.raises(Wrong, match="no option sise; did you mean size"):
        parse(VERB, ["f", "--config", str(path)])
    path.write_text("size: big\n")
    with pytest.raises(Wrong, match="--size takes a whole number"):
        parse(VERB, ["f", "--config", str(path)])
    path.write_text("size: [\n")
    with pytest.raises(Wrong, match=r"(?i)config"):
        parse(VERB, ["f", "--config", str(path)])


def test_an_option_given_several_times_adds_up():
    """--set A --set=B."""
    found = parse(VERB, ["f", "g", "--set", "a=1", "--set=b=2"])
    assert (found.files, found.set) == (("f", "g"), ("a=1", "b=2"))
    assert changes(found.set) == {"a": "1", "b": "2"}


def test_tables_are_aligned():
    """Numbers to the right, words to the left, no blanks at the end."""
    lines = table(("name", "n"), [("a", "1.5"), ("long", "-"), ("b", "12.0")]).splitlines()
    assert lines == ["name     n", "a      1.5", "long     -", "b     12.0"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["train", "--mod", "x"], "there is no option --mod; did you mean --model?"),
        (["predict", "a.jpg", "--conf", "0.5"], "there is no option --conf; here it is --score"),
        (["predict", "--source", "a.jpg"], "there is no option --source; give it without an option: IMAGES"),
        (["predict", "a.jpg", "--project", "x"], "there is no option --project; here it is --out"),
        (["predict", "a.jpg", "--iou", "0.5"], "there is no option --iou; here it is --set detector.nms=0.5"),
        (
            ["predict", "a.jpg", "--classes", "0"],
            "there is no option --classes; all classes of the weights are looked for",
        ),
        (["train", "--imgsz", "640"], "there is no option --imgsz; here it is --size"),
        (["train", "--batch_size", "8"], "there is no option --batch_size; here it is --batch"),
        (["train", "--weights", "x.pt"], "there is no option --weights; here it is --start"),
        (["eval", "--half"], "there is no option --half; here it is --precision fp16"),
        (["train", "--config", "no.yaml"], "--config: there is no file no.yaml"),
        (["train", "--config", "broken.yaml"], "--config: broken.yaml is no YAML"),
        (["train", "--config", "list.yaml"], "--config: list.yaml holds no options"),
        (["train", "--config", "odd.yaml"], "there is no option epoch; did you mean epochs?"),
        (["train", "--config", "unfit.yaml"], "--epochs takes a whole number, not 'many'"),
        (["train", "--model", "x", "--data", "y", "--ema", "much"], "--ema takes a number, not 'much'"),
        (["eval", "--weights", "w"], "--data is needed: a folder"),
    ],
)
def test_mistakes_are_found_without_reading_anybodys_words(
    given: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Abbreviated and unknown options, files that are not there, no YAML, of another shape, keys, values."""
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("broken.yaml", "a: ["),
        ("list.yaml", "- 1"),
        ("odd.yaml", "model: x\ndata: y\nepoch: 3"),
        ("unfit.yaml", "model: x\ndata: y\nepochs: many"),
    ):
        Path(name).write_text(text)
    assert main(given) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


# -- where and how it is started ---------------------------------------------------------------------


def test_a_folder_that_was_removed_is_named(tmp_path: Path):
    """Instead of a traceback from the depths of Python."""
    (tmp_path / "gone").mkdir()
    line = f"cd {tmp_path / 'gone'} && rmdir {tmp_path / 'gone'} && {' '.join(RELOOK)} models"
    done = subprocess.run(["sh", "-c", line], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == (
        "relook: the folder you are in was removed; cd to another one"
    )


def test_a_terminal_of_ascii_shows_everything():
    """Tables, help, and names in other letters."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for given in (
        ["models", "reppoints*"],
        ["predict", "b\u00fccher.jpg", "--weights", "none.pth"],
        ["--help"],
    ):
        done = subprocess.run(
            [*RELOOK, *given], env=environment, check=False, capture_output=True, timeout=120
        )
        assert b"Traceback" not in done.stderr
        assert (done.stdout + done.stderr).isascii()


@pytest.mark.parametrize("device", ["cuda:9", "cpu:2", "nope"])
def test_a_wrong_device_is_one_sentence(device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Of predict and eval."""
    file = untrained(tmp_path / "x.safetensors", "reppoints_nano", keep=5)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    given = (["predict", str(tmp_path / "a.png")], ["eval", "--data", "shapes"])
    for verb in given:
        out = ["--out", str(tmp_path / "out")]
        assert main([*verb, "--weights", str(file), "--device", device, *out]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f"device '{device}'" in err


def test_the_hub_is_not_asked_where_there_is_no_network(monkeypatch: pytest.MonkeyPatch):
    """One sentence at once."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    detector = relook_package.create_model("reppoints_v1_r50_fpn_1x")
    for offline, words in (("", "127.0.0.1 does not answer"), ("1", "RELOOK_OFFLINE is set")):
        monkeypatch.setenv("RELOOK_OFFLINE", offline)
        began = time.monotonic()
        with pytest.raises(ValueError, match=words) as caught:
            load_backbone(detector, "resnet50.a1_in1k")
        assert time.monotonic() - began < 10
        assert "--backbone-weights FILE" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["predict", "PICTURE", "--weights", "FILE", "--score", "50"], "scores lie between 0 and 1"),
        (["predict", "PICTURE", "--weights", "FILE", "--score", "1e400"], "scores lie between 0 and 1"),
        (["predict", "PICTURE", "--weights", ""], "is given as nothing"),
        (["predict", "", "--weights", "FILE"], "is given as nothing"),
        (["predict", "PICTURE", "--weights=FILE", "--out="], "is given as nothing"),
        (["predict", "PICTURE", "--model", "reppoints_nan"], "near it: reppoints_nano"),
        (["predict", "PICTURE", "--weights", "FILE", "--device", "meta"], "none that relook computes on"),
        (["train", "--model", "reppoints_nano", "--data", "shapes", "--seed", "-1"], "is no seed"),
        (["train", "--model", "reppoints_nano", "--data", "shapes", "--seed", "9" * 20], "is no seed"),
        (["train", "--model", "reppoints_nano", "--data", "shapes", "--classes", "3"], "there is no option"),
        (["train", "--config", "PIPE"], "is a pipe, not a file"),
        (["train", "--config", "FOLDER"], "is a folder, not a file"),
        (["doctor", "FOLDER", "--draw", "FOLDER/seen"], "lies in the data themselves"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(
    given: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """At once, before anything is written."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    places = {"PICTURE": "a.png", "PIPE": "pipe", "FOLDER": "folder", "FOLDER/seen": "folder/seen"}
    if any("FILE" in word for word in given):
        untrained(tmp_path / "x.safetensors", "reppoints_nano", keep=5)
    words_given = [str(tmp_path / places[w]) if w in places else w for w in given]
    words_given = [w.replace("FILE", str(tmp_path / "x.safetensors")) for w in words_given]
    assert main(words_given) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_what_is_set_wins_over_size(tmp_path: Path):
    """Of train, as of everything that takes both."""
    model = by_name("reppoints_nano").sized(48).change({"recipe.test_size.short": "64"})
    save_weights(tmp_path / "x.safetensors", model.entry.detector.build().state_dict(), model.describe())
    changed = {"recipe.test_size.short": "80"}
    loaded = open_weights(tmp_path / "x.safetensors", settings=changed, size=96)
    assert loaded.model.entry.recipe.test_size.short == (80,)


@pytest.mark.slow
def test_a_terminal_that_closes_ends_a_run_as_it_should(tmp_path: Path):
    """The state is saved, the log says so, and the status is that of SIGHUP, though nobody reads."""
    master, slave = pty.openpty()

    def leads() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    out = tmp_path / "run"
    given = ["train", "--model", "reppoints_nano", "--data", "shapes", "--size", "48", "--epochs", "300"]
    process = subprocess.Popen(
        [*RELOOK, *given, "--workers", "0", "--out", str(out)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=leads,  # noqa: PLW1509 (leads)
    )
    os.close(slave)
    end = time.monotonic() + 60
    while time.monotonic() < end and not (out / "metrics.jsonl").exists():
        if select.select([master], [], [], 0.1)[0]:
            os.read(master, 4096)
    time.sleep(2)
    os.close(master)
    assert process.wait(60) == 128 + signal.SIGHUP
    assert "go on with the same command and --resume" in (out / "train.log").read_text()
    assert (out / "last.ckpt").exists()
