"""RepPoints V2: the authors' nine models, and a small one of ours."""

from dataclasses import replace

from relook.backbones.protocol import BackboneConfig
from relook.detectors.reppoints_v2 import RepPointsV2Config
from relook.zoo.entry import OURS, Entry
from relook.zoo.families.nano import NANO_RECIPE
from relook.zoo.families.reppoints import (
    AUTHORS_1X,
    AUTHORS_2X,
    FAMILY,
    MNV2,
    NANO,
    R101,
    R101_DCN2,
    X101_64,
    X101_DCN2,
    authors,
)

PAPER = "2007.08508"

SMOOTH_L1 = RepPointsV2Config()
GIOU = replace(SMOOTH_L1, box_loss="giou", init_weight=1.0, refine_weight=2.0)


def _authors(
    name: str, config: str, detector: RepPointsV2Config, *, ap: float, test_dev: float | None = None
) -> Entry:
    recipe = AUTHORS_1X if name.endswith("1x") else AUTHORS_2X
    config = f"reppoints_v2/reppoints_v2_{config}"
    return authors(f"reppoints_v2_{name}", config, detector, recipe, paper=PAPER, ap=ap, test_dev=test_dev)


def _giou(backbone: BackboneConfig, width: int = 256) -> RepPointsV2Config:
    return replace(GIOU, backbone=backbone, width=width)


# ours, for CPUs: as large as reppoints_nano in all that both have
NANO_V2 = replace(
    GIOU,
    backbone=NANO.backbone,
    extra_levels=NANO.extra_levels,
    width=NANO.width,
    norm_groups=NANO.norm_groups,
    tower=NANO.tower,
    corner_width=NANO.width // 4,
    start_reach=NANO.start_reach,
)

ENTRIES = (
    _authors("r50_fpn_1x", "r50_fpn_1x", SMOOTH_L1, ap=40.9),
    _authors("r50_fpn_giou_1x", "r50_fpn_giou_1x", GIOU, ap=41.1, test_dev=41.3),
    _authors("r50_fpn_giou_2x", "r50_fpn_giou_mstrain_2x", GIOU, ap=43.9, test_dev=44.4),
    _authors("r101_fpn_giou_2x", "r101_fpn_giou_mstrain_2x", _giou(R101), ap=45.8, test_dev=46.0),
    _authors(
        "r101_fpn_dcnv2_giou_2x",
        "r101_fpn_dconv_c3-c5_giou_mstrain_2x",
        _giou(R101_DCN2),
        ap=47.7,
        test_dev=48.1,
    ),
    _authors("x101_fpn_giou_2x", "x101_fpn_giou_mstrain_2x", _giou(X101_64), ap=47.3, test_dev=47.8),
    _authors(
        "x101_fpn_dcnv2_giou_2x",
        "x101_fpn_dconv_c3-c5_giou_mstrain_2x",
        _giou(X101_DCN2),
        ap=49.3,
        test_dev=49.4,
    ),
    _authors("mnv2_c128_fpn_2x", "mobilenet_fpn_giou_128c_mstrain_2x", _giou(MNV2, 128), ap=36.8),
    _authors("mnv2_fpn_2x", "mobilenet_fpn_giou_mstrain_2x", _giou(MNV2), ap=39.4),
    Entry(
        name="reppoints_v2_nano",
        paper=PAPER,
        detector=NANO_V2,
        recipe=NANO_RECIPE,
        family=FAMILY,
        layout=OURS,
        input=(128, 128),
    ),
)
