"""Single functions of RepPoints V2 against the published implementation's own answers."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from golden import recipe
from published import Case, difference
from relook.assign.verification import corners, gaussian_radius, semantic
from relook.backbones.timm_maps import TimmMapsConfig
from relook.detectors.reppoints_v2 import (
    HeadMaps,
    RepPointsV2Config,
    RepPointsV2Head,
    RepPointsV2Outputs,
    sem_loss,
    verified,
)
from relook.ops import boxes as B
from relook.ops import levels as L
from relook.ops.corner_pool import Direction, by_doubling, corner_pool
from relook.ops.losses import gaussian_focal
from relook.parts import point_sets
from relook.types import Targets
from relook.zoo.families.reppoints import MMDET_LAYOUT

pytestmark = pytest.mark.golden

STRIDES = (8, 16, 32, 64, 128)
PLAIN = Case("reppoints", "components")
ODD = Case("reppoints", "components_odd")


def pyramid(height: int, width: int) -> L.Grid:
    """The points of P3 .. P7 of an image."""
    maps = [torch.zeros(1, 1, -(-height // s), -(-width // s), dtype=torch.float64) for s in STRIDES]
    return L.grid(maps, STRIDES, offset=0.0)


def plain_targets() -> Targets:
    return Targets.pad([PLAIN.tensor("gt/boxes")], [PLAIN.tensor("gt/labels").long()], [(160, 224)])


@pytest.mark.parametrize("direction", ["top", "bottom", "left", "right"])
def test_corner_pooling(direction: Direction) -> None:
    """Both ways of computing it, to the last bit."""
    x, stored = PLAIN.tensor("pool/input"), PLAIN.tensor(f"pool/{direction}")
    assert torch.equal(corner_pool(x, direction), stored)
    assert torch.equal(by_doubling(x, direction), stored)


def test_rp_10_every_corner_is_a_target_on_every_level() -> None:
    """Heat, positives and offsets of seven boxes; corners share locations on coarse levels."""
    grid, targets = pyramid(160, 224), plain_targets()
    radius = gaussian_radius(B.size(targets.boxes[0]), 0.7)
    assert difference(radius, PLAIN.tensor("heat/radius")) < 1e-6
    valid = L.inside(grid.points, targets.sizes, multiple=32)
    wanted = corners(grid, valid, targets, overlap=0.7)
    for kind, name in enumerate(("tl", "br")):
        assert difference(wanted.heat[0, :, kind], PLAIN.tensor(f"heat/{name}")) < 1e-6
        positive = wanted.positive[0, :, kind]
        assert torch.equal(positive.nonzero()[:, 0], PLAIN.tensor(f"heat/pos_{name}"))
        offsets = torch.where(positive[:, None], wanted.offset[0, :, kind], 0)
        assert difference(offsets, PLAIN.tensor(f"heat/offset_{name}")) < 1e-6
    assert wanted.offset[wanted.positive].abs().max() > 0.5, "an offset may leave the nearest cell"


def test_class_map() -> None:
    """Where classes are, and one over the area of the smallest box there, on every level."""
    grid = pyramid(160, 224)
    weight = semantic(grid, plain_targets(), classes=4, multiple=32)[0]  # [P, C]
    for level, part, (h, w) in zip(range(3, 8), weight.split(grid.lengths), grid.shapes, strict=True):
        mine = part.mT.reshape(4, h, w)
        assert torch.equal((mine > 0).double(), PLAIN.tensor(f"sem/map_P{level}"))
        assert difference(mine, PLAIN.tensor(f"sem/weights_P{level}")) < 1e-6


def odd_targets() -> Targets:
    sizes = [(i["height"], i["width"]) for i in ODD.about["images"]]
    made = [
        recipe.targets(t["seed"], h, w, t["count"], t["num_classes"])
        for t, (h, w) in zip(ODD.about["targets"], sizes, strict=True)
    ]
    return Targets.pad(
        [torch.from_numpy(t["boxes"]).double() for t in made],
        [torch.from_numpy(t["labels"]) for t in made],
        sizes,
    )


@pytest.mark.parametrize("image", [0, 1])
def test_corners_at_everyday_size(image: int) -> None:
    """Positives, offsets, the sum of the heat and the number of warm locations, of forty boxes each."""
    grid, targets = pyramid(*ODD.about["batch_size"]), odd_targets()
    valid = L.inside(grid.points, targets.sizes, multiple=32)
    wanted = corners(grid, valid, targets, overlap=0.7)
    for kind, name in enumerate(("tl", "br")):
        points = wanted.positive[image, :, kind].nonzero()[:, 0]
        assert torch.equal(points, ODD.tensor(f"heat/{image}/pos_{name}"))
        offsets = wanted.offset[image, points, kind]
        assert difference(offsets, ODD.tensor(f"heat/{image}/offset_{name}")) < 1e-6
        heat = wanted.heat[image, :, kind].split(grid.lengths)
        sums = torch.stack([h.sum() for h in heat])
        assert difference(sums, ODD.tensor(f"heat/{image}/sum_{name}")) < 1e-6
        soft = torch.stack([((h > 0) & (h < 1)).sum() for h in heat])
        assert torch.equal(soft, ODD.tensor(f"heat/{image}/soft_{name}"))


@pytest.mark.parametrize("image", [0, 1])
def test_class_map_at_everyday_size(image: int) -> None:
    """Cells per class and level, the sums of their weights, and on coarse levels every cell."""
    grid = pyramid(*ODD.about["batch_size"])
    weight = semantic(grid, odd_targets(), classes=80, multiple=32)[image]
    for level, part, (h, w) in zip(range(3, 8), weight.split(grid.lengths), grid.shapes, strict=True):
        assert torch.equal((part > 0).sum(0), ODD.tensor(f"sem/{image}/count/P{level}"))
        assert difference(part.sum(0), ODD.tensor(f"sem/{image}/weight_sum/P{level}")) < 1e-6
        if f"sem/{image}/cells/P{level}" in ODD.arrays:
            maps = part.mT.reshape(80, h, w)
            cells = maps.nonzero()
            assert torch.equal(cells, ODD.tensor(f"sem/{image}/cells/P{level}").long())
            assert difference(maps[maps > 0], ODD.tensor(f"sem/{image}/weights/P{level}")) < 1e-6


def test_focal_loss_of_heat() -> None:
    """Value, and gradient with respect to the probability."""
    p = PLAIN.tensor("loss/gaussian_focal/probability")
    logits = torch.logit(p).requires_grad_()
    values = gaussian_focal(logits, PLAIN.tensor("loss/gaussian_focal/target"))
    assert difference(values, PLAIN.tensor("loss/gaussian_focal/values")) < 1e-6
    values.sum().backward()
    assert logits.grad is not None
    assert difference(logits.grad, PLAIN.tensor("loss/gaussian_focal/grad") * p * (1 - p)) < 1e-6


def test_rp_11_class_map_weighs_positives_by_area_and_negatives_by_count() -> None:
    """Value and gradient; a batch without a box, where the published loss is infinite, stays finite."""
    logits = PLAIN.tensor("loss/sem/logits").requires_grad_()
    target, weight = PLAIN.tensor("loss/sem/target"), PLAIN.tensor("loss/sem/weights")
    assert target.sum() > 0
    value = sem_loss(logits, weight * target)
    assert difference(value, PLAIN.tensor("loss/sem/value")) < 1e-6
    value.backward()
    assert logits.grad is not None
    assert difference(logits.grad, PLAIN.tensor("loss/sem/grad")) < 1e-6
    assert sem_loss(logits, torch.zeros_like(weight)).isfinite()


class Watch:
    """What passes through the layers of a head."""

    def __init__(self, head: RepPointsV2Head, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[str, Tensor] = {}
        for name in ("cls_tower", "reg_tower", "shared", "sem_embedding", "top_left", "bottom_right"):
            head.get_submodule(name).register_forward_hook(self.keep(name))
        looked = iter((("cls_conv_input", "deform_offset"), ("refine_conv_input", "deform_offset")))

        def sample(x: Tensor, where: Tensor, conv: nn.Conv2d) -> Tensor:
            self.seen.update(zip(next(looked), (x, where), strict=True))
            return point_sets.sample_at_points(x, where, conv)

        monkeypatch.setattr("relook.detectors.reppoints_v2.sample_at_points", sample)

    def keep(self, name: str):
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.seen[name] = output
            if name == "top_left":
                self.seen["corner_input"] = inputs[0]

        return hook


def test_head_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head alone: every feature on the way, and its six answers."""
    config = RepPointsV2Config(backbone=TimmMapsConfig(name="mobilenetv2_100"), width=128)
    head = RepPointsV2Head(config).double()
    manifest, override = PLAIN.about["head_manifest"], PLAIN.about["head_override"]
    state = {k: torch.from_numpy(v) for k, v in recipe.state(manifest, override).items()}
    names = MMDET_LAYOUT.rename(state)
    head.load_state_dict({names[k].removeprefix("head."): v for k, v in state.items()})
    watch = Watch(head, monkeypatch)
    out: HeadMaps = head(PLAIN.tensor("head/input"))
    published = {
        "cls_tower": "cls_tower",
        "reg_tower": "reg_tower",
        "shared": "shared",
        "sem_embedding": "sem_feature",
        "corner_input": "corner_input",
        "top_left": "top_left_feature",
        "bottom_right": "bottom_right_feature",
    }
    for mine, theirs in published.items():
        assert difference(watch.seen[mine][:, ::16], PLAIN.tensor(f"head/{theirs}")) < 1e-6, mine
    for name in ("cls_conv_input", "refine_conv_input"):
        x = watch.seen[name]
        # features and then, as they are, the verified: docs/quirks.md, rp-07
        assert difference(torch.cat([x[:, :128:16], x[:, 128:]], 1), PLAIN.tensor(f"head/{name}")) < 1e-6, (
            name
        )
    assert difference(watch.seen["deform_offset"], PLAIN.tensor("head/deform_offset")) < 1e-6
    answers = {
        "cls": out.logits,
        "pts_init": out.init,
        "pts_refine": out.refine,
        "hm_score": out.score,
        "hm_offset": out.corner,
        "sem": out.sem,
    }
    for name, x in answers.items():
        assert difference(x, PLAIN.tensor(f"head/out/{name}")) < 1e-6, name


