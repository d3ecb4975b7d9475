"""The folder of a run: whether it may be used, what is left of an earlier one, what it began with."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import yaml

from relook.files import remove_leftovers, whole_file
from relook.ownership import MARK, Folder
from relook.train_settings import TrainSettings, resume_file
from relook.training.records.checkpoint import read_state
from relook.training.records.lock import NAME as LOCK
from relook.training.records.origin import record_of

SAVED: Final = ("last.ckpt", "last.safetensors", "best.safetensors")
RESULTS: Final = (
    *SAVED,
    "metrics.jsonl",
    "metrics.csv",
    "settings.yaml",
    "train.log",
    "live.html",
    "tensorboard",
    "nonfinite",
)
_COPIED_WHEN_RESUMED: Final = ("best.safetensors", "last.safetensors", "metrics.jsonl")  # by a run elsewhere


def from_the_start(settings: TrainSettings) -> TrainSettings:
    """The same settings, without `resume` where the run it names was stopped before it saved anything."""
    if settings.resume is None:
        return settings
    named = Path(settings.resume)
    folder = named.parent if named.name == "last.ckpt" else named
    if not _begun(folder) or _anything_saved(folder):
        return settings
    return replace(settings, resume=None, force=False, out=settings.out or folder)


def settings_of(resume: Path, names: Iterable[str]) -> dict[str, str]:
    """Changes to its model that a run began with, of these names; nothing where its state does not say."""
    kept = record_of(read_state(resume_file(resume), mapped=True)).get("settings", {})
    return {name: str(kept[f"--set {name}"]) for name in names if f"--set {name}" in kept}


def _begun(folder: Path) -> bool:
    """Whether a run was there; asked of files that stay, for others may be written at this moment."""
    if (folder / MARK).is_file():
        return Folder(folder, overwrite=False).owns("train.log")
    return folder.is_dir() and [path.name for path in folder.iterdir()] == [LOCK]


def _anything_saved(folder: Path) -> bool:
    """A state, or weights whose state was removed; but weights without a log were being copied for a run."""
    there = [name for name in SAVED if (folder / name).exists()]
    return "last.ckpt" in there or (bool(there) and (folder / "train.log").exists())


def refuse_taken(folder: Path, file: Path | None, *, overwrite: bool) -> None:
    """Refuses the folder of another run, unless that was stopped before it saved anything.

    Args:
        folder: of the run that is to begin.
        file: the state that a run goes on from, if one does.
        overwrite: what is there may be removed.

    Raises:
        FileExistsError: when the folder is taken, or what would be removed holds that state.
    """
    before = None if file is None else file.parent
    held = [name for name in RESULTS if (folder / name).exists()]
    inside = [
        name for name in held if file is not None and file.resolve().is_relative_to((folder / name).resolve())
    ]
    if inside and not _same(folder, before):
        raise FileExistsError(
            f"{file} lies in {folder / inside[0]}, which would be removed; move it out first"
        )
    if overwrite or not held or _same(folder, before):
        return
    own = Folder(folder, overwrite=False)
    if _anything_saved(folder) or not all(map(own.owns, held)):
        raise FileExistsError(
            f"{folder} already holds a run; go on with it by --resume {folder}, "
            f"choose another folder by --out, or start anew by --overwrite"
        )


def prepare(folder: Path, file: Path | None, *, overwrite: bool) -> None:
    """Makes room for a run, once nothing speaks against it: `refuse_taken`, then removes what was there."""
    refuse_taken(folder, file, overwrite=overwrite)
    before = None if file is None else file.parent
    own = Folder(folder, overwrite=overwrite)
    remove_leftovers(folder, RESULTS)
    if _same(folder, before):
        if file is not None and not (folder / "last.ckpt").exists():  # a state by another name
            _copy(file, folder / "last.ckpt")
    else:
        _remove(folder / name for name in RESULTS if (folder / name).exists())
        own.claim(*RESULTS)
        for name in _COPIED_WHEN_RESUMED:
            if before is not None and (before / name).exists():
                _copy(before / name, folder / name)
        if file is not None:  # last, and itself: the folder it lies in may hold another last.ckpt
            _copy(file, folder / "last.ckpt")
    for name in RESULTS:  # of a run that goes on where it was, perhaps of a relook that left no mark
        own.note(name)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _copy(file: Path, target: Path) -> None:
    with whole_file(target) as beside:
        shutil.copyfile(file, beside)


def _same(folder: Path, before: Path | None) -> bool:
    return before is not None and folder.exists() and before.samefile(folder)


def write_settings(folder: Path, document: Mapping[str, Any]) -> None:
    """Writes settings.yaml, for people: what was asked for, and what came of it."""
    with whole_file(folder / "settings.yaml") as beside:
        beside.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")
