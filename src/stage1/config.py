"""RunConfig: everything that decides a run, typed, validated, documented; where each value came from."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stage1.errors import ConfigError, DataError, MissingError
from stage1.views import ViewPolicy

Rate = Annotated[float, Field(gt=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RoadscenesConfig(Section):
    videos: PositiveInt = 400
    """Number of videos (groups) to generate; each has 1 to 5 neighbouring frames."""
    size: Annotated[int, Field(ge=64, le=2048)] = 320
    """Side of the square frames, pixels."""
    seed: int = 0
    """Seed of the generator; the same seed gives the same pixels."""


_Role = Literal["train", "val_select", "val_calib", "val_test"]


class ChallengeConfig(Section):
    """Images as the StreetVision client sends them (data/challenge), made after the split: a certificate is then of these."""

    roles: dict[_Role, Literal["L0", "L1", "L2", "L3", "mixture"]] = {}
    """Level per role; mixture: the four, equally likely. A role that is not named keeps its own images; empty: none is made."""
    copies: dict[_Role, PositiveInt] = {}
    """Challenges per image of a role; 1 where not named. Copies stay in the group of their image."""
    seed: int = 0
    filter: bool = False
    """Keep only rows that the client would send: class 1 with a text in the column scene_description, class 0 without."""

    @model_validator(mode="after")
    def _copies_of_made_roles(self) -> ChallengeConfig:
        if idle := sorted(set(self.copies) - set(self.roles)):
            raise ValueError(f"copies.{idle[0]}: no level is given for this role; add roles.{idle[0]}=mixture")
        return self


class DataConfig(Section):
    source: Literal["auto", "roadscenes", "folder", "table", "hf", "webdataset"] = "auto"
    """Kind of source; auto decides by what `table` points to."""
    table: str | None = None
    """A CSV/TSV/Parquet file, an ImageFolder root, a saved Hugging Face dataset (or hf:NAME), or a WebDataset .tar."""
    role_tables: dict[Literal["train", "val_select", "val_calib", "val_test"], str] = {}
    """Separate tables per role, instead of `table`; given roles are checked, never recomputed."""
    classes: list[str] | None = None
    """Class names in order; the second is the positive class. None: taken from the source once, sorted, and stored."""
    slices: list[str] = []
    """Columns of the table (city, night) for whose values the risks are claimed too, each at its share of delta."""
    bad_labels: Literal["error", "quarantine"] = "error"
    """What to do with a label outside `classes`."""
    max_quarantine: Share = 0.01
    """Largest share of images that may be quarantined before the run fails."""
    max_pixels: PositiveInt = 64_000_000
    """Images with more pixels than this are quarantined unread."""
    near_duplicates: bool = True
    """Join near-duplicate images (dHash) to one group before the split."""
    near_duplicate_distance: Annotated[int, Field(ge=0, le=7)] = 3
    """Largest Hamming distance of two 64-bit dHashes that counts as a near-duplicate."""
    roadscenes: RoadscenesConfig = RoadscenesConfig()
    """The embedded generator, used where `source` is roadscenes."""
    challenge: ChallengeConfig = ChallengeConfig()


class FractionsConfig(Section):
    train: Share = 0.4
    val_select: Share = 0.1
    val_calib: Share = 0.35
    val_test: Share = 0.15

    @model_validator(mode="after")
    def _sum_to_one(self) -> FractionsConfig:
        total = self.train + self.val_select + self.val_calib + self.val_test
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"the four fractions sum to {total:g}, not 1")
        return self


class SplitConfig(Section):
    method: Literal["hash", "balanced"] = "hash"
    """hash: role by hash(seed, group), stable as data grows. balanced: greedy by size and label, for few groups."""
    fractions: FractionsConfig = FractionsConfig()
    seed: int = 0
    allow_leakage: bool = False
    """Go on where the same or a near-identical image stands in two given roles; the run is then marked uncertified."""


class BackboneConfig(Section):
    name: str = "embedded"
    """`embedded` (efficientnet-lite0, ImageNet), or any timm model name."""
    pooling: Literal["cls", "mean", "cls+mean", "pool"] = "pool"
    """How a feature vector is made of the last feature map or tokens; pool = the model's own."""
    weights: str | None = None
    """File or directory with weights; None: the package (embedded) or the hub's cache."""
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


