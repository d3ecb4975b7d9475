"""RefineDet and RefineDet++: the original on VGG-16, the second on VGG, ResNet and ResNeXt, two of ours."""

from dataclasses import replace
from typing import Final, Literal

from relook.backbones.resnet import ResNetConfig
from relook.backbones.timm_maps import TimmMapsConfig
from relook.backbones.vgg import VGGConfig
from relook.detectors.refinedet import RefineDetConfig
from relook.recipe import (
    Crop,
    Expand,
    Flip,
    Optimizer,
    Photometric,
    Pixels,
    Recipe,
    Resize,
    Schedule,
    Selection,
    Stretch,
)
from relook.renaming import Rules
from relook.zoo.entry import OURS, Entry, Family, Figure, Layout
from relook.zoo.families.nano import NANO_RECIPE

PAPER = "1711.06897"  # RefineDet++ appeared in IEEE TCSVT and has no arXiv number
AUTHORS, PORT = "RefineDet_plusplus.PyTorch", "luuuyi/RefineDet.PyTorch"

# -- names of published files ------------------------------------------------------------------

HEADS: Final[Rules] = (
    *(
        (rf"{theirs}_{part}\.(\d+)\.(weight|bias)", rf"{ours}.\1.{kind}.\2")
        for theirs, ours in (("arm", "first"), ("odm", "second"))
        for part, kind in (("loc", "box"), ("conf", "cls"))
    ),
    *(
        (rf"adm_{part}{anchor + 1}\.(\d+)\.weight", rf"second.\1.{kind}.{anchor}")
        for anchor in range(3)
        for part, kind in (("loc", "box"), ("conf", "cls"))
    ),
    *(
        (rf"{theirs}\.{index}\.(.*)", rf"fusion.{ours}.{level}.\1")
        for level in range(5)  # their lists hold the activations between convolutions too
        for theirs, index, ours in (
            ("tcb0", 3 * level, "first"),
            ("tcb0", 3 * level + 2, "second"),
            ("tcb1", level, "up"),
            ("tcb2", 3 * level + 1, "last"),
        )
    ),
    (r"conv4_3_L2Norm\.weight", r"norms.0.weight"),
    (r"conv5_3_L2Norm\.weight", r"norms.1.weight"),
    (r"vgg\.(.*)", r"backbone.layers.\1"),
    (r"res\.(.*)", r"backbone.body.\1"),
)
VGG_LAYOUT = Layout(
    name="RefineDet_plusplus.PyTorch", rules=(*HEADS, (r"extras\.(\d+)\.(.*)", r"extras.0.\1.\2"))
)
RESNET_LAYOUT = Layout(
    name="RefineDet_plusplus.PyTorch (ResNet)",
    rules=(
        *HEADS,
        (r"extras1?\.0\.(.*)", r"extras.0.\1"),
        (r"extras2\.0\.(.*)", r"extras.1.\1"),
    ),
)
PORT_LAYOUT = Layout(
    name="luuuyi/RefineDet.PyTorch",
    rules=(*HEADS, (r"extras\.0\.(.*)", r"extras.0.0.\1"), (r"extras\.1\.(.*)", r"extras.0.2.\1")),
)
FAMILY = Family(
    name="refinedet",
    layouts=(VGG_LAYOUT, RESNET_LAYOUT, PORT_LAYOUT),
    training_only=frozenset({"iou", "negatives", "frozen", "freeze_statistics", "frozen_norms"}),
)

# -- recipes -----------------------------------------------------------------------------------

STARTS = (
    "RefineDet on VGG-16 without batch normalisation starts from SSD's vgg16_reducedfc.pth, which timm does "
    "not have: `--backbone-weights vgg16_reducedfc.pth`"
)
CLASSES = {"voc": 20, "coco": 80, "ssdd": 1}
FIXED = Optimizer(lr=4e-3, weight_decay=5e-4)
PIXELS = Pixels(mean=(123.0, 117.0, 104.0), std=(1.0, 1.0, 1.0), pad=64)

Data = Literal["voc", "coco", "ssdd"]
Ablation = Literal["", "_woalign", "_worefine", "_wofuse"]


def _recipe(size: int, data: Data, backbone_weights: str | None) -> Recipe:
    square = Stretch(height=size, width=size)
    epochs, drops = (240, (160, 200)) if data == "voc" else (300, (200, 266))
    return Recipe(
        batch=32,
        optimizer=FIXED,
        schedule=Schedule(epochs=epochs, drops=drops, warmup_epochs=10, warmup_lr=1e-6),
        pixels=replace(PIXELS, pad=64 if size < 1024 else 128),
        last_pixel=True,
        train_size=square,
        test_size=square,
        augment=(Photometric(), Expand(), Crop(), Flip(), Resize()),
        selection=Selection(min_side=1, need="annotation"),
        group_by="none",
        metric="voc07" if data == "voc" else "coco",
        backbone_weights=backbone_weights,
    )


# the original's port: no warm-up, a quarter of the rate
ORIGINAL: Final = Schedule(iterations=120_000, drops=(80_000, 100_000), warmup_steps=0)

# -- settings ----------------------------------------------------------------------------------

VGG = RefineDetConfig()
VGG_BN = RefineDetConfig(backbone=VGGConfig(norm=True), extra_norm=True)
BLOCKS = {50: (), 101: (), 152: (3, 8, 36, 3)}


