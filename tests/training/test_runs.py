"""Runs that are killed, stopped, damaged, started twice, or resumed with something else."""

import contextlib
import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from relook.archives import CheckpointError
from relook.data.columnar import with_labels
from relook.data.sample import Source
from relook.detector import Detector
from relook.files import DiskFull
from relook.recipe import Recipe
from relook.train_settings import TrainSettings
from relook.training.fit import TrainResult, fit
from relook.training.records.checkpoint import read_state
from relook.training.records.lock import Occupied
from same_run import Sittings, assert_same_run, kill, state
from tiny_detector import RECIPE, TinyDetector, tiny, tiny_data

DESCRIBE = {"relook": '{"model": "tiny", "settings": {}}'}


def run(
    folder: Path,
    train: Source | None = None,
    recipe: Recipe = RECIPE,
    describe: dict[str, str] = DESCRIBE,
    detector: Detector[Any] | None = None,
    **changed: Any,
) -> TrainResult:
    settings = TrainSettings(out=folder, **{"workers": 0, "progress": False, "tensorboard": False, **changed})
    val = tiny_data(6, "val")
    data = train or tiny_data()
    return fit(detector or tiny(), recipe, data, replace(val, classes=data.classes), settings, describe)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch of two."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    run(folder, epochs=2, stop_after=1)
    return folder


@pytest.fixture(scope="module")
def sittings() -> Iterator[Sittings]:
    server = Sittings()
    yield server
    server.close()


# -- killed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_instants_ends_as_if_it_had_not_been(
    sittings: Sittings, tmp_path: Path, kills: int
) -> None:
    """Weights, averages, optimiser, counters and rows are equal bit for bit; nothing is left over."""
    dice = random.Random(kills)
    whole = tmp_path / "whole"
    began = time.monotonic()
    sittings.start(whole, save_every=1)
    assert sittings.wait() == 0
    length = time.monotonic() - began
    count = sitting = 0
    while count < kills:
        folder, status = tmp_path / f"run-{count}", None
        while status != 0:
            sitting += 1
            saved = (folder / "last.ckpt").exists()
            more: dict[str, Any] = {"resume": folder, "start": sitting} if saved else {}
            process = sittings.start(folder, save_every=1, **more)
            if count < kills:
                time.sleep(dice.uniform(0, length))
                kill(process)
            status = sittings.wait()
            assert status in (0, -signal.SIGKILL), folder.with_suffix(".txt").read_text()
            count += status != 0
        assert_same_run(whole, folder)
        left = {path.name for path in folder.iterdir() if path.name.startswith(".")}
        assert left == {".relook"}


def test_what_was_stopped_before_its_first_save_begins_anew(sittings: Sittings, tmp_path: Path) -> None:
    """By the same command and by --resume; what the user has put there stays."""
    for again in ({}, {"resume": tmp_path / "run"}):
        process = sittings.start(tmp_path / "run", epochs=500, validate_every=500, save_every=10_000)
        _until((tmp_path / "run" / "live.html").exists)
        kill(process)
        assert sittings.wait() == -signal.SIGKILL
        assert not (tmp_path / "run" / "last.ckpt").exists()
        (tmp_path / "run" / "notes.txt").write_text("mine")
        sittings.start(tmp_path / "run", epochs=1, **again)
        assert sittings.wait() == 0, (tmp_path / "run.txt").read_text()
        assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
        (tmp_path / "run" / "notes.txt").unlink()
        for path in (tmp_path / "run").iterdir():
            path.unlink()
    (tmp_path / "run" / "metrics.csv").write_text("mine")
    with pytest.raises(FileExistsError, match="already holds"):
        run(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="there is no"):
        run(tmp_path / "nowhere", resume=tmp_path / "run")
    assert (tmp_path / "run" / "metrics.csv").read_text() == "mine"


