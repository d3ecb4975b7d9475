"""DPT: Deformable Patch-based Transformer for Visual Recognition (arXiv:2107.14467).

A vision transformer cuts its map into patches on a grid, wherever objects lie. DPT looks twice at each patch:
a first, coarse look says where the patch should be and how large; then the map is read there, off the grid,
and what is read becomes the token.

Read from top to bottom: settings, patches (3.2), attention and blocks (3.1), stages, the backbone of a
detector, the ImageNet classifier whose weights it starts from.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from relook.ops.patches import patch_boxes, patch_points, read_points
from relook.renaming import Rules, in_our_names

STRIDES = (4, 8, 16, 32)
GRID = (56, 28, 14, 7)  # sides of the grids of ImageNet images, for which position embeddings are stored
FULL = GRID[0] ** 2  # tokens of the first stage there (docs/quirks.md, dp-07)
NORM = 1e-6  # of block norms; all others have 1e-5 (docs/quirks.md, dp-01)
POINTS = 9

RULES: Rules = tuple(  # the authors' names -> ours
    rule
    for i in range(4)
    for rule in (
        (rf"pos_embed{i + 1}", f"stages.{i}.position"),
        (rf"patch_embed{i + 1}\.patch_embed\.(.*)", rf"stages.{i}.embed.first.\1"),
        (rf"patch_embed{i + 1}\.box_coder\.(.*)", rf"stages.{i}.embed.\1"),
        (rf"patch_embed{i + 1}\.(.*)", rf"stages.{i}.embed.\1"),
        (rf"block{i + 1}\.(.*)", rf"stages.{i}.blocks.\1"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DPTConfig:
    """The defaults are DPT-Tiny."""

    depths: tuple[int, int, int, int] = (2, 2, 2, 2)  # blocks of each stage
    widths: tuple[int, int, int, int] = (64, 128, 320, 512)
    heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    ratios: tuple[int, int, int, int] = (8, 8, 4, 4)  # of the hidden layer's width in each block's MLP
    reductions: tuple[int, int, int, int] = (8, 4, 2, 1)  # keys and values are so many times fewer per axis
    maps: tuple[int, ...] = (1, 2, 3, 4)  # stages whose output is returned
    drop_path: float = 0.1  # of the last block; it rises from 0 at the first

    def build(self) -> "DPT":
        return DPT(self)

    def file_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the authors' ImageNet files by our parameters' names."""
        return in_our_names(state, RULES)

    def starts_anew(self, name: str) -> bool:  # noqa: ARG002 (every backbone is asked)
        """Every parameter has ImageNet weights."""
        return False


# -- 3.2 patches -------------------------------------------------------------------------------


class Patches(nn.Module):
    """Patches on the grid: a map [B, C, H, W] -> tokens [B, N, E], row by row."""

    def __init__(self, channels: int, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.proj = nn.Conv2d(channels, width, side, side)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).flatten(2).mT)


class DeformablePatches(nn.Module):
    """Patches where they are wanted: a map [B, C, H, W] -> tokens [B, N, E] of its grid of 2 x 2 patches."""

    side: ClassVar[int] = 2

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = Patches(channels, width, self.side)
        self.offset_predictor = nn.Linear(width, 4, bias=False)
        self.wh_bias = nn.Parameter(torch.full((2,), 5 / 3).log() / 2)  # tanh: a quarter of a cell's two
        self.output_proj = nn.Linear(POINTS * channels, width)
        self.norm = nn.LayerNorm(width)
        # in published files, always 0; nothing reads it (docs/quirks.md, dp-09)
        self.register_buffer("value_level_start_index", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type  # in half precision a place in a large map could not be told
        narrow = device != "meta" and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if narrow else nullcontext():
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            read = read_points(x, patch_points(self.boxes(x)))  # [B, N, 9, C]
            return self.norm(self.output_proj(read.flatten(2)))

    def boxes(self, x: Tensor) -> Tensor:
        """Where each patch of a map [B, C, H, W] lies: [B, N, 4] in parts of the map."""
        codes = self.offset_predictor(F.gelu(self.first(x)))
        codes = torch.cat([codes[..., :2], codes[..., 2:] + self.wh_bias], dim=-1)
        return patch_boxes(codes, (x.shape[2] // self.side, x.shape[3] // self.side))


# -- 3.1 blocks, as in PVT (arXiv:2102.12122) --------------------------------------------------


class Attention(nn.Module):
    """Every token [B, N, E] looks at all others, whose map is reduced first."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.sr = nn.Conv2d(width, width, reduction, reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(width) if reduction > 1 else None

    def forward(self, x: Tensor, shape: tuple[int, int]) -> Tensor:
        """Tokens [B, N, E] of a grid of `shape` (rows, columns) -> the same shape."""
        seen = x
        if self.sr is not None and self.norm is not None:
            seen = self.norm(self.sr(x.mT.unflatten(2, shape)).flatten(2).mT)
        q = self._split(self.q(x))
        k, v = map(self._split, self.kv(seen).chunk(2, dim=-1))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """[B, N, E] -> [B, heads, N, E / heads]."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class Block(nn.Module):
    """Attention and an MLP, each added to what comes in."""

    def __init__(self, width: int, heads: int, ratio: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM)
        self.attn = Attention(width, heads, reduction)
        self.norm2 = nn.LayerNorm(width, eps=NORM)
        self.mlp = MLP(width, ratio * width)
        self.drop = DropPath(drop_path)

    def forward(self, x: Tensor, shape: tuple[int, int]) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x), shape))
        return x + self.drop(self.mlp(self.norm2(x)))


