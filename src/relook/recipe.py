"""How a model was trained and tested: facts without code, so that they can be compared, printed and saved."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01  # for `Recipe.batch` images a step; scaled linearly with the batch in use
    momentum: float = 0.9  # sgd only
    weight_decay: float = 1e-4  # on every parameter, norms and biases included
    clip: float | None = None  # largest L2 norm of all gradients together


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Learning rate over time.

    steps: linear warm-up, then a fall to `drop_factor` after each epoch in `drops`.
    onecycle: linear warm-up, then a cosine to zero at the end of the last epoch.
    """

    kind: Literal["steps", "onecycle"] = "steps"
    epochs: int = 12
    warmup_steps: int = 500  # i = 0 .. warmup_steps-1
    warmup_from: float = 0.001  # of the learning rate at i = 0
    warmup_reach: int = 500  # the step i at which the whole rate would be reached; 499 in mmdetection 3
    drops: tuple[int, ...] = (8, 11)  # epochs after which the rate falls; scaled with `--epochs`
    drop_factor: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Keep the ratio; the shorter side becomes `short` unless the longer would pass `long`."""

    short: tuple[int, ...] = (800,)  # one value, or several of which one is drawn per image
    between: bool = False  # True: `short` is (low, high) and any whole number between is drawn, ends too
    long: int = 1333
    antialias: bool = False  # False: OpenCV's bilinear (mmdetection); True: Pillow's (detectron2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """Network input = (pixel in 0 .. 255 - mean) / std, padded with 0 on the right and below."""

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    order: Literal["rgb", "bgr"] = "rgb"
    pad: int = 32  # sides become multiples of this


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    flip: float = 0.5  # probability of a horizontal mirror, after the resize
    jitter: float = 0.0  # strength of brightness, contrast and saturation changes; 0 is none
    group_by: Literal["w>h", "w>=h", "none"] = "w>h"  # batches hold images of one orientation
    min_side: int = 32  # images with a shorter side are left out of training
    need: Literal["annotation", "class annotation", "nothing"] = "annotation"  # a training image has


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    batch: int = 16  # images per step over all devices
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    pixels: Pixels = Pixels()
    train_size: Resize = Resize()
    test_size: Resize = Resize()
    augment: Augment = Augment()
    sync_bn: bool = False  # batch statistics over all devices
    backbone_weights: str | None = None  # timm's name of the starting weights; None: from scratch