@pytest.mark.parametrize("folder", ["run", "other"])
def test_a_disk_that_fills_at_the_first_save_leaves_a_run_that_begins_anew(
    done: Path, tmp_path: Path, folder: str
) -> None:
    """In a folder of its own and in one that a run goes on in: what is said holds."""
    more: dict[str, Any] = {"resume": done} if folder == "other" else {}
    room = (done / "last.ckpt").stat().st_size * 3 // 4
    with _room(room), pytest.raises(DiskFull) as caught:
        run(tmp_path / folder, epochs=2, **more)
    if folder == "run":
        assert "nothing was saved yet: the same command begins anew" in str(caught.value)
    assert run(tmp_path / folder, epochs=2, **more).epochs == 2


def test_a_run_that_goes_on_elsewhere_can_be_killed_at_once(done: Path, tmp_path: Path) -> None:
    """Its state is copied first, so that the new folder can go on as the old one could."""

    class Killed(TinyDetector):
        def loss(self, outputs: Any, targets: Any) -> Any:
            raise MemoryError

    torch.manual_seed(0)
    with pytest.raises(MemoryError):
        run(tmp_path / "b", epochs=2, resume=done, detector=Killed())
    with pytest.raises(FileExistsError, match=f"go on with it by --resume {tmp_path / 'b'}"):
        run(tmp_path / "b", epochs=2, resume=done)
    assert run(tmp_path / "b", epochs=2, resume=tmp_path / "b").epochs == 2
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "best.safetensors").write_bytes(b"half")  # killed while it was copied
    (tmp_path / "c" / ".relook").write_text("train.log\nbest.safetensors\n")
    assert run(tmp_path / "c", epochs=2, resume=done).epochs == 2


def test_a_run_killed_while_it_read_its_data_begins_anew(tmp_path: Path) -> None:
    """Only a lock is left, whose holder is gone."""
    (tmp_path / ".relook.lock").write_text("1 on nowhere\n")
    assert run(tmp_path, epochs=1, resume=tmp_path).epochs == 1


def test_a_run_killed_between_state_and_weights_writes_them_when_it_goes_on(tmp_path: Path) -> None:
    """Of its last epoch, though there is nothing left to train."""
    run(tmp_path, epochs=1)
    with safe_open(tmp_path / "last.safetensors", "pt") as file:
        said, numbers = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    (tmp_path / "last.safetensors").unlink()
    result = run(tmp_path, epochs=1, resume=tmp_path, detector=tiny(5))
    with safe_open(result.last, "pt") as file:
        assert file.metadata() == said
        assert all(torch.equal(file.get_tensor(name), value) for name, value in numbers.items())


def test_what_the_user_put_into_a_folder_of_a_run_stays(tmp_path: Path) -> None:
    """Also by the name of a result, in a folder that relook made, and what a lock links to."""
    run(tmp_path / "run", epochs=1)
    for name in ("last.ckpt", "last.safetensors", "best.safetensors"):
        (tmp_path / "run" / name).unlink()
    for path in (tmp_path / "run").iterdir():
        if path.name != ".relook":
            path.unlink()
    (tmp_path / "run" / ".relook").write_text("train.log\n")
    (tmp_path / "run" / "metrics.csv").write_text("mine")
    with pytest.raises(FileExistsError, match="already holds"):
        run(tmp_path / "run", epochs=1)
    assert (tmp_path / "run" / "metrics.csv").read_text() == "mine"
    (tmp_path / "linked").mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "linked" / ".relook.lock").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(OSError, match=r"relook\.lock"):
        run(tmp_path / "linked", epochs=1)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_run_that_had_ended_goes_on_elsewhere_whole(tmp_path: Path) -> None:
    """With all that the old folder had, also over another run."""
    run(tmp_path / "a", epochs=1)
    run(tmp_path / "b", epochs=1)
    result = run(tmp_path / "b", epochs=1, resume=tmp_path / "a" / "last.ckpt", overwrite=True)
    assert {"last.ckpt", "last.safetensors", "best.safetensors", "settings.yaml"} <= set(
        files(tmp_path / "b")
    )
    assert "complete already, and nothing was trained" in (tmp_path / "b" / "train.log").read_text()
    assert result.best == tmp_path / "b" / "best.safetensors"
    (tmp_path / "b" / "best.safetensors").unlink()
    again = run(tmp_path / "b", epochs=1, resume=tmp_path / "b")
    assert again.best is None
    assert "is not there any more" in (tmp_path / "b" / "train.log").read_text()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "state.ckpt").write_bytes((tmp_path / "a" / "last.ckpt").read_bytes())
    assert run(tmp_path / "c", epochs=1, resume=tmp_path / "c" / "state.ckpt").last.exists()
    assert (tmp_path / "c" / "last.ckpt").exists()