class HeadConfig(Section):
    kind: Literal["linear", "mlp", "selectivenet", "deepgamblers", "sat"] = "linear"
    """The last three learn when not to answer: SelectiveNet, Deep Gamblers, self-adaptive training; on a trunk as in mlp."""
    hidden: PositiveInt = 256
    """Width of the hidden layer; not for kind linear."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """After the hidden layer; not for kind linear."""
    members: Annotated[int, Field(ge=1, le=5)] = 1
    """2 to 5: an ensemble of such heads from different first weights, in one graph; their logits are averaged."""
    gate: Literal["auto", "none", "linear", "mlp"] = "auto"
    """Second output, higher = more likely right. auto: what selectivenet, deepgamblers and sat learn, none for the others.
    linear, mlp: a gate of its own, fitted after the classifier on its correctness on images that it did not fit."""

    @property
    def selective(self) -> bool:
        """True for the kinds whose loss knows of abstention."""
        return self.kind in ("selectivenet", "deepgamblers", "sat")


class SelectiveConfig(Section):
    """What the losses of the selective heads need; see training/losses.py for the formulas."""

    coverage: Rate = 0.8
    """selectivenet: the share of images that the gate is asked to let through."""
    penalty: Annotated[float, Field(gt=0.0)] = 32.0
    """selectivenet: weight of the squared lack of coverage."""
    mix: Share = 0.5
    """selectivenet: weight of the selective loss; the rest is the cross-entropy of the auxiliary head."""
    reward: Annotated[float, Field(gt=1.0)] = 1.5
    """deepgamblers: pay-off o of a right answer where abstaining pays 1: everything is held back where P(right) <= 1 / o.
    Below the number of classes, else a blind guess pays more than abstaining."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """sat: the target keeps this share of itself each epoch. The paper's 0.99 is for hundreds of epochs."""
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """deepgamblers, sat: share of the epochs with plain cross-entropy before the selective loss. What ships is from after it,
    so it must end before the head overfits."""


class RiskTrainingConfig(Section):
    """Conformal risk training: one half of a batch sets the thresholds, the other half pays for deferral."""

    miss_rate: Rate = 0.02
    """Level at which the lower threshold is set on the positives of a half; a half needs 1 / level - 1 of them."""
    false_exit_rate: Rate = 0.05
    """Level at which the upper threshold is set on the negatives of a half; a half needs 1 / level - 1 of them."""
    temperature: Annotated[float, Field(gt=0.0)] = 0.1
    """Softness of deferral, in standard deviations of the batch's scores, so that scaling the scores gains nothing."""
    window: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0025
    """A threshold is the mean of the order statistics within this share of the rows of its class, on both sides."""
    anchor: Annotated[float, Field(ge=0.0)] = 0.3
    """Weight of the cross-entropy, which keeps scores probabilities."""


class TrainConfig(Section):
    epochs: PositiveInt = 60
    batch_size: PositiveInt = 64
    accumulate: PositiveInt = 1
    """Batches whose gradients are added up before a step."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    warmup: Share = 0.05
    """Share of all steps with a linearly rising learning rate; then cosine to zero."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class counts the same in the loss; probabilities are then those of balanced data."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    """Exponential moving average of the weights, with warm-up min(decay, (1+t)/(10+t)); 0 turns it off."""
    select_by: Literal["nll", "accuracy", "augrc"] = "nll"
    """Metric on val_select that chooses the epoch, and between raw and EMA weights."""
    patience: PositiveInt = 15
    """Epochs without improvement before training stops."""
    checkpoint_every: PositiveInt = 1
    """Epochs between checkpoints."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra: track)."""
    objective: Literal["ce", "risk"] = "ce"
    """risk: conformal risk training (linear and mlp, two classes). Use a batch_size that holds all images."""
    entropy: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the entropy of the probabilities, which pushes towards decided answers; 0.01 for selective heads."""
    selective: SelectiveConfig = SelectiveConfig()
    risk: RiskTrainingConfig = RiskTrainingConfig()


class SweepConfig(Section):
    """Many linear or mlp heads trained as one batched computation; the best by AUGRC on val_select is then trained alone.

    Every combination of the lists is one configuration; the lists replace the values of `train` and `head`.
    """

    enabled: bool = False
    learning_rates: Annotated[list[Annotated[float, Field(gt=0.0)]], Field(min_length=1)] = [3e-4, 1e-3, 3e-3, 1e-2]
    weight_decays: Annotated[list[Annotated[float, Field(ge=0.0)]], Field(min_length=1)] = [0.0, 0.01, 0.1, 1.0]
    label_smoothings: Annotated[list[Annotated[float, Field(ge=0.0, lt=1.0)]], Field(min_length=1)] = [0.0, 0.05]
    hidden: list[PositiveInt] = []
    """Widths to try with kind mlp; empty: head.hidden."""
    seeds: Annotated[int, Field(ge=1, le=16)] = 2
    """Each combination is trained from this many seeds: first weights and order of the images."""
    resamples: PositiveInt = 200
    """Bootstrap resamples of each AUGRC's interval."""


