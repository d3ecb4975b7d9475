"""Between which numbers a detector's settings may lie, whoever gives them: a person, or a weights file."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Final, cast

LARGEST: Final = 100_000  # of a whole number that has no limit of its own
_FROM_ONE: Final = frozenset(
    {
        "atss_candidates", "corner_width", "dilation", "extra_groups", "hidden", "keep", "proposals",
        "roi_samples", "rpn_samples", "scales", "test_proposals", "test_top", "top", "train_proposals",
        "train_top", "width",
    }
)  # fmt: skip
_WHOLE: Final = dict.fromkeys(_FROM_ONE, (1, LARGEST)) | {
    "num_classes": (1, 20_000),
    "roi_samples": (1, 10_000_000),  # of which there may be fewer: a million stands for all
    "rpn_samples": (1, 10_000_000),
    "extra_levels": (0, 8),
    "tower": (0, 100),
    "mask_convs": (0, 100),
    "frozen": (0, 5),
}
_SHARES: Final = frozenset(
    {
        "score", "nms", "min_score", "objectness", "proposal_nms", "iou", "positive_iou", "negative_iou",
        "corner_overlap", "heat_overlap", "positive_fraction", "rpn_positive", "rpn_negative", "rpn_forced",
        "roi_iou", "roi_forced", "drop_path",
    }
)  # fmt: skip


def check(detector: object, above: str = "detector") -> None:
    """Refuses settings with a number that no network can have.

    Args:
        detector: a frozen dataclass, with others in it.
        above: how it is called in messages.

    Raises:
        ValueError: with the setting and what it may be.
    """
    for f in fields(cast("Any", detector)):
        value, path = getattr(detector, f.name), f"{above}.{f.name}"
        if is_dataclass(value):
            check(value, path)
            continue
        for one in _numbers(value):
            _check_number(f.name, path, one)


def _numbers(value: object) -> Iterator[int | float]:
    for one in cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,):
        if isinstance(one, int | float) and not isinstance(one, bool):
            yield one


def _check_number(name: str, path: str, value: float) -> None:
    if name in _SHARES:
        if not 0 <= value <= 1:
            raise ValueError(f"{path}={value}: it must lie between 0 and 1")
    elif isinstance(value, int):
        least, most = _WHOLE.get(name, (0, LARGEST))
        if not least <= value <= most:
            raise ValueError(f"{path}={value}: it must be a whole number from {least} to {most}")
    elif not 0 <= value < math.inf:
        raise ValueError(f"{path}={value}: it must be a number from 0 on")