def test_a_run_goes_on_elsewhere_from_the_state_that_was_named(tmp_path: Path) -> None:
    """Not from the last.ckpt that lies beside it."""
    run(tmp_path / "a", epochs=2, stop_after=1)
    (tmp_path / "a" / "first.ckpt").write_bytes((tmp_path / "a" / "last.ckpt").read_bytes())
    run(tmp_path / "a", epochs=2, resume=tmp_path / "a")

    class Killed(TinyDetector):
        def loss(self, outputs: Any, targets: Any) -> Any:
            raise MemoryError

    with pytest.raises(MemoryError):
        run(tmp_path / "b", epochs=2, resume=tmp_path / "a" / "first.ckpt", detector=Killed())
    assert (tmp_path / "b" / "last.ckpt").read_bytes() == (tmp_path / "a" / "first.ckpt").read_bytes()


def test_a_state_among_what_would_be_removed_is_not_removed(done: Path, tmp_path: Path) -> None:
    """Overwriting a folder with the run that goes on from a file in it."""
    inside = tmp_path / "run" / "nonfinite" / "last.ckpt"
    inside.parent.mkdir(parents=True)
    inside.write_bytes((done / "last.ckpt").read_bytes())
    with pytest.raises(FileExistsError, match="which would be removed; move it out first"):
        run(tmp_path / "run", epochs=2, resume=inside, overwrite=True)
    assert inside.exists()


def test_a_folder_without_a_mark_goes_on_where_it_is(tmp_path: Path) -> None:
    """As an older relook left it, or a copy without hidden files."""
    run(tmp_path, epochs=2, stop_after=1)
    (tmp_path / ".relook").unlink()
    assert run(tmp_path, epochs=2, resume=tmp_path).epochs == 2


