import csv
import importlib
import io
import itertools
import json
import logging
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning.strategies import DDPStrategy
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

from relook.recipe import Schedule
from relook.train_settings import TrainSettings
from relook.training import fit as fit_module
from relook.training.fit import TrainResult, _trainer, fit
from relook.training.lightning import Training
from relook.training.processes.machines import machines
from tiny_detector import RECIPE, TinyDetector, tiny, tiny_data

DESCRIBE = {"relook": json.dumps({"format": 1, "model": "tiny"})}


def run(folder: Path, detector: TinyDetector | None = None, **changed: Any) -> TrainResult:
    settings = replace(
        TrainSettings(out=folder, workers=0, log_every=2, progress=False, tensorboard=False), **changed
    )
    train, val = tiny_data(), tiny_data(6, "val")
    return fit(detector or tiny(), RECIPE, train, val, settings, DESCRIBE)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_everything(tmp_path: Path) -> None:
    """Weights with their description, state, log, metrics in three formats, and the settings."""
    detector = tiny()
    result = run(tmp_path, detector, epochs=2, tensorboard=True)
    assert (result.epochs, result.steps, result.best_epoch in {1, 2}) == (2, 6, True)
    assert result.report is not None
    assert result.report.images == 6
    for file in (result.last, result.best, tmp_path / "last.ckpt", tmp_path / "train.log"):
        assert file is not None
        assert file.stat().st_size > 0
    with safe_open(result.best, "pt") as weights:
        assert json.loads(weights.metadata()["relook"])["model"] == "tiny"
        assert float(weights.metadata()["AP"]) == result.best_ap
    for name, value in load_file(result.last).items():
        assert torch.equal(value, detector.state_dict()[name])
    steps = [(row["kind"], row["step"]) for row in rows(tmp_path)]
    assert steps == [
        ("train", 2),
        ("train", 3),
        ("validation", 3),
        ("train", 4),
        ("train", 6),
        ("validation", 6),
    ]
    with (tmp_path / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in table if row["kind"] == "train"] == [
        row["loss"] for row in rows(tmp_path) if row["kind"] == "train"
    ]
    assert any((tmp_path / "tensorboard").iterdir())
    written = yaml.safe_load((tmp_path / "settings.yaml").read_text())
    assert written["resolved"]["epochs"] == 2
    assert written["model"]["relook"]["model"] == "tiny"
    log = (tmp_path / "train.log").read_text()
    for said in (
        "learning rate 0.02 for 4 images a step",
        "epochs: 2 instead of the recipe's 4",
        "images/s",
        "AP50",
    ):
        assert said in log
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [".relook"]


def test_training_learns(tmp_path: Path) -> None:
    """The loss falls, frozen parameters stay, all others move."""
    detector = tiny()
    before = {name: value.clone() for name, value in detector.named_parameters()}
    run(tmp_path, detector, epochs=8, validate_every=8)
    told = [row["loss"] for row in rows(tmp_path) if row["kind"] == "train"]
    assert told[-1] < 0.8 * told[0]
    for name, value in detector.named_parameters():
        assert torch.equal(value, before[name]) == (name == "frozen")


def test_accumulated_batches_make_one_step(tmp_path: Path) -> None:
    """Two batches of two and one of four give the same step count and learning rate, and say so."""
    result = run(tmp_path, batch=2, accumulate=2, epochs=1)
    assert result.steps == 3
    resolved = yaml.safe_load((tmp_path / "settings.yaml").read_text())["resolved"]
    assert (resolved["total_batch"], resolved["lr"]) == (4, 0.02)


