"""RepPoints equals the published implementations, from raw outputs to detections and training steps."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import relook
from published import Case, difference, manifests
from relook.detectors.reppoints import RepPoints
from relook.detectors.reppoints_v2 import RepPointsV2, RepPointsV2Outputs
from relook.ops.levels import inside
from relook.zoo.catalog import ENTRIES
from relook.zoo.entry import Entry

TOLERANCE = 1e-6  # relative, in float64; the cases are stored in float32, 6e-8
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
TRAJECTORIES = {"mmdet_moment_r50_fpn_gn_1x", "v2_mnv2_c128"}  # trained in the fast suite; the rest is slow
Record = Callable[[str, object], None]  # pytest's record_property
FINEST = 3  # the stored levels are P3 .. P7

pytestmark = pytest.mark.golden


def entry_of(config: str) -> Entry:
    """The entry made from a published configuration."""
    config = config if config.endswith("_coco") else f"{config}_coco"
    return next(e for e in ENTRIES.values() if e.config == config)


class Run:
    """One case, computed once for all its tests."""

    def __init__(self, name: str) -> None:
        self.case = Case("reppoints", name)
        self.entry = entry_of(self.case.about["reference"]["config"])
        detector = relook.create_model(self.entry.name).double()
        assert isinstance(detector, RepPoints | RepPointsV2)
        self.detector = detector
        self.state = self.case.state()
        self.ours = self.entry.layout.rename(self.state)
        relook.load_published(self.detector, self.state)
        self.start = copy.deepcopy(self.detector.state_dict())
        self.images, self.sizes = self.case.images()
        self.targets = self.case.targets()
        with torch.no_grad():  # what is asked at test time differs where statistics are the batch's
            self.seen = self.detector.eval()(self.images) if self.entry.recipe.sync_bn else None
        self.outputs = self.detector.train()(self.images)
        self.seen = self.seen or self.outputs
        self.losses = self.detector.loss(self.outputs, self.targets)
        torch.stack(list(self.losses.values())).sum().backward()

    def stored_levels(self, x: Tensor, name: str) -> float:
        """Largest difference between x [B, P, n] and the stored maps raw/NAME/P*."""
        worst = 0.0
        for i, (part, (h, w)) in enumerate(
            zip(x.split(self.outputs.grid.lengths, 1), self.outputs.grid.shapes, strict=True), start=FINEST
        ):
            step = self.case.about.get("raw_stride", {}).get(f"P{i}", 1)
            mine = part.mT.reshape(len(part), -1, h, w)[..., ::step, ::step]
            worst = max(worst, difference(mine, self.case.tensor(f"raw/{name}/P{i}")))
        return worst

    def check(self, record: Record, what: str, largest: float) -> None:
        """Notes the difference for docs/parity.md and holds it below the tolerance."""
        record("parity", f"{self.case.name} (`{self.entry.name}`)|{what}|{largest}")
        assert largest < TOLERANCE, f"{self.case.name}: {what} differ by {largest:.1e}"


class Checks:
    """Everything that is compared in one case; each case is a class, so that one process does all of it."""

    name: str

    @pytest.fixture(scope="class")
    @classmethod
    def run(cls) -> Run:
        return Run(cls.name)

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
            record_property, "raw outputs", max(run.stored_levels(rows, name) for name, rows in said.items())
        )

    def test_detections(self, run: Run, record_property: Record) -> None:
        """The same boxes with the same scores and classes in the same order."""
        largest = 0.0
        for i, found in enumerate(run.detector.predict(run.seen, run.sizes).unpad()):
            assert torch.equal(found.labels, run.case.tensor(f"det/{i}/labels"))
            largest = max(
                largest,
                difference(found.boxes, run.case.tensor(f"det/{i}/boxes")),
                difference(found.scores, run.case.tensor(f"det/{i}/scores")),
            )
        run.check(record_property, "detections", largest)

    def test_losses(self, run: Run, record_property: Record) -> None:
        """Every term of the loss."""
        stored = {
            k.removeprefix("loss/") for k in run.case.arrays if k.startswith("loss/") and k != "loss/total"
        }
        assert set(run.losses) == stored
        run.check(
            record_property,
            "losses",
            max(difference(v, run.case.tensor(f"loss/{k}")) for k, v in run.losses.items()),
        )

    def test_gradients(self, run: Run, record_property: Record) -> None:
        """The gradient's norm of every trained parameter, and no gradient anywhere else."""
        keys = [str(key) for key in run.case.arrays["grad/keys"]]
        parameters = dict(run.detector.named_parameters())
        assert {run.ours[k] for k in keys} == {k for k, p in parameters.items() if p.grad is not None}
        norms = torch.stack([g.norm() for k in keys if (g := parameters[run.ours[k]].grad) is not None])
        run.check(record_property, "gradient norms", difference(norms, run.case.tensor("grad/norms")))

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

    def training_steps(self, run: Run, record_property: Record) -> None:
        """The total loss before each of five SGD steps."""
        run.detector.load_state_dict(run.start)
        trained = [p for p in run.detector.parameters() if p.requires_grad]
        sgd = torch.optim.SGD(trained, lr=run.case.about["sgd_lr"], momentum=0.9, weight_decay=1e-4)
        totals: list[Tensor] = []
        for _ in range(5):
            sgd.zero_grad()
            total = torch.stack(list(run.detector.loss(run.detector(run.images), run.targets).values())).sum()
            total.backward()
            sgd.step()
            totals.append(total.detach())
        run.check(
            record_property,
            "five SGD steps",
            difference(torch.stack(totals), run.case.tensor("trajectory/total")),
        )


def the_same_but_slow(self: Checks, run: Run, record_property: Record) -> None:
    """The total loss before each of five SGD steps."""
    self.training_steps(run, record_property)


for _name in CASES:
    _steps = Checks.training_steps if _name in TRAJECTORIES else pytest.mark.slow(the_same_but_slow)
    _kind = type(f"Test_{_name}", (Checks,), {"name": _name, "test_training_steps": _steps})
    globals()[_kind.__name__] = _kind


@pytest.mark.parametrize("config", list(manifests("reppoints")))
def test_published_keys_load(config: str) -> None:
    """Every key of the published checkpoint has its place and its shape, and none is left over."""
    entry = entry_of(config)
    with torch.device("meta"):
        ours = entry.detector.build().state_dict()
    stored = manifests("reppoints")[config]
    names = entry.layout.rename(key for key, _ in stored)
    assert {names[key]: tuple(shape) for key, shape in stored} == {k: tuple(v.shape) for k, v in ours.items()}
