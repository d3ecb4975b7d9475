"""`relook doctor PATH` for data: everything that is wrong, all at once, and what the data look like."""

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relook.data.decode import BrokenImage
from relook.data.formats.detect import kept_back, parts_of
from relook.data.formats.problems import Part, Problem, Problems, grouped
from relook.data.learnt import has_objects
from relook.data.matching import by_name
from relook.data.sample import DataError, Sample, Source, WrongSize
from relook.escaping import printable

_large = threading.Lock()  # large pictures are decoded one at a time
_MANY = 16_000_000  # pixels
_MOST_LISTED = 100  # classes in a report for people
_SMALL, _LARGE = 32.0**2, 96.0**2  # COCO's borders between small, medium and large objects, in pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What one split holds."""

    name: str
    images: int
    empty: int  # images without any object
    boxes: int  # crowds not counted
    crowds: int
    per_class: Mapping[str, int]  # boxes of each class, crowds not counted
    small: int  # objects below 32 x 32 pixels, by the annotation's area, as the evaluation counts them
    medium: int
    large: int  # objects of 96 x 96 pixels and more
    sides: tuple[float, ...]  # side of a box of the same area in pixels: smallest, quartiles, largest
    image_sizes: Mapping[str, int]  # images of each "WIDTHxHEIGHT", the commonest first


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a look at a data set found."""

    path: str
    splits: tuple[Summary, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def usable(self) -> bool:
        """Whether training can start: nothing is wrong, or only what it leaves out."""
        return not any(problem.fatal for problem in self.problems)

    def text(self, most: int = 50) -> str:
        """The report for people: at most `most` kinds of mistakes, each with its number and an example."""
        lines = [f"Data at {self.path}"]
        for split in self.splits:
            lines += _split_lines(split)
        lines += [f"Note: {note}." for note in self.notes]
        fatal = [problem for problem in self.problems if problem.fatal]
        rest = [problem for problem in self.problems if not problem.fatal]
        lines += _problem_lines(f"{'prevents' if len(fatal) == 1 else 'prevent'} training:", fatal, most)
        lines += _problem_lines("that training gets along with:", rest, most)
        verdict = "These data can be used." if self.usable else "These data cannot be used yet."
        return "\n".join(printable(line, 2000) for line in [*lines, verdict])


def check(
    path: Path | str,
    *,
    val: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Reads all splits and decodes all images; never raises for a mistake in the data.

    Args:
        path: as `relook.data.formats.detect.read` takes it; of a COCO file that file alone.
        val: what is validated on, where it has a path of its own.
        progress: called with the number of images looked at and of all, now and then.
    """
    return examined(path, val=val, progress=progress)[0]


def examined(
    path: Path | str,
    *,
    val: Path | str | None = None,
    masks: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Report, dict[str, Source]]:
    """What `check` finds, and the splits that could be read, by name; with their masks on request."""
    problems = Problems(thorough=True, masks=masks)
    sources = _read(path, val, problems)
    done = 0
    for source in sources.values():
        total = sum(len(one.samples) for one in sources.values())
        _check_images(source, problems, progress, (done, total))
        done += len(source.samples)
    for split, source in sources.items():
        with problems.going_on(source.file or source.name, "data set"):
            _check_use(source, problems, needed=split != "test")
    undivided = sources.get("all") or (sources.get("train") if len(sources) == 1 and val is None else None)
    if undivided is not None:
        count, total = kept_back(undivided), len(undivided.samples)
        problems.notes.append(
            f"{path} has no validation split: training keeps back {count} of {total} images, by a hash "
            "of their names"
        )
    if sources and not {"train", "all"} & set(sources):
        problems.notes.append(f"{path} has no training split: it can be evaluated on, not trained on")
    for other in ("val", "test"):
        if {"train", other} <= set(sources):
            with problems.going_on(path, "splits"):
                _check_together(sources["train"], sources[other], problems)
    report = Report(
        path=str(path),
        splits=tuple(_summary(source) for source in sources.values()),
        problems=tuple(problems.found),
        notes=tuple(dict.fromkeys(problems.notes)),
    )
    return report, sources


