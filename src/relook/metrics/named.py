"""Metrics by the names that recipes use."""

from relook.metrics.coco import CocoBoxes, CocoMasks
from relook.metrics.metric import Metric

METRICS: dict[str, Metric] = {"coco": CocoBoxes(), "coco_segm": CocoMasks()}


def metric_named(name: str) -> Metric:
    """The metric that a recipe names.

    Raises:
        ValueError: when there is none of that name.
    """
    if name not in METRICS:
        raise ValueError(f"recipe.metric={name!r} is no metric; there are {', '.join(METRICS)}")
    return METRICS[name]
