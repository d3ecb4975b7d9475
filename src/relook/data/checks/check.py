"""`relook doctor PATH` for data: everything that is wrong, all at once, and what the data look like."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relook.data.decode import BrokenImage
from relook.data.formats.detect import find_parts
from relook.data.formats.problems import Part, Problem, Problems
from relook.data.sample import DataError, Sample, Source, WrongSize

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
    small: int  # boxes below 32 x 32 pixels
    medium: int
    large: int  # boxes of 96 x 96 pixels and more
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
        """The report for people; of each kind of mistake at most `most` are listed."""
        lines = [f"Data at {self.path}"]
        for split in self.splits:
            lines += _split_lines(split)
        lines += [f"Note: {note}." for note in self.notes]
        fatal = [problem for problem in self.problems if problem.fatal]
        rest = [problem for problem in self.problems if not problem.fatal]
        lines += _problem_lines(f"{len(fatal)} mistakes prevent training:", fatal, most)
        lines += _problem_lines(f"{len(rest)} mistakes that training gets along with:", rest, most)
        verdict = "These data can be used." if self.usable else "These data cannot be used yet."
        return "\n".join([*lines, verdict])


def check(path: Path | str, *, progress: Callable[[int, int], None] | None = None) -> Report:
    """Reads all splits and decodes all images; never raises for a mistake in the data.

    Args:
        path: as `detect_format.read` takes it.
        progress: called with the number of images looked at and of all, now and then.
    """
    problems = Problems(thorough=True)
    sources: dict[str, Source] = {}
    try:
        parts = find_parts(path)
    except DataError as error:
        problems.fatal(path, "data set", str(error), "fix this first")
        parts = dict[str, Part]()
    for split, part in parts.items():
        try:
            sources[split] = part(problems)
        except DataError as error:
            problems.fatal(path, split, str(error), "fix this first")
    samples = [sample for source in sources.values() for sample in source.samples]
    _check_images(samples, problems, progress)
    for source in sources.values():
        _check_use(source, problems)
    _check_together(sources, problems)
    return Report(
        path=str(path),
        splits=tuple(_summary(source) for source in sources.values()),
        problems=tuple(problems.found),
        notes=tuple(dict.fromkeys(problems.notes)),
    )


# -- looking -------------------------------------------------------------------------------------------


def _look(sample: Sample) -> Problem | None:
    """The mistake in the file of one image."""
    try:
        sample.image()
    except WrongSize as error:
        fix = "write the true height and width, and see whether the boxes fit the image as viewers show it"
        return Problem(str(sample.path), f"image {sample.id}", str(error), fix, fatal=False)
    except BrokenImage as error:
        fix = "get the file again, or remove the image from the annotations; training skips it"
        return Problem(str(sample.path), f"image {sample.id}", str(error), fix, fatal=False)
    return None


def _check_images(
    samples: Sequence[Sample], problems: Problems, progress: Callable[[int, int], None] | None
) -> None:
    broken = 0
    with ThreadPoolExecutor() as pool:  # Pillow decodes without holding the interpreter
        for n, problem in enumerate(pool.map(_look, samples)):
            if problem is not None:
                problems.found.append(problem)
                broken += 1
            if progress is not None and (n % 100 == 99 or n + 1 == len(samples)):
                progress(n + 1, len(samples))
    if samples and broken > len(samples) / 2:
        what = f"{broken} of {len(samples)} images are broken, with which training stops"
        problems.fatal(samples[0].path.parent, "images", what, "fix the images listed")


def _check_use(source: Source, problems: Problems) -> None:
    """Classes without objects, and images without: worth knowing, seldom wrong."""
    used = Counter(label for sample in source.samples for label in sample.labels.tolist())
    place = source.file or source.name
    for label, name in enumerate(source.classes):
        if not used[label]:
            what = f"no object of the class {name} in {source.name}"
            problems.tolerable(place, "classes", what, "add some, or remove the class")
    empty = sum(not len(sample.boxes) for sample in source.samples)
    if empty:
        problems.notes.append(f"{empty} of {len(source.samples)} images of {source.name} have no annotation")


def _check_together(sources: Mapping[str, Source], problems: Problems) -> None:
    """What must hold between the splits: the same classes, and no image in both."""
    if not {"train", "val"} <= set(sources):
        return
    train, val = sources["train"], sources["val"]
    if train.classes != val.classes or train.category_ids != val.category_ids:
        what = f"classes {_some(train.classes)} of {train.name} are not {_some(val.classes)} of {val.name}"
        problems.fatal(val.file or val.name, "classes", what, "write the same list in both")
    both = {s.path.resolve() for s in train.samples} & {s.path.resolve() for s in val.samples}
    for path in sorted(both):
        fix = "keep it in one of them, or results will look better than they are"
        problems.tolerable(path, "image", "is in the training and in the validation split", fix)


def _some(names: Sequence[str]) -> str:
    return f"({len(names)}) " + ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


# -- telling -------------------------------------------------------------------------------------------


def _summary(source: Source) -> Summary:
    areas = [_box_areas(sample) for sample in source.samples]
    area = np.concatenate(areas) if areas else np.zeros(0)
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
        sides=tuple(round(float(np.quantile(np.sqrt(area), q)), 1) for q in quarters),
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
        lines.append(f"  boxes: {kinds}; side smallest, quartiles, largest: {sides}")
    lines += [f"  {count:8d}  {name}" for name, count in split.per_class.items()]
    return lines


def _problem_lines(title: str, problems: Sequence[Problem], most: int) -> list[str]:
    if not problems:
        return []
    more = [f"  and {len(problems) - most} more"] if len(problems) > most else []
    return [title, *(f"  {problem}" for problem in problems[:most]), *more]
