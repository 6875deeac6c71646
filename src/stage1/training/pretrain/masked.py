"""The masked-image objective: the encoder gets some patches, a small decoder rebuilds the others from its output.

images -> pixels of hidden patches set to 0 -> patch tokens -> hidden tokens left out
       -> encoder -> [prefix + visible tokens]
       -> decoder: visible tokens and, for each hidden patch, one learned token, all with their positions
       -> pixels of hidden patches
loss = mean over hidden patches of the squared error on pixels normalised per patch.
Source: He et al. 2022 (MAE), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stage1.config import PretrainConfig
from stage1.model.backbone import Backbone
from stage1.training.optim import sub_seed

_EPSILON = 1e-6


def visible_patches(n: int, patches: int, ratio: float, seed: int) -> Tensor:
    """Which patches of each of `n` images are seen: int64 [n, V], ascending, V = patches (1 - ratio), at least 1."""
    count = min(max(1, round(patches * (1.0 - ratio))), patches - 1)
    noise = torch.rand(n, patches, generator=torch.Generator().manual_seed(seed))
    return noise.argsort(dim=1)[:, :count].sort(dim=1).values


def patchify(images: Tensor, side: int) -> Tensor:
    """[N, 3, H, W] -> [N, L, side * side * 3]: the patches in rows, as the ViT counts them."""
    n, channels, height, width = images.shape
    grid = images.reshape(n, channels, height // side, side, width // side, side)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(n, (height // side) * (width // side), side * side * channels)


def hidden_pixels(images: Tensor, keep: Tensor, side: int) -> Tensor:
    """The images with all pixels of patches not in `keep` [N, V] set to 0: what goes into the encoder."""
    n, _, height, width = images.shape
    rows, columns = height // side, width // side
    seen = torch.zeros(n, rows * columns, dtype=torch.bool, device=images.device).scatter_(1, keep, True)
    seen = seen.reshape(n, 1, rows, columns).repeat_interleave(side, 2).repeat_interleave(side, 3)
    return torch.where(seen, images, torch.zeros((), dtype=images.dtype, device=images.device))


def encode_visible(model: nn.Module, images: Tensor, keep: Tensor) -> Tensor:
    """Tokens of the patches in `keep` [N, V], computed from these patches alone: [N, prefix + V, D].

    Two walls: the pixels of the others are gone before the first layer, and their tokens before the first block. model:
    a timm ViT that `prepare_explora` accepts.
    """
    side = model.patch_embed.proj.kernel_size[0]
    with _keeping(model, keep):
        return model.forward_features(hidden_pixels(images, keep, side))


class _Keep(nn.Module):
    """Replaces timm's patch dropout, which is where a ViT leaves tokens out, after the position embedding."""

    def __init__(self, keep: Tensor, prefix: int, with_indices: bool) -> None:
        super().__init__()
        self.keep, self.prefix, self.with_indices = keep, prefix, with_indices

    def forward(self, tokens: Tensor) -> Any:
        head, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        chosen = patches.gather(1, self.keep[:, :, None].expand(-1, -1, patches.shape[2]))
        made = torch.cat([head, chosen], dim=1)
        return (made, self.keep) if self.with_indices else made


@contextmanager
def _keeping(model: nn.Module, keep: Tensor) -> Iterator[None]:
    from timm.models.eva import Eva

    before = model.patch_drop
    # Eva (DINOv3) also wants to know which tokens are left: rotary positions go with them.
    model.patch_drop = _Keep(keep, int(model.num_prefix_tokens), isinstance(model, Eva))
    try:
        yield
    finally:
        model.patch_drop = before


class Decoder(nn.Module):
    """[N, prefix + V, D] of visible patches and their positions -> pixels [N, L, side * side * 3] of all patches.

    Every block attends over visible and hidden places alike; a hidden one starts as the learned token at its position.
    """

    def __init__(self, dim: int, grid: tuple[int, int], side: int, width: int, depth: int) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        heads = width // 32 if width % 32 == 0 else 1
        self.embed = nn.Linear(dim, width)
        self.token = nn.Parameter(torch.zeros(width))
        self.register_buffer("positions", sine_positions(grid, width))
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, side * side * 3)
        nn.init.normal_(self.token, std=0.02)

    def forward(self, tokens: Tensor, keep: Tensor) -> Tensor:
        n, patches = len(tokens), len(self.positions)
        prefix = tokens.shape[1] - keep.shape[1]
        made = self.embed(tokens)
        full = self.token.to(made.dtype).expand(n, patches, -1)
        place = keep[:, :, None].expand(-1, -1, made.shape[2])
        full = full.scatter(1, place, made[:, prefix:]) + self.positions.to(made.dtype)
        out = self.blocks(torch.cat([made[:, :prefix], full], dim=1))
        return self.out(self.norm(out[:, prefix:]))


def sine_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed positions float32 [rows * columns, width]: sines and cosines of row and column (Vaswani et al. 2017)."""
    quarter = math.ceil(width / 4)
    rates = 1.0 / 10000 ** (torch.arange(quarter) / quarter)
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [place.reshape(-1, 1) * rates for place in (rows, columns)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)[:, :width]


def masked_loss(predicted: Tensor, images: Tensor, keep: Tensor, side: int) -> Tensor:
    """Mean squared error on the hidden patches, against pixels normalised per patch; a scalar.

    predicted: [N, L, side * side * 3]; images: [N, 3, H, W]; keep: int64 [N, V], patches that do not count.
    """
    target = patchify(images, side)
    target = (target - target.mean(dim=2, keepdim=True)) / (target.var(dim=2, keepdim=True) + _EPSILON).sqrt()
    error = (predicted.float() - target).square().mean(dim=2)
    hidden = torch.ones_like(error).scatter_(1, keep, 0.0)
    return (error * hidden).sum() / hidden.sum()


class MaskedObjective(nn.Module):
    """The masked objective of a run: its decoder is trained with the backbone and thrown away at the end."""

    views = 1

    def __init__(self, backbone: Backbone, config: PretrainConfig, seed: int) -> None:
        super().__init__()
        model = backbone.module.model
        self.side = int(model.patch_embed.proj.kernel_size[0])
        self.ratio, self.seed = config.mask_ratio, seed
        count = backbone.preprocessing.size // self.side
        with torch.random.fork_rng(devices=[]):  # the layers' own initialisation draws from the global generator
            torch.manual_seed(sub_seed(seed, "decoder"))
            self.decoder = Decoder(
                model.num_features, (count, count), self.side, config.decoder_width, config.decoder_depth
            )

    def loss(self, module: nn.Module, views: list[Tensor], epoch: int, step: int) -> Tensor:
        """Loss of one batch; module: the backbone's; views: one [N, 3, S, S]; hidden by (epoch, step)."""
        (images,) = views
        patches = (images.shape[2] // self.side) ** 2
        keep = visible_patches(len(images), patches, self.ratio, sub_seed(self.seed, "mask", epoch, step)).to(
            images.device
        )
        return masked_loss(self.decoder(encode_visible(module.model, images, keep), keep), images, keep, self.side)

    def after_step(self, module: nn.Module, step: int, total: int) -> None:
        """Nothing: only objectives with a teacher have something to move."""

    def kept(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return dict(self.decoder.state_dict())

    def restore(self, state: dict[str, Tensor]) -> None:
        self.decoder.load_state_dict(state, strict=True)

    def watched(self) -> dict[str, float]:
        """Columns for the row of an epoch."""
        return {}
