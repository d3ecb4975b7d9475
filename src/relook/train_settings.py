"""How a training is run: everything that is not the model, its recipe or the data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How a recipe is carried out here. What is None is taken from the recipe.

    Attributes:
        out: folder of the run: weights, last.ckpt, train.log, metrics, settings.yaml. Without it the folder
            that `resume` names, or runs/train.
        epochs: passes over the training images. Drops of the learning rate move in proportion.
        batch: images a step on each device. Without it the recipe's batch, divided among the devices.
        accumulate: steps whose gradients are added up before the weights change.
        lr: learning rate as it is to be used. Without it the recipe's, in proportion to the whole batch
            (batch x devices x nodes x accumulate).
        devices: "auto" (all GPUs, or the CPU), "cpu", "gpu", a number of devices, "cpu:2" or "gpu:2". Under
            torchrun and SLURM the number of processes is theirs.
        nodes: machines that train together.
        precision: arithmetic of the network; losses stay in 32 bits.
        workers: processes that read images, for each device; 0 reads in the training process.
        seed: decides the order of the images, their augmentation and every other draw.
        resume: a run's folder or its last.ckpt; goes on exactly where it stopped. Needs the same classes,
            images and settings.
        force: with `resume`: go on though classes, images or settings are not those that the run began with.
        overwrite: start anew in a folder that already holds a run; its results are removed.
        stop_after: end after this epoch of the whole schedule; `resume` does the rest.
        validate_every: epochs between two validations; the last epoch is always validated.
        early_stop: end when this many validations in a row brought no better AP.
        save_every: steps between two last.ckpt within an epoch; without it at the end of each epoch only.
        ema: decay of an average of the weights over the steps, for example 0.9998; validated and saved
            instead of the weights themselves.
        log_every: steps between two lines of the log and the metrics.
        tensorboard: also write TensorBoard files, if tensorboard is installed.
        compile: compile the step with torch.compile; pays off in long trainings on GPUs.
        progress: progress bar in a terminal, plain lines elsewhere; False writes to train.log only.
    """

    out: Path | None = None
    epochs: int | None = None
    batch: int | None = None
    accumulate: int = 1
    lr: float | None = None
    devices: str | int = "auto"
    nodes: int = 1
    precision: Literal["32", "bf16", "fp16"] = "32"
    workers: int = 2
    seed: int = 0
    resume: Path | None = None
    force: bool = False
    overwrite: bool = False
    stop_after: int | None = None
    validate_every: int = 1
    early_stop: int | None = None
    save_every: int | None = None
    ema: float | None = None
    log_every: int = 50
    tensorboard: bool = True
    compile: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} is too small; {name} must be at least {least}")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed={self.seed} is no seed; choose a whole number from 0 to {LARGEST_SEED}")
        if self.force and self.resume is None:
            raise ValueError("force goes with resume: it lets a run go on with other data or settings")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema={self.ema} is no decay; choose a number between 0 and 1, such as 0.9998")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"lr={self.lr} is no learning rate; choose a number above 0")

    def folder(self) -> Path:
        """Where the results of the run go."""
        if self.out is not None:
            return Path(self.out)
        return Path("runs/train") if self.resume is None else resume_file(self.resume).parent


LARGEST_SEED = 100_000_000

_LEAST = {
    "epochs": 1,
    "batch": 1,
    "accumulate": 1,
    "nodes": 1,
    "workers": 0,
    "stop_after": 1,
    "validate_every": 1,
    "early_stop": 1,
    "save_every": 1,
    "log_every": 1,
}


def resume_file(resume: Path | str) -> Path:
    """The checkpoint that `resume` means: a last.ckpt itself or the folder it lies in.

    Raises:
        FileNotFoundError: when there is none.
    """
    path = Path(resume)
    file = path / "last.ckpt" if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(
            f"--resume {resume}: there is no {file}; name the folder of a run or its last.ckpt"
        )
    return file
