"""Sections of the model: backbone, adapter, pretrain, images (what the backbone learns), features and export."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from stage1.config.base import PositiveInt, Section, Share

_SIDES = (32, 1024)  # of the model's square input, pixels


class BackboneConfig(Section):
    name: str = "embedded"
    """`embedded` (efficientnet-lite0, ImageNet), embedded-lite1, embedded-lite2 (240, 260 px; extra: backbones), or any
    timm model name. Several joined by +: their features side by side, all at the first one's size (every other one
    pooled in its own way); weights, licence and base_model are then the first one's, and none of them is trained."""
    pooling: Literal["auto", "cls", "mean", "cls+mean", "pool", "pool+inner"] = "auto"
    """How a feature vector is made of the last feature map or tokens; pool = the model's own. pool+inner, for the
    embedded backbones: its square root, and beside it the mean of the stage before the last one. auto: that for an
    embedded backbone alone, else pool.
    """
    weights: str | None = None
    """File or directory with weights; None: the package (embedded) or the hub's cache."""
    download: bool = False
    """Fetch the weights of a timm model from the Hugging Face hub where its cache has none. The only way in which a run
    fetches anything; `stage1 backbones --of NAME` says how much it is."""
    licence: str | None = None
    """Licence of the weights, as its owner names it; None: of named weights timm's, of a file unknown."""
    base_model: str | None = None
    """Name of the weights on the Hugging Face hub; None: of named weights timm's, of a file none."""
    random_weights: bool = False
    """Untrained weights from the seed: for tests of the machinery only, never for a product."""
    fit: Literal["auto", "squash", "center_crop", "letterbox"] = "auto"
    """How an image becomes the model's square. squash: stretched whole. center_crop: the shorter side to input_size /
    crop_pct, then the centre square. letterbox: the longer side to input_size, the rest in the mean colour. auto:
    chosen on images of train and val_select before anything is trained (stage `preprocess`); with views squash, as
    tiles are.
    """
    input_size: Annotated[int, Field(ge=_SIDES[0], le=_SIDES[1])] | Literal["auto"] | None = None
    """Input side in pixels; None: what the model was made for. auto: that or a third more, chosen along with `fit`."""
    crop_pct: Annotated[float, Field(ge=0.1, le=1.0)] | None = None
    """center_crop: share of the shorter side that is kept; None: what the model was evaluated with."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of extraction in torch; float16 is not offered, it breaks DINOv3."""

    @property
    def names(self) -> list[str]:
        """The backbones, in the order of their features."""
        return [name.strip() for name in self.name.split("+")]

    @property
    def undecided(self) -> bool:
        """Whether fit or input_size is to be chosen on data."""
        return self.fit == "auto" or self.input_size == "auto"

    @property
    def first_fit(self) -> Literal["squash", "center_crop", "letterbox"]:
        """The fit before, or without, a choice on data."""
        return "squash" if self.fit == "auto" else self.fit

    @property
    def first_size(self) -> int | None:
        """The input side before, or without, a choice on data; None: what the model was made for."""
        return None if self.input_size == "auto" else self.input_size

    @field_validator("input_size", mode="before")
    @classmethod
    def _side_or_auto(cls, side: Any) -> Any:
        if side is None or side == "auto":
            return side
        # Said here for both kinds at once: pydantic would name the one that it tried last.
        whole = isinstance(side, int) or (isinstance(side, str) and side.isdecimal())
        if not whole or not _SIDES[0] <= int(side) <= _SIDES[1]:
            raise ValueError(f"a whole number {_SIDES[0]} to {_SIDES[1]}, auto or null is needed")
        return int(side)

    @field_validator("name")
    @classmethod
    def _names_that_differ(cls, name: str) -> str:
        parts = [part.strip() for part in name.split("+")]
        if not all(parts) or len(set(parts)) < len(parts):
            raise ValueError("names joined by + are needed, each once, e.g. embedded+embedded-lite2")
        return "+".join(parts)

    @model_validator(mode="after")
    def _crop_pct_of_a_crop(self) -> BackboneConfig:
        if self.crop_pct is not None and self.fit not in ("auto", "center_crop"):
            raise ValueError(f"crop_pct with fit={self.fit}; it is for center_crop, leave it out")
        return self


class FeaturesConfig(Section):
    engine: Literal["auto", "onnx", "torch"] = "auto"
    """Engine for training roles; auto measures both on a few batches. Evaluation roles always use the shipped
    engine.
    """
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


