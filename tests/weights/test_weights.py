"""Reading checkpoints without running their code, saying which model they are, and loading them strictly."""

import gzip
import io
import json
import os
import pickle
import re
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from relook.archives import CheckpointError
from relook.backbones.resnet import ResNetConfig
from relook.detectors.reppoints import RepPointsConfig
from relook.weights import shapes as table
from relook.weights.compare import Difference
from relook.weights.identify import identify
from relook.weights.loading import load_published
from relook.weights.reading.checkpoint import (
    Checkpoint,
    Description,
    read_checkpoint,
    save_weights,
)
from relook.zoo.catalog import ENTRIES, find

MANIFESTS = Path(__file__).parents[1] / "golden" / "reppoints" / "manifests.json.gz"
SMALL = "reppoints_v1/reppoints_v1_mobilenet_fpn_giou_128c_mstrain_2x_coco"
MOMENT = "reppoints-moment_r50_fpn-gn_head-gn_1x_coco"


def published(name: str, *, device: str = "meta", classes: int = 80) -> dict[str, Tensor]:
    """A state dict with the published names and shapes; the classification layer has `classes` outputs."""
    manifest = json.loads(gzip.decompress(MANIFESTS.read_bytes()))[name]
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in manifest:
        sides = [classes, *shape[1:]] if "reppoints_cls_out" in key else shape
        state[key] = (
            torch.empty(sides, device="meta") if device == "meta" else torch.randn(sides, generator=generator)
        )
    return state


def save(content: object, path: Path, *, old: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


def claims(path: Path, state: dict[str, Tensor], **facts: Any) -> Checkpoint:
    return Checkpoint(path=path, state=state, **facts)


# -- files that would run code ---------------------------------------------------------------------


class Writes:
    """Unpickled the plain way, it writes a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, (f"open({str(self.victim)!r}, 'w').write('owned')",)


class Shells(Writes):
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.victim}",)


class Reaches(Writes):
    """Goes through getattr, which has a stand-in."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return getattr, ("text", "upper")


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("kind", [Writes, Shells, Reaches])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(
    tmp_path: Path, kind: type[Writes], old: bool
):
    """The victim file is not there afterwards; the sentence names the file, the function and the way out."""
    victim = tmp_path / "victim"
    path = save({"state_dict": {"w": torch.zeros(1)}, "meta": kind(victim)}, tmp_path / "evil.pth", old=old)
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(path)
    assert not victim.exists()
    for part in ("evil.pth", "refused", "nothing of it was run", "state dict"):
        assert part in str(refused.value)
    wanted = {Writes: "exec", Shells: "system", Reaches: "getattr"}[kind]
    assert wanted in str(refused.value)


def test_the_same_file_does_its_harm_when_loaded_the_plain_way(tmp_path: Path):
    """So the test above would notice if nothing were dangerous in its files."""
    victim = tmp_path / "victim"
    path = save({"meta": Writes(victim)}, tmp_path / "evil.pth")
    torch.load(path, weights_only=False)
    assert victim.exists()


def test_a_plain_pickle_and_one_of_a_newer_protocol_run_nothing(tmp_path: Path):
    """Files that torch did not write are refused as well."""
    victim = tmp_path / "victim"
    for protocol in (2, 4, 5):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps({"model": Writes(victim)}, protocol=protocol))
        with pytest.raises(CheckpointError, match=path.name):
            read_checkpoint(path)
    assert not victim.exists()


# -- files of the old frameworks -------------------------------------------------------------------


