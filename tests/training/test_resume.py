import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from relook.archives import CheckpointError
from relook.evaluation import evaluate
from relook.train_settings import TrainSettings
from relook.training.fit import TrainResult, fit
from same_run import assert_same_run, state
from tiny_detector import RECIPE, TinyDetector, tiny, tiny_data


def run(folder: Path, detector: TinyDetector | None = None, **changed: Any) -> TrainResult:
    settings = replace(
        TrainSettings(out=folder, workers=0, log_every=1, progress=False, tensorboard=False, ema=0.9),
        **changed,
    )
    return fit(detector or tiny(), RECIPE, tiny_data(), tiny_data(6, "val"), settings, {})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four epochs in one sitting."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_two_and_two_epochs_equal_four(whole: Path, tmp_path: Path) -> None:
    """Bit for bit, whatever the resumed detector holds before."""
    first = run(tmp_path, stop_after=2)
    assert first.epochs == 2
    result = run(tmp_path, tiny(seed=5), resume=tmp_path)
    assert (result.epochs, result.steps) == (4, 12)
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("step", [1, 5, 6, 12])
def test_an_interrupted_run_goes_on_exactly(whole: Path, tmp_path: Path, step: int) -> None:
    """Ctrl-C in the first step, within an epoch, in its last step, in the very last step: nothing is lost."""
    steps = iter(range(1, 100))

    class Interrupting(TinyDetector):
        def loss(self, outputs: Any, targets: Any) -> Any:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(outputs, targets)

    torch.manual_seed(0)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupting())
    assert signal.getsignal(signal.SIGINT) is before
    # heard before the terms of this step were noted, so this step is the last
    assert state(tmp_path)["global_step"] == step
    assert f"--resume {tmp_path}" in (tmp_path / "train.log").read_text()
    run(tmp_path, tiny(seed=5), resume=tmp_path)
    assert_same_run(whole, tmp_path)


def test_a_killed_run_goes_on_from_its_last_save(whole: Path, tmp_path: Path) -> None:
    """A crash in step 8 loses what came after the save of step 7; the log and metrics have no double rows."""
    steps = iter(range(1, 100))

    class Crashing(TinyDetector):
        def loss(self, outputs: Any, targets: Any) -> Any:
            if next(steps) == 9:
                raise MemoryError
            return super().loss(outputs, targets)

    torch.manual_seed(0)
    with pytest.raises(MemoryError):
        run(tmp_path, Crashing(), save_every=7)
    assert state(tmp_path)["global_step"] == 7
    run(tmp_path, tiny(seed=5), resume=tmp_path)
    assert_same_run(whole, tmp_path)


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    """What was saved before stays, and the log says where to go on."""
    steps = iter(range(1, 100))

    class Impatient(TinyDetector):
        def loss(self, outputs: Any, targets: Any) -> Any:
            if next(steps) == 5:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(outputs, targets)

    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Impatient())
    assert state(tmp_path)["global_step"] == 3
    assert f"--resume {tmp_path}" in (tmp_path / "train.log").read_text()


def test_a_run_goes_on_in_another_folder(whole: Path, tmp_path: Path) -> None:
    """With its best weights and metrics; but not in the folder of another run."""
    run(tmp_path / "a", stop_after=3)
    result = run(tmp_path / "b", tiny(seed=5), resume=tmp_path / "a")
    assert result.best is not None
    assert result.best.parent == tmp_path / "b"
    assert_same_run(whole, tmp_path / "b")
    with pytest.raises(FileExistsError, match="already holds"):
        run(tmp_path / "b", resume=tmp_path / "a")


def test_a_terminated_run_saves_too(tmp_path: Path) -> None:
    """SIGTERM, which schedulers send, ends with its own exit status."""

    class Terminating(TinyDetector):
        def loss(self, outputs: Any, targets: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(outputs, targets)

    torch.manual_seed(0)
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, Terminating())
    assert caught.value.code == 128 + signal.SIGTERM
    assert state(tmp_path)["global_step"] == 1


def test_resuming_a_finished_run_changes_nothing(whole: Path) -> None:
    """It says what there is."""
    before = state(whole)["state_dict"]
    detector = tiny(seed=5)
    result = run(whole, detector, resume=whole / "last.ckpt")
    assert (result.epochs, result.steps) == (4, 12)
    torch.testing.assert_close(state(whole)["state_dict"], before, rtol=0, atol=0)


