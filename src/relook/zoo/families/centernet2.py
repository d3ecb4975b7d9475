"""CenterNet2: the mmdetection line's model in two readings, the authors' R-50 model, a small one of ours."""

from dataclasses import replace
from typing import Final

from relook.backbones.resnet import ResNetConfig
from relook.backbones.timm_maps import TimmMapsConfig
from relook.detectors.centernet2 import CenterNet2Config
from relook.recipe import KeepRatio, Optimizer, Pixels, Recipe, Schedule, Selection
from relook.renaming import Rules
from relook.zoo.entry import EPOCHS, OURS, Entry, Family, Figure, Layout
from relook.zoo.families.mmdet import MMDET_BACKBONE, mmdet_pyramid
from relook.zoo.families.nano import NANO_RECIPE

PAPER = "2103.07461"

# -- names of published files ------------------------------------------------------------------

MMDET_KEYS: Final[Rules] = (
    *MMDET_BACKBONE,
    *mmdet_pyramid(laterals=3, extra=2),
    (r"rpn_head\.bbox_tower\.(.*)", r"head.tower.\1"),
    (r"rpn_head\.cls_tower\.(.*)", r"head.spare_tower.\1"),
    (r"rpn_head\.agn_hm\.(.*)", r"head.heat.\1"),
    (r"rpn_head\.bbox_pred\.(.*)", r"head.sides.\1"),
    (r"rpn_head\.scales\.(\d+)\.scale", r"head.scales.\1"),
    (r"roi_head\.bbox_head\.(\d+)\.shared_fcs\.(.*)", r"stages.\1.hidden.\2"),
    (r"roi_head\.bbox_head\.(\d+)\.fc_cls\.(.*)", r"stages.\1.cls.\2"),
    (r"roi_head\.bbox_head\.(\d+)\.fc_reg\.(.*)", r"stages.\1.box.\2"),
)
MMDET_LAYOUT = Layout(name="mmdet", rules=MMDET_KEYS)

DETECTRON2_KEYS: Final[Rules] = (
    (r"backbone\.bottom_up\.stem\.conv1\.weight", r"backbone.body.conv1.weight"),
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.(.*)", r"backbone.body.bn1.\1"),
    *(
        rule
        for stage in (1, 2, 3, 4)
        for theirs, ours in ((rf"backbone\.bottom_up\.res{stage + 1}", f"backbone.body.layer{stage}"),)
        for rule in (
            (rf"{theirs}\.(\d+)\.conv(\d)\.norm\.(.*)", rf"{ours}.\1.bn\2.\3"),
            (rf"{theirs}\.(\d+)\.conv(\d)\.weight", rf"{ours}.\1.conv\2.weight"),
            (rf"{theirs}\.(\d+)\.shortcut\.norm\.(.*)", rf"{ours}.\1.downsample.1.\2"),
            (rf"{theirs}\.(\d+)\.shortcut\.weight", rf"{ours}.\1.downsample.0.weight"),
        )
    ),
    *(
        (rf"backbone\.fpn_{theirs}{level}\.(.*)", rf"neck.{ours}.{level - 3}.0.\1")
        for level in (3, 4, 5)
        for theirs, ours in (("lateral", "lateral"), ("output", "smooth"))
    ),
    (r"backbone\.top_block\.p6\.(.*)", r"neck.extra.0.0.\1"),
    (r"backbone\.top_block\.p7\.(.*)", r"neck.extra.1.0.\1"),
    (r"proposal_generator\.centernet_head\.bbox_tower\.(.*)", r"head.tower.\1"),
    (r"proposal_generator\.centernet_head\.agn_hm\.(.*)", r"head.heat.\1"),
    (r"proposal_generator\.centernet_head\.bbox_pred\.(.*)", r"head.sides.\1"),
    (r"proposal_generator\.centernet_head\.scales\.(\d+)\.scale", r"head.scales.\1"),
    (r"roi_heads\.box_head\.(\d+)\.fc1\.(.*)", r"stages.\1.hidden.0.\2"),
    (r"roi_heads\.box_head\.(\d+)\.fc2\.(.*)", r"stages.\1.hidden.1.\2"),
    (r"roi_heads\.box_predictor\.(\d+)\.cls_score\.(.*)", r"stages.\1.cls.\2"),
    (r"roi_heads\.box_predictor\.(\d+)\.bbox_pred\.(.*)", r"stages.\1.box.\2"),
)
DETECTRON2_LAYOUT = Layout(
    name="detectron2",
    rules=DETECTRON2_KEYS,
    ignored=(r"(?:.*\.)?pixel_(?:mean|std)",),  # of the input, which the recipe knows
)

FAMILY = Family(
    name="centernet2",
    layouts=(MMDET_LAYOUT, DETECTRON2_LAYOUT),
    training_only=frozenset(
        {
            "fc_start",
            "size_from",
            "size_to",
            "heat_overlap",
            "heat_radius",
            "giou_extra",
            "train_top",
            "train_proposals",
            "proposal_gradient",
            "stage_iou",
            "roi_samples",
            "positive_fraction",
            "resample",
            "roi_beta",
            "feature_gradient",
            "frozen",
            "freeze_statistics",
            "frozen_norms",
        }
    ),
    hints=(EPOCHS,),
)