@pytest.fixture
def mmengine() -> Iterator[Any]:
    """Something like mmengine's classes, under their names, while a file is written."""
    buffer = types.ModuleType("mmengine.logging.history_buffer")
    exec(
        "import numpy as np\n"
        "class HistoryBuffer:\n"
        "    def __init__(self):\n"
        "        self._log_history = np.arange(3.0)\n"
        "        self._count_history = np.ones(3, dtype=np.int64)\n"
        "    def min(self): ...\n"
        "    def __getstate__(self):\n"
        "        return {**self.__dict__, 'statistics_methods': {'min': HistoryBuffer.min}}\n",
        buffer.__dict__,
    )
    config = types.ModuleType("mmengine.config.config")
    exec("class ConfigDict(dict):\n    pass\n", config.__dict__)
    names = {
        "mmengine": types.ModuleType("mmengine"),
        "mmengine.logging": types.ModuleType("mmengine.logging"),
        "mmengine.config": types.ModuleType("mmengine.config"),
        "mmengine.logging.history_buffer": buffer,
        "mmengine.config.config": config,
    }
    for name, module in names.items():
        module.__dict__.setdefault("__name__", name)
        sys.modules[name] = module
    names["mmengine"].__dict__.update(logging=names["mmengine.logging"], config=names["mmengine.config"])
    names["mmengine.logging"].__dict__["history_buffer"] = buffer
    names["mmengine.config"].__dict__["config"] = config
    yield types.SimpleNamespace(HistoryBuffer=buffer.HistoryBuffer, ConfigDict=config.ConfigDict)
    for name in names:
        del sys.modules[name]


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
def test_training_checkpoints_of_mmdetection_3_load(tmp_path: Path, mmengine: Any, old: bool):
    """Loss history, settings, numpy scalars and arrays become plain values; weights are untouched."""
    weights = {"module.a.weight": torch.arange(6.0).reshape(2, 3), "module.a.bias": torch.ones(2)}
    content = {
        "state_dict": weights,
        "meta": {
            "epoch": 12,
            "dataset_meta": {"CLASSES": ("cat", "dog")},
            "cfg": "max_epochs = 12",
            "best": np.float64(0.41),
            "counts": np.arange(4),
            "seed": np.int64(3),
        },
        "message_hub": {
            "log_scalars": {"loss": mmengine.HistoryBuffer()},
            "runtime_info": mmengine.ConfigDict(iter=np.int32(9)),
        },
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "ema_state_dict": {"a.weight": torch.zeros(1)},
    }
    read = read_checkpoint(save(content, tmp_path / "epoch_12.pth", old=old))
    assert set(read.state) == {"a.weight", "a.bias"}
    assert torch.equal(read.state["a.weight"], weights["module.a.weight"])
    assert (read.place, read.epoch, read.classes) == ("state_dict", 12, ("cat", "dog"))
    assert read.config == "max_epochs = 12"
    assert any("HistoryBuffer" in name for name in read.stand_ins)
    assert any(name.endswith("multiarray.scalar") for name in read.stand_ins)
    assert any("ema_state_dict" in note for note in read.notes)
    assert any("optimizer" in note for note in read.notes)