def _read(path: Path | str, val: Path | str | None, problems: Problems) -> dict[str, Source]:
    """All splits that can be read; what cannot is a problem."""
    parts: list[tuple[str, Part]] = []
    with problems.going_on(path, "data set"):
        parts = list(parts_of(path, alone=True).items())
    if val is not None:
        parts = [(split, part) for split, part in parts if split in ("train", "all")][:1]
        with problems.going_on(val, "data set"):
            found = parts_of(val, alone=True)
            parts.append(("val", found.get("val") or next(iter(found.values()))))
    sources: dict[str, Source] = {}
    read: list[Part] = []
    for split, part in parts:
        if any(part is one for one in read):  # tests that stand in for validation
            continue
        read.append(part)
        name = "train" if split == "all" and val is not None else split
        if split == "test" and dict(parts).get("val") is not part:  # not needed to train
            try:
                sources[name] = part(problems)
            except DataError as error:
                problems.tolerable(path, split, str(error), "mend it before you test on it")
            continue
        with problems.going_on(path, split):
            sources[name] = part(problems)
    return sources


# -- looking -------------------------------------------------------------------------------------------


def _look(sample: Sample) -> Problem | None:
    """The mistake in the file of one image."""
    record = f"image {sample.id}"
    try:
        with _large if sample.height * sample.width > _MANY else contextlib.nullcontext():
            sample.check()
    except WrongSize as error:
        fix = "write the true height and width, and see whether the boxes fit the image as viewers show it"
        return _about(sample, record, str(error), fix)
    except BrokenImage as error:
        fix = "get the file again, or remove the image from the annotations; training skips it"
        return _about(sample, record, str(error), "training skips it" if "too large" in str(error) else fix)
    except Exception as error:  # noqa: BLE001 (files of strangers find what nobody thought of)
        what = f"cannot be read ({type(error).__name__}: {error})"
        return _about(sample, record, what, "get the file again; training may stop at it")
    return None


def _about(sample: Sample, record: str, words: str, fix: str) -> Problem:
    what = words.removeprefix(f"{sample.path}: ")
    return Problem(str(sample.path), record, what, fix, fatal=False)


def _check_images(
    source: Source,
    problems: Problems,
    progress: Callable[[int, int], None] | None,
    place: tuple[int, int],
) -> None:
    """Decodes all images of a split; `place` says how many were looked at before, and of how many."""
    samples, broken = source.samples, 0
    with ThreadPoolExecutor() as pool:  # Pillow decodes without holding the interpreter
        for n, problem in enumerate(pool.map(_look, samples), 1):
            if problem is not None:
                problems.found.append(problem)
                broken += 1
            if progress is not None and (n % 100 == 0 or n == len(samples)):
                progress(place[0] + n, place[1])
    if samples and broken > len(samples) / 2:
        what = f"{broken} of {len(samples)} images are broken, with which training stops"
        problems.fatal(samples[0].path.parent, "images", what, "fix the images listed")


def _check_use(source: Source, problems: Problems, *, needed: bool) -> None:
    """Classes without objects, and images without; a split without any object is of no use."""
    used = Counter(label for sample in source.samples for label in sample.labels.tolist())
    place = source.file or source.name
    for label, name in enumerate(source.classes):
        if not used[label]:
            what = f'no object of the class "{name}" in "{source.name}"'
            problems.tolerable(place, "class", what, "add some, or remove the class")
    empty = sum(not len(sample.boxes) for sample in source.samples)
    if empty:
        problems.notes.append(f"{empty} of {len(source.samples)} images of {source.name} have no annotation")
    explained = any(p.fatal and p.record == "boxes" and p.file == str(place) for p in problems.found)
    if not has_objects(source) and not explained:
        boxes = sum(used.values())
        what = f"{source.name} has no object to learn or to find: "
        what += (
            f"all of {boxes} boxes are left out" if boxes else f"none of {len(source.samples)} images has one"
        )
        fix = "see the notes and mistakes here, or train with --allow-empty if it is meant so"
        tell = problems.fatal if needed else problems.tolerable
        tell(place, "objects", what, fix)


