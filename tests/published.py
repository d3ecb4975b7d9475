"""Golden cases: what the published implementations computed, and how to give relook the same inputs."""

import gzip
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden import recipe
from relook.types import Targets

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    """One stored case: its facts (`about`) and its arrays."""

    family: str
    name: str

    @cached_property
    def about(self) -> dict[str, Any]:
        return json.loads((FOLDER / self.family / f"{self.name}.json").read_text())

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(FOLDER / self.family / f"{self.name}.npz") as stored:
            return {key: stored[key] for key in stored.files}

    def tensor(self, key: str) -> Tensor:
        """A stored array in float64 (or its own type, where it holds no floats)."""
        x = torch.from_numpy(self.arrays[key])
        return x.double() if x.is_floating_point() else x

    def state(self) -> dict[str, Tensor]:
        """The published checkpoint of this case."""
        made = recipe.state(self.about["manifest"], self.about["override"])
        return {key: torch.from_numpy(np.asarray(value)) for key, value in made.items()}

    def images(self) -> tuple[Tensor, Tensor]:
        """Network input [B, 3, H, W] in float64 and true sizes [B, 2]."""
        facts = self.about["input"]
        made = [
            recipe.normalise(
                recipe.image(i["seed"], i["height"], i["width"]), facts["mean"], facts["std"], facts["order"]
            )
            for i in facts["images"]
        ]
        height, width = (-(-max(x.shape[d] for x in made) // 32) * 32 for d in (1, 2))
        images = torch.zeros(len(made), 3, height, width, dtype=torch.float64)
        for slot, x in zip(images, made, strict=True):
            slot[:, : x.shape[1], : x.shape[2]] = torch.from_numpy(x)
        return images, torch.tensor([x.shape[1:] for x in made])

    def targets(self) -> Targets:
        facts = zip(self.about["targets"], self.about["input"]["images"], strict=True)
        made = [
            recipe.targets(t["seed"], i["height"], i["width"], t["count"], t["num_classes"]) for t, i in facts
        ]
        padded = Targets.pad(
            [torch.from_numpy(t["boxes"]) for t in made],
            [torch.from_numpy(np.asarray(t["labels"], dtype=np.int64)) for t in made],
            [(i["height"], i["width"]) for i in self.about["input"]["images"]],
        )
        if not any(t.get("masks") for t in self.about["targets"]):
            return padded
        height, width = self.images()[0].shape[-2:]
        masks = torch.zeros(*padded.valid.shape, height, width, dtype=torch.bool)
        sizes = [(i["height"], i["width"]) for i in self.about["input"]["images"]]
        for slot, t, (h, w) in zip(masks, made, sizes, strict=True):
            drawn = torch.from_numpy(recipe.ellipse_masks(t["boxes"], h, w))
            slot[: len(drawn), :h, :w] = drawn
        return replace(padded, masks=masks)


def manifests(family: str) -> dict[str, list[tuple[str, list[int]]]]:
    """Published configuration -> the keys and shapes of its checkpoint."""
    with gzip.open(FOLDER / family / "manifests.json.gz", "rt") as file:
        return json.load(file)


def difference(mine: Tensor, stored: Tensor) -> float:
    """Largest relative difference |a - b| / (1e-3 + |b|); shapes must agree."""
    assert mine.shape == stored.shape, f"shape {tuple(mine.shape)} differs from {tuple(stored.shape)}"
    if not stored.numel():
        return 0.0
    mine = mine.detach().to(stored.dtype)
    return float(((mine - stored).abs() / (1e-3 + stored.abs())).max())