@pytest.mark.parametrize("core", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_objects_are_read_under_both_of_their_names(tmp_path: Path, core: str):
    """Files written with numpy 1 and 2 load the same."""
    path = save(
        {"model": {"w": torch.ones(2)}, "meta": {"epoch": 3, "best": np.float32(0.5)}},
        tmp_path / "a.pth",
        old=True,
    )
    data = path.read_bytes().replace(np.float32(0).__reduce__()[0].__module__.encode(), core.encode())
    path.write_bytes(data)
    assert core.encode() in data
    assert read_checkpoint(path).epoch == 3


def test_weights_are_found_where_frameworks_put_them(tmp_path: Path):
    """state_dict, model, ema_state_dict, or the top of the file; arrays of numpy count as weights."""
    weights = {"a": torch.ones(3)}
    for place in ("state_dict", "model", "ema_state_dict"):
        read = read_checkpoint(save({place: weights, "epoch": 1}, tmp_path / f"{place}.pth"))
        assert (read.place, set(read.state)) == (place, {"a"})
    assert read_checkpoint(save(weights, tmp_path / "top.pth")).place == ""
    arrays = read_checkpoint(save({"model": {"a": np.arange(3, dtype=np.float32)}}, tmp_path / "numpy.pth"))
    assert arrays.state["a"].tolist() == [0, 1, 2]


def test_copies_that_the_old_averaging_hook_keeps_are_left_aside(tmp_path: Path):
    """ema_a_weight beside a.weight is a copy, not a tensor of the model."""
    state = {"a.weight": torch.ones(1), "ema_a_weight": torch.zeros(1), "ema_other": torch.zeros(1)}
    read = read_checkpoint(save({"state_dict": state}, tmp_path / "a.pth"))
    assert set(read.state) == {"a.weight", "ema_other"}
    assert any("1 averaged" in note for note in read.notes)


# -- files that are something else -----------------------------------------------------------------


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, format="JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jpg", _picture(), "a JPEG picture"),
        ("empty.pth", b"", "empty file"),
        ("page.pth", b"<!DOCTYPE html><html>404</html>", "web page"),
        ("pointer.pth", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("notes.pth", b"some words", "neither torch's format"),
        ("cut.safetensors", b'\x40\x00\x00\x00\x00\x00\x00\x00{"a":', "not a whole safetensors file"),
        ("half.pth", b"PK\x03\x04 but no more", "broken or cut short"),
        ("old.pth", b"\x80\x02\x8a\x0alF\xf9", "broken or cut short"),
    ],
)
def test_what_is_no_checkpoint_is_named_in_one_sentence(tmp_path: Path, name: str, data: bytes, words: str):
    """Pictures, web pages, pointers, empty and cut files: what it is, and the file's name."""
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=words) as error:
        read_checkpoint(path)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_absent_files_folders_and_files_without_weights(tmp_path: Path):
    """Each has its own sentence."""
    with pytest.raises(CheckpointError, match="there is no file"):
        read_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no weights.*'epoch'"):
        read_checkpoint(save({"epoch": 3}, tmp_path / "a.pth"))
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(save([torch.ones(1)], tmp_path / "b.pth"))
    archive = tmp_path / "c.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme.txt", "no weights")
    with pytest.raises(CheckpointError, match="broken or cut short"):
        read_checkpoint(archive)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_cut_checkpoint_is_said_to_be_cut(tmp_path: Path, old: bool, share: float):
    """Wherever the copy stopped."""
    path = save(
        {"state_dict": {f"w{i}": torch.randn(200) for i in range(20)}}, tmp_path / "whole.pth", old=old
    )
    data = path.read_bytes()
    cut = tmp_path / "cut.pth"
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"cut\.pth is broken or cut short"):
        read_checkpoint(cut)


# -- our own files ---------------------------------------------------------------------------------


def test_our_files_describe_themselves(tmp_path: Path):
    """What is written comes back: tensors bit for bit, model, settings, classes, recipe."""
    path = tmp_path / "mine.safetensors"
    state = {"a": torch.randn(3, 4).t(), "b": torch.arange(3)}
    description = Description(
        model="reppoints_nano",
        settings={"detector.num_classes": "2"},
        classes=("é", "b"),
        recipe={"batch": 4},
        relook_version="0.1",
    )
    save_weights(path, state, description)
    read = read_checkpoint(path)
    assert all(torch.equal(read.state[k], v) for k, v in state.items())
    assert read.description == description
    assert read.classes == ("é", "b")


def test_a_file_of_a_newer_relook_says_so(tmp_path: Path):
    """Instead of guessing at a description that it does not know."""
    path = tmp_path / "new.safetensors"
    save_file(
        {"a": torch.ones(1)}, path, metadata={"relook": json.dumps({"format": 99, "relook_version": "7"})}
    )
    with pytest.raises(CheckpointError, match=r"relook 7.*upgrade"):
        read_checkpoint(path)
    save_file({"a": torch.ones(1)}, path, metadata={"relook": "[]"})
    with pytest.raises(CheckpointError, match="description cannot be read"):
        read_checkpoint(path)


# -- which model is it? ----------------------------------------------------------------------------


def v1_manifests() -> list[str]:
    names = json.loads(gzip.decompress(MANIFESTS.read_bytes()))
    return [name for name in names if "v2" not in name]