# -- recipes -----------------------------------------------------------------------------------

# of the published log, at 4 x 4 images; the released configuration has a rate of 0.04 and 8 images a device
MMDET_1X = Recipe(
    optimizer=Optimizer(lr=0.02, clip=35.0),
    schedule=Schedule(epochs=12, drops=(8, 11), warmup_steps=1000, warmup_from=1e-4, warmup_reach=1000),
    group_by="w>h",
    selection=Selection(need="class annotation"),
    backbone_weights="resnet50.tv_in1k",
)
# which annotations and images count, and how batches are filled, follow relook's rules, not detectron2's
ORIGINAL_1X = Recipe(
    optimizer=Optimizer(lr=0.02, clip=1.0, clip_by="value", no_decay=("norm_weights",)),
    schedule=Schedule(
        iterations=90_000, drops=(60_000, 80_000), warmup_steps=4000, warmup_from=1 / 4000, warmup_reach=4000
    ),
    pixels=Pixels(mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0), order="bgr"),
    train_size=KeepRatio(short=(640, 672, 704, 736, 768, 800), antialias=True),
    test_size=KeepRatio(antialias=True),
    group_by="w>h",
    selection=Selection(min_side=1, need="annotation"),
)

# -- settings ----------------------------------------------------------------------------------

MMDET = CenterNet2Config()
ORIGINAL = CenterNet2Config(
    backbone=ResNetConfig(frozen_norms=True, caffe_stride=True),
    norm_groups=32,
    spare_tower=False,
    fc_start="detectron2",
    giou_extra=1.0,
    proposal_shift=False,
    proposal_gradient=False,
    roi_level_size=224,
    center_stds=(0.1, 0.05, 1 / 30),
    size_stds=(0.2, 0.1, 1 / 15),
    shrink_limit=False,
    resample=False,
    roi_beta=0.0,
    drop_empty=True,
)

PUBLISHER = "Jacky-gsq, Centernet2-mmdet"
VAL = "coco/val2017"
AUTHORS_OF_MMDET = tuple(
    Figure(VAL, metric, value, PUBLISHER)
    for metric, value in (
        ("AP", 40.5),
        ("AP50", 56.8),
        ("AP75", 44.6),
        ("APs", 21.2),
        ("APm", 44.1),
        ("APl", 55.6),
    )
)
NOTE = (
    "Lists of CenterNet2's figures name the last three columns in the order large, medium, small; 21.2, 44.1 "
    "and 55.6 are small, medium and large, as the training log has them"
)
DOUBT = (
    "the file alone cannot tell centernet2_cascade_r50_fpn_1x from its _traincommit: the training log names "
    "other code than was released, which reads regions from other levels (detector.roi_level_size) and "
    "scores them otherwise (detector.score); an evaluation on COCO val2017 decides, for which AP 40.5 was "
    "published: `relook eval --model NAME --weights FILE --data coco/`. A file that was trained further is "
    "decided by its own validation data"
)


def _mmdet(name: str, detector: CenterNet2Config) -> Entry:
    """One file was published; which of the two readings its figures belong to is not known."""
    return Entry(
        name=name,
        paper=PAPER,
        detector=detector,
        recipe=MMDET_1X,
        family=FAMILY,
        layout=MMDET_LAYOUT,
        config="centernet2/centernet2_cascade_res50_fpn_1x_coco",
        publisher=PUBLISHER,
        page="https://github.com/Jacky-gsq/Centernet2-mmdet",
        figures=AUTHORS_OF_MMDET,
        licence="the publisher's; their code is a fork of mmdetection (Apache-2.0)",
        note=NOTE,
        doubt=DOUBT,
    )


# ours, for CPUs: learns from nothing, on small images
NANO = CenterNet2Config(
    backbone=TimmMapsConfig(name="cs3darknet_s"),
    extra_levels=1,
    width=64,
    tower=2,
    norm_groups=16,
    spare_tower=False,
    hidden=256,
    size_from=(0, 24, 48, 96),
    size_to=(32, 64, 128, 1e7),
    train_top=200,
    train_proposals=128,
    test_top=200,
    test_proposals=100,
    proposal_shift=False,
    proposal_gradient=False,
    roi_samples=64,
    drop_empty=True,
)

ENTRIES = (
    _mmdet("centernet2_cascade_r50_fpn_1x", MMDET),
    _mmdet(
        "centernet2_cascade_r50_fpn_1x_traincommit", replace(MMDET, roi_level_size=224, score="mean_logits")
    ),
    Entry(
        name="centernet2_original_r50_fpn_1x",
        paper=PAPER,
        detector=ORIGINAL,
        recipe=ORIGINAL_1X,
        family=FAMILY,
        layout=DETECTRON2_LAYOUT,
        config="CenterNet2_R50_1x",
        publisher="CenterNet2 authors",
        page="https://github.com/xingyizhou/CenterNet2",
        figures=(Figure(VAL, "AP", 42.9, "CenterNet2 authors"),),
    ),
    Entry(
        name="centernet2_nano",
        paper=PAPER,
        detector=NANO,
        recipe=NANO_RECIPE,
        family=FAMILY,
        layout=OURS,
        input=(128, 128),
    ),
)
