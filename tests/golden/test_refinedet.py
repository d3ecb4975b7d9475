"""RefineDet and RefineDet++ equal the published code, from raw outputs to training steps."""

import pytest
import torch

from parity import Checks, Record, Run, classes, manifest_shapes, our_shapes
from published import Case, manifests
from relook.assign.best_prior import best_prior
from relook.zoo.catalog import ENTRIES

MODELS = {
    "refinedet_320_vgg": "refinedet_320_vgg_voc",
    "refinedetpp_320_resnet50": "refinedetpp_320_resnet50_voc",
    "refinedetpp_512_vgg": "refinedetpp_512_vgg_voc",
    "refinedetpp_512_vggbn": "refinedetpp_512_vggbn_voc",
    "refinedetpp_512_vggbn_coco": "refinedetpp_512_vggbn_coco",
    "batch2_refinedetpp_512_vgg": "refinedetpp_512_vgg_voc",
}

pytestmark = pytest.mark.golden


class RefineDetChecks(Checks):
    """And what only RefineDet has: both looks' rows, matching and mining of each."""

    @classmethod
    def make(cls) -> Run:
        return Run(Case("refinedet", cls.name), ENTRIES[MODELS[cls.name]], {})

    def test_raw_outputs(self, run: Run, record_property: Record) -> None:
        """Logits and changes of both looks."""
        out, steps = run.seen, run.case.about["raw_stride"]
        kinds = {
            "arm_loc": out.first_deltas,
            "arm_conf": out.first_logits,
            "odm_loc": out.deltas,
            "odm_conf": out.logits,
        }
        mine = {
            f"raw/{kind}/{i}": part[:, :: steps[i]]
            for kind, rows in kinds.items()
            for i, part in enumerate(rows.split([3 * n for n in out.grid.lengths], 1))
        }
        run.check(record_property, "raw outputs", run.worst(mine))

    def test_assignments(self, run: Run, record_property: Record) -> None:
        """Which anchors stand for which object in either look, and which of them are dropped."""
        out, boxes = run.outputs, {}
        boxes["arm"], boxes["odm"] = out.anchors[None], run.detector.refined(out).detach()
        believed = out.first_logits.softmax(-1)[..., 1] > run.detector.config.objectness
        for kind, references in boxes.items():
            assigned = best_prior(references, run.targets, positive=0.5)
            for i in range(len(run.sizes)):
                hit = assigned.positive[i] & (believed[i] if kind == "odm" else True)
                rows = hit.nonzero()[:, 0]
                pairs = torch.stack([rows, assigned.index[i, rows]], 1)
                assert torch.equal(pairs, run.case.tensor(f"match/{i}/{kind}").long())
        run.check(record_property, "assignments", 0.0)


# half a minute each: what they have beside the others is a batch of two, and 20 classes with batch statistics
SLOW = ("batch2_refinedetpp_512_vgg", "refinedetpp_512_vggbn")
made = classes(RefineDetChecks, list(MODELS), stepping={"refinedet_320_vgg": 2}, without=set())
for name in SLOW:
    pytest.mark.slow(made[f"Test_{name}"])
globals().update(made)


@pytest.mark.parametrize("config", list(manifests("refinedet")))
def test_published_keys_load(config: str) -> None:
    """Every key of the published checkpoint has its place and its shape, and none is left over."""
    entry = next(e for e in ENTRIES.values() if e.config == config)
    assert manifest_shapes(entry, manifests("refinedet")[config]) == our_shapes(entry)
