"""RepPoints V1: the models of the RepPoints V2 authors and of mmdetection, and a small one of ours."""

from dataclasses import replace
from typing import Final

from relook.backbones.protocol import BackboneConfig
from relook.backbones.resnet import ResNetConfig
from relook.backbones.timm_maps import MOBILENET_RULES, TimmMapsConfig
from relook.detectors.reppoints import RepPointsConfig
from relook.detectors.reppoints_v2 import RepPointsV2Config
from relook.recipe import KeepRatio, Optimizer, Recipe, Schedule, Selection
from relook.renaming import Rules
from relook.zoo.entry import EPOCHS, OURS, Entry, Family, Figure, Hint, Layout
from relook.zoo.families.mmdet import MMDET_BACKBONE, mmdet_pyramid
from relook.zoo.families.nano import NANO_RECIPE

PAPER = "1904.11490"
DCN = (2, 3, 4)  # stages c3, c4, c5

# -- names of published files ------------------------------------------------------------------

KEYS: Final[Rules] = (  # mmdetection 2 and 3, and its forks
    *((rf"backbone\.{old}", rf"backbone.{new}") for old, new in MOBILENET_RULES),
    *MMDET_BACKBONE,
    *mmdet_pyramid(laterals=3, extra=2),
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
MMDET_LAYOUT = Layout(name="mmdet", rules=KEYS)

FAMILY = Family(
    name="reppoints",
    layouts=(MMDET_LAYOUT,),
    training_only=frozenset(
        {
            "gradient_scale",
            "moment_scale",
            "deform_std",
            "start_reach",
            "init_assign",
            "refine_assign",
            "object_scale",
            "positive_iou",
            "negative_iou",
            "atss_candidates",
            "box_loss",
            "beta",
            "init_weight",
            "refine_weight",
            "frozen",
            "freeze_statistics",
        }
    ),
    hints=(
        Hint(setting="detector.box", pattern=r"transform_method\s*=\s*['\"](\w+)"),
        Hint(setting="detector.nms", pattern=r"nms\s*=\s*dict\([^)]*iou_thr(?:eshold)?\s*=\s*([\d.]+)"),
        Hint(
            setting="detector.box_loss",
            pattern=r"loss_bbox_refine\s*=\s*dict\([^)]*type\s*=\s*['\"](\w+)",
            words={"GIoULoss": "giou", "SmoothL1Loss": "smooth_l1"},
        ),
        EPOCHS,
    ),
)

# -- recipes -----------------------------------------------------------------------------------

AUTHORS_1X = Recipe(
    optimizer=Optimizer(lr=0.01, clip=35.0),
    schedule=Schedule(epochs=12, drops=(8, 11)),
    group_by="w>h",
    selection=Selection(need="annotation"),
    backbone_weights="resnet50.tv_in1k",
)
AUTHORS_2X = replace(
    AUTHORS_1X,
    schedule=Schedule(epochs=24, drops=(16, 22)),
    train_size=KeepRatio(short=(480, 960), between=True),
)
MMDET_1X = Recipe(
    optimizer=Optimizer(lr=0.01),
    schedule=Schedule(epochs=12, drops=(8, 11), warmup_reach=499),
    group_by="w>=h",
    selection=Selection(need="class annotation"),
    backbone_weights="resnet50.tv_in1k",
)
MMDET_2X = replace(MMDET_1X, schedule=Schedule(epochs=24, drops=(16, 22), warmup_reach=499))

# -- settings ----------------------------------------------------------------------------------

R101 = ResNetConfig(name="resnet101")
X101_64 = ResNetConfig(name="resnext101_64x4d")
X101_32 = ResNetConfig(name="resnext101_32x4d")
WEIGHTS = {  # timm's nearest to the published starting weights; see docs/how-to/published-weights.md
    "resnet50": "resnet50.tv_in1k",
    "resnet101": "resnet101.tv_in1k",
    "resnext101_64x4d": "resnext101_64x4d.tv_in1k",
    "resnext101_32x4d": "resnext101_32x4d.gluon_in1k",
    "mobilenetv2_100": "mobilenetv2_100.ra_in1k",
}

AUTHORS = RepPointsConfig(
    box="exact_minmax",
    deform_std=0.01,
    refine_assign="atss",
    select="points",
    drop_empty=False,
    nms=0.6,
)
AUTHORS_GIOU = replace(AUTHORS, box_loss="giou", init_weight=1.0, refine_weight=2.0)
MMDET = RepPointsConfig()
MMDET_GRID = replace(MMDET, box="minmax", grid_points=True)


def with_start(recipe: Recipe, backbone: BackboneConfig) -> Recipe:
    """The recipe with the starting weights of that backbone; MobileNetV2's statistics span all devices."""
    if isinstance(backbone, TimmMapsConfig):
        return replace(recipe, backbone_weights=WEIGHTS[backbone.name], sync_bn=True)
    if isinstance(backbone, ResNetConfig):
        return replace(recipe, backbone_weights=WEIGHTS[backbone.name])
    return recipe


R101_DCN2 = replace(R101, deformable=DCN, modulated=True)
X101_DCN2 = replace(X101_64, deformable=DCN, modulated=True)
R101_DCN1 = replace(R101, deformable=DCN)
X101_DCN1 = replace(X101_32, deformable=DCN)
R50 = ResNetConfig()
MNV2 = TimmMapsConfig(name="mobilenetv2_100")


def authors(
    name: str,
    config: str,
    detector: RepPointsConfig | RepPointsV2Config,
    recipe: Recipe,
    *,
    paper: str = PAPER,
    ap: float | None = None,
    test_dev: float | None = None,
) -> Entry:
    """A model of the RepPoints V2 authors, with the AP that they name on val2017 and test-dev."""
    publisher = "RepPoints V2 authors"
    named = (("coco/val2017", ap), ("coco/test-dev", test_dev))
    return Entry(
        name=name,
        paper=paper,
        detector=detector,
        recipe=with_start(recipe, detector.backbone),
        family=FAMILY,
        layout=MMDET_LAYOUT,
        config=f"{config}_coco",
        publisher=publisher,
        page="https://github.com/Scalsol/RepPointsV2",
        figures=tuple(Figure(data, "AP", value, publisher) for data, value in named if value is not None),
        licence="the publisher's; their code is a fork of mmdetection (Apache-2.0)",
    )


def _authors(
    name: str, config: str, detector: RepPointsConfig, recipe: Recipe, *, ap: float | None = None
) -> Entry:
    return authors(name, f"reppoints_v1/{config}", detector, recipe, ap=ap)


def _giou(name: str, config: str, backbone: BackboneConfig, *, ap: float, width: int = 256) -> Entry:
    """The authors' 2x models: multi-scale training, GIoU."""
    detector = replace(AUTHORS_GIOU, backbone=backbone, width=width)
    return _authors(
        name,
        f"reppoints_v1_{config}_giou{'_128c' if width == 128 else ''}_mstrain_2x",
        detector,
        AUTHORS_2X,
        ap=ap,
    )


MMDET_FILES = "https://download.openmmlab.com/mmdetection/v2.0/reppoints"


def _mmdet(
    config: str, detector: RepPointsConfig, recipe: Recipe, *, ap: float | None = None, file: str = ""
) -> Entry:
    """mmdetection's models; `file` is the stem of the published one, which ends in a part of its SHA-256."""
    publisher = "mmdetection 3.3"
    folder = file.rpartition("_202")[0]
    return Entry(
        name=config.lower().replace("-", "_"),
        paper=PAPER,
        detector=detector,
        recipe=with_start(recipe, detector.backbone),
        family=FAMILY,
        layout=MMDET_LAYOUT,
        config=f"{config}_coco",
        publisher=publisher,
        figures=() if ap is None else (Figure("coco/val2017", "AP", ap, publisher),),
        weights=f"{MMDET_FILES}/{folder}/{file}.pth" if file else "",
        page="" if file else "https://github.com/open-mmlab/mmdetection/tree/main/configs/reppoints",
    )


# ours, for CPUs: learns from nothing, on small images; by moment, so that the points spread over the object,
# and from the box that belongs to their level, so that the second look sees an object from the first step on
NANO = RepPointsConfig(
    backbone=TimmMapsConfig(name="cs3darknet_s"),
    extra_levels=1,
    width=64,
    norm_groups=16,
    tower=1,
    start_reach=2.0,
    refine_assign="atss",
    box_loss="giou",
    init_weight=1.0,
    refine_weight=2.0,
    nms=0.6,
)

ENTRIES = (
    _authors("reppoints_v1_r50_fpn_1x", "reppoints_v1_r50_fpn_1x", AUTHORS, AUTHORS_1X, ap=38.8),
    _authors(
        "reppoints_v1_r50_fpn_giou_1x", "reppoints_v1_r50_fpn_giou_1x", AUTHORS_GIOU, AUTHORS_1X, ap=39.9
    ),
    _giou("reppoints_v1_r50_fpn_giou_2x", "r50_fpn", R50, ap=42.7),
    _giou("reppoints_v1_r101_fpn_giou_2x", "r101_fpn", R101, ap=44.4),
    _giou("reppoints_v1_r101_fpn_dcnv2_giou_2x", "r101_fpn_dconv_c3-c5", R101_DCN2, ap=46.6),
    _giou("reppoints_v1_x101_fpn_giou_2x", "x101_fpn", X101_64, ap=46.3),
    _giou("reppoints_v1_x101_fpn_dcnv2_giou_2x", "x101_fpn_dconv_c3-c5", X101_DCN2, ap=48.3),
    _giou("reppoints_v1_mnv2_c128_fpn_2x", "mobilenet_fpn", MNV2, ap=35.7, width=128),
    _giou("reppoints_v1_mnv2_fpn_2x", "mobilenet_fpn", MNV2, ap=37.8),
    # configurations of the same authors for which no figure was published
    _authors(
        "reppoints_minmax_r50_fpn_1x",
        "reppoints_minmax_r50_fpn_1x",
        replace(AUTHORS, box="minmax"),
        AUTHORS_1X,
    ),
    _authors(
        "reppoints_minmax_r50_fpn_giou_1x",
        "reppoints_minmax_r50_fpn_giou_1x",
        replace(AUTHORS_GIOU, box="minmax"),
        AUTHORS_1X,
    ),
    _mmdet(
        "reppoints-moment_r50_fpn_1x",
        replace(MMDET, norm_groups=0),
        MMDET_1X,
        ap=37.0,
        file="reppoints_moment_r50_fpn_1x_coco_20200330-b73db8d1",
    ),
    _mmdet(
        "reppoints-moment_r50_fpn-gn_head-gn_1x",
        MMDET,
        MMDET_1X,
        ap=38.1,
        file="reppoints_moment_r50_fpn_gn-neck%2Bhead_1x_coco_20200329-4b38409a",
    ),
    _mmdet(
        "reppoints-moment_r50_fpn-gn_head-gn_2x",
        MMDET,
        MMDET_2X,
        ap=38.6,
        file="reppoints_moment_r50_fpn_gn-neck%2Bhead_2x_coco_20200329-91babaa2",
    ),
    _mmdet(
        "reppoints-moment_r101_fpn-gn_head-gn_2x",
        replace(MMDET, backbone=R101),
        MMDET_2X,
        ap=40.5,
        file="reppoints_moment_r101_fpn_gn-neck%2Bhead_2x_coco_20200329-4fbc7310",
    ),
    _mmdet(
        "reppoints-moment_r101-dconv-c3-c5_fpn-gn_head-gn_2x",
        replace(MMDET, backbone=R101_DCN1),
        MMDET_2X,
        ap=42.9,
        file="reppoints_moment_r101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco_20200329-3309fbf2",
    ),
    _mmdet(
        "reppoints-moment_x101-dconv-c3-c5_fpn-gn_head-gn_2x",
        replace(MMDET, backbone=X101_DCN1),
        MMDET_2X,
        ap=44.2,
        file="reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco_20200329-f87da1ea",
    ),
    _mmdet("reppoints-minmax_r50_fpn-gn_head-gn_1x", replace(MMDET, box="minmax"), MMDET_1X),
    _mmdet("reppoints-partial-minmax_r50_fpn-gn_head-gn_1x", replace(MMDET, box="partial_minmax"), MMDET_1X),
    _mmdet(
        "reppoints-bbox_r50_fpn-gn_head-gn-grid_1x",
        replace(MMDET_GRID, init_assign="max_iou"),
        MMDET_1X,
        ap=36.4,
        file="bbox_r50_grid_fpn_gn-neck%2Bhead_1x_coco_20200329-c98bfa96",
    ),
    _mmdet(
        "reppoints-bbox_r50-center_fpn-gn_head-gn-grid_1x",
        MMDET_GRID,
        MMDET_1X,
        ap=37.4,
        file="bbox_r50_grid_center_fpn_gn-neck%2Bhead_1x_coco_20200330-00f73d58",
    ),
    Entry(
        name="reppoints_nano",
        paper=PAPER,
        detector=NANO,
        recipe=NANO_RECIPE,
        family=FAMILY,
        layout=OURS,
        input=(128, 128),
    ),
)
