"""Readability is a number: what a reader must hold to follow one training step stays within limits."""

import pytest
import reading
import torch

import relook
from relook.ops import boxes


@pytest.mark.parametrize("name", reading.MODELS)
def test_a_training_step_can_be_read_in_an_afternoon(name: str):
    """Files, lines, functions, depth and calls to build stay under the limits of benchmarks/reading.py."""
    cost = reading.read(lambda: relook.create_model(name))
    assert reading.breaches(cost) == []
    assert len({file for file in cost["entered"] if file.startswith("detectors/")}) == 1, (
        "one paper, one file"
    )


def test_a_cost_above_a_limit_is_told():
    """Each limit that is passed is named with its value; two-stage detectors have limits of their own."""
    cost = {"stages": 1, "files": 17, "lines": 5, "functions": 60, "depth": 7, "build": 1}
    assert reading.breaches(cost) == ["files 17 > 16", "functions 60 > 59"]
    assert reading.breaches({**cost, "stages": 2}) == []


def test_the_tracer_counts_what_was_entered():
    """center is one function of one file at depth one; pairwise_iou goes one deeper; torch does not count."""
    with reading.traced() as nothing:
        torch.zeros(1).sum()
    assert (nothing.calls, nothing.files, nothing.others) == (0, [], {})
    with reading.traced() as one:
        boxes.center(torch.zeros(2, 4))
        boxes.center(torch.zeros(2, 4))
    assert (one.calls, len(one.codes), one.depth, len(one.files)) == (2, 1, 1, 1)
    with reading.traced() as deeper:
        boxes.pairwise_iou(torch.zeros(2, 4), torch.zeros(2, 4))
    assert deeper.depth > one.depth
    assert deeper.lines > one.lines > 0
