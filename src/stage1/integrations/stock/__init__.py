"""Weights of a timm model under the names of a stock Hugging Face image classifier, and its config.json.

| timm model | pooling | stock class | how |
|---|---|---|---|
| ViT, DeiT with a class token | cls | ViTForImageClassification | one to one |
| the same, and DINOv2 (layer scale) | cls, mean, cls+mean | Dinov2ForImageClassification | see below |
| ViT without class token (SigLIP) | mean | SiglipForImageClassification | without its attention pooling |
| BEiT | its own (mean, then norm) | BeitForImageClassification | one to one |
| Swin V2 | its own | Swinv2ForImageClassification | one to one |
| ConvNeXt V2 | its own | ConvNextV2ForImageClassification | one to one |

The classifier of Dinov2ForImageClassification sees [cls, mean]: what is not pooled gets weight 0, and where there is no
layer scale it is 1.

All of these load in transformers 4.45, which the client pins. Anything else is refused by name: a model that merely
looks alike would load there, and answer differently.
"""

from __future__ import annotations

from torch import Tensor, nn

from stage1.integrations.stock.parts import WAY_OUT, StockModel, refused

__all__ = ["WAY_OUT", "StockModel", "stock_model"]
_LOADABLE = "ViT, DINOv2 without registers, SigLIP, BEiT, Swin V2, ConvNeXt V2"


def stock_model(model: nn.Module, name: str, pooling: str, size: int, weight: Tensor, bias: Tensor) -> StockModel:
    """The stock twin of a timm model without classifier, with the linear head `weight` [K, D], `bias` [K] on top.

    pooling: as in BackboneConfig. size: side of the input. Raises ConfigError (one line, with the way out) for a model
    that transformers 4.45 has no twin of.
    """
    from timm.models.beit import Beit
    from timm.models.convnext import ConvNeXt
    from timm.models.swin_transformer_v2 import SwinTransformerV2
    from timm.models.vision_transformer import VisionTransformer

    from stage1.integrations.stock.beit import beit
    from stage1.integrations.stock.convnext import convnext
    from stage1.integrations.stock.swin import swin
    from stage1.integrations.stock.vit import vit

    makers = {VisionTransformer: vit, Beit: beit, ConvNeXt: convnext, SwinTransformerV2: swin}
    make = makers.get(type(model))  # no subclass: it would look alike and answer differently
    if make is None:
        raise refused(name, f"is of class {type(model).__name__}; transformers 4.45 loads {_LOADABLE}")
    found = make(model, name, pooling, size, weight, bias)
    return StockModel(found.config, {key: _plain(tensor) for key, tensor in found.weights.items()}, found.classifier)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().contiguous().clone()