class AdapterConfig(Section):
    """What is trained inside the backbone beside the head, in image mode: LoRA and its kin (extra: peft), or norms
    or biases.
    """

    kind: Literal["none", "lora", "dora", "rslora", "norm", "bias"] = "none"
    """norm, bias: only these parameters of the backbone, on any model. The others: low-rank updates of linear
    layers (ViTs).
    """
    rank: PositiveInt = 8
    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    """The update is scaled by alpha / rank (rslora: alpha / sqrt(rank))."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    targets: list[str] = []
    """Names of linear layers inside a block (qkv, proj, fc1, ...); empty: all that are known."""
    blocks: PositiveInt | None = None
    """Only the last so many blocks; None: all."""


class ImageTrainConfig(Section):
    """Stage `tune`: the backbone learns from the labelled images of train, before features are extracted.

    Asked for by `unfreeze` or by `adapter.kind`. Schedule, EMA and selection are those of `train`.
    """

    unfreeze: Literal["none", "last", "all"] = "none"
    """none: nothing but the adapter, if there is one. last: the last `blocks` blocks of a ViT or stages of a
    ConvNet.
    """
    blocks: PositiveInt = 1
    epochs: PositiveInt = 10
    """These three stand for those of `train`, which are the head's on cached features afterwards."""
    minutes: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """Time budget of training, wall time over all attempts. The time of a few steps is measured, and as many epochs as
    fit are planned, at most `epochs`, or a share of one; the learning rate falls along the plan. None: all `epochs`."""
    batch_size: PositiveInt = 32
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    """Of the linear head that is trained along; the better of it and the one of `train` ships."""
    learning_rate_scale: Annotated[float, Field(gt=0.0)] = 0.1
    """Learning rate of the backbone's last layer, as a share of the head's (adapters: 1 is usual)."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.75
    """Each layer further from the head learns by this factor more slowly; 1: all alike."""
    augment: Literal["none", "moderate", "aggressive", "client"] = "moderate"
    """Named distortions of the training images; client: those of the StreetVision validator."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the backbone; auto: bfloat16 on GPUs that have it, and for ViTs on CPUs that multiply in it. Head
    and loss are always float32."""
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Stochastic depth while the backbone learns: rate of its last block, rising from 0 at the first (.1 is usual for a
    ViT).
    None: what timm builds the model with, 0 for most."""
    grad_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a third more time."""
    device: str = "auto"
    """auto: a GPU where there is one; cpu, cuda, cuda:1 ..."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Threads that decode and augment ahead; 0: one per core."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of torch on the CPU; 0: the cores shared by the processes of this machine. Equal threads give equal
    bits.
    """
    statistics_images: PositiveInt = 512
    """Training images, at most, whose features set the head's standardisation before the first step."""


class PretrainConfig(Section):
    """ExPLoRA: self-supervision goes on, on unlabelled images of the domain, before any label is used (ViTs only;
    extra: none).
    """

    folder: str | None = None
    """Folder with unlabelled images, searched at every depth. None of it may be, or nearly be, in val_calib or
    val_test.
    """
    train_images: bool = False
    """Use the images of train, without their labels, too. Without this and without a folder there is no such stage."""
    objective: Literal["masked", "dino"] = "masked"
    """masked: rebuild hidden patches from the others. dino: agree with an averaged teacher on two views of an image."""
    unfreeze: PositiveInt = 1
    """Last blocks that are trained whole; all norms are, too."""
    rank: PositiveInt = 64
    """Rank of the update of queries and values in the other blocks."""
    alpha: Annotated[float, Field(gt=0.0)] | None = None
    """The update is scaled by alpha / rank; None: alpha = rank."""
    epochs: PositiveInt = 20
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Annotated[float, Field(gt=0.0)] = 3e-4
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05
    warmup: Share = 0.1
    clip_norm: Annotated[float, Field(gt=0.0)] = 1.0
    augment: Literal["none", "moderate", "aggressive"] = "moderate"
    """Of each view. For dino, aggressive views teach more."""
    mask_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.75
    decoder_width: PositiveInt = 192
    decoder_depth: PositiveInt = 2
    prototypes: Annotated[int, Field(ge=2)] = 1024
    """dino: outputs of the projection head."""
    teacher_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.996
    """dino: at the start; rises to 1 along a cosine."""
    center_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    student_temperature: Annotated[float, Field(gt=0.0)] = 0.1
    teacher_temperature: Annotated[float, Field(gt=0.0)] = 0.04
    probe_images: Annotated[int, Field(ge=8)] = 256
    """Fixed images on whose features collapse is looked for after each epoch."""
    collapse_share: Share = 0.25
    """Collapsed: rank or spread of these features falls below this share of what it was before."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    workers: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=0)] = 0
