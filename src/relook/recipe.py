"""How a model was trained and tested: facts without code, so that they can be compared, printed and saved.

A field that can be one of several records tells them apart by `kind`, which is written first:
`--set "recipe.test_size=stretch(height=512, width=512)"`,
`--set "recipe.augment=jitter(strength=0.3), resize, flip"`.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

LONGEST = 20_000  # pixels of a side that a network sees


def _need(fits: bool, otherwise: str) -> None:  # noqa: FBT001 (a condition is no option)
    if not fits:
        raise ValueError(otherwise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """Which optimizer, and how far it goes in a step."""

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01  # for `Recipe.batch` images a step; scaled linearly with the batch in use
    momentum: float = 0.9  # sgd only
    weight_decay: float = 1e-4  # on every parameter but those of `no_decay`
    no_decay: tuple[
        Literal["norms", "norm_weights", "biases", "embeddings"], ...
    ] = ()  # without weight decay
    clip: float | None = None  # of the gradients: the largest L2 norm of all together, or the largest value
    clip_by: Literal["norm", "value"] = "norm"

    def __post_init__(self) -> None:
        _need(0 <= self.lr < math.inf, f"lr={self.lr}: it must be a number from 0 on")
        _need(0 <= self.momentum <= 1, f"momentum={self.momentum}: it must be in 0 .. 1")
        _need(0 <= self.weight_decay < math.inf, f"weight_decay={self.weight_decay}: it must be from 0 on")
        _need(self.clip is None or self.clip > 0, f"clip={self.clip}: it must be more than 0, or none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Learning rate over time.

    steps: linear warm-up, then a fall to `drop_factor` after each epoch (or iteration) in `drops`.
    onecycle: linear warm-up, then a cosine to zero at the end of the last epoch.
    """

    kind: Literal["steps", "onecycle"] = "steps"
    epochs: int = 12
    iterations: int | None = None  # steps of the whole training; then `epochs` says nothing
    warmup_steps: int = 500  # i = 0 .. warmup_steps-1
    warmup_epochs: float | None = None  # the same in epochs, instead of `warmup_steps` and `warmup_reach`
    warmup_from: float = 0.001  # of the learning rate at i = 0
    warmup_lr: float | None = None  # the learning rate itself at i = 0, instead of `warmup_from`
    warmup_reach: int = 500  # the step i at which the whole rate would be reached; 499 in mmdetection 3
    drops: tuple[int, ...] = (8, 11)  # epochs, or iterations where those are given; scaled with the length
    drop_factor: float = 0.1

    def __post_init__(self) -> None:
        _need(self.epochs >= 1, f"epochs={self.epochs}: it must be at least 1")
        counted = self.iterations
        _need(counted is None or counted >= 1, f"iterations={counted}: it must be at least 1, or none")
        _need(self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps}: it must be from 0 on")
        for name in ("warmup_epochs", "warmup_lr"):
            value: float | None = getattr(self, name)
            _need(value is None or 0 <= value < math.inf, f"{name}={value}: it must be from 0 on, or none")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRatio:
    """Keep the ratio of sides; the shorter becomes `short` unless the longer would pass `long`."""

    kind: Literal["keep_ratio"] = "keep_ratio"
    short: tuple[int, ...] = (800,)  # one value, or several of which one is drawn per image
    between: bool = False  # True: `short` is (low, high) and any whole number between is drawn, ends too
    long: int = 1333
    antialias: bool = False  # False: OpenCV's bilinear (mmdetection); True: Pillow's (detectron2)

    def __post_init__(self) -> None:
        short = ", ".join(map(str, self.short))
        _need(len(self.short) > 0 and min(self.short) >= 1, f"short={short}: give sides of at least 1 pixel")
        _need(max(self.short) <= LONGEST, f"short={short}: give sides of at most {LONGEST} pixels")
        pair = len(self.short) == 2 and self.short[0] <= self.short[1]
        _need(pair or not self.between, f"short={short}: `between` needs two of them, the smaller one first")
        _need(1 <= self.long <= 1_000_000, f"long={self.long}: it must be 1 to 1000000 pixels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Every image becomes `height` by `width` pixels, whatever its ratio of sides was (SSD, RefineDet)."""

    kind: Literal["stretch"] = "stretch"
    height: int = 512
    width: int = 512
    antialias: bool = False

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            _need(1 <= side <= LONGEST, f"{name}={side}: it must be 1 to {LONGEST} pixels")


Size = KeepRatio | Stretch


def scaled(rule: Size, factor: float) -> Size:
    """The same rule for images larger by a factor: all its sides are multiplied."""

    def times(side: int) -> int:
        return max(1, round(side * factor))

    if isinstance(rule, Stretch):
        return replace(rule, height=times(rule.height), width=times(rule.width))
    return replace(rule, short=tuple(map(times, rule.short)), long=times(rule.long))


def side_of(rule: Size) -> int:
    """The length that names a size: of the shorter side, the largest of several, or of a stretched image."""
    return max(rule.short) if isinstance(rule, KeepRatio) else max(rule.height, rule.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """Network input = (pixel in 0 .. 255 - mean) / std, padded with 0 on the right and below."""

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    order: Literal["rgb", "bgr"] = "rgb"
    pad: int = 32  # sides become multiples of this

    def __post_init__(self) -> None:
        _need(all(map(math.isfinite, self.mean)), f"mean={self.mean}: it must be three numbers")
        _need(all(0 < one < math.inf for one in self.std), f"std={self.std}: each must be more than 0")
        _need(1 <= self.pad <= 4096, f"pad={self.pad}: it must be 1 to 4096")


# -- augmentation: steps, in the order in which they happen ----------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Here the image is brought to `Recipe.train_size`; where no step says so, after all others."""

    kind: Literal["resize"] = "resize"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """Left and right change places."""

    kind: Literal["flip"] = "flip"
    probability: float = 0.5

    def __post_init__(self) -> None:
        _need(0 <= self.probability <= 1, f"probability={self.probability}: it must be in 0 .. 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Jitter:
    """Brightness, contrast and saturation, each times a factor of 1 - strength .. 1 + strength."""

    kind: Literal["jitter"] = "jitter"
    strength: float = 0.3

    def __post_init__(self) -> None:
        _need(0 <= self.strength < math.inf, f"strength={self.strength}: it must be from 0 on")


@dataclass(frozen=True, slots=True, kw_only=True)
class Photometric:
    """SSD's colours: brightness, contrast, saturation, hue, and the order of channels, each with a coin."""

    kind: Literal["photometric"] = "photometric"
    brightness: float = 32.0  # added, from minus to plus this
    contrast: float = 0.5  # times 1 - this .. 1 + this
    saturation: float = 0.5  # likewise
    hue: float = 18.0  # degrees, from minus to plus this

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "hue"):
            value: float = getattr(self, name)
            _need(0 <= value < math.inf, f"{name}={value}: it must be a number from 0 on")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expand:
    """SSD's larger canvas: objects become small."""

    kind: Literal["expand"] = "expand"
    probability: float = 0.5
    most: float = 4.0  # times as wide and high
    fill: tuple[float, float, float] = (123.0, 117.0, 104.0)  # RGB

    def __post_init__(self) -> None:
        _need(0 <= self.probability <= 1, f"probability={self.probability}: it must be in 0 .. 1")
        _need(1 <= self.most < math.inf, f"most={self.most}: it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """SSD's parts of an image: each holds the centre of an object, and loses objects whose centre it cuts."""

    kind: Literal["crop"] = "crop"
    unchanged: float = 1 / 6  # likelihood that the image stays whole
    least: float = 0.3  # of each side
    trials: int = 50  # before it is drawn again whether the image stays whole

    def __post_init__(self) -> None:
        _need(0 < self.unchanged <= 1, f"unchanged={self.unchanged}: it must be more than 0, at most 1")
        _need(0 < self.least <= 1, f"least={self.least}: it must be more than 0, at most 1")
        _need(self.trials >= 1, f"trials={self.trials}: it must be at least 1")


Step = Resize | Flip | Jitter | Photometric | Expand | Crop


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which images are trained on."""

    min_side: int = 32  # pixels; images with a shorter side are left out
    need: Literal["annotation", "class annotation", "nothing"] = "annotation"  # that an image has


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model was trained and is tested."""

    batch: int = 16  # images per step over all devices
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    pixels: Pixels = Pixels()
    last_pixel: bool = False  # a box's right and lower corners name its last pixel, not the edge behind it
    train_size: Size = KeepRatio()
    test_size: Size = KeepRatio()
    augment: tuple[Step, ...] = (Resize(), Flip())
    selection: Selection = Selection()
    group_by: Literal["w>h", "w>=h", "none"] = "w>h"  # training batches hold images of one orientation
    metric: str = "coco"  # whose headline number chooses the best weights; see relook.metrics
    sync_bn: bool = False  # batch statistics over all devices
    backbone_weights: str | None = None  # timm's name of the starting weights; None: from scratch

    def __post_init__(self) -> None:
        _need(self.batch >= 1, f"batch={self.batch}: it must be at least 1 image")


def sizes_at(recipe: Recipe, side: int) -> dict[str, str]:
    """Changes that let a recipe see images `side` pixels large: {"recipe.test_size": "keep_ratio(...)", ...}.

    `side` is the length of the shorter side in tests, of a stretched image its longer one; all other lengths
    of both sizes grows or shrinks by the same factor.

    Raises:
        ValueError: when `side` is below 1.
    """
    _need(side >= 1, f"size={side}: it must be at least 1 pixel")
    factor = side / side_of(recipe.test_size)
    sizes = {"train_size": recipe.train_size, "test_size": recipe.test_size}
    return {f"recipe.{name}": _written(scaled(rule, factor)) for name, rule in sizes.items()}


def _written(rule: Size) -> str:
    """A size as a setting is written."""
    values = ", ".join(f"{f.name}={getattr(rule, f.name)!r}" for f in fields(rule) if f.name != "kind")
    return f"{rule.kind}({values})"
