"""DPT with RetinaNet and Mask R-CNN equals the published code, from raw outputs to training steps."""

import numpy as np
import pytest
import torch

import relook
from parity import Checks, Record, Run, classes, manifest_shapes, our_shapes
from published import Case, difference, manifests
from relook.backbones.dpt import DPT, DPTClassifier, DPTConfig
from relook.cli import main
from relook.ops.masks import paste
from relook.weights.pretrained import load_backbone
from relook.zoo.catalog import ENTRIES
from relook.zoo.entry import Entry

RETINANET = ["retinanet_dpt_t", "retinanet_dpt_s", "retinanet_dpt_t_batch2", "retinanet_dpt_t_empty_gt"]
MASK_RCNN = ["mask_rcnn_dpt_t", "mask_rcnn_dpt_t_empty_gt"]
PUBLISHED = [name for name in manifests("dpt") if "_dpt_" in name and "detr" not in name]

pytestmark = pytest.mark.golden


def entry_of(config: str) -> Entry:
    """The entry made from a published configuration."""
    return next(e for e in ENTRIES.values() if e.config == config)


class DPTChecks(Checks):
    """And what only these have: maps of the backbone and of the pyramid."""

    @classmethod
    def make(cls) -> Run:
        case = Case("dpt", cls.name)
        # the cases were made without drop path, and with budgets so large that nothing is drawn by lot
        many = {"rpn_samples": 1_000_000, "roi_samples": 1_000_000} if "mask" in cls.name else {}
        return Run(case, entry_of(case.about["reference"]["config"]), {"drop_path": 0.0, **many})

    def loss_names(self, stored: set[str]) -> dict[str, tuple[str, ...]]:
        return {name.removeprefix("loss_"): (name,) for name in stored}

    def test_backbone(self, run: Run, record_property: Record) -> None:
        """All of its maps, also those that the pyramid does not take."""
        step, backbone = run.case.about["subset"]["backbone"], run.detector.backbone
        x, maps = run.images, {}
        with torch.no_grad():
            for i, stage in enumerate(backbone.stages):
                x = stage(x)
                maps[f"raw/backbone/c{i + 2}"] = x.flatten()[::step]
        run.check(record_property, "raw outputs", run.worst(maps))


class RetinaNetChecks(DPTChecks):
    def test_raw_outputs(self, run: Run, record_property: Record) -> None:
        """Logits and changes of every level."""
        steps, out, mine = run.case.about["subset"], run.outputs, {}
        for name, rows in (("cls", out.logits), ("reg", out.deltas)):
            parts = rows.split([n * 9 for n in out.grid.lengths], 1)
            for i, (part, (h, w)) in enumerate(zip(parts, out.grid.shapes, strict=True), start=3):
                maps = part.reshape(len(part), h, w, -1).permute(0, 3, 1, 2)
                mine[f"raw/{name}/p{i}"] = maps.flatten()[:: steps[name]]
        run.check(record_property, "raw outputs", run.worst(mine))

    def test_assignments(self, run: Run, record_property: Record) -> None:
        """Which anchors stand for an object, and which for nothing."""
        assigned = run.detector.assign(run.outputs, run.targets)
        for i in range(len(run.sizes)):
            hit = assigned.positive[i].nonzero()[:, 0]
            assert torch.equal(hit, run.case.tensor(f"target/anchor/{i}/pos_index"))
            labels = assigned.labels(run.targets)[i, hit]
            assert torch.equal(labels, run.case.tensor(f"target/anchor/{i}/pos_label"))
        run.check(record_property, "assignments", 0.0)


