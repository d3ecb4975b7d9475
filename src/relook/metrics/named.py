"""Metrics by the names that recipes and people use, alone or several of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from relook.data.sample import Source
from relook.metrics.coco import CocoBoxes, CocoMasks
from relook.metrics.metric import Metric, Report, Rows
from relook.metrics.voc import Voc, Voc07
from relook.types import ImageDetections

METRICS: dict[str, Metric] = {
    "coco": CocoBoxes(),
    "coco_segm": CocoMasks(),
    "voc07": Voc07(),
    "voc": Voc(),
}


def metric_named(name: str) -> Metric:
    """The metric that a recipe names.

    Raises:
        ValueError: when there is none of that name.
    """
    if name not in METRICS:
        raise ValueError(f"recipe.metric={name!r} is no metric; there are {', '.join(METRICS)}")
    return METRICS[name]


@dataclass(frozen=True, slots=True)
class Several:
    """Several metrics of the same detections; the first is the one that counts."""

    metrics: Sequence[Metric]

    @property
    def name(self) -> str:
        """All names."""
        return "+".join(one.name for one in self.metrics)

    @property
    def headline(self) -> str:
        """That of the first."""
        return self.metrics[0].headline

    def keep(self, image: int, found: ImageDetections, size: tuple[int, int]) -> Rows:
        """What all of them need: masks too, if one of them measures masks."""
        masks = [one for one in self.metrics if isinstance(one, CocoMasks)]
        return (masks or self.metrics)[0].keep(image, found, size)

    def report(self, source: Source, rows: Rows) -> Report:
        """The first one's report with the numbers of all; a name that two have says whose it is."""
        reports = [one.report(source, rows) for one in self.metrics]
        numbers = dict(reports[0].numbers)
        for one in reports[1:]:
            for name, value in one.numbers.items():
                numbers[f"{one.metric} {name}" if name in numbers else name] = value
        return replace(reports[0], metric=self.name, numbers=numbers)
