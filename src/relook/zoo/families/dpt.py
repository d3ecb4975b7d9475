"""RetinaNet and Mask R-CNN: the DPT authors' models, mmdetection's plain ones, two small ones of ours."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final, Literal

from relook.backbones.dpt import RULES, DPTConfig
from relook.backbones.timm_maps import TimmMapsConfig
from relook.detectors.mask_rcnn import MaskRCNNConfig
from relook.detectors.retinanet import RetinaNetConfig
from relook.recipe import KeepRatio, Optimizer, Recipe, Schedule, Selection
from relook.renaming import Rules
from relook.zoo.entry import EPOCHS, OURS, Entry, Family, Figure, Layout
from relook.zoo.families.mmdet import MMDET_BACKBONE, mmdet_pyramid
from relook.zoo.families.nano import NANO_RECIPE

DPT, RETINANET, MASK_RCNN = "2107.14467", "1708.02002", "1703.06870"

# -- names of published files ------------------------------------------------------------------

BACKBONES: Final[Rules] = (*((rf"backbone\.{old}", f"backbone.{new}") for old, new in RULES), *MMDET_BACKBONE)
RETINANET_LAYOUT = Layout(
    name="mmdet",
    rules=(
        *BACKBONES,
        *mmdet_pyramid(laterals=3, extra=2),
        (r"bbox_head\.(cls|reg)_convs\.(\d+)\.conv\.(.*)", r"head.\1_tower.\2.0.\3"),
        (r"bbox_head\.retina_(cls|reg)\.(.*)", r"head.\1_out.\2"),
    ),
)
MASK_RCNN_LAYOUT = Layout(
    name="mmdet",
    rules=(
        *BACKBONES,
        *mmdet_pyramid(laterals=4, extra=0),
        (r"rpn_head\.rpn_(conv|cls|reg)\.(.*)", r"rpn.\1.\2"),
        (r"roi_head\.bbox_head\.shared_fcs\.(.*)", r"box_head.hidden.\1"),
        (r"roi_head\.bbox_head\.fc_cls\.(.*)", r"box_head.cls.\1"),
        (r"roi_head\.bbox_head\.fc_reg\.(.*)", r"box_head.box.\1"),
        (r"roi_head\.mask_head\.convs\.(\d+)\.conv\.(.*)", r"mask_head.convs.\1.\2"),
        (r"roi_head\.mask_head\.upsample\.(.*)", r"mask_head.upsample.\1"),
        (r"roi_head\.mask_head\.conv_logits\.(.*)", r"mask_head.out.\1"),
    ),
)
RETINANET_FAMILY = Family(
    name="retinanet",
    layouts=(RETINANET_LAYOUT,),
    training_only=frozenset(
        {"drop_path", "positive_iou", "negative_iou", "beta", "frozen", "freeze_statistics", "frozen_norms"}
    ),
    hints=(EPOCHS,),
)
MASK_RCNN_FAMILY = Family(
    name="mask_rcnn",
    layouts=(MASK_RCNN_LAYOUT,),
    training_only=frozenset(
        {
            "drop_path",
            "rpn_positive",
            "rpn_negative",
            "rpn_forced",
            "rpn_samples",
            "train_top",
            "roi_iou",
            "roi_forced",
            "roi_samples",
            "positive_fraction",
            "roi_beta",
            "frozen",
            "freeze_statistics",
            "frozen_norms",
        }
    ),
    hints=(EPOCHS,),
)

# -- recipes -----------------------------------------------------------------------------------

SCHEDULE_1X = Schedule(epochs=12, drops=(8, 11))
SCHEDULE_3X = Schedule(epochs=36, drops=(28, 34))
PLAIN = Recipe(
    schedule=SCHEDULE_1X, selection=Selection(need="class annotation"), backbone_weights="resnet50.tv_in1k"
)
DPT_1X = replace(
    PLAIN,
    # weight decay on everything, as published: norms, biases, places (docs/quirks.md, dp-19)
    optimizer=Optimizer(kind="adamw", lr=1e-4, weight_decay=1e-4),
    backbone_weights=None,  # the authors' own file, which timm does not have
)
SIZES = KeepRatio(short=(640, 672, 704, 736, 768, 800))

# -- settings ----------------------------------------------------------------------------------

DEPTHS = {"t": (2, 2, 2, 2), "s": (3, 4, 6, 3), "m": (3, 4, 18, 3)}
RETINANET_R50 = RetinaNetConfig()
MASK_RCNN_R50 = MaskRCNNConfig()
VAL = "coco/val2017"

Size = Literal["t", "s", "m"]
How = Literal["1x", "ms3x"]


def _figures(boxes: Iterable[float], names: Iterable[str], publisher: str) -> tuple[Figure, ...]:
    return tuple(Figure(VAL, name, value, publisher) for name, value in zip(names, boxes, strict=True))


BOXES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
BOXES_AND_MASKS = ("AP", "AP50", "AP75", "segm AP", "segm AP50", "segm AP75")
AUTHORS = "DPT authors"


def _retinanet(size: Size, how: How, *figures: float) -> Entry:
    config = f"retinanet_dpt_{size}_fpn_{'1x' if how == '1x' else 'mstrain_3x'}_coco"
    recipe = replace(DPT_1X, schedule=SCHEDULE_3X, train_size=SIZES) if how == "ms3x" else DPT_1X
    return Entry(
        name=f"retinanet_dpt_{size}_fpn_{how}",
        paper=DPT,
        detector=replace(RETINANET_R50, backbone=DPTConfig(depths=DEPTHS[size], maps=(2, 3, 4))),
        recipe=recipe,
        family=RETINANET_FAMILY,
        layout=RETINANET_LAYOUT,
        config=config,
        publisher=AUTHORS,
        page="https://github.com/CASIA-IVA-Lab/DPT",
        figures=_figures(figures, BOXES, AUTHORS),
    )


def _mask_rcnn(size: Size, how: How, *figures: float) -> Entry:
    config = f"mask_rcnn_dpt_{size}_fpn_{'1x' if how == '1x' else 'mstrain-poly_3x'}_coco"
    recipe = replace(
        DPT_1X, optimizer=Optimizer(kind="adamw", lr=2e-4, weight_decay=1e-4), metric="coco_segm"
    )
    recipe = replace(recipe, schedule=SCHEDULE_3X, train_size=SIZES) if how == "ms3x" else recipe
    return Entry(
        name=f"mask_rcnn_dpt_{size}_fpn_{how}",
        paper=DPT,
        detector=replace(MASK_RCNN_R50, backbone=DPTConfig(depths=DEPTHS[size])),
        recipe=recipe,
        family=MASK_RCNN_FAMILY,
        layout=MASK_RCNN_LAYOUT,
        config=config,
        publisher=AUTHORS,
        page="https://github.com/CASIA-IVA-Lab/DPT",
        figures=_figures(figures, BOXES_AND_MASKS, AUTHORS),
    )


MMDET_FILES = "https://download.openmmlab.com/mmdetection/v2.0"
MMDET = "mmdetection 2"

# ours, for CPUs: learn from nothing, on small images
MASK_RCNN_NANO = MaskRCNNConfig(
    backbone=TimmMapsConfig(name="cs3darknet_s"),
    width=64,
    hidden=256,
    mask_convs=2,
    scale=4.0,
    rpn_samples=128,
    train_top=200,
    test_top=200,
    proposals=100,
    roi_samples=64,
)
RETINANET_NANO = RetinaNetConfig(
    backbone=DPTConfig(
        depths=(1, 1, 1, 1),
        widths=(32, 64, 128, 192),
        heads=(1, 2, 4, 6),
        ratios=(4, 4, 2, 2),
        maps=(2, 3, 4),
        drop_path=0.0,
    ),
    extra_levels=1,
    width=64,
    norm_groups=16,
    scale=5.0,
    scales=1,
)
ENTRIES = (
    _retinanet("t", "1x", 39.5, 60.4, 41.8, 23.7, 43.2, 52.2),
    _retinanet("t", "ms3x", 41.2, 62.0, 44.0, 25.7, 44.6, 53.9),
    _retinanet("s", "1x", 42.5, 63.6, 45.3, 26.2, 45.7, 56.9),
    _retinanet("s", "ms3x", 43.3, 64.0, 46.5, 27.8, 46.3, 58.5),
    _retinanet("m", "1x", 43.3, 64.6, 45.9, 27.2, 46.7, 58.6),
    _retinanet("m", "ms3x", 43.7, 64.6, 46.4, 27.2, 47.0, 58.4),
    _mask_rcnn("t", "1x", 40.2, 62.8, 43.8, 37.7, 59.8, 40.4),
    _mask_rcnn("t", "ms3x", 42.2, 64.4, 46.1, 39.4, 61.5, 42.3),
    _mask_rcnn("s", "1x", 43.1, 65.7, 47.2, 39.9, 62.9, 43.0),
    _mask_rcnn("s", "ms3x", 44.4, 66.5, 48.9, 41.0, 63.6, 44.2),
    _mask_rcnn("m", "1x", 43.8, 66.2, 48.3, 40.3, 63.1, 43.4),
    _mask_rcnn("m", "ms3x", 44.3, 65.6, 48.8, 40.7, 63.1, 44.1),
    Entry(
        name="retinanet_r50_fpn_1x",
        paper=RETINANET,
        detector=RETINANET_R50,
        recipe=PLAIN,
        family=RETINANET_FAMILY,
        layout=RETINANET_LAYOUT,
        config="retinanet/retinanet_r50_fpn_1x_coco",
        publisher=MMDET,
        figures=(Figure(VAL, "AP", 36.5, MMDET),),
        weights=f"{MMDET_FILES}/retinanet/retinanet_r50_fpn_1x_coco/"
        "retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth",
    ),
    Entry(
        name="mask_rcnn_r50_fpn_1x",
        paper=MASK_RCNN,
        detector=MASK_RCNN_R50,
        recipe=replace(PLAIN, optimizer=Optimizer(lr=0.02), metric="coco_segm"),
        family=MASK_RCNN_FAMILY,
        layout=MASK_RCNN_LAYOUT,
        config="mask_rcnn/mask_rcnn_r50_fpn_1x_coco",
        publisher=MMDET,
        figures=(Figure(VAL, "AP", 38.2, MMDET), Figure(VAL, "segm AP", 34.7, MMDET)),
        weights=f"{MMDET_FILES}/mask_rcnn/mask_rcnn_r50_fpn_1x_coco/"
        "mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth",
    ),
    Entry(
        name="mask_rcnn_nano",
        paper=MASK_RCNN,
        detector=MASK_RCNN_NANO,
        recipe=replace(NANO_RECIPE, metric="coco_segm"),
        family=MASK_RCNN_FAMILY,
        layout=OURS,
        input=(128, 128),
    ),
    Entry(
        name="retinanet_dpt_nano",
        paper=DPT,
        detector=RETINANET_NANO,
        # attention without ImageNet weights bears half the rate of the convolutions of other small ones
        recipe=replace(NANO_RECIPE, optimizer=replace(NANO_RECIPE.optimizer, lr=1e-3)),
        family=RETINANET_FAMILY,
        layout=OURS,
        input=(128, 128),
    ),
)