def _check_together(train: Source, other: Source, problems: Problems) -> None:
    """What must hold between two splits: classes of the same names, and no image in both."""
    try:
        matching = by_name(other, train.classes, "the training data", "write the same names in both")
        problems.notes += [note for note in matching.notes if note not in other.notes]
    except DataError as error:
        problems.fatal(other.file or other.name, "classes", str(error), "fix this first")
    both = {os.path.realpath(s.path) for s in train.samples} & {
        os.path.realpath(s.path) for s in other.samples
    }
    for path in sorted(both):
        what = f"is in {train.name} and in {other.name}"
        fix = "keep it in one of them, or results will look better than they are"
        problems.tolerable(path, "image", what, fix)


# -- telling -------------------------------------------------------------------------------------------


def _summary(source: Source) -> Summary:
    boxes = [_box_areas(sample) for sample in source.samples]
    own = [sample.area[~sample.crowd] for sample in source.samples]
    box, area = (np.concatenate(rows) if rows else np.zeros(0) for rows in (boxes, own))
    counts = Counter(label for s in source.samples for label in s.labels[~s.crowd].tolist())
    sizes = Counter(f"{s.width}x{s.height}" for s in source.samples)
    quarters = (0, 0.25, 0.5, 0.75, 1) if len(area) else ()
    return Summary(
        name=source.name,
        images=len(source.samples),
        empty=sum(not len(s.boxes) for s in source.samples),
        boxes=len(area),
        crowds=sum(int(s.crowd.sum()) for s in source.samples),
        per_class={name: counts[label] for label, name in enumerate(source.classes)},
        small=int((area < _SMALL).sum()),
        medium=int(((area >= _SMALL) & (area < _LARGE)).sum()),
        large=int((area >= _LARGE).sum()),
        sides=tuple(round(float(np.quantile(np.sqrt(box), q)), 1) for q in quarters),
        image_sizes=dict(sizes.most_common()),
    )


def _box_areas(sample: Sample) -> NDArray[np.float64]:
    """Areas of the boxes that are no crowds, in pixels."""
    boxes = sample.boxes[~sample.crowd]
    return (boxes[:, 2] - boxes[:, 0]).clip(0) * (boxes[:, 3] - boxes[:, 1]).clip(0)


def _split_lines(split: Summary) -> list[str]:
    common = ", ".join(f"{size} ({count})" for size, count in list(split.image_sizes.items())[:4])
    held = f"{split.boxes} boxes, {split.crowds} crowds or difficult objects"
    lines = [f"{split.name}: {split.images} images ({split.empty} without objects), {held}"]
    lines.append(f"  image sizes, width x height: {common}")
    if split.boxes:
        kinds = f"{split.small} small (< 32x32 pixels), {split.medium} medium, {split.large} large (>= 96x96)"
        sides = ", ".join(f"{side:g}" for side in split.sides)
        lines.append(f"  objects: {kinds}; side of a box, smallest, quartiles, largest: {sides}")
    listed = list(split.per_class.items())
    lines += [f"  {count:8d}  {name}" for name, count in listed[:_MOST_LISTED]]
    more = len(listed) - _MOST_LISTED
    return [*lines, *([f"  and {more:,} more classes"] if more > 0 else [])]


def _problem_lines(verdict: str, problems: Sequence[Problem], most: int) -> list[str]:
    """One line for each kind of mistake."""
    if not problems:
        return []
    groups = grouped(problems)
    total = sum(group.count for group in groups)
    count = f"{total:,} mistake{'s' if total > 1 else ''}"
    more = [f"  and {len(groups) - most} more kinds of mistakes"] if len(groups) > most else []
    return [f"{count} {verdict}", *(f"  {group}" for group in groups[:most]), *more]
