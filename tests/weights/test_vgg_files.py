"""VGG-16 starts from three kinds of ImageNet files."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import relook
from relook.backbones.vgg import VGGConfig, reduced
from relook.weights.pretrained import backbones_of, load_backbone

TINY = 3  # how many values of a tensor are compared


def reduced_fc() -> dict[str, Tensor]:
    """SSD's file: our names without the list's."""
    with torch.device("meta"):
        shapes = {k.removeprefix("layers."): v.shape for k, v in VGGConfig().build().state_dict().items()}
    return {key: torch.rand(()).expand(shape) for key, shape in shapes.items()}


def fully_connected(first: str, second: str, *, flat: bool) -> dict[str, Tensor]:
    """torchvision's or timm's: a classifier behind the convolutions."""
    state = {f"features.{k}": v for k, v in reduced_fc().items() if int(k.split(".")[0]) < 31}
    one, two = torch.rand(1).expand(4096, 512, 7, 7), torch.rand(1).expand(4096, 4096, 1, 1)
    state |= {f"{first}.weight": one.reshape(4096, -1) if flat else one, f"{first}.bias": torch.rand(4096)}
    state |= {f"{second}.weight": two.reshape(4096, -1) if flat else two, f"{second}.bias": torch.rand(4096)}
    return state | {"head.fc.weight" if not flat else "classifier.6.weight": torch.rand(1000, 8)}


@pytest.mark.parametrize(
    "state",
    [
        reduced_fc(),
        fully_connected("classifier.0", "classifier.3", flat=True),
        fully_connected("pre_logits.fc1", "pre_logits.fc2", flat=False),
    ],
    ids=["reduced fc", "torchvision", "timm"],
)
def test_every_tensor_is_found(state: dict[str, Tensor], tmp_path: Path) -> None:
    detector = relook.create_model("refinedet_320_vgg_voc")
    torch.save({k: v.clone() for k, v in state.items()}, tmp_path / "vgg.pth")
    assert load_backbone(detector, str(tmp_path / "vgg.pth")) == 30
    key = next(k for k in state if k.endswith("10.weight"))
    assert torch.equal(detector.backbone.layers[10].weight[0, 0], state[key][0, 0])
    assert any("vgg" in name for name in backbones_of(state))


def test_neurons_and_places_are_thinned_out() -> None:
    """Every fourth neuron; of 7 x 7 places the first, fourth and seventh of each side."""
    weight = torch.arange(8 * 512 * 49).reshape(8, -1)
    kept = reduced(weight, first=True)
    assert kept.shape == (2, 512, 3, 3)
    assert torch.equal(kept[1, 7], weight.reshape(8, 512, 7, 7)[4, 7][::3, ::3])
    assert reduced(torch.arange(8), first=True).tolist() == [0, 4]
    assert torch.equal(
        reduced(torch.arange(64).reshape(8, 8), first=False)[:, :, 0, 0],
        torch.tensor([[0, 4], [32, 36]]),
    )


def test_other_classifiers_are_left_alone() -> None:
    """A file of another network is no VGG's, whatever its layers are called, and breaks nothing."""
    state = {"classifier.0.weight": torch.zeros(1280, 960), "classifier.3.bias": torch.zeros(())}
    assert VGGConfig().file_state(state) == state
    assert backbones_of(state) == []
