"""What the stock twins share: the record, refusals, and the weights of a timm block under other names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stage1.errors import ConfigError

WAY_OUT = "ship its ONNX bundle with the detector of stage1.streetvision instead"


@dataclass(frozen=True, slots=True)
class StockModel:
    """config: config.json without labels. weights: state dict without classifier. classifier: its (weight, bias)."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    classifier: tuple[Tensor, Tensor]


def refused(name: str, why: str) -> ConfigError:
    return ConfigError(f"backbone {name!r} {why}; {WAY_OUT}")


def require(name: str, *claims: tuple[bool, str]) -> None:
    """Raises ConfigError with the first of the (holds, why not) that does not hold."""
    for holds, why in claims:
        if not holds:
            raise refused(name, why)


def is_gelu(act: nn.Module) -> bool:
    return type(act).__name__ in ("GELU", "GELUTanh", "PytorchGELUTanh")


def activation(act: Any) -> str:
    return (
        "gelu_pytorch_tanh" if "Tanh" in type(act).__name__ or getattr(act, "approximate", "none") == "tanh" else "gelu"
    )


def patches(model: Any, target: str) -> dict[str, Tensor]:
    projection = model.patch_embed.proj
    bias = torch.zeros(projection.out_channels) if projection.bias is None else projection.bias
    return {f"{target}.weight": projection.weight, f"{target}.bias": bias}


def queries(attention: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight and bias of query, key and value; a missing bias is one of 0."""
    joint = attention.qkv
    bias = torch.zeros(joint.out_features) if joint.bias is None else joint.bias
    return dict(zip(("query", "key", "value"), zip(joint.weight.chunk(3), bias.chunk(3), strict=True), strict=True))


def layers(model: Any, names: dict[str, str]) -> dict[str, Tensor]:
    """The blocks' weights; names: part of a timm block -> name in a stock layer, `{i}` the number of the layer."""
    found: dict[str, Tensor] = {}
    for index, block in enumerate(model.blocks):
        parts: dict[str, tuple[Tensor, Tensor]] = {
            **queries(block.attn),
            **{
                path: (module.weight, module.bias)
                for path, module in (
                    ("proj", block.attn.proj),
                    ("norm1", block.norm1),
                    ("norm2", block.norm2),
                    ("fc1", block.mlp.fc1),
                    ("fc2", block.mlp.fc2),
                )
            },
        }
        for part, target in names.items():
            weight, bias = parts[part]
            found |= {f"{target.format(i=index)}.weight": weight, f"{target.format(i=index)}.bias": bias}
    return found


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": tensor for key, tensor in weights.items()}