@contextlib.contextmanager
def _room(size: int) -> Iterator[None]:
    """No file may become larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def _until(true: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


# -- stopped ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_stopped_at_random_instants_end_as_if_they_had_not_been(
    sittings: Sittings, tmp_path: Path
) -> None:
    """By any signal, before the first step too, with readers or without; resumed until they end."""
    dice = random.Random(7)
    whole = tmp_path / "whole"
    began = time.monotonic()
    sittings.start(whole, workers=2)
    assert sittings.wait() == 0
    length = time.monotonic() - began
    for n in range(30):
        folder, status = tmp_path / f"run-{n}", None
        number, workers = dice.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]), dice.choice([0, 2])
        while status != 0:
            more = {"resume": folder} if (folder / "last.ckpt").exists() else {}
            process = sittings.start(folder, workers=workers, **more)
            time.sleep(dice.uniform(0, length))
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
            status = sittings.wait()
            early = (-number, 1)  # before anybody listened
            assert status in (0, 130, 128 + number, *early), folder.with_suffix(".txt").read_text()
        assert_same_run(whole, folder)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_to_all_processes_of_a_run_saves(sittings: Sittings, tmp_path: Path, name: str) -> None:
    """As a terminal, `timeout` or SLURM sends it: those that read images go on, and one sentence is said."""
    number = signal.Signals[name]
    process = sittings.start(tmp_path / "run", epochs=500, workers=3, validate_every=500)
    rows = tmp_path / "run" / "metrics.jsonl"
    _until(lambda: rows.exists() and rows.read_text().count("\n") > 3)
    readers = [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    assert len(readers) == 3
    for one in (*readers, process):
        os.kill(one, number)
    assert sittings.wait() == (130 if name == "SIGINT" else 128 + number)
    said = (tmp_path / "run" / "train.log").read_text()
    assert said.count("stopping after this step") == 1
    assert f"the same command and --resume {tmp_path / 'run'}" in said
    assert "DataLoader worker" not in (tmp_path / "run.txt").read_text()
    sittings.start(tmp_path / "run", resume=tmp_path / "run", epochs=500, stop_after=40, validate_every=500)
    assert sittings.wait() == 0
    _until(lambda: not any(Path(f"/proc/{one}").exists() for one in readers))


def test_readers_end_when_their_run_says_so(sittings: Sittings, tmp_path: Path) -> None:
    """A run with readers ends by itself; they hear SIGTERM from it alone."""
    began = time.monotonic()
    sittings.start(tmp_path / "run", epochs=2, workers=2)
    assert sittings.wait() == 0
    assert time.monotonic() - began < 30


def test_a_reader_that_is_killed_is_named(sittings: Sittings, tmp_path: Path) -> None:
    """As the system does when memory runs out."""
    process = sittings.start(tmp_path / "run", epochs=500, workers=2, validate_every=500)
    rows = tmp_path / "run" / "metrics.jsonl"
    _until(lambda: rows.exists() and rows.read_text().count("\n") > 3)
    readers = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    kill(int(readers[0]))
    assert sittings.wait() == 1
    said = (tmp_path / "run.txt").read_text()
    assert "a process that reads images was ended from outside, as the system does when memory" in said
    assert "try --workers 1" in said
    assert f"the same command and --resume {tmp_path / 'run'}" in said


# -- two at once -----------------------------------------------------------------------------------------


def test_a_second_run_in_a_folder_is_refused_until_the_first_has_ended(
    sittings: Sittings, tmp_path: Path
) -> None:
    """However it ended: the system lets go of what a killed process held, though its readers live on."""
    process = sittings.start(tmp_path / "run", epochs=500, workers=2, validate_every=500)
    _until((tmp_path / "run" / "last.ckpt").exists)
    for again in ({}, {"overwrite": True}, {"resume": tmp_path / "run"}):
        with pytest.raises(Occupied, match=rf"run is in use: process {process} on .* is training there"):
            run(tmp_path / "run", **again)
    os.kill(process, signal.SIGKILL)
    assert sittings.wait() == -signal.SIGKILL
    state = {"ema": 0.9, "log_every": 2, "epochs": 500, "stop_after": 30, "validate_every": 500}
    result = run(tmp_path / "run", describe={}, resume=tmp_path / "run", **state)
    assert result.epochs == 30
    steps = [line.split('"step": ')[1].split(",")[0] for line in _rows(tmp_path / "run")]
    assert len(steps) == len(set(steps))
    assert not (tmp_path / "run" / ".relook.lock").exists()


def _rows(folder: Path) -> list[str]:
    return [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"train"' in line]


# -- damaged, foreign ------------------------------------------------------------------------------------


@pytest.mark.parametrize("flips", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_damaged_state_is_refused_or_harmless(done: Path, tmp_path: Path, flips: int) -> None:
    """Each single bit flipped in a record is noticed; a flip in between changes nothing that is read."""
    dice = random.Random(0)
    whole = (done / "last.ckpt").read_bytes()
    good = state(done)
    noticed = 0
    file = tmp_path / "last.ckpt"
    for _ in range(flips):
        place, bit = dice.randrange(len(whole)), dice.randrange(8)
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        file.write_bytes(damaged)
        try:
            read_state(file)
        except CheckpointError as error:
            noticed += "is broken or cut short" in str(error)
            continue
        torch.testing.assert_close(
            torch.load(file, weights_only=True)["state_dict"], good["state_dict"], rtol=0, atol=0
        )
    assert noticed > flips / 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is an empty file"),
        ("half", "is broken or cut short"),
        ("tail", "neither torch's format nor safetensors"),
        (b"<html></html>", "is a web page"),
        (b"\x89PNG\r\n\x1a\n....", "is a PNG picture"),
        ("weights", "holds weights, and a run goes on from its last.ckpt; .* --start"),
        ("foreign", "is no state of a run of relook .*--start"),
        ("list", "is no state of a run of relook"),
        ("other", "another model or other classes .*'head.weight' is .* there and .* here"),
        ("pipe", "is a pipe, not a file"),
        ({"state_dict": [1]}, "'state_dict' in it is no dict"),
        ({"state_dict": {"a": 1}}, "'a' in it is no tensor"),
        ({"callbacks": [1]}, "'callbacks' in it is no dict"),
        ({"global_step": "x"}, "'global_step' in it is no int"),
        ({"loops": {}}, "of its loop is empty"),
        ({"optimizer_states": []}, "the state of its optimizer"),
        ({"relook": {"description": "x"}, "state_dict": {}}, "it lacks 'frozen'"),
    ],
)
def test_what_is_no_state_of_this_run_is_named(done: Path, tmp_path: Path, content: Any, words: str) -> None:
    """With what it is and what to do; the folder stays as it was."""
    file = tmp_path / "last.ckpt"
    whole = (done / "last.ckpt").read_bytes()
    detector = None
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, dict):
        torch.save({**state(done), **content}, file)
    elif content == "pipe":
        os.mkfifo(file)
    elif content in {"half", "tail"}:
        half = len(whole) // 2
        file.write_bytes(whole[:half] if content == "half" else whole[half + 7 :])
    elif content == "weights":
        save_file({"a": torch.zeros(1)}, file)
    elif content == "other":
        kept = state(done)
        del kept["relook"]
        torch.save(kept, file)
        detector = TinyDetector(num_classes=4)
        detector.head = torch.nn.Conv2d(16, 9, 1)
    else:
        torch.save({"state_dict": {"a": torch.zeros(1)}} if content == "foreign" else [1], file)
    with pytest.raises(CheckpointError, match=words) as caught:
        run(tmp_path / "run", epochs=2, resume=file, detector=detector)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# -- resumed with something else -------------------------------------------------------------------------


def _renamed(data: Source) -> Source:
    return replace(data, classes=("bolt", *data.classes[1:]))


def _reordered(data: Source) -> Source:
    names = [data.classes[n] for n in (1, 0, 2, 3)]
    return with_labels(data, [1, 0, 2, 3], names, data.category_ids)


def _moved(data: Source) -> Source:
    first = data.samples[0]
    return replace(data, samples=[replace(first, boxes=first.boxes + 1), *data.samples[1:]])


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (_renamed, "class 1 was '.*', now 'bolt'"),
        (_reordered, "the same classes in another order: "),
        (lambda data: replace(data, samples=data.samples[1:]), "12 training images, now 11"),
        (_moved, "as many training images, but other names, another order or other annotations"),
        (
            lambda data: replace(data, samples=[*data.samples[1:], data.samples[0]]),
            "as many training images, but other names, another order or other annotations",
        ),
    ],
)
def test_a_run_does_not_go_on_with_other_data_unless_it_is_forced(
    done: Path, tmp_path: Path, train: Any, words: str
) -> None:
    """What differs is named, and nothing was written by then."""
    before = files(done)
    with pytest.raises(ValueError, match=rf"this run began otherwise: {words}.*; .*--force|{words}.*--force"):
        run(tmp_path / "run", train(tiny_data()), epochs=2, resume=done)
    assert files(done) == before
    assert not (tmp_path / "run").exists()
    run(tmp_path / "run", train(tiny_data()), epochs=2, resume=done, force=True)
    assert "not as the run began: " in (tmp_path / "run" / "train.log").read_text()


def test_changed_settings_are_named(done: Path, tmp_path: Path) -> None:
    """Of the recipe, of the model and of the training; what changes nothing of the result is free."""
    changed = replace(RECIPE, optimizer=replace(RECIPE.optimizer, momentum=0.5))
    with pytest.raises(ValueError, match=r"recipe\.optimizer\.momentum was 0\.9, now 0\.5"):
        run(tmp_path / "run", recipe=changed, epochs=2, resume=done)
    named = {"relook": '{"model": "other", "settings": {"detector.keep": "9", "detector.num_classes": "4"}}'}
    with pytest.raises(ValueError, match=r"model was tiny, now other; --set detector\.keep is now 9\. "):
        run(tmp_path / "run", describe=named, epochs=2, resume=done)
    with pytest.raises(ValueError, match=r"total_batch was 4, now 2; lr was 0\.02, now 0\.01"):
        run(tmp_path / "run", batch=2, epochs=2, resume=done)
    free = {"log_every": 3, "validate_every": 2, "save_every": 2}
    assert run(tmp_path / "run", epochs=2, resume=done, **free).epochs == 2
    with pytest.raises(ValueError, match="force goes with resume"):
        TrainSettings(force=True)


def test_the_state_of_an_older_relook_goes_on_and_says_what_it_does_not_know(
    done: Path, tmp_path: Path
) -> None:
    """It has no record of what it was trained on."""
    kept = state(done)
    del kept["relook"]
    torch.save(kept, tmp_path / "last.ckpt")
    assert run(tmp_path / "run", epochs=2, resume=tmp_path / "last.ckpt").epochs == 2
    assert "saved by an older relook" in (tmp_path / "run" / "train.log").read_text()


def test_nothing_is_removed_before_all_is_checked(done: Path, tmp_path: Path) -> None:
    """--overwrite with a new run that cannot be leaves the old one as it was."""
    before = files(done)
    for wrong in ({"devices": "gpu:9"}, {"resume": tmp_path / "nowhere"}, {"precision": "fp16"}):
        with pytest.raises((ValueError, FileNotFoundError)):
            run(done, overwrite=True, **wrong)
    no_images = replace(RECIPE, selection=replace(RECIPE.selection, min_side=9999))
    with pytest.raises(ValueError, match="can be trained on"):
        run(done, recipe=no_images, overwrite=True)
    assert files(done) == before


# -- what is left over -----------------------------------------------------------------------------------


def test_what_killed_saves_left_is_removed_by_the_next_run(tmp_path: Path) -> None:
    """And nothing else that looks like it."""
    run(tmp_path, epochs=2, stop_after=1)
    (tmp_path / ".last.ckpt.abcd1234.ckpt").write_text("half")
    (tmp_path / ".metrics.csv.a_cd1234.csv").write_text("half")
    (tmp_path / ".tmpab12Cd").write_bytes(b"\0" * 8 + b"{")
    mine = [
        tmp_path / name
        for name in (".tmpnotes1", ".last.ckpt.mine.ckpt", ".notes.txt.abcd1234.txt", "a.last.ckpt")
    ]
    for path in mine:
        path.write_text("mine, and long")
    run(tmp_path, epochs=2, resume=tmp_path)
    assert [path.read_text() for path in mine] == ["mine, and long"] * 4
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == {
        ".relook",
        ".tmpnotes1",
        ".last.ckpt.mine.ckpt",
        ".notes.txt.abcd1234.txt",
    }


def test_a_full_disk_is_named_with_what_is_whole(tmp_path: Path) -> None:
    """The file, the cause, where to go on; the last state is untouched."""
    folder = tmp_path / "run"
    run(folder, epochs=3, stop_after=1)
    before = (folder / "last.ckpt").read_bytes()
    words = r"last\.ckpt could not be written: file too large; .*is whole"
    with _room(len(before) * 2 // 3), pytest.raises(DiskFull, match=words) as caught:
        run(folder, epochs=3, resume=folder)
    assert f"the same command and --resume {folder}" in str(caught.value)
    assert (folder / "last.ckpt").read_bytes() == before
    assert run(folder, epochs=3, resume=folder).epochs == 3
