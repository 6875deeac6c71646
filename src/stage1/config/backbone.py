"""Sections backbone, features and export: from an image to its features, and the model as it ships."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stage1.config.section import PositiveInt, Section


class BackboneConfig(Section):
    name: str = "embedded"
    """`embedded` (efficientnet-lite0, ImageNet), or any timm model name."""
    pooling: Literal["cls", "mean", "cls+mean", "pool"] = "pool"
    """How a feature vector is made of the last feature map or tokens; pool = the model's own."""
    weights: str | None = None
    """File or directory with weights; None: the package (embedded) or the hub's cache."""
    licence: str | None = None
    """Licence of the weights, as its owner names it; None: of named weights timm's, of a file unknown."""
    base_model: str | None = None
    """Name of the weights on the Hugging Face hub; None: of named weights timm's, of a file none."""
    random_weights: bool = False
    """Untrained weights from the seed: for tests of the machinery only, never for a product."""
    input_size: Annotated[int, Field(ge=32, le=1024)] | None = None
    """Input side in pixels; None: what the model was made for."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of extraction in torch; float16 is not offered, it breaks DINOv3."""


class FeaturesConfig(Section):
    engine: Literal["auto", "onnx", "torch"] = "auto"
    """Engine for training roles; auto measures both on a few batches. Evaluation roles always use the shipped engine."""
    store: str | None = None
    """Folder of the feature store; None: `features/` in the run directory. A shared store saves work between runs."""
    shard_size: PositiveInt = 512
    """Images per shard: what a kill can cost at most."""
    max_batch_size: PositiveInt = 64
    """Largest batch; halved when memory runs out."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Decoding threads; 0: one per core."""


class ExportConfig(Section):
    parity_tolerance: Annotated[float, Field(gt=0.0)] = 1e-3
    """Largest difference of a logit, trained model against exported model, on real val_select images."""
    parity_images: PositiveInt = 64
