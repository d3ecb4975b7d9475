"""Published key names as ordered rename rules, from the publisher's names to ours.

A rule is a regular expression for a whole key and its replacement; the first that fits is used. A key that
no rule fits is left as it is, so that strict loading names it.
"""

import re
from collections.abc import Iterable

Rules = tuple[tuple[str, str], ...]

_MOBILENET: Rules = (  # tonylins/pytorch-mobilenet-v2 -> timm
    (r"backbone\.features\.0\.0\.(.*)", r"backbone.body.conv_stem.\1"),
    (r"backbone\.features\.0\.1\.(.*)", r"backbone.body.bn1.\1"),
    (r"backbone\.features\.1\.conv\.0\.(.*)", r"backbone.body.blocks.0.0.conv_dw.\1"),
    (r"backbone\.features\.1\.conv\.1\.(.*)", r"backbone.body.blocks.0.0.bn1.\1"),
    (r"backbone\.features\.1\.conv\.3\.(.*)", r"backbone.body.blocks.0.0.conv_pw.\1"),
    (r"backbone\.features\.1\.conv\.4\.(.*)", r"backbone.body.blocks.0.0.bn2.\1"),
    *(
        (rf"backbone\.features\.{i}\.conv\.{j}\.(.*)", rf"backbone.body.blocks.{stage}.{block}.{name}.\1")
        for i, (stage, block) in enumerate(
            (
                (stage, block)
                for stage, depth in enumerate((2, 3, 4, 3, 3, 1), start=1)
                for block in range(depth)
            ),
            start=2,
        )
        for j, name in ((0, "conv_pw"), (1, "bn1"), (3, "conv_dw"), (4, "bn2"), (6, "conv_pwl"), (7, "bn3"))
    ),
)

_MMDET: Rules = (  # mmdetection 2 and 3, and its forks
    *_MOBILENET,
    (r"backbone\.(.*)", r"backbone.body.\1"),
    (r"neck\.lateral_convs\.(\d+)\.conv\.(.*)", r"neck.lateral.\1.0.\2"),
    (r"neck\.lateral_convs\.(\d+)\.gn\.(.*)", r"neck.lateral.\1.1.\2"),
    *(
        (rf"neck\.fpn_convs\.{i}\.{kind}\.(.*)", rf"neck.{ours}.{j}.\1")
        for i, ours in enumerate(("smooth.0", "smooth.1", "smooth.2", "extra.0", "extra.1"))
        for j, kind in enumerate(("conv", "gn"))
    ),
    (r"bbox_head\.moment_transfer", r"moment"),
    (r"bbox_head\.(cls|reg)_convs\.(\d+)\.conv\.(.*)", r"head.\1_tower.\2.0.\3"),
    (r"bbox_head\.(cls|reg)_convs\.(\d+)\.gn\.(.*)", r"head.\1_tower.\2.1.\3"),
    (r"bbox_head\.reppoints_pts_(init|refine)_(conv|out)\.(.*)", r"head.\1_\2.\3"),
    (r"bbox_head\.reppoints_cls_(conv|out)\.(.*)", r"head.cls_\1.\2"),
    *(
        (rf"bbox_head\.{published}\.{kind}\.(.*)", rf"head.{ours}.{j}.\1")
        for published, ours in (
            (r"shared_convs\.0", "shared"),
            ("reppoints_sem_embedding", "sem_embedding"),
            (r"hem_tl\.p1_conv1", "top_left.vertical"),
            (r"hem_tl\.p2_conv1", "top_left.horizontal"),
            (r"hem_tl\.conv2", "top_left.out"),
            (r"hem_br\.p1_conv1", "bottom_right.vertical"),
            (r"hem_br\.p2_conv1", "bottom_right.horizontal"),
            (r"hem_br\.conv2", "bottom_right.out"),
        )
        for j, kind in enumerate(("conv", "gn"))
    ),
    *(
        (rf"bbox_head\.hem_{corner}\.{published}\.(.*)", rf"head.{ours}.\1")
        for corner, place in (("tl", "top_left"), ("br", "bottom_right"))
        for published, ours in (
            ("p_conv1", f"{place}.merge.0"),
            ("p_gn1", f"{place}.merge.1"),
            ("conv1", f"{place}.skip.0"),
            ("gn1", f"{place}.skip.1"),
        )
    ),
    (r"bbox_head\.reppoints_hem_tl_(score|offset)_out\.(.*)", r"head.top_left_\1.\2"),
    (r"bbox_head\.reppoints_hem_br_(score|offset)_out\.(.*)", r"head.bottom_right_\1.\2"),
    (r"bbox_head\.reppoints_sem_out\.(.*)", r"head.sem_out.\1"),
)

LAYOUTS: dict[str, Rules] = {"mmdet": _MMDET, "relook": ()}


def rename(keys: Iterable[str], layout: str) -> dict[str, str]:
    """Published key -> our parameter's name, for every key."""
    rules = [(re.compile(pattern), new) for pattern, new in LAYOUTS[layout]]
    return {key: _renamed(key, rules) for key in keys}


def _renamed(key: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, new in rules:
        match = pattern.fullmatch(key)
        if match:
            return match.expand(new)
    return key