@pytest.mark.parametrize("config", v1_manifests())
def test_every_published_file_is_recognised(config: str):
    """By names and shapes among the candidates; with the published file's name as the one."""
    state = published(config)
    blind = identify(claims(Path("model.pth"), state))
    wanted = next(e.name for e in ENTRIES.values() if e.config == config)
    assert wanted in [c.entry.name for c in blind.exact]
    assert all(c.classes == 80 for c in blind.exact)
    named = identify(claims(Path(config.rsplit("/", maxsplit=1)[-1] + "_20200330-b73db8d1.pth"), state))
    assert [c.entry.name for c in named.exact] == [wanted]
    assert named.certain


def test_the_number_of_classes_is_read_from_the_shapes():
    """A fine-tuned file with 20 classes is the same model with 20 classes."""
    identity = identify(claims(Path("tuned.pth"), published(SMALL, classes=20)))
    assert [(c.entry.name, c.classes) for c in identity.exact] == [("reppoints_v1_mnv2_c128_fpn_2x", 20)]


def test_what_differs_in_prediction_is_uncertain_and_what_differs_in_training_is_not():
    """1x and 2x of one network predict alike; boxes by minmax or by the first two points do not."""
    alike = identify(claims(Path("a.pth"), published(MOMENT)))
    assert len(alike.exact) == 2
    assert alike.certain
    unlike = identify(claims(Path("a.pth"), published("reppoints-minmax_r50_fpn-gn_head-gn_1x_coco")))
    assert len(unlike.exact) > 2
    assert not unlike.certain


def test_the_configuration_in_the_file_decides_between_equals():
    """What mmdetection writes into meta tells the box, the loss and the schedule."""
    state = published("reppoints_v1/reppoints_v1_r50_fpn_giou_mstrain_2x_coco")
    config = (
        "bbox_head=dict(transform_method='exact_minmax',\n loss_bbox_refine=dict(type='GIoULoss'))\n"
        "total_epochs = 24\ntest_cfg = dict(nms=dict(type='nms', iou_thr=0.6))"
    )
    identity = identify(claims(Path("a.pth"), state, config=config))
    assert [c.entry.name for c in identity.exact] == ["reppoints_v1_r50_fpn_giou_2x"]
    assert identity.hints


def test_a_foreign_file_is_nearest_to_something_and_exactly_nothing():
    """The difference is told by kind and name."""
    state = published(SMALL)
    state.pop("bbox_head.reppoints_pts_init_out.bias")
    state["bbox_head.extra.weight"] = torch.empty(3, device="meta")
    state["neck.fpn_convs.3.conv.weight"] = torch.empty(128, 64, 3, 3, device="meta")
    identity = identify(claims(Path("a.pth"), state))
    assert not identity.exact
    assert identity.nearest is not None
    assert identity.nearest.entry.name == "reppoints_v1_mnv2_c128_fpn_2x"
    words = identity.nearest.difference.sentence()
    assert "1 missing (head.init_out.bias)" in words
    assert "1 unexpected (bbox_head.extra.weight)" in words
    assert "neck.extra.0.0.weight: file [128, 64, 3, 3], detector [128, 320, 3, 3]" in words


def test_recognising_a_file_builds_no_model(monkeypatch: pytest.MonkeyPatch):
    """The table of names and shapes holds every model with its settings of today."""

    def refuse(config: object) -> None:
        raise AssertionError(
            f"{config} was built; python -m relook.weights.shapes brings the table up to date"
        )

    monkeypatch.setattr(table, "built", refuse)
    assert identify(claims(Path("a.pth"), published(SMALL))).exact
    foreign = identify(claims(Path("a.pth"), {"layer.weight": torch.empty(3, device="meta")}))
    assert not foreign.exact


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("reppoints_nano", "reppoints_v2_nano") else pytest.mark.slow)
        for name in ENTRIES
    ],
)
def test_the_table_of_shapes_is_what_building_gives(name: str):
    """For the published number of classes and for another one."""
    entry = find(name)
    kept, made = table.wiring(entry), table.built(entry.detector)
    assert kept is not made
    assert dict(kept.shapes) == dict(made.shapes)
    assert kept.at(7) == made.at(7)


