"""Fragments of mmdetection's names that several families share."""

from relook.renaming import Rules

MMDET_BACKBONE: Rules = ((r"backbone\.(.*)", r"backbone.body.\1"),)


def mmdet_pyramid(laterals: int, extra: int) -> Rules:
    """mmdetection's FPN: `fpn_convs` are the output convolutions of all laterals, then the extra levels.

    Args:
        laterals: maps that come from the backbone.
        extra: coarser levels that follow.
    """
    outputs = [*(f"smooth.{i}" for i in range(laterals)), *(f"extra.{i}" for i in range(extra))]
    return (
        (r"neck\.lateral_convs\.(\d+)\.conv\.(.*)", r"neck.lateral.\1.0.\2"),
        (r"neck\.lateral_convs\.(\d+)\.gn\.(.*)", r"neck.lateral.\1.1.\2"),
        *(
            (rf"neck\.fpn_convs\.{i}\.{kind}\.(.*)", rf"neck.{ours}.{j}.\1")
            for i, ours in enumerate(outputs)
            for j, kind in enumerate(("conv", "gn"))
        ),
    )