def test_accumulation_is_the_mean_of_gradients(tmp_path: Path) -> None:
    """One SGD step over two batches moves the weights by the mean of the two batches' gradients."""
    recipe = replace(
        RECIPE,
        optimizer=replace(RECIPE.optimizer, momentum=0.0, weight_decay=0.0, clip=None),
        schedule=replace(RECIPE.schedule, warmup_steps=0, warmup_reach=0, drops=()),
    )
    seen: list[Any] = []

    class Watched(TinyDetector):
        def forward(self, images: torch.Tensor) -> Any:
            seen.append(images.clone())
            return super().forward(images)

        def loss(self, outputs: Any, targets: Any) -> Any:
            seen.append(targets)
            return super().loss(outputs, targets)

    torch.manual_seed(0)
    moved, start, twin = Watched(), tiny(), tiny()
    settings = TrainSettings(
        out=tmp_path, workers=0, batch=2, accumulate=2, epochs=1, lr=0.1, progress=False, tensorboard=False
    )
    fit(moved, recipe, tiny_data(4), None, settings, DESCRIBE)
    for images, targets in zip(seen[::2], seen[1::2], strict=True):
        (torch.stack([*twin.loss(twin(images), targets).values()]).sum() / 2).backward()
    assert len(seen) == 4
    for after, before, same in zip(moved.parameters(), start.parameters(), twin.parameters(), strict=True):
        step = 0 if same.grad is None else 0.1 * same.grad
        torch.testing.assert_close(after.detach(), before.detach() - step, rtol=1e-4, atol=1e-6)


def test_clipping_limits_the_step(tmp_path: Path) -> None:
    """With plain SGD no step is longer than learning rate x clip."""
    recipe = replace(RECIPE, optimizer=replace(RECIPE.optimizer, momentum=0.0, weight_decay=0.0, clip=0.01))
    detector, start = tiny(), tiny()
    settings = TrainSettings(out=tmp_path, workers=0, epochs=1, lr=1.0, progress=False, tensorboard=False)
    steps = fit(detector, recipe, tiny_data(4), None, settings, DESCRIBE).steps
    moved = torch.cat(
        [(a - b).flatten() for a, b in zip(detector.parameters(), start.parameters(), strict=True)]
    )
    assert steps == 1
    assert 0 < moved.norm() <= 0.01 * (1 + 1e-4)


def test_a_terminal_shows_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epoch, step, losses, images a second and the time left; validations and messages come between."""
    shown = io.StringIO()
    monkeypatch.setattr(
        "relook.training.fit.Console", lambda stderr: Console(file=shown, force_terminal=stderr, width=140)
    )
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's
    run(tmp_path, progress=True, epochs=2)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    for said in ("epoch 1/2", "3/3", "cls ", "box ", "images/s", "0:00:00 left", "validated on 6 images"):
        assert said in text
    assert "step 2/6" not in text  # such lines are for places without a terminal


def test_lines_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every few steps a line on the error stream; the output stream stays free for results."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's
    run(tmp_path, progress=True, epochs=1)
    out, err = capfd.readouterr()
    assert not out
    assert "epoch 1/1 step 2/3" in err


def test_without_validation(tmp_path: Path) -> None:
    """No best weights, but the last."""
    settings = TrainSettings(out=tmp_path, workers=0, epochs=1, progress=False, tensorboard=False)
    result = fit(tiny(), RECIPE, tiny_data(), None, settings, DESCRIBE)
    assert result.best is None
    assert result.last.exists()


def test_early_stop(tmp_path: Path) -> None:
    """A learning rate that changes nothing brings no better AP after the first validation."""
    result = run(tmp_path, epochs=4, lr=1e-30, early_stop=2)
    assert result.ended_early
    assert (result.epochs, result.best_epoch) == (3, 1)


def test_validate_every(tmp_path: Path) -> None:
    """Every second epoch and the last."""
    run(tmp_path, epochs=3, validate_every=2)
    assert [row["epoch"] for row in rows(tmp_path) if row["kind"] == "validation"] == [2, 3]


def test_ema_is_saved_and_validated(tmp_path: Path) -> None:
    """The weights files and the detector hold the average that its definition gives."""
    detector, plain, weights = tiny(), tiny(), []
    run(tmp_path / "ema", detector, epochs=1, ema=0.9)

    class Kept(TinyDetector):
        def loss(self, outputs: Any, targets: Any) -> Any:
            weights.append({n: v.clone() for n, v in self.state_dict().items()})
            return super().loss(outputs, targets)

    torch.manual_seed(0)
    plain = Kept()
    run(tmp_path / "plain", plain, epochs=1)
    weights.append({n: v.clone() for n, v in plain.state_dict().items()})
    average = tiny().state_dict()
    for n, now in enumerate(weights[1:], start=1):
        decay = min(0.9, (1 + n) / (10 + n))
        # batch statistics move in the forward pass, so those of a step are seen one loss later
        average = {
            k: average[k] * decay + now[k] * (1 - decay)
            for k in average
            if "running" not in k and "num" not in k
        }
        average.update({k: v for k, v in now.items() if k not in average})
    for name, value in load_file(tmp_path / "ema/last.safetensors").items():
        if "running" not in name:
            torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-7)
        assert torch.equal(value, detector.state_dict()[name])


def test_bf16_keeps_weights_and_losses_in_32_bits(tmp_path: Path) -> None:
    """The network's arithmetic is short, nothing that is kept is."""
    seen = set()

    class Seen(TinyDetector):
        def forward(self, images: Any) -> Any:
            seen.add(self.body(images).dtype)
            return super().forward(images)

    torch.manual_seed(0)
    detector = Seen()
    run(tmp_path, detector, epochs=1, precision="bf16")
    assert seen == {torch.bfloat16}  # in validation too
    assert {p.dtype for p in detector.parameters()} == {torch.float32}


