"""BEiT: positions as biases of the attention, its norm after the pooling."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stage1.integrations.stock.parts import StockModel, activation, layers, patches, prefixed, require


def beit(model: Any, name: str, pooling: str, size: int, weight: Tensor, bias: Tensor) -> StockModel:
    first = model.blocks[0]
    require(
        name,
        (
            pooling in ("pool", "mean") and model.global_pool == "avg",
            f"pools by {pooling!r}; the stock BEiT by its own mean",
        ),
        (isinstance(model.fc_norm, nn.LayerNorm), "does not normalise after pooling as the stock BEiT does"),
        (
            model.pos_embed is None and first.attn.relative_position_bias_table is not None,
            "has other positions than the stock BEiT",
        ),
        (
            type(first.mlp).__name__ == "Mlp" and isinstance(first.mlp.norm, nn.Identity),
            f"has {type(first.mlp).__name__} blocks",
        ),
        (first.attn.q_bias is not None and first.gamma_1 is not None, "lacks biases or layer scale of the stock BEiT"),
    )
    weights = {
        "embeddings.cls_token": model.cls_token,
        **patches(model, "embeddings.patch_embeddings.projection"),
        "pooler.layernorm.weight": model.fc_norm.weight,
        "pooler.layernorm.bias": model.fc_norm.bias,
    }
    weights |= layers(
        model,
        {
            "proj": "encoder.layer.{i}.attention.output.dense",
            "norm1": "encoder.layer.{i}.layernorm_before",
            "norm2": "encoder.layer.{i}.layernorm_after",
            "fc1": "encoder.layer.{i}.intermediate.dense",
            "fc2": "encoder.layer.{i}.output.dense",
        },
    )
    for index, block in enumerate(model.blocks):
        layer, attention = f"encoder.layer.{index}", block.attn
        query, key, value = attention.qkv.weight.chunk(3)
        weights |= {
            f"{layer}.attention.attention.query.weight": query,
            f"{layer}.attention.attention.query.bias": attention.q_bias,
            f"{layer}.attention.attention.key.weight": key,
            f"{layer}.attention.attention.value.weight": value,
            f"{layer}.attention.attention.value.bias": attention.v_bias,
            f"{layer}.attention.attention.relative_position_bias.relative_position_bias_table": (
                attention.relative_position_bias_table
            ),
            f"{layer}.lambda_1": block.gamma_1,
            f"{layer}.lambda_2": block.gamma_2,
        }
    config = {
        "architectures": ["BeitForImageClassification"], "model_type": "beit", "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks), "num_attention_heads": first.attn.num_heads,
        "intermediate_size": first.mlp.fc1.out_features, "hidden_act": activation(first.mlp.act),
        "layer_norm_eps": float(model.fc_norm.eps), "image_size": size,
        "patch_size": int(model.patch_embed.patch_size[0]), "num_channels": 3,
        "use_mask_token": False, "use_absolute_position_embeddings": False,
        "use_relative_position_bias": True, "use_shared_relative_position_bias": False, "layer_scale_init_value": 0.1,
        "use_mean_pooling": True, "drop_path_rate": 0.0, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return StockModel(config, prefixed("beit", weights), (weight, bias))
