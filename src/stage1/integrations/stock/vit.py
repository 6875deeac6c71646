"""ViT, DeiT, DINOv2 and SigLIP: plain vision transformers of timm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stage1.integrations.stock.parts import StockModel, activation, is_gelu, layers, patches, prefixed, require


def vit(model: Any, name: str, pooling: str, size: int, weight: Tensor, bias: Tensor) -> StockModel:
    if pooling == "pool":
        pooling = {"token": "cls", "avg": "mean"}.get(model.global_pool, model.global_pool)
    has_class = model.cls_token is not None
    require(
        name,
        (getattr(model, "reg_token", None) is None, "has register tokens, which transformers 4.45 does not know"),
        (model.num_prefix_tokens == int(has_class), "has further prefix tokens (distilled?), which no stock class has"),
        (
            pooling in ("cls", "mean", "cls+mean"),
            f"pools by {pooling!r}; stock classes pool the class token or the mean",
        ),
        (isinstance(model.norm, nn.LayerNorm), "normalises after pooling; no stock class of a ViT does"),
        (isinstance(model.norm_pre, nn.Identity), "normalises before its blocks (CLIP); no stock class of a ViT does"),
        (model.pos_embed is not None, "has no learned absolute positions"),
    )
    for block in model.blocks:
        _check_block(name, block)
    widths = _vit_widths(model, size)
    body = {"layernorm.weight": model.norm.weight, "layernorm.bias": model.norm.bias}
    if not has_class:
        return _siglip(model, name, widths, weight, bias)
    positions = model.pos_embed
    if positions.shape[1] == model.patch_embed.num_patches:  # none for the class token
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    body |= {
        "embeddings.cls_token": model.cls_token,
        "embeddings.position_embeddings": positions,
        **patches(model, "embeddings.patch_embeddings.projection"),
    }
    scaled = any(not isinstance(block.ls1, nn.Identity) for block in model.blocks)
    if pooling == "cls" and not scaled:
        return _plain_vit(model, widths, body, weight, bias)
    return _dinov2(model, widths, body, pooling, weight, bias)


def _check_block(name: str, block: Any) -> None:
    attention, mlp = block.attn, block.mlp
    norms = [block.norm1, block.norm2]
    extra = [getattr(attention, key, None) for key in ("q_norm", "k_norm", "norm")] + [getattr(mlp, "norm", None)]
    require(
        name,
        (
            type(block).__name__ == "Block" and type(mlp).__name__ == "Mlp",
            f"has {type(block).__name__}/{type(mlp).__name__} blocks; stock classes have plain ones",
        ),
        (isinstance(attention.qkv, nn.Linear), "has no joint projection of queries, keys and values"),
        (
            all(isinstance(part, nn.Identity | None) for part in extra),
            "has norms inside its blocks, which stock classes have not",
        ),
        (all(isinstance(norm, nn.LayerNorm) for norm in norms), "has norms that are not layer norms"),
        (is_gelu(mlp.act), f"has {type(mlp.act).__name__} activations; GELU is needed"),
    )


def _vit_widths(model: Any, size: int) -> dict[str, Any]:
    block = model.blocks[0]
    return {
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": activation(block.mlp.act),
        "layer_norm_eps": float(model.norm.eps),
        "image_size": size,
        "patch_size": int(model.patch_embed.patch_size[0]),
        "num_channels": 3,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "qkv_bias": True,
    }


_ATTENTION = {key: f"encoder.layer.{{i}}.attention.attention.{key}" for key in ("query", "key", "value")}
_ATTENTION["proj"] = "encoder.layer.{i}.attention.output.dense"


def _plain_vit(model: Any, widths: dict[str, Any], body: dict[str, Tensor], weight: Tensor, bias: Tensor) -> StockModel:
    deep = layers(
        model,
        {
            **_ATTENTION,
            "norm1": "encoder.layer.{i}.layernorm_before",
            "norm2": "encoder.layer.{i}.layernorm_after",
            "fc1": "encoder.layer.{i}.intermediate.dense",
            "fc2": "encoder.layer.{i}.output.dense",
        },
    )
    config = {"architectures": ["ViTForImageClassification"], "model_type": "vit", **widths}
    return StockModel(config, prefixed("vit", {**body, **deep}), (weight, bias))


def _dinov2(
    model: Any, widths: dict[str, Any], body: dict[str, Tensor], pooling: str, weight: Tensor, bias: Tensor
) -> StockModel:
    deep = layers(
        model,
        {
            **_ATTENTION,
            "norm1": "encoder.layer.{i}.norm1",
            "norm2": "encoder.layer.{i}.norm2",
            "fc1": "encoder.layer.{i}.mlp.fc1",
            "fc2": "encoder.layer.{i}.mlp.fc2",
        },
    )
    for index, block in enumerate(model.blocks):
        for number, scale in ((1, block.ls1), (2, block.ls2)):
            ones = torch.ones(model.embed_dim)
            deep[f"encoder.layer.{index}.layer_scale{number}.lambda1"] = getattr(scale, "gamma", ones)
    body = {**body, "embeddings.mask_token": torch.zeros(1, model.embed_dim)}
    hidden = widths.pop("intermediate_size")
    config = {
        "architectures": ["Dinov2ForImageClassification"],
        "model_type": "dinov2",
        **widths,
        "mlp_ratio": hidden / model.embed_dim,
        "layerscale_value": 1.0,
        "use_swiglu_ffn": False,
        "drop_path_rate": 0.0,
    }
    if (ratio := config["mlp_ratio"]) == int(ratio):
        config["mlp_ratio"] = int(ratio)
    nothing = torch.zeros_like(weight)
    whole = {"cls": (weight, nothing), "mean": (nothing, weight), "cls+mean": (weight,)}[pooling]
    return StockModel(config, prefixed("dinov2", {**body, **deep}), (torch.cat(whole, dim=1), bias))


def _siglip(model: Any, name: str, widths: dict[str, Any], weight: Tensor, bias: Tensor) -> StockModel:
    block = "encoder.layers.{i}."
    names = {
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "proj": "self_attn.out_proj",
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
    }
    require(
        name, (all(isinstance(item.ls1, nn.Identity) for item in model.blocks), "has layer scale and no class token")
    )
    weights = {
        **layers(model, {part: block + target for part, target in names.items()}),
        **patches(model, "embeddings.patch_embedding"),
        "embeddings.position_embedding.weight": model.pos_embed[0],
        "post_layernorm.weight": model.norm.weight,
        "post_layernorm.bias": model.norm.bias,
    }
    kept = {
        key: value
        for key, value in widths.items()
        if key not in ("qkv_bias", "attention_probs_dropout_prob", "hidden_dropout_prob")
    }
    vision = {"model_type": "siglip_vision_model", **kept, "attention_dropout": 0.0, "vision_use_head": False}
    config = {"architectures": ["SiglipForImageClassification"], "model_type": "siglip", "vision_config": vision}
    return StockModel(config, prefixed("vision_model", weights), (weight, bias))