def test_other_settings_are_pointed_out(tmp_path: Path) -> None:
    """A run that goes on under another schedule is refused, and nothing is written, unless it is forced."""
    run(tmp_path, epochs=1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match=r"epochs was 1, now 2; seed was 0, now 3\. .*--force"):
        run(tmp_path, epochs=2, resume=tmp_path, seed=3)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert run(tmp_path, epochs=2, resume=tmp_path, seed=3, force=True).epochs == 2
    log = (tmp_path / "train.log").read_text()
    assert "not as the run began: epochs was 1, now 2" in log
    assert "not as the run began: seed was 0, now 3" in log


def test_a_checkpoint_that_would_execute_code_is_refused(tmp_path: Path) -> None:
    """last.ckpt is read without executing anything."""

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"global_step": 0, "state_dict": Evil()}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="would have to run code"):
        run(tmp_path, resume=tmp_path)
    assert not (tmp_path / "executed").exists()


# -- faults that would change nothing one could see --------------------------------------------------------


def test_the_best_validation_is_kept_not_the_last_or_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order in which they come; its weights are those of that epoch."""
    values = iter([0.2, 0.5, 0.1, 0.4])
    kept: list[dict[str, torch.Tensor]] = []

    def evaluated(detector: TinyDetector, *given: Any, **more: Any) -> Any:
        kept.append({name: value.clone() for name, value in detector.state_dict().items()})
        done = evaluate(detector, *given, **more)
        return replace(done, report=replace(done.report, numbers={**done.report.numbers, "AP": next(values)}))

    monkeypatch.setattr("relook.training.fit.evaluate", evaluated)
    result = run(tmp_path, ema=None)
    assert (result.best_ap, result.best_epoch) == (0.5, 2)
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert (file.metadata()["epoch"], file.metadata()["AP"]) == ("2", "0.5")
        for name in file.keys():  # noqa: SIM118
            assert torch.equal(file.get_tensor(name), kept[1][name])
    assert state(tmp_path)["callbacks"]["ValidateAndSave"]["epochs_without_gain"] == 2


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_no_state_is_saved_between_accumulated_gradients(tmp_path: Path, batch: int) -> None:
    # -- faults that would change nothing one could see ------------------------------------------------------
    settings = {"batch": 2, "accumulate": 3, "save_every": 1, "epochs": 2}
    run(tmp_path / "whole", **settings)
    batches = iter(range(1, 100))

    class Interrupting(TinyDetector):
        def loss(self, outputs: Any, targets: Any) -> Any:
            if next(batches) == 3 + batch:
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(outputs, targets)

    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "two", Interrupting(), **settings)
    assert state(tmp_path / "two")["global_step"] == 2
    run(tmp_path / "two", tiny(seed=5), resume=tmp_path / "two", **settings)
    assert_same_run(tmp_path / "whole", tmp_path / "two")


def test_a_crash_between_accumulated_gradients_falls_back_to_a_whole_step(tmp_path: Path) -> None:
    """Of three batches to a step, the fifth crashes: the last state is of the first step."""
    batches = iter(range(1, 100))

    class Crashing(TinyDetector):
        def loss(self, outputs: Any, targets: Any) -> Any:
            if next(batches) == 5:
                raise MemoryError
            return super().loss(outputs, targets)

    settings = {"batch": 2, "accumulate": 3, "save_every": 1, "epochs": 2}
    run(tmp_path / "whole", **settings)
    torch.manual_seed(0)
    with pytest.raises(MemoryError):
        run(tmp_path / "two", Crashing(), **settings)
    assert state(tmp_path / "two")["global_step"] == 1
    run(tmp_path / "two", tiny(seed=5), resume=tmp_path / "two", **settings)
    assert_same_run(tmp_path / "whole", tmp_path / "two")


def test_what_a_step_draws_depends_on_the_step_and_on_nothing_before_it(tmp_path: Path) -> None:
    """Each step its own numbers; a resumed run those of the whole one, and another seed others."""
    drawn: list[float] = []

    class Drawing(TinyDetector):
        def loss(self, outputs: Any, targets: Any) -> Any:
            drawn.append(float(torch.rand(())))
            return super().loss(outputs, targets)

    run(tmp_path / "whole", Drawing(), epochs=2)
    whole = drawn.copy()
    assert len(set(whole)) == 6
    drawn.clear()
    run(tmp_path / "two", Drawing(), epochs=2, stop_after=1)
    torch.rand(7)
    run(tmp_path / "two", Drawing(), epochs=2, resume=tmp_path / "two")
    assert drawn == whole
    drawn.clear()
    run(tmp_path / "other", Drawing(), epochs=2, seed=1)
    assert not set(drawn) & set(whole)