class AdapterConfig(Section):
    """What is trained inside the backbone beside the head, in image mode: LoRA and its kin (extra: peft), or norms or biases."""

    kind: Literal["none", "lora", "dora", "rslora", "norm", "bias"] = "none"
    """norm, bias: only these parameters of the backbone, on any model. The others: low-rank updates of linear layers (ViTs)."""
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
    """none: nothing but the adapter, if there is one. last: the last `blocks` blocks of a ViT or stages of a ConvNet."""
    blocks: PositiveInt = 1
    epochs: PositiveInt = 10
    """These three stand for those of `train`, which are the head's on cached features afterwards."""
    batch_size: PositiveInt = 32
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    """Of the linear head that is trained along, and dropped afterwards."""
    learning_rate_scale: Annotated[float, Field(gt=0.0)] = 0.1
    """Learning rate of the backbone's last layer, as a share of the head's (adapters: 1 is usual)."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.75
    """Each layer further from the head learns by this factor more slowly; 1: all alike."""
    augment: Literal["none", "moderate", "aggressive", "client"] = "moderate"
    """Named distortions of the training images; client: those of the StreetVision validator."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the backbone; auto: bfloat16 on GPUs that have it. Head and loss are always float32."""
    grad_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a third more time."""
    device: str = "auto"
    """auto: a GPU where there is one; cpu, cuda, cuda:1 ..."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Threads that decode and augment ahead; 0: one per core."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of torch on the CPU; 0: the cores shared by the processes of this machine. Equal threads give equal bits."""
    statistics_images: PositiveInt = 2048
    """Training images, at most, whose features set the head's standardisation before the first step."""


class PretrainConfig(Section):
    """ExPLoRA: self-supervision goes on, on unlabelled images of the domain, before any label is used (ViTs only; extra: none)."""

    folder: str | None = None
    """Folder with unlabelled images, searched at every depth. None of it may be, or nearly be, in val_calib or val_test."""
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