class MLP(nn.Module):
    """Two layers for each token by itself."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


# -- stages ------------------------------------------------------------------------------------


class Stage(nn.Module):
    """Patches of the map before, their places, and blocks: [B, C, H, W] -> [B, E, H / side, W / side]."""

    def __init__(self, config: DPTConfig, number: int) -> None:
        super().__init__()
        width, heads = config.widths[number], config.heads[number]
        if number == 0:
            self.embed: Patches | DeformablePatches = Patches(3, width, STRIDES[0])
        else:
            self.embed = DeformablePatches(config.widths[number - 1], width)
        extra = 1 if number == 3 else 0  # of the class token, which only the classifier has
        self.extra, self.grid = extra, GRID[number]
        self.position = nn.Parameter(torch.zeros(1, GRID[number] ** 2 + extra, width))
        before, total = sum(config.depths[:number]), max(1, sum(config.depths) - 1)
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads,
                config.ratios[number],
                config.reductions[number],
                config.drop_path * (before + i) / total,
            )
            for i in range(config.depths[number])
        )

    def forward(self, x: Tensor) -> Tensor:
        """A map -> the stage's map, not normalised."""
        shape = x.shape[2] // self.embed.side, x.shape[3] // self.embed.side
        tokens = self.embed(x) + self.places(shape)
        for block in self.blocks:
            tokens = block(tokens, shape)
        return tokens.mT.unflatten(2, shape)

    def places(self, shape: tuple[int, int]) -> Tensor:
        """Position embeddings [1, N, E] of a grid of `shape` (rows, columns)."""
        stored = self.position[:, self.extra :]
        if shape == (self.grid, self.grid) or (self.grid == GRID[0] and shape[0] * shape[1] == FULL):
            return stored  # the first stage asks for the number of tokens alone: docs/quirks.md, dp-07
        square = stored.mT.reshape(1, -1, self.grid, self.grid)
        return F.interpolate(square, size=shape, mode="bilinear", align_corners=False).flatten(2).mT


class DPT(nn.Module):
    """Maps of the chosen stages at strides 4, 8, 16 and 32, finest first."""

    def __init__(self, config: DPTConfig) -> None:
        super().__init__()
        self.config = config
        self.channels = tuple(config.widths[i - 1] for i in config.maps)
        self.strides = tuple(STRIDES[i - 1] for i in config.maps)
        self.stages = nn.ModuleList(Stage(config, i) for i in range(max(config.maps)))
        init_weights(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B, 3, H, W] -> maps [B, C, h, w], finest first."""
        maps: list[Tensor] = []
        for stage in self.stages:
            maps.append(stage(maps[-1] if maps else images))
        return [maps[i - 1] for i in self.config.maps]

    def patches(self, x: Tensor, number: int) -> Tensor:
        """Where the patches of a stage, counted from 0, lie on the map before [B, C, h, w]: [B, N, 4] 0 .. 1.

        Raises:
            ValueError: the first stage, whose patches lie on the grid.
        """
        if number == 0:
            raise ValueError("the patches of the first stage lie on the grid; ask for a later one")
        return cast("DeformablePatches", cast("Stage", self.stages[number]).embed).boxes(x)


# -- ImageNet ----------------------------------------------------------------------------------


class DPTClassifier(nn.Module):
    """The network that was trained on ImageNet: images [B, 3, 224, 224] -> logits [B, 1000].

    Its weights start detectors; a class token joins the last stage.
    """

    def __init__(self, config: DPTConfig, num_classes: int = 1000) -> None:
        super().__init__()
        self.config = config
        width = config.widths[-1]
        self.stages = nn.ModuleList(Stage(config, i) for i in range(4))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.norm = nn.LayerNorm(width, eps=NORM)
        self.head = nn.Linear(width, num_classes)
        init_weights(self)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, 224, 224], ImageNet's mean and deviation -> logits [B, 1000]."""
        x = images
        for stage in self.stages[:-1]:
            x = stage(x)
        last = cast("Stage", self.stages[-1])
        shape = x.shape[2] // 2, x.shape[3] // 2
        first = self.cls_token.expand(len(x), -1, -1)
        tokens = torch.cat([first, last.embed(x)], dim=1) + last.position
        for block in last.blocks:
            tokens = block(tokens, shape)
        return self.head(self.norm(tokens)[:, 0])

    def load(self, state: dict[str, Tensor]) -> None:
        """The authors' weights; sizes of grids, which their files also keep, are left out.

        Raises:
            RuntimeError: a tensor is missing, unexpected or of another shape.
        """
        sizes = ("value_spatial_shapes", "box_coder.anchor")
        kept = {key: value for key, value in state.items() if not key.endswith(sizes)}
        self.load_state_dict(in_our_names(kept, RULES))


def init_weights(module: nn.Module) -> None:
    """As published: linear layers and positions truncated normal; patches centred, half a cell large."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if "bias" in dict(part.named_parameters()):
                nn.init.zeros_(part.bias)
        elif isinstance(part, Stage):
            nn.init.trunc_normal_(part.position, std=0.02)
    for part in module.modules():
        if isinstance(part, DeformablePatches):
            nn.init.zeros_(part.offset_predictor.weight)
