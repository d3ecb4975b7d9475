"""RepPoints equals the published implementations, from raw outputs to detections and training steps."""

import pytest
import torch
from torch import Tensor

from parity import Checks, Record, Run, classes, manifest_shapes, our_shapes
from published import Case, difference, manifests
from relook.detectors.reppoints_v2 import RepPointsV2Outputs
from relook.ops.levels import inside
from relook.zoo.catalog import ENTRIES
from relook.zoo.entry import Entry

CASES = [
    "v1_r50_fpn_1x",
    "v1_r50_fpn_giou_1x",
    "odd_v1_r50_fpn_1x",
    "empty_v1_r50_fpn_giou_1x",
    "mmdet_moment_r50_fpn_gn_1x",
    "mmdet_moment_r101_dconv_c3-c5_gn_2x",
    "mmdet_bbox_grid_r50",
    "odd_mmdet_moment_r50_fpn_gn_1x",
    "v2_r50_fpn_1x",
    "v2_r50_fpn_giou_1x",
    "batch2_v2_r50_fpn_giou_1x",
    "odd_v2_r50_fpn_giou_1x",
    "empty_v2_r50_fpn_1x",
    "v2_r101_fpn_dcnv2_giou_2x",
    "v2_mnv2_c128",
]
TRAJECTORIES = {"mmdet_moment_r50_fpn_gn_1x": 5, "v2_mnv2_c128": 5}  # steps of the fast suite
FINEST = 3  # the stored levels are P3 .. P7

pytestmark = pytest.mark.golden


def entry_of(config: str) -> Entry:
    """The entry made from a published configuration."""
    config = config if config.endswith("_coco") else f"{config}_coco"
    return next(e for e in ENTRIES.values() if e.config == config)


def stored_levels(run: Run, x: Tensor, name: str) -> float:
    """Largest difference between x [B, P, n] and the stored maps raw/NAME/P*."""
    worst = 0.0
    for i, (part, (h, w)) in enumerate(
        zip(x.split(run.outputs.grid.lengths, 1), run.outputs.grid.shapes, strict=True), start=FINEST
    ):
        step = run.case.about.get("raw_stride", {}).get(f"P{i}", 1)
        mine = part.mT.reshape(len(part), -1, h, w)[..., ::step, ::step]
        worst = max(worst, difference(mine, run.case.tensor(f"raw/{name}/P{i}")))
    return worst


class RepPointsChecks(Checks):
    """And what only RepPoints has: maps of points, and assignments."""

    @classmethod
    def make(cls) -> Run:
        case = Case("reppoints", cls.name)
        return Run(case, entry_of(case.about["reference"]["config"]), {})

    def test_raw_outputs(self, run: Run, record_property: Record) -> None:
        """What the network says, at every location of every level, is what the published one says."""
        yx_init, yx_refine = (p.flip(-1).flatten(2) for p in (run.seen.init, run.seen.refine))
        said = {"cls": run.seen.logits, "pts_init": yx_init, "pts_refine": yx_refine}
        if isinstance(run.seen, RepPointsV2Outputs):
            said["hm_score"] = run.seen.score
            said["hm_offset"] = run.seen.corner.flatten(2)
            said["sem"] = run.seen.sem
        stored = {key.split("/")[1] for key in run.case.arrays if key.startswith("raw/")}
        assert stored - {"backbone", "fpn"} == set(said)
        run.check(
            record_property, "raw outputs", max(stored_levels(run, rows, name) for name, rows in said.items())
        )

    def test_assignments(self, run: Run, record_property: Record) -> None:
        """Which point stands for which object, in both stages, and which are left out of the loss."""
        grid = run.outputs.grid
        boxes = run.detector.boxes(grid, run.outputs.init).detach()
        valid = inside(grid.points, run.targets.sizes, multiple=32)
        stages = dict(
            zip(("init", "refine"), run.detector.assign(grid, boxes, valid, run.targets), strict=True)
        )
        for i in range(len(run.sizes)):
            for stage, assigned in stages.items():
                points = assigned.positive[i].nonzero()[:, 0]
                assert torch.equal(points, run.case.tensor(f"assign/{i}/{stage}/points").long())
                gts = run.case.tensor(f"assign/{i}/{stage}/gts").long()
                assert torch.equal(assigned.index[i, points], gts)
                if f"assign/{i}/{stage}/ignored" in run.case.arrays and stage == "refine":
                    ignored = (assigned.ignored[i] & valid[i]).nonzero()[:, 0]
                    assert torch.equal(ignored, run.case.tensor(f"assign/{i}/{stage}/ignored").long())
        run.check(record_property, "assignments", 0.0)


globals().update(classes(RepPointsChecks, CASES, stepping=TRAJECTORIES, without=set()))


@pytest.mark.parametrize("config", list(manifests("reppoints")))
def test_published_keys_load(config: str) -> None:
    """Every key of the published checkpoint has its place and its shape, and none is left over."""
    entry = entry_of(config)
    assert manifest_shapes(entry, manifests("reppoints")[config]) == our_shapes(entry)