class ViewsConfig(Section):
    """Parts of each image that are looked at beside the whole, and how their answers become one. Off without grid, scales or flips."""

    whole: bool = True
    """The whole image, as without views, is the first view."""
    grid: str | None = None
    """Tiles as ROWSxCOLUMNS, e.g. 3x3."""
    overlap: Share = 0.12
    """A tile is this share longer than side / n."""
    flips: bool = False
    """Each view also mirrored."""
    scales: list[Rate] = []
    """Further centre crops, of these shares of each side."""
    aggregate: str | list[str] = "auto"
    """From the views' logits to the image's: whole, mean, topk:3, lse:8, noisy_or, max or learned. A list, or auto (all of
    them): the one of least AUGRC on val_select whose gain over the whole view is shown, else the whole view alone."""
    adaptive: bool = False
    """Look at one view after the other and stop where the answer is safe; two classes."""
    train: Literal["whole", "views", "mil", "pooled"] = "whole"
    """What the head learns from. whole: whole images. views: each view with the label of its image. mil: the views' pooled
    logits. pooled: pooled features (the whole view's, the largest and the mean of the others'), of which it makes one answer."""
    pool: str = "mean"
    """How views are pooled in training (mil) and for the choice of the epoch: mean, lse:8 or topk:3."""
    resamples: PositiveInt = 1000
    """Bootstrap resamples of the comparison on val_select."""

    @field_validator("grid")
    @classmethod
    def _rows_and_columns(cls, grid: str | None) -> str | None:
        rows, sign, columns = (grid or "").lower().partition("x")
        if grid is not None and not (sign and rows.isdecimal() and columns.isdecimal()):
            raise ValueError("a grid looks like ROWSxCOLUMNS, e.g. 3x3")
        return grid

    @field_validator("pool")
    @classmethod
    def _known_pool(cls, pool: str) -> str:
        kind, _, number = pool.partition(":")
        try:
            known = (
                pool == "mean" or (kind == "lse" and 0 < float(number) < 1e6) or (kind == "topk" and int(number) >= 1)
            )
        except ValueError:
            known = False
        if not known:
            raise ValueError("unknown pooling; use mean, lse:8 or topk:3")
        return pool

    @model_validator(mode="after")
    def _geometry(self) -> ViewsConfig:
        try:
            policy = self.policy
        except DataError as error:
            raise ValueError(str(error).removeprefix("views: ")) from error
        if policy is None and (self.adaptive or self.train != "whole"):
            name = "adaptive" if self.adaptive else "train"
            raise ValueError(f"{name} needs views beside the whole image; set views.grid=3x3")
        if self.train == "pooled":
            for name, given in (
                ("adaptive", self.adaptive),
                ("aggregate", self.aggregate != "auto"),
                ("pool", self.pool != "mean"),
            ):
                if given:
                    raise ValueError(
                        f"{name} does not go with train=pooled, whose head makes one answer of all views; leave it out"
                    )
        return self

    @property
    def policy(self) -> ViewPolicy | None:
        """The views, or None where there is nothing but the whole image. Raises DataError for an impossible geometry."""
        if self.whole and self.grid is None and not self.flips and not self.scales:
            return None
        rows, _, columns = (self.grid or "").lower().partition("x")
        return ViewPolicy(
            whole=self.whole, grid=(int(rows), int(columns)) if rows else None, overlap=self.overlap, flips=self.flips,
            scales=tuple(self.scales),
        )  # fmt: skip

    @property
    def cached(self) -> ViewPolicy | None:
        """The views whose features training needs; None where the head learns from whole images."""
        return None if self.train == "whole" else self.policy


class ExportConfig(Section):
    parity_tolerance: Annotated[float, Field(gt=0.0)] = 1e-3
    """Largest difference of a logit, trained model against exported model, on real val_select images."""
    parity_images: PositiveInt = 64


class CalibrationConfig(Section):
    map: Literal["auto", "none", "temperature", "platt", "beta", "isotonic", "vector", "dirichlet"] = "auto"
    """From raw scores to the probability that is stated; fitted on val_select, kept only if it lowers the cross-validated NLL.

    auto: the best of those that leave every decision as it is (two classes: temperature, platt, beta; more: temperature).
    isotonic, vector, dirichlet move the order of the scores: thresholds and certificate are then of the mapped score.
    """


class PolicyConfig(Section):
    name: Literal["softmax", "gate", "scrc"] = "softmax"
    """The one exit policy of the run."""
    variant: Literal["I", "T"] = "I"
    """Only for scrc: I holds with the stated confidence, T in expectation."""
    confidence_score: str = "auto"
    """Only for softmax with more than two classes: msp, margin, entropy, energy or maxlogit_pnorm(P), P from 1 on.
    auto: the one of least AUGRC on val_select."""
    thresholds: Literal["auto", "one", "per_class"] = "auto"
    """Only for softmax with more than two classes: one threshold, or one per answered class. auto: by predicted coverage."""

    @field_validator("confidence_score")
    @classmethod
    def _known_score(cls, name: str) -> str:
        from stage1.confidence import CONFIDENCES, PNORM, known

        if name != "auto" and not known(name):
            names = ("auto", *CONFIDENCES, f"{PNORM}(3)")
            raise ValueError(
                f"unknown confidence{_nearest(name, names)}; use {', '.join(names[:-1])} or {PNORM}(P), P >= 1"
            )
        return name