@pytest.mark.slow
def test_a_compiled_step_trains_the_same(tmp_path: Path) -> None:
    """Compiled or not, the weights move alike, and the files have the same names in them."""
    plain, compiled = tiny(), tiny()
    run(tmp_path / "plain", plain, epochs=1)
    run(tmp_path / "compiled", compiled, epochs=1, compile=True)
    for (name, a), (same, b) in zip(plain.state_dict().items(), compiled.state_dict().items(), strict=True):
        assert name == same
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_frozen_batch_statistics_stay_frozen(tmp_path: Path) -> None:
    """A detector that keeps a part in evaluation mode by its own train() keeps it through validations."""

    class Frozen(TinyDetector):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.body[1].eval()
            return self

    torch.manual_seed(0)
    detector = Frozen()
    run(tmp_path, detector, epochs=2)
    assert detector.training
    assert int(detector.body[1].num_batches_tracked) == 0


def test_a_taken_folder_is_refused(tmp_path: Path) -> None:
    """Results are never overwritten by accident; the message names the three ways out."""
    run(tmp_path, epochs=1)
    with pytest.raises(FileExistsError, match=r"--resume .*--out.*--overwrite"):
        run(tmp_path, epochs=1)
    run(tmp_path, epochs=1, overwrite=True)
    assert len(rows(tmp_path)) == 3


def test_broken_images_end_nothing(tmp_path: Path) -> None:
    """They are replaced, counted and listed."""
    data = tiny_data()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    sample = replace(data.samples[0], id=99, path=broken, pixels=None)
    data = replace(data, samples=[*data.samples, sample])
    settings = TrainSettings(out=tmp_path / "run", workers=0, epochs=2, progress=False, tensorboard=False)
    result = fit(tiny(), RECIPE, data, None, settings, DESCRIBE)
    assert list(result.broken) == [str(broken)]
    log = (tmp_path / "run" / "train.log").read_text()
    assert "broken.png" in log
    assert "1 training images are broken" in log


