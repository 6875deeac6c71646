"""Swin V2: the same modules under other names; timm merges patches before a stage, the stock class after one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stage1.integrations.stock.parts import StockModel, activation, is_gelu, prefixed, require


def swin(model: Any, name: str, pooling: str, size: int, weight: Tensor, bias: Tensor) -> StockModel:
    blocks = [block for stage in model.layers for block in stage.blocks]
    first = blocks[0]
    require(
        name,
        (pooling == "pool", f"with pooling {pooling!r}; the stock Swin V2 pools as the model itself does (pool)"),
        (all(block.attn.q_bias is not None for block in blocks), "lacks the biases of the stock Swin V2"),
        (all(is_gelu(block.mlp.act) for block in blocks), "has activations other than GELU"),
        (isinstance(model.patch_embed.norm, nn.LayerNorm), "does not normalise its patches as the stock Swin V2 does"),
    )
    weights: dict[str, Tensor] = {}

    def put(target: str, module: Any) -> None:
        weights[f"{target}.weight"] = module.weight
        if module.bias is not None:
            weights[f"{target}.bias"] = module.bias

    put("embeddings.patch_embeddings.projection", model.patch_embed.proj)
    put("embeddings.norm", model.patch_embed.norm)
    put("layernorm", model.norm)
    for number, stage in enumerate(model.layers):
        if number:
            put(f"encoder.layers.{number - 1}.downsample.reduction", stage.downsample.reduction)
            put(f"encoder.layers.{number - 1}.downsample.norm", stage.downsample.norm)
        for index, block in enumerate(stage.blocks):
            layer = f"encoder.layers.{number}.blocks.{index}"
            weights |= _attention(block.attn, f"{layer}.attention.self")
            for target, module in (
                ("attention.output.dense", block.attn.proj),
                ("layernorm_before", block.norm1),
                ("layernorm_after", block.norm2),
                ("intermediate.dense", block.mlp.fc1),
                ("output.dense", block.mlp.fc2),
            ):
                put(f"{layer}.{target}", module)
    config = {
        "architectures": ["Swinv2ForImageClassification"], "model_type": "swinv2",
        "image_size": size, "num_channels": 3,
        "patch_size": int(model.patch_embed.patch_size[0]), "embed_dim": first.attn.dim,
        "depths": [len(stage.blocks) for stage in model.layers],
        "num_heads": [stage.blocks[0].attn.num_heads for stage in model.layers],
        "window_size": int(max(block.window_size[0] for block in blocks)),
        "pretrained_window_sizes": [int(stage.blocks[0].attn.pretrained_window_size[0]) for stage in model.layers],
        "mlp_ratio": first.mlp.fc1.out_features / first.attn.dim, "hidden_act": activation(first.mlp.act),
        "layer_norm_eps": float(model.norm.eps), "qkv_bias": True, "use_absolute_embeddings": False,
        "drop_path_rate": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return StockModel(config, prefixed("swinv2", weights), (weight, bias))


def _attention(attention: Any, target: str) -> dict[str, Tensor]:
    query, key, value = attention.qkv.weight.chunk(3)
    return {
        f"{target}.query.weight": query,
        f"{target}.query.bias": attention.q_bias,
        f"{target}.key.weight": key,
        f"{target}.value.weight": value,
        f"{target}.value.bias": attention.v_bias,
        f"{target}.logit_scale": attention.logit_scale,
        f"{target}.continuous_position_bias_mlp.0.weight": attention.cpb_mlp[0].weight,
        f"{target}.continuous_position_bias_mlp.0.bias": attention.cpb_mlp[0].bias,
        f"{target}.continuous_position_bias_mlp.2.weight": attention.cpb_mlp[2].weight,
    }