class EvaluationConfig(Section):
    resamples: Annotated[int, Field(ge=1)] = 1000
    """Bootstrap resamples for the intervals of the report."""
    level: Rate = 0.95


_ACCEPTED = (
    "auroc", "aurc", "e_aurc", "augrc", "e_augrc", "auroc_f", "accuracy", "mcc", "nll", "brier", "ece", "coverage",
    "fnr", "fpr", "miss_rate", "false_exit_rate", "error", "wrong",
)  # fmt: skip
_GAINS = ("augrc", "aurc", "nll", "mcc", "accuracy", "coverage", "exit_error")


class AcceptanceGate(Section):
    """One limit, judged after evaluate; see pipeline/acceptance.py for what each metric is."""

    metric: str
    """Of evaluation.json: accuracy, augrc, error, coverage, coverage.CLASS ..; certificate.RISK, certificate.coverage; gate.gain; gain.METRIC."""
    at_least: float | None = None
    at_most: float | None = None
    by: Literal["value", "bound"] = "value"
    """bound: the end of the interval that counts against the run must keep the limit, not the value alone."""
    phase: Annotated[int, Field(ge=0, le=6)] | None = None
    """The phase that the gate ends: a label in acceptance.json and in messages."""

    @model_validator(mode="after")
    def _one_limit(self) -> AcceptanceGate:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"gate {self.metric}: one of at_least and at_most is needed")
        head, _, rest = self.metric.partition(".")
        known = {"gain": rest in _GAINS, "gate": rest == "gain", "certificate": bool(rest)}
        if not known.get(head, head in _ACCEPTED):
            names = (
                *_ACCEPTED,
                "certificate.RISK",
                "certificate.coverage",
                "gate.gain",
                *(f"gain.{name}" for name in _GAINS),
            )
            raise ValueError(f"gate {self.metric!r} is unknown{_nearest(self.metric, names)}; use {', '.join(names)}")
        upward = self.metric == "certificate.coverage"
        if head == "certificate" and self.by == "bound" and (self.at_most if upward else self.at_least) is not None:
            raise ValueError(
                f"gate {self.metric}: its bound is a {'lower' if upward else 'upper'} one; give {'at_least' if upward else 'at_most'}"
            )
        return self


class AcceptanceConfig(Section):
    """Limits that a run must keep before it is bundled; none by default."""

    gates: list[AcceptanceGate] = []
    reference: str | None = None
    """Run directory on the same split that gain.METRIC compares with."""

    @model_validator(mode="after")
    def _reference_given(self) -> AcceptanceConfig:
        if self.reference is None and (
            gains := [gate.metric for gate in self.gates if gate.metric.startswith("gain.")]
        ):
            raise ValueError(f"gate {gains[0]} compares with another run; set acceptance.reference=RUN")
        return self