def test_rp_12_corners_move_to_finer_maps_in_windows_of_two_by_two() -> None:
    """Boxes of every location of every level before and after."""
    grid = pyramid(160, 224)
    total = len(grid.points)
    score, corner = (torch.zeros(1, total, n, dtype=torch.float64) for n in (2, 4))
    start = 0
    for level, n in zip(("P3", "P4"), grid.lengths, strict=False):
        score[0, start : start + n] = PLAIN.tensor(f"refine/hm_score_{level}").flatten(1).mT
        corner[0, start : start + n] = PLAIN.tensor(f"refine/hm_offset_{level}").flatten(1).mT
        start += n
    nothing = torch.zeros(1, total, 0, dtype=torch.float64)
    outputs = RepPointsV2Outputs(
        grid, nothing, nothing, nothing, score, corner.reshape(1, total, 2, 2), nothing
    )
    level = PLAIN.tensor("refine/level").long()
    assert torch.equal(level, grid.level)
    before = PLAIN.tensor("refine/boxes_before")[None]
    after = B.clip(verified(outputs, before, level[None]), PLAIN.tensor("refine/image_size")[None])
    stored = PLAIN.tensor("refine/boxes_after")
    assert difference(after[0], stored) < 1e-6
    finest = cast("Tensor", level == 0)
    assert torch.equal(stored[finest], before[0][finest])
    assert not torch.equal(stored[~finest], before[0][~finest])
