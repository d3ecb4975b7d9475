"""Which of the annotated objects training learns."""

import numpy as np
from numpy.typing import NDArray

from relook.data.sample import Sample, Source


def trained_boxes(sample: Sample) -> NDArray[np.bool_]:
    """Which boxes of a sample are learnt: [N].

    Not crowds, not those marked `ignore`, and by the published rule none without area, none narrower or lower
    than 1 pixel (before clipping), none outside the image.
    """
    sides = sample.boxes[:, 2:] - sample.boxes[:, :2]
    large = (sides > 1 - 1e-6).all(1)  # files hold x and width: their sum and difference is not exact
    inside = (sample.boxes[:, 2:] > 0).all(1) & (sample.boxes[:, :2] < [sample.width, sample.height]).all(1)
    return large & inside & (sample.area > 0) & ~sample.crowd & ~sample.ignore


def has_objects(source: Source) -> bool:
    """Whether any image of a split has an object that training learns and evaluation looks for."""
    return any(trained_boxes(sample).any() for sample in source.samples)