class RunConfig(Section):
    """Everything that decides a run. `stage1 config schema` prints this as JSON Schema."""

    name: str = "run"
    """A label for reports."""
    seed: int = 0
    """Seed of training and of the one-image-per-group draw; sub-seeds are derived per purpose."""
    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    backbone: BackboneConfig = BackboneConfig()
    features: FeaturesConfig = FeaturesConfig()
    head: HeadConfig = HeadConfig()
    train: TrainConfig = TrainConfig()
    sweep: SweepConfig = SweepConfig()
    adapter: AdapterConfig = AdapterConfig()
    images: ImageTrainConfig = ImageTrainConfig()
    pretrain: PretrainConfig = PretrainConfig()
    views: ViewsConfig = ViewsConfig()
    export: ExportConfig = ExportConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    policy: PolicyConfig = PolicyConfig()
    risks: dict[str, Rate] = {"fnr": 0.02, "false_exit_rate": 0.05}
    """Target: every named risk at most this, jointly at `confidence`."""
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.95
    """1 - delta: the chance, over calibration sets, that all risks hold."""
    coverage: Rate | None = None
    """Floor on the share of images that exit, certified with the risks."""
    class_coverage: dict[str, Rate] = {}
    """Floors on the share of a class that exits, by class name."""
    target_prior: Rate | None = None
    """Share of positives where the bundle will work; `error` and `coverage` are certified for it. None: as in val_calib."""
    allow_one_sided: bool = False
    """Permit a target that constrains one side only ("always exit positive" satisfies fnr <= 0)."""
    assume_iid: bool = False
    """Certify on images although they come in groups; the certificate then says so in its sentence."""
    unit: Literal["auto", "image", "group", "group_mean"] = "auto"
    """What is counted where groups repeat: one image of each group, group means of all images, or (auto) the better on val_select."""
    evaluation: EvaluationConfig = EvaluationConfig()
    acceptance: AcceptanceConfig = AcceptanceConfig()

    @property
    def pretrains(self) -> bool:
        """Whether the run has the stage `pretrain`."""
        return self.pretrain.folder is not None or self.pretrain.train_images

    @property
    def tunes(self) -> bool:
        """Whether the run has the stage `tune`."""
        return self.adapter.kind != "none" or self.images.unfreeze != "none"

    @model_validator(mode="after")
    def _views_go_with_the_head(self) -> RunConfig:
        """Heads whose loss or gate is of one image's one vector learn from the whole image alone."""
        learn, head = self.views.train, self.head
        if learn in ("whole", "pooled"):  # one row of features for each image
            return self
        if head.selective or head.gate in ("linear", "mlp"):
            what = f"head.kind={head.kind}" if head.selective else f"head.gate={head.gate}"
            raise ValueError(
                f"views.train={learn} with {what}; it is for linear and mlp heads without a gate, set views.train=whole"
            )
        if self.sweep.enabled:
            raise ValueError(
                f"views.train={learn} with sweep.enabled; a sweep is on whole images, set views.train=whole"
            )
        return self

    @field_validator("risks")
    @classmethod
    def _known_risks(cls, risks: dict[str, float]) -> dict[str, float]:
        known = ("fnr", "fpr", "miss_rate", "false_exit_rate", "error")
        for name in risks:
            kind, dot, of_class = name.partition(".")
            # Class names are known only once the data are read; which of them is meant is checked there.
            if dot and of_class and kind in ("fnr", "wrong", "miss_rate"):
                continue
            if name not in known:
                raise ValueError(f"unknown risk {name!r}{_nearest(name, known)}; risks are {', '.join(known)}")
        if not risks:
            raise ValueError("at least one risk is needed, e.g. risks.fnr=0.02")
        return risks


# ---- loading -----------------------------------------------------------------------------------------------------

PHASES = {
    0: "data", 1: "baseline", 2: "selective-metrics", 3: "gate", 4: "explora", 5: "risk-training", 6: "continuous-learning",
}  # fmt: skip
# In a file, a mapping of risks is the whole target: it replaces the one of the recipe, it is not merged into it.
_WHOLE = ("risks", "class_coverage")


def recipes() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files("stage1").joinpath("recipes")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """The YAML of a recipe. Raises ConfigError naming the nearest one."""
    if name not in recipes():
        raise ConfigError(f"recipe {name!r} is not there{_nearest(name, recipes())}; recipes: {', '.join(recipes())}")
    return resources.files("stage1").joinpath(f"recipes/{name}.yaml").read_text(encoding="utf-8")


def phase_recipe(phase: int) -> str:
    """The recipe that `--phase` stands for. Raises ConfigError where there is none yet."""
    if phase not in PHASES:
        raise ConfigError(f"--phase {phase}: phases are 0 to 6")
    if PHASES[phase] not in recipes():
        raise ConfigError(
            f"--phase {phase}: its recipe {PHASES[phase]!r} is not built yet; recipes: {', '.join(recipes())}"
        )
    return PHASES[phase]


