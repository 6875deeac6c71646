"""ConvNeXt V2: the same modules under other names."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from stage1.integrations.stock.parts import StockModel, activation, is_gelu, prefixed, require

_CONVNEXT = (
    (r"stem\.0\.", "embeddings.patch_embeddings."),
    (r"stem\.1\.", "embeddings.layernorm."),
    (r"stages\.(\d+)\.downsample\.", r"encoder.stages.\1.downsampling_layer."),
    (r"stages\.(\d+)\.blocks\.", r"encoder.stages.\1.layers."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"\.norm\.", ".layernorm."),
    (r"\.mlp\.fc1\.", ".pwconv1."),
    (r"\.mlp\.fc2\.", ".pwconv2."),
    (r"\.mlp\.grn\.", ".grn."),
    (r"^head\.layernorm\.", "layernorm."),
)


def convnext(model: Any, name: str, pooling: str, size: int, weight: Tensor, bias: Tensor) -> StockModel:
    blocks = [block for stage in model.stages for block in stage.blocks]
    kernels = {tuple(block.conv_dw.kernel_size) for block in blocks}
    require(
        name,
        (pooling == "pool", f"with pooling {pooling!r}; the stock ConvNeXt V2 pools as the model itself does (pool)"),
        (
            all(hasattr(block.mlp, "grn") and getattr(block, "gamma", None) is None for block in blocks),
            "is a first ConvNeXt; transformers 4.45 is given ConvNeXt V2 only",
        ),
        (
            type(model.head.norm).__name__ == "LayerNorm2d" and isinstance(model.norm_pre, nn.Identity),
            "has another head than the stock ConvNeXt V2",
        ),
        (kernels == {(7, 7)} and len(model.stem) == 2, "has another stem or kernel than the stock ConvNeXt V2"),
        (all(is_gelu(block.mlp.act) for block in blocks), "has activations other than GELU"),
        (not isinstance(model.head.pre_logits, nn.Linear | nn.Sequential), "has a hidden layer in its head"),
    )
    weights: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        target = key
        for pattern, replacement in _CONVNEXT:
            target = re.sub(pattern, replacement, target)
        if ".pwconv" in target and tensor.ndim == 4:  # a 1 x 1 convolution is a linear layer there
            tensor = tensor[:, :, 0, 0]
        if ".grn." in target:
            tensor = tensor.reshape(1, 1, 1, -1)
        weights[target] = tensor
    config = {
        "architectures": ["ConvNextV2ForImageClassification"],
        "model_type": "convnextv2",
        "num_channels": 3,
        "patch_size": int(model.stem[0].kernel_size[0]),
        "num_stages": len(model.stages),
        "hidden_sizes": [stage.blocks[0].conv_dw.in_channels for stage in model.stages],
        "depths": [len(stage.blocks) for stage in model.stages],
        "hidden_act": activation(blocks[0].mlp.act),
        "layer_norm_eps": float(model.head.norm.eps),
        "image_size": size,
        "drop_path_rate": 0.0,
    }
    return StockModel(config, prefixed("convnextv2", weights), (weight, bias))