# -- loading ---------------------------------------------------------------------------------------


def test_published_weights_load_whole_and_strictly(tmp_path: Path):
    """Every value arrives under our name; counters may lack; another number of classes is told."""
    state = published(SMALL, device="cpu", classes=3)
    detector = find("reppoints_v1_mnv2_c128_fpn_2x").detector
    built = replace(detector, num_classes=3).build()
    path = save({"state_dict": state, "meta": {"CLASSES": ("a", "b", "c"), "epoch": 24}}, tmp_path / "a.pth")
    report = load_published(built, path)
    assert (report.layout, report.classes, report.epoch) == ("mmdet", ("a", "b", "c"), 24)
    assert (report.tensors, report.missing, report.unexpected) == (len(state), (), ())
    ours = built.state_dict()
    assert torch.equal(ours["head.cls_out.weight"], state["bbox_head.reppoints_cls_out.weight"])
    assert torch.equal(ours["backbone.body.conv_stem.weight"], state["backbone.features.0.0.weight"])
    counters = [k for k in state if k.endswith("num_batches_tracked")]
    again = load_published(built, {k: v for k, v in state.items() if k not in counters})
    assert again.tensors == len(state) - len(counters)
    assert len(again.missing) == len(counters)
    with pytest.raises(
        CheckpointError, match=r"80 classes.*create_model\('\w+_mnv2_c128_fpn_2x', num_classes=3\)"
    ):
        load_published(detector.build(), path)


def test_a_state_dict_that_does_not_fit_is_refused_before_anything_changes():
    """Missing and unexpected names are listed, and the detector keeps its weights."""
    detector = find("reppoints_nano").detector.build()
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    state = {k: torch.zeros_like(v) for k, v in before.items()}
    state.pop("head.cls_out.bias")
    state["odd"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 missing \(head.cls_out.bias\); 1 unexpected \(odd\)"):
        load_published(detector, state)
    assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())


def test_settings_called_training_only_do_not_change_predictions():
    """The reason why files that differ in them alone are taken for the same."""
    resnet = ResNetConfig(name="resnet10t", frozen=2)
    config = RepPointsConfig(backbone=resnet, width=32, norm_groups=8, tower=1, num_classes=3)
    torch.manual_seed(0)
    one = config.build().eval()
    other = (
        replace(
            config,
            gradient_scale=0.5,
            moment_scale=0.3,
            deform_std=0.3,
            init_assign="max_iou",
            refine_assign="atss",
            object_scale=2.0,
            positive_iou=0.7,
            negative_iou=0.2,
            atss_candidates=3,
            box_loss="giou",
            beta=1.0,
            init_weight=3.0,
            refine_weight=3.0,
            backbone=replace(resnet, frozen=0, freeze_statistics=False),
        )
        .build()
        .eval()
    )
    other.load_state_dict(one.state_dict())
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        one.head.cls_out.bias.add_(4)
        other.head.cls_out.bias.add_(4)
        a, b = (m.predict(m(images), torch.tensor([[128, 128]])) for m in (one, other))
    assert a.count.item() > 0
    assert torch.equal(a.boxes, b.boxes)
    assert torch.equal(a.scores, b.scores)


def test_nothing_is_loaded_by_halves_even_if_the_comparison_is_wrong(monkeypatch: pytest.MonkeyPatch):
    """Loading is strict in itself: a tensor that lacks is an error whoever overlooked it."""
    detector = find("reppoints_nano").detector.build()
    state = dict(detector.state_dict())
    lacking = next(name for name in state if not name.endswith("num_batches_tracked"))
    del state[lacking]
    monkeypatch.setattr(
        "relook.weights.loading.difference", lambda _theirs, _ours, layout: Difference(layout=layout.name)
    )
    with pytest.raises(RuntimeError, match=rf"Missing key.*{re.escape(lacking)}"):
        load_published(detector, state)