def load_config(
    path: str | os.PathLike[str] | None = None,
    *,
    values: Mapping[str, Any] | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> tuple[RunConfig, dict[str, str]]:
    """Defaults < values (of a run directory) < recipe < file < environment (STAGE1_A__B=value) < overrides (a.b=value).

    Returns the config and the origin of every leaf ("default", "recipe demo", "file run.yaml", "env STAGE1_SEED", "command line").
    Raises MissingError (no such file) and ConfigError (one line: where, key, value, what is allowed).
    """
    values = {} if values is None else copy.deepcopy(dict(values))
    origin: dict[str, str] = {}
    if recipe is not None:
        _merge(values, _yaml(recipe_text(recipe), f"recipe {recipe}"), origin, f"recipe {recipe}")
    if path is not None:
        if not Path(path).is_file():
            raise MissingError(f"{path}: no such config file; for a recipe use --recipe NAME ({', '.join(recipes())})")
        _merge(values, _yaml(Path(path).read_text(encoding="utf-8"), str(path)), origin, f"file {path}")
    for name, text in sorted((os.environ if environment is None else environment).items()):
        if name.startswith("STAGE1_"):
            _put(values, name.removeprefix("STAGE1_").lower().replace("__", "."), text, origin, f"env {name}")
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign:
            raise ConfigError(f"{override!r}: overrides look like a.b=value")
        _put(values, key.strip(), text, origin, "command line")
    config = validated(values)
    return config, {
        key: origin.get(key, _prefix_origin(key, origin)) for key, _ in leaves(config.model_dump(mode="json"))
    }


def validated(values: Mapping[str, Any]) -> RunConfig:
    """RunConfig from nested values; pydantic's report becomes one line. Raises ConfigError."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "config"
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{where}: unknown key{_nearest(where, known_keys())}") from error
        message = first["msg"].removeprefix("Value error, ")
        given = "" if isinstance(first["input"], dict) else f" (given: {first['input']!r})"
        raise ConfigError(f"{where}: {message[0].lower()}{message[1:]}{given}") from error


def known_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of the config."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of nested values; an empty mapping is a leaf."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def to_yaml(config: RunConfig) -> str:
    """The whole config as YAML, in the order of its definition."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Lines "key: old -> new" of every leaf that differs."""
    before, after = (dict(leaves(config.model_dump(mode="json"))) for config in (old, new))
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in [*before, *(k for k in after if k not in before)]
            if before.get(key) != after.get(key)]  # fmt: skip


def _yaml(text: str, where: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML ({' '.join(str(error).split())[:160]})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: a mapping of keys is expected at the top")
    return values


def _merge(
    values: dict[str, Any], new: Mapping[str, Any], origin: dict[str, str], source: str, prefix: str = ""
) -> None:
    for key, value in new.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and dotted not in _WHOLE:
            inner = values.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{dotted}: a mapping here, a single value before ({source})")
            _merge(inner, value, origin, source, f"{dotted}.")
        else:
            values[key] = value
            origin[dotted] = source


def _put(values: dict[str, Any], dotted: str, text: str, origin: dict[str, str], source: str) -> None:
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise ConfigError(f"{dotted}: {text!r} is not a valid value ({source})") from error
    *path, last = dotted.split(".")
    if path and path[0] in _WHOLE:
        # What follows is one name, dots and all: fnr.cat is a risk, not a section.
        path, last = path[:1], ".".join([*path[1:], last])
    known = known_keys()
    if dotted not in known and not (path and path[0] in (*_WHOLE, "data") and ".".join(path) in known):
        raise ConfigError(f"{dotted}: unknown key{_nearest(dotted, known)} ({source})")
    if path == [
        "risks"
    ]:  # one risk given alone changes the target, it does not replace it; `risks.fnr=null` takes it away
        values.setdefault("risks", dict(RunConfig.model_fields["risks"].default))
    place = values
    for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise ConfigError(f"{dotted}: {part!r} is a single value, not a section ({source})")
    if path == ["risks"] and value is None:
        place.pop(last, None)
    else:
        place[last] = value
    origin[dotted] = source


def _prefix_origin(key: str, origin: Mapping[str, str]) -> str:
    parts = key.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if found := origin.get(".".join(parts[:end])):
            return found
    return "default"


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:
        tail = name.rsplit(".", 1)[-1]
        close = [key for key in known if key.rsplit(".", 1)[-1] == tail][:1] or [
            key for key in known if difflib.get_close_matches(tail, [key.rsplit(".", 1)[-1]], n=1, cutoff=0.7)
        ][:1]
    return f"; did you mean {close[0]!r}?" if close else ""
