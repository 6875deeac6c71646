"""ExPLoRA's choice of what learns: last blocks and all norms whole, queries and values elsewhere by low-rank updates.

    block:   0 ... L-n-1                      L-n ... L-1
             W_q + s B A   (LoRA)             everything
             W_k           (frozen)
             W_v + s B A   (LoRA)
             norms         (whole)
Source: Khanna et al. 2025 (2406.10973), section 3. timm keeps q, k and v in one matrix [3D, D], rows in this order; the
update is a parametrization of it that leaves the middle third unchanged.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stage1.config import PretrainConfig
from stage1.errors import ConfigError
from stage1.model.adapter import norm_parameters
from stage1.model.backbone import Backbone
from stage1.training.optim import sub_seed

_QUERY_VALUE = ("q_proj", "v_proj", "query", "value")


class RowUpdate(nn.Module):
    """W -> W with `scale` B A added to some ranges of its rows; the other rows pass through, bit by bit.

    ranges: (first, end) of the rows of each part. A: [rank, in], drawn (He et al. 2015); B: [end - first, rank], zero.
    """

    def __init__(
        self, inputs: int, ranges: list[tuple[int, int]], rank: int, scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.ranges, self.scale = ranges, scale
        bound = 1.0 / math.sqrt(inputs)  # as kaiming_uniform_(a=sqrt(5)), which LoRA uses
        self.a = nn.ParameterList(
            [torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator) for _ in ranges]
        )
        self.b = nn.ParameterList([torch.zeros(end - first, rank) for first, end in ranges])

    def forward(self, weight: Tensor) -> Tensor:
        pieces, place = [], 0
        for (first, end), a, b in zip(self.ranges, self.a, self.b, strict=True):
            pieces += [weight[place:first], weight[first:end] + self.scale * (b @ a)]
            place = end
        return torch.cat([*pieces, weight[place:]])


def prepare_explora(backbone: Backbone, config: PretrainConfig, seed: int) -> list[str]:
    """Set what learns in `backbone`, in place; names of the layers that got an update. Features do not change.

    Raises ConfigError: a ConvNet, a ViT whose patches overlap or cannot be left out, more blocks than there are.
    """
    model = backbone.module.model
    _check_vit(backbone)
    blocks = model.blocks
    if config.unfreeze > len(blocks):
        raise ConfigError(f"pretrain.unfreeze={config.unfreeze}: {backbone.name} has {len(blocks)} blocks")
    norms = set(norm_parameters(model))
    last = tuple(f"blocks.{index}." for index in range(len(blocks) - config.unfreeze, len(blocks)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in norms or name.startswith(last))
    generator = torch.Generator().manual_seed(sub_seed(seed, "explora"))
    scale = (config.rank if config.alpha is None else config.alpha) / config.rank
    names = []
    for path, layer in list(model.named_modules()):
        leaf = path.rsplit(".", 1)[-1]
        if not isinstance(layer, nn.Linear) or not path.startswith("blocks.") or path.startswith(last):
            continue
        third, rest = divmod(layer.out_features, 3)
        if leaf == "qkv" and rest == 0:
            ranges = [(0, third), (2 * third, 3 * third)]
        elif leaf in _QUERY_VALUE:
            ranges = [(0, layer.out_features)]
        else:
            continue
        update = RowUpdate(layer.in_features, ranges, config.rank, scale, generator)
        parametrize.register_parametrization(layer, "weight", update.to(layer.weight.device))
        names.append(path)
    if not names and config.unfreeze < len(blocks):
        raise ConfigError(f"pretrain: {backbone.name} has no queries and values of a known name (qkv, q_proj, v_proj)")
    return names


def merge_explora(backbone: Backbone) -> Backbone:
    """The backbone with every update added into its weights: plain timm layers again. Features are as before (1e-4)."""
    for layer in backbone.module.model.modules():
        if isinstance(layer, nn.Linear) and parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            # The weight now comes last; digests of weights use the order of a plain layer.
            layer.register_parameter("bias", layer._parameters.pop("bias"))
    return backbone.renewed(f"{backbone.weights} + ExPLoRA")


def _check_vit(backbone: Backbone) -> None:
    model = backbone.module.model
    if not isinstance(getattr(model, "blocks", None), (nn.Sequential, nn.ModuleList)) or not hasattr(
        model, "patch_embed"
    ):
        raise ConfigError(
            f"pretrain: {backbone.name} is no plain ViT (a ConvNet?): it has no patches that can be kept from it and no"
            " queries and values to adapt; use a ViT, or images.unfreeze=last on labelled images"
        )
    proj = getattr(model.patch_embed, "proj", None)
    if not isinstance(proj, nn.Conv2d) or proj.kernel_size != proj.stride or proj.padding not in (0, (0, 0)):
        raise ConfigError(
            f"pretrain: the patches of {backbone.name} overlap, so hidden ones would be seen; use a plain ViT"
        )
    if not hasattr(model, "patch_drop"):
        raise ConfigError(
            f"pretrain: {backbone.name} cannot leave patches out; use a ViT of timm's vision_transformer or eva"
        )
