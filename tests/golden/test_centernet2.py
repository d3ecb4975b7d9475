"""CenterNet2 equals the published implementations, from raw outputs to detections and training steps."""

import re

import pytest
import torch

from parity import TOLERANCE, Checks, Record, Run, classes, manifest_shapes, our_shapes
from published import Case, difference, manifests
from relook.weights.compare import alike
from relook.zoo.catalog import ENTRIES

MODELS = {
    "centernet2_cascade_r50_fpn_1x": "centernet2_cascade_r50_fpn_1x",
    "centernet2_cascade_r50_fpn_1x_batch2": "centernet2_cascade_r50_fpn_1x",
    "centernet2_cascade_r50_fpn_1x_traincommit": "centernet2_cascade_r50_fpn_1x_traincommit",
    "original_centernet2_r50_1x": "centernet2_original_r50_fpn_1x",
}
PUBLISHED = {
    "centernet2_cascade_res50_fpn_1x_coco": "centernet2_cascade_r50_fpn_1x",
    "original/CenterNet2_R50_1x": "centernet2_original_r50_fpn_1x",
}
STAGES = 3

pytestmark = pytest.mark.golden


class CenterNet2Checks(Checks):
    """And what only CenterNet2 has: the first look's maps, proposals, every stage of the cascade."""

    @classmethod
    def make(cls) -> Run:
        entry = ENTRIES[MODELS[cls.name]]
        # the cases were made with a budget so large that nothing is drawn by lot
        return Run(Case("centernet2", cls.name), entry, {"roi_samples": 1_000_000})

    def loss_names(self, stored: set[str]) -> dict[str, tuple[str, ...]]:
        """The authors tell the likelihood's loss in two terms."""
        ours: dict[str, tuple[str, ...]] = {}
        for name in sorted(stored):
            kind = "box" if "box" in name else "cls"
            number = re.search(r"\d", name)
            other = "loc" if name.endswith("loc") else "heatmap"
            mine = f"{kind}_{number[0]}" if number else other
            ours[mine] = (*ours.get(mine, ()), name)
        return ours

    def test_raw_outputs(self, run: Run, record_property: Record) -> None:
        """Features, likelihoods and distances of every level."""
        out = run.outputs
        worst = 0.0
        heat, sides = (x.split(out.grid.lengths, 1) for x in (out.logits, out.distances))
        for i, (h, w) in enumerate(out.grid.shapes):
            if f"raw/fpn/{i}" not in run.case.arrays:
                pytest.skip("the case has no maps")
            mine = {
                f"raw/fpn/{i}": out.pyramid[i][:, ::32],
                f"raw/agn_hm/{i}": heat[i].reshape(-1, 1, h, w),
                f"raw/reg/{i}": sides[i].mT.reshape(-1, 4, h, w),
            }
            worst = max(worst, run.worst(mine))
        run.check(record_property, "raw outputs", worst)

    @pytest.mark.parametrize("when", ["test", "train"])
    def test_proposals(self, run: Run, record_property: Record, when: str) -> None:
        """Boxes and scores, as many and in the same order, for prediction and for training."""
        cfg, prefix = run.detector.config, "" if when == "test" else "train/"
        if f"{prefix}proposals/0" not in run.case.arrays:
            pytest.skip("the case has no proposals")
        limits = (
            (cfg.test_top, cfg.test_proposals) if when == "test" else (cfg.train_top, cfg.train_proposals)
        )
        found = run.detector.propose(run.outputs, top=limits[0], keep=limits[1])
        worst = 0.0
        for i in range(len(run.sizes)):
            real = found.scores[i] > 0
            rows = torch.cat([found.boxes[i], found.scores[i, :, None]], dim=1)[real]
            worst = max(worst, difference(rows, run.case.tensor(f"{prefix}proposals/{i}")))
        run.check(record_property, f"proposals ({when})", worst)

    def test_cascade(self, run: Run, record_property: Record) -> None:
        """Regions, logits and changes of each stage at test."""
        cfg, worst, step = run.detector.config, 0.0, run.case.about.get("roi_stride", 1)
        with torch.no_grad():
            rois = run.detector.propose(run.seen, top=cfg.test_top, keep=cfg.test_proposals).boxes
            for i in range(STAGES):
                logits, deltas = run.detector.second(run.seen.pyramid, rois, i)
                mine = {
                    f"raw/cls_score/{i}": logits.flatten(0, 1)[::step],
                    f"raw/bbox_pred/{i}": deltas.flatten(0, 1)[::step],
                }
                stored = run.case.tensor(f"raw/rois/{i}")[:, 1:]
                worst = max(worst, run.worst(mine), difference(rois.flatten(0, 1)[::step], stored))
                rois = run.detector._moved(rois, deltas, i, run.sizes)
        run.check(record_property, "cascade", worst)


@pytest.mark.slow
def test_cn_10_proposals_learn_from_the_second_look() -> None:
    """Detached, as the other line has it, gradients are those stored so: two parameters tell."""
    case = Case("centernet2", "centernet2_cascade_r50_fpn_1x")
    settings = {"roi_samples": 1_000_000, "proposal_gradient": False}
    run = Run(case, ENTRIES["centernet2_cascade_r50_fpn_1x"], settings)
    parameters = dict(run.detector.named_parameters())
    keys = [str(key) for key in case.arrays["grad/keys"]]
    norms = torch.stack([parameters[run.ours[key]].grad.norm() for key in keys])
    assert difference(norms, case.tensor("grad_detached/norms")) < TOLERANCE
    leaking = case.tensor("grad/norms")
    changed = ((norms - leaking).abs() > 0.3 * leaking).nonzero()[:, 0].tolist()
    told = {keys[i].rsplit(".", 1)[0] for i in changed}
    assert told == {"rpn_head.scales.3", "neck.fpn_convs.3.conv"}


globals().update(
    classes(
        CenterNet2Checks,
        list(MODELS),
        stepping={"original_centernet2_r50_1x": 2},
        without={"centernet2_cascade_r50_fpn_1x_traincommit"},
    )
)


@pytest.mark.parametrize("config", list(PUBLISHED))
def test_published_keys_load(config: str) -> None:
    """Every key of the published checkpoint has its place and its shape, and none is left over."""
    entry = ENTRIES[PUBLISHED[config]]
    theirs, ours = manifest_shapes(entry, manifests("centernet2")[config]), our_shapes(entry)
    counters = {name for name in ours if name.endswith("num_batches_tracked")}
    assert set(theirs) in (set(ours), set(ours) - counters)
    assert all(alike(shape, ours[name]) for name, shape in theirs.items())