class MaskRCNNChecks(DPTChecks):
    def test_raw_outputs(self, run: Run, record_property: Record) -> None:
        """Logits and changes of the first look at every level."""
        steps, out, mine = run.case.about["subset"], run.outputs, {}
        for name, rows in (("cls", out.first.logits[..., None]), ("reg", out.first.deltas)):
            parts = rows.split(list(out.first.lengths), 1)
            for i, (part, (h, w)) in enumerate(zip(parts, out.grid.shapes, strict=True), start=2):
                maps = part.reshape(len(part), h, w, -1).permute(0, 3, 1, 2)
                mine[f"raw/rpn_{name}/p{i}"] = maps.flatten()[:: steps[name]]
        run.check(record_property, "raw outputs", run.worst(mine))

    def test_proposals(self, run: Run, record_property: Record) -> None:
        """Boxes and scores in the same order, at test and in training."""
        worst = 0.0
        for name, top in (("raw/proposals", 1000), ("target/roi", 2000)):
            found = run.detector.propose(run.outputs, run.sizes, top=top)
            for i in range(len(run.sizes)):
                stored = f"{name}/{i}" if top == 1000 else f"{name}/{i}/proposals"
                rows = torch.cat([found.boxes[i], found.scores[i, :, None]], 1)[found.scores[i] > 0]
                worst = max(worst, difference(rows, run.case.tensor(stored)))
        run.check(record_property, "proposals (test)", worst)

    def test_masks(self, run: Run, record_property: Record) -> None:
        """Pasted masks of all detections, pixel by pixel."""
        for i, (one, (h, w)) in enumerate(zip(run.found, run.sizes.tolist(), strict=True)):
            masks = paste(one.masks, one.boxes, (h, w)).numpy()
            stored = np.unpackbits(run.case.arrays[f"det/{i}/masks"])[: masks.size].reshape(masks.shape)
            assert (masks == stored.astype(bool)).all()
            assert masks.sum((1, 2)).tolist() == run.case.arrays[f"det/{i}/mask_areas"].tolist()
        run.check(record_property, "masks", 0.0)


globals().update(
    classes(RetinaNetChecks, RETINANET, stepping={"retinanet_dpt_t": 2}, without=set())
    | classes(MaskRCNNChecks, MASK_RCNN, stepping={}, without=set())
)


@pytest.mark.parametrize("config", PUBLISHED)
def test_published_keys_load(config: str) -> None:
    """Every key of the published checkpoint has its place and its shape, and none is left over."""
    entry = entry_of(config)
    assert manifest_shapes(entry, manifests("dpt")[config]) == our_shapes(entry)


@pytest.mark.parametrize("config", PUBLISHED)
def test_parameters_are_those_of_the_table(config: str) -> None:
    """As published, in millions."""
    family, _, size = config.split("_fpn", maxsplit=1)[0].rpartition("_")
    table = {"retinanet": {"t": 24.9, "s": 36.1, "m": 55.9}, "mask_rcnn": {"t": 34.8, "s": 46.1, "m": 65.8}}
    wanted = table[family.removesuffix("_dpt")][size]
    with torch.device("meta"):
        count = sum(p.numel() for p in entry_of(config).detector.build().parameters())
    assert round(count / 1e6, 1) == wanted


def test_classification() -> None:
    """The ImageNet network whose weights start the detectors: logits of two images."""
    case = Case("dpt", "classification_dpt_tiny")
    state = case.state() | {key: torch.zeros(1) for key in case.about["derived"]}
    classifier = DPTClassifier(DPTConfig()).double().eval()
    classifier.load(state)
    assert difference(classifier(case.images()[0]), case.tensor("raw/logits")) < 1e-6


@pytest.mark.parametrize("size", ["tiny", "small", "medium"])
def test_backbones_take_the_classifiers_weights(size: str, tmp_path, capsys) -> None:
    """Every tensor of a detector's backbone is in the ImageNet file, also under `model`."""
    entry = relook.entry(f"retinanet_dpt_{size[0]}_fpn_1x")
    shapes = manifests("dpt")[f"imagenet/dpt_{size}"]
    made = {key: torch.zeros(()).expand(shape) for key, shape in shapes}
    torch.save({"model": made, "epoch": 300, "args": None}, tmp_path / "dpt.pth")
    detector = entry.detector.build()
    assert isinstance(detector.backbone, DPT)
    assert load_backbone(detector, str(tmp_path / "dpt.pth")) == len(detector.backbone.state_dict())
    assert main(["doctor", str(tmp_path / "dpt.pth")]) == 0
    out = capsys.readouterr().out
    assert f"ImageNet weights for the backbone of retinanet_dpt_{size[0]}_fpn_1x" in out
    assert "--backbone-weights" in out
