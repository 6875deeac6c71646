"""Sections head, train and sweep: the head on cached features, its losses and its schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stage1.config.base import PositiveInt, Rate, Section, Share


class HeadConfig(Section):
    kind: Literal["auto", "logistic", "linear", "mlp", "selectivenet", "deepgamblers", "sat"] = "auto"
    """logistic: exact logistic regression, strength and scale chosen out of fold on train + val_select. linear, mlp: by
    Adam. auto: the best of these three out of fold, linear where the run is no plain one (docs/HEADS.md).
    The last three learn when not to answer: SelectiveNet, Deep Gamblers, self-adaptive training; on a trunk as
    in mlp.
    """
    hidden: PositiveInt = 256
    """Width of the hidden layer; not for kinds linear and logistic."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """After the hidden layer; not for kinds linear and logistic."""
    members: Annotated[int, Field(ge=1, le=5)] = 1
    """2 to 5: an ensemble of such heads from different first weights, in one graph; their logits are averaged."""
    gate: Literal["auto", "none", "linear", "mlp"] = "auto"
    """Second output, higher = more likely right. auto: what selectivenet, deepgamblers and sat learn, none for the
    others.
    linear, mlp: a gate of its own, fitted after the classifier on its correctness on images that it did not fit."""

    @property
    def one_layer(self) -> bool:
        """True for the kinds that are one linear layer: a head that is built without a choice takes auto as linear."""
        return self.kind in ("auto", "logistic", "linear")

    @property
    def fitted_once(self) -> bool:
        """True for the kinds that may end as an exact logistic regression."""
        return self.kind in ("auto", "logistic")

    @property
    def selective(self) -> bool:
        """True for the kinds whose loss knows of abstention."""
        return self.kind in ("selectivenet", "deepgamblers", "sat")

    @property
    def gated(self) -> bool:
        """True where the model has a gate: one of its own, or what a selective kind learns."""
        return self.gate in ("linear", "mlp") or (self.selective and self.gate == "auto")


class SelectiveConfig(Section):
    """What the losses of the selective heads need; see training/losses.py for the formulas."""

    coverage: Rate = 0.8
    """selectivenet: the share of images that the gate is asked to let through."""
    penalty: Annotated[float, Field(gt=0.0)] = 32.0
    """selectivenet: weight of the squared lack of coverage."""
    mix: Share = 0.5
    """selectivenet: weight of the selective loss; the rest is the cross-entropy of the auxiliary head."""
    reward: Annotated[float, Field(gt=1.0)] = 1.5
    """deepgamblers: pay-off o of a right answer where abstaining pays 1: everything is held back where P(right) <= 1 /
    o.
    Below the number of classes, else a blind guess pays more than abstaining."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """sat: the target keeps this share of itself each epoch. The paper's 0.99 is for hundreds of epochs."""
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """deepgamblers, sat: share of the epochs with plain cross-entropy before the selective loss. What ships is from
    after it, so it must end before the head overfits."""


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
    refit: Literal["auto"] | bool = "auto"
    """Fit the chosen head again on train + val_select, whose scores then come out of fold. auto: where it is a logistic
    regression and the run has no views. Heads by Adam need val_select to choose the epoch, and have no refit."""
    objective: Literal["ce", "risk"] = "ce"
    """risk: conformal risk training (linear and mlp, two classes). Use a batch_size that holds all images."""
    entropy: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the entropy of the probabilities, which pushes towards decided answers; 0.01 for selective heads."""
    selective: SelectiveConfig = SelectiveConfig()
    risk: RiskTrainingConfig = RiskTrainingConfig()


class SweepConfig(Section):
    """Many linear or mlp heads trained as one batched computation; the best by AUGRC on val_select is then trained
    alone.

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
