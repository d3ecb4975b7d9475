"""Where the points of an untrained model lie: published ones in one place, ours on a box of their level."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import relook
from relook.backbones.timm_maps import TimmMapsConfig
from relook.detectors.reppoints import RepPointsConfig
from relook.detectors.reppoints_v2 import RepPointsV2Config

SMALL: dict[str, Any] = {"backbone": TimmMapsConfig(name="mobilenetv2_035"), "width": 16, "norm_groups": 4}
V1, V2 = RepPointsConfig(**SMALL), RepPointsV2Config(**SMALL, corner_width=8)


def init(config: RepPointsConfig | RepPointsV2Config) -> Any:
    """The untrained model and its first look at a grey image, without the little that its weights add."""
    torch.manual_seed(0)
    detector = config.build()
    torch.nn.init.zeros_(detector.head.init_out.weight)
    return detector, detector(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("config", [V1, V2, replace(V1, box="exact_minmax")])
def test_published_models_start_with_all_points_in_one_place(config: Any) -> None:
    """On their location; a model that learns from nothing has to spread them first."""
    assert not init(config)[1].init.any()


@pytest.mark.parametrize("config", [*(replace(V1, box=kind) for kind in ("minmax", "partial_minmax")), V2])
def test_points_start_on_the_box_of_their_level(config: Any) -> None:
    """With a reach of two strides the box is four strides large, as an object of that level is, in order."""
    detector, outputs = init(replace(config, start_reach=2.0))
    grid = outputs.grid
    reach = 2 * grid.stride[:, None]
    expected = torch.cat([grid.points - reach, grid.points + reach], -1)
    torch.testing.assert_close(detector.boxes(grid, outputs.init)[0], expected)
    grids = {(x, y) for x, y in outputs.init[0, 0].tolist()}
    assert grids == {(x, y) for x in (-2.0, 0.0, 2.0) for y in (-2.0, 0.0, 2.0)}


def test_a_moment_box_starts_around_its_location() -> None:
    """Spread over the box that the same points span: its half is their unbiased deviation."""
    detector, outputs = init(replace(V1, start_reach=2.0))
    half = 3**0.5 * outputs.grid.stride[:, None]
    expected = torch.cat([outputs.grid.points - half, outputs.grid.points + half], -1)
    torch.testing.assert_close(detector.boxes(outputs.grid, outputs.init)[0], expected)


def test_grid_points_start_as_a_grid_anyway() -> None:
    """Four numbers change a box of four strides; nothing is added to them."""
    for reach in (0.0, 2.0):
        outputs = init(replace(V1, grid_points=True, box="minmax", start_reach=reach))[1]
        assert {x for x, _ in outputs.init[0, 0].tolist()} == {-2.0, 0.0, 2.0}


def test_our_small_models_start_spread_and_the_published_do_not() -> None:
    """A published recipe stays as it was published."""
    spread = {name for name in relook.list_models() if getattr(relook.entry(name).detector, "start_reach", 0)}
    assert spread == {"reppoints_nano", "reppoints_v2_nano"}