def _resnet(kind: str, depth: int, size: int) -> RefineDetConfig:
    next_ = kind == "resnext"
    named = min(depth, 101) if next_ else depth  # timm has no ResNeXt-152
    backbone = ResNetConfig(
        name=f"resnext{named}_32x4d" if next_ else f"resnet{depth}",
        blocks=BLOCKS[depth] if next_ else (),
        frozen=0,
    )
    return RefineDetConfig(
        backbone=backbone,
        l2_norm=(),
        extra="bottlenecks",
        extra_widths=(512, 256) if size == 1024 else (512,),
        extra_groups=32 if next_ else 1,
    )


# ours, for CPUs: learn from nothing, on small images
NANO = RefineDetConfig(
    backbone=TimmMapsConfig(name="cs3darknet_s"),
    l2_norm=(),
    extra_widths=(64,),
    extra_norm=True,
    width=64,
    align=False,
    keep=100,
)
ABLATIONS: dict[Ablation, dict[str, bool]] = {
    "": {},
    "_woalign": {"align": False},
    "_worefine": {"align": False, "refine": False},
    "_wofuse": {"align": False, "refine": False, "fuse": False},
}
VOC, SSDD = "voc/test2007", "ssdd/test"
PUBLISHED = {
    "refinedetpp_512_vgg_voc": (
        Figure(VOC, "mAP", 81.86, AUTHORS),
        Figure(VOC, "mAP, several scales", 84.00, AUTHORS),
        Figure(VOC, "mAP", 82.5, "paper of RefineDet++ (IEEE TCSVT)"),
        Figure(VOC, "mAP, several scales", 84.2, "paper of RefineDet++ (IEEE TCSVT)"),
    ),
    "refinedetpp_512_vggbn_ssdd": (Figure(SSDD, "AP", 62.94, AUTHORS),),
    "refinedet_320_vgg_voc": (Figure(VOC, "mAP", 79.81, PORT), Figure(VOC, "mAP", 80.0, "paper")),
    "refinedet_512_vgg_voc": (Figure(VOC, "mAP", 80.50, PORT), Figure(VOC, "mAP", 81.8, "paper")),
}


def _plus(size: int, backbone: str, data: Data, ablation: Ablation = "") -> Entry:
    kind = backbone.rstrip("0123456789")
    depth = int(backbone.removeprefix(kind) or 0)
    detector = {"vgg": VGG, "vggbn": VGG_BN}[backbone] if depth == 0 else _resnet(kind, depth, size)
    in_timm = kind == "resnet" or backbone == "resnext50"
    weights = f"{'resnext50_32x4d' if kind == 'resnext' else backbone}.tv_in1k" if in_timm else None
    name = f"refinedetpp_{size}_{backbone}{ablation}_{data}"
    return Entry(
        name=name,
        paper=PAPER,
        detector=replace(detector, num_classes=CLASSES[data], soft_nms=data != "voc", **ABLATIONS[ablation]),
        recipe=_recipe(size, data, weights),
        family=FAMILY,
        layout=RESNET_LAYOUT if depth else VGG_LAYOUT,
        config=name.replace("refinedetpp", "refinedet") if ablation == "_woalign" else name,
        publisher=AUTHORS,
        page="https://github.com/HaoIrving/RefineDet.PyTorch",
        figures=PUBLISHED.get(name, ()),
        licence="MIT",
        note=STARTS if backbone == "vgg" else "",
        input=(size, size),
    )


def _original(size: int) -> Entry:
    name = f"refinedet_{size}_vgg_voc"
    return Entry(
        name=name,
        paper=PAPER,
        # all of a class stays that was looked at: the port's limit has no effect (docs/quirks.md, rd-08)
        detector=replace(VGG, align=False, nms=0.45, nms_plus_one=False, keep=1000),
        recipe=replace(_recipe(size, "voc", None), optimizer=replace(FIXED, lr=1e-3), schedule=ORIGINAL),
        family=FAMILY,
        layout=PORT_LAYOUT,
        config=name,
        publisher=PORT,
        page="https://github.com/luuuyi/RefineDet.PyTorch",
        figures=PUBLISHED[name],
        licence="MIT",
        note=STARTS,
        input=(size, size),
    )


RESNETS = ("resnet50", "resnet101", "resnet152", "resnext50", "resnext101", "resnext152")
ALL_DATA: tuple[Data, ...] = ("voc", "coco", "ssdd")
ENTRIES = (
    _original(320),
    _original(512),
    *(
        _plus(512, backbone, data, ablation)
        for ablation in ABLATIONS
        for backbone in ("vgg", "vggbn")
        for data in ALL_DATA
    ),
    *(_plus(320, backbone, data) for backbone in RESNETS for data in ALL_DATA if data != "ssdd"),
    *(_plus(512, backbone, data) for backbone in RESNETS for data in ALL_DATA),
    *(_plus(1024, backbone, "coco") for backbone in RESNETS),
    *(
        Entry(
            name=name,
            paper=PAPER,
            detector=replace(NANO, align=align),
            recipe=NANO_RECIPE,
            family=FAMILY,
            layout=OURS,
            input=(128, 128),
        )
        for name, align in (("refinedet_nano", False), ("refinedetpp_nano", True))
    ),
)