@pytest.fixture
def in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a script is started, however the tests were."""
    monkeypatch.setattr(sys, "argv", [__file__])


@pytest.mark.usefixtures("in_a_file")
def test_the_recipe_reaches_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Synchronised batch statistics where the recipe has them; precision; clipping; plain DDP."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked: dict[str, Any] = {}
    monkeypatch.setattr("relook.training.fit.Trainer", asked.update)
    recipe = replace(RECIPE, sync_bn=True)
    settings = TrainSettings(out=tmp_path, devices=2, precision="fp16", accumulate=2, epochs=4, stop_after=3)
    for changed, synchronised in ((recipe, True), (RECIPE, False)):
        _trainer(Training(tiny(), changed, tiny_data(), settings, machines(settings)), [])
        assert asked["sync_batchnorm"] is synchronised
    assert (asked["accelerator"], asked["devices"], asked["precision"]) == ("gpu", 2, "16-mixed")
    assert (asked["max_epochs"], asked["accumulate_grad_batches"], asked["gradient_clip_val"]) == (3, 2, 35.0)
    assert isinstance(asked["strategy"], DDPStrategy)
    assert not asked["use_distributed_sampler"]


def test_early_stop_needs_validation(tmp_path: Path) -> None:
    """An option that could do nothing is refused."""
    with pytest.raises(ValueError, match="early_stop=2 needs validation"):
        fit(tiny(), RECIPE, tiny_data(), None, TrainSettings(out=tmp_path, early_stop=2), DESCRIBE)


def test_data_and_detector_must_fit(tmp_path: Path) -> None:
    """The number of classes is compared before anything is written."""
    settings = TrainSettings(out=tmp_path / "new", workers=0)
    with pytest.raises(ValueError, match="num_classes=4"):
        fit(TinyDetector(num_classes=2), RECIPE, tiny_data(), None, settings, DESCRIBE)
    assert not (tmp_path / "new").exists()


def test_settings_are_checked() -> None:
    """A value that cannot be is refused with the field's name."""
    for wrong in (
        {"epochs": 0},
        {"batch": 0},
        {"ema": 1.0},
        {"lr": -1.0},
        {"workers": -1},
        {"save_every": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TrainSettings(**wrong)
    with pytest.raises(FileNotFoundError, match=r"no .*last\.ckpt"):
        TrainSettings(resume=Path("nowhere")).folder()


@pytest.mark.parametrize("started", [[""], ["-c"], ["-"]])
def test_what_is_no_file_cannot_be_started_again(monkeypatch: pytest.MonkeyPatch, started: list[str]) -> None:
    """A notebook or a line typed into Python has one process, and says why there are no more."""
    monkeypatch.setattr(sys, "argv", started)
    with pytest.raises(ValueError, match="only a program in a file can be"):
        machines(TrainSettings(devices="cpu:2"))
    assert machines(TrainSettings(devices="cpu")).world == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert machines(TrainSettings()).world == 1


def test_slow_steps_are_told_every_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two rows too, in lines that add no row; averages go on over them."""
    now = itertools.count(step=11)
    monkeypatch.setattr("relook.training.reporter.time.monotonic", lambda: float(next(now)))
    run(tmp_path, epochs=4, log_every=12)
    told = re.findall(r" step (\d+)/12 ", (tmp_path / "train.log").read_text())
    assert [int(step) for step in told] == list(range(1, 13))
    assert [row["step"] for row in rows(tmp_path) if row["kind"] == "train"] == [3, 6, 9, 12]


@pytest.mark.usefixtures("in_a_file")
def test_devices_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words, numbers and counts; more than there are, and unknown words, are refused."""

    def where(devices: str | int, gpus: int, **more: Any) -> tuple[str, int, int]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        m = machines(TrainSettings(devices=devices, **more))
        return m.accelerator, m.devices, m.nodes

    assert where("auto", 0) == ("cpu", 1, 1)
    assert where("auto", 3) == ("gpu", 3, 1)
    assert where("cpu", 3) == ("cpu", 1, 1)
    assert where("cpu:2", 3) == ("cpu", 2, 1)
    assert where(2, 3) == where("gpu:2", 3) == ("gpu", 2, 1)
    assert where("2", 0) == ("cpu", 2, 1)
    for devices, gpus, said in (
        ("gpu", 0, "no GPU"),
        (4, 2, "finds 2"),
        ("tpu", 0, "not known"),
        ("cpu:x", 0, "not known"),
    ):
        with pytest.raises(ValueError, match=said):
            where(devices, gpus)
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        where("cpu", 0, precision="fp16")
    with pytest.raises(ValueError, match="torchrun or SLURM"):
        where("cpu", 0, nodes=2)
    monkeypatch.setenv("NODE_RANK", "1")
    assert where("cpu:2", 3, nodes=2) == ("cpu", 2, 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert where("cpu", 0) == ("cpu", 2, 3)


def test_a_step_has_the_order_that_fit_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions at the head of training/fit.py are called in that order, in every step."""
    told = re.findall(r"^    \S+ +((?:[a-z_]+\.)+[A-Z]\w+\.\w+)", fit_module.__doc__ or "", re.MULTILINE)
    assert len(told) == 8
    calls: list[str] = []

    def recorded(name: str) -> None:
        place, kind, method = name.rsplit(".", 2)
        owner = getattr(importlib.import_module(f"relook.training.{place}"), kind)
        real = getattr(owner, method)

        def call(*given: Any, **settings: Any) -> Any:
            calls.append(name)
            return real(*given, **settings)

        monkeypatch.setattr(owner, method, call)

    for name in told:
        recorded(name)
    run(tmp_path, epochs=1, ema=0.9)
    steps = calls.count(told[0])
    assert steps == 3
    assert calls == told * steps


def test_a_schedule_that_counts_iterations_ends_within_an_epoch(tmp_path: Path) -> None:
    """Seven steps of three an epoch: two epochs and a bit; validated and saved at the end, and it says so."""
    recipe = replace(RECIPE, schedule=Schedule(iterations=7, drops=(5,), warmup_steps=0, warmup_reach=1))
    settings = TrainSettings(out=tmp_path, workers=0, log_every=1, progress=False, tensorboard=False)
    result = fit(tiny(), recipe, tiny_data(), tiny_data(6, "val"), settings, DESCRIBE)
    assert result.steps == 7
    rates = [row["lr"] for row in rows(tmp_path) if row["kind"] == "train"]
    assert rates == pytest.approx([0.02] * 5 + [0.002] * 2)
    assert [row["step"] for row in rows(tmp_path) if row["kind"] == "validation"][-1] == 7
    assert "iterations: 7, which end in epoch 3" in (tmp_path / "train.log").read_text()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 7
    shorter = fit(tiny(), recipe, tiny_data(), None, replace(settings, overwrite=True, epochs=1), DESCRIBE)
    assert shorter.steps == 3


@pytest.mark.parametrize("steps", [6, 7, 9])
def test_a_schedule_that_counts_iterations_is_resumed_where_it_stopped(tmp_path: Path, steps: int) -> None:
    """As after a run without a break; a finished run does nothing."""
    schedule = Schedule(iterations=steps, drops=(5,), warmup_steps=0, warmup_reach=1)
    recipe = replace(RECIPE, schedule=schedule)

    def sitting(folder: Path, **changes: Any) -> int:
        settings = TrainSettings(out=folder, workers=0, progress=False, tensorboard=False, **changes)
        return fit(tiny(), recipe, tiny_data(), tiny_data(6, "val"), settings, DESCRIBE).steps

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert sitting(whole) == steps
    assert sitting(broken, stop_after=1) == 3
    assert sitting(broken, resume=broken) == steps
    theirs, mine = (load_file(folder / "last.safetensors") for folder in (whole, broken))
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())
    assert sitting(broken, resume=broken) == steps
    validated = [(row["epoch"], row["step"]) for row in rows(broken) if row["kind"] == "validation"]
    assert validated == sorted(set(validated))


@pytest.mark.parametrize(("by", "largest"), [("norm", 1e-4), ("value", 1e-4)])
def test_gradients_are_clipped_as_the_recipe_says(tmp_path: Path, by: Any, largest: float) -> None:
    """By their norm together, or each by its value: what reaches the optimiser keeps within it."""
    seen: list[tuple[float, float]] = []

    class Watched(Training):
        def configure_gradient_clipping(self, optimizer: Any, *given: Any, **settings: Any) -> None:
            super().configure_gradient_clipping(optimizer, *given, **settings)
            found = torch.cat([p.grad.flatten() for g in optimizer.param_groups for p in g["params"]])
            seen.append((float(found.norm()), float(found.abs().max())))

    recipe = replace(RECIPE, optimizer=replace(RECIPE.optimizer, clip=largest, clip_by=by))
    settings = TrainSettings(out=tmp_path, workers=0, progress=False, tensorboard=False, epochs=1)
    module = Watched(tiny(), recipe, tiny_data(), settings, machines(settings))
    _trainer(module, []).fit(module)
    assert len(seen) == 3
    for norm, value in seen:
        assert value <= largest * 1.001
        assert (norm <= largest * 1.001) == (by == "norm")


def test_a_run_of_the_first_release_goes_on(tmp_path: Path) -> None:
    """Its last.ckpt names the callbacks otherwise: the best AP and what was pending are not forgotten."""
    run(tmp_path, epochs=2, stop_after=1)
    file = tmp_path / "last.ckpt"
    state = torch.load(file, weights_only=True)
    saved = state["callbacks"].pop("ValidateAndSave")
    names = {"epochs_without_gain": "worse", "pending_validation": "owed"}
    state["callbacks"]["Keeper"] = {names.get(k, k): v for k, v in saved.items()} | {"best_ap": 0.99}
    torch.save(state, file)
    assert run(tmp_path, epochs=2, resume=tmp_path).best_ap == 0.99
