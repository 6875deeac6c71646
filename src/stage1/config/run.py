"""RunConfig: the sections together, the target, and what must hold between them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from stage1.config.base import Rate, Section, Seed, nearest
from stage1.config.certify import (
    DEFAULT_POLICY,
    AcceptanceConfig,
    AttemptsConfig,
    CalibrationConfig,
    EvaluationConfig,
    PolicyConfig,
)
from stage1.config.data import DataConfig, SplitConfig
from stage1.config.head import HeadConfig, SweepConfig, TrainConfig
from stage1.config.model import (
    AdapterConfig,
    BackboneConfig,
    ExportConfig,
    FeaturesConfig,
    ImageTrainConfig,
    PretrainConfig,
)
from stage1.config.views import ViewsConfig
from stage1.risk.risks import class_kinds, risks_for
from stage1.risk.targets import default_risks


class RunConfig(Section):
    """Everything that decides a run. `stage1 config schema` prints this as JSON Schema."""

    name: str = "run"
    """A label for reports."""
    seed: Seed = 0
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
    risks: dict[str, Rate] | None = None
    """Target: every named risk at most this, jointly at `confidence`. null: for two classes fnr 0.02 and
    false_exit_rate 0.05, for more error 0.05 (of the answers that are given, at most this share is wrong)."""
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.95
    """1 - delta: the chance, over calibration sets, that all risks hold. It is the wish: what is stated counts every
    look at the calibration images (`attempts`)."""
    attempts: AttemptsConfig = AttemptsConfig()
    coverage: Rate | None = None
    """Floor on the share of images that exit, certified with the risks."""
    class_coverage: dict[str, Rate] = {}
    """Floors on the share of a class that exits, by class name."""
    target_prior: Rate | None = None
    """Share of positives where the bundle will work; `error` and `coverage` are certified for it. None: as in
    val_calib.
    """
    allow_one_sided: bool = False
    """Permit a target that constrains one side only ("always exit positive" satisfies fnr <= 0)."""
    assume_iid: bool = False
    """Certify on images although they come in groups; the certificate then says so in its sentence."""
    unit: Literal["auto", "image", "group", "group_draws", "group_mean"] = "auto"
    """What is counted where groups repeat: one image of each group, many draws of one, group means of all images,
    or (auto) the best on val_select.
    """
    evaluation: EvaluationConfig = EvaluationConfig()
    acceptance: AcceptanceConfig = AcceptanceConfig()

    def risks_for(self, n_classes: int) -> dict[str, float]:
        """The target with so many classes: the one that is given, else the default."""
        return default_risks(n_classes) if self.risks is None else dict(self.risks)

    def for_classes(self, n_classes: int) -> RunConfig:
        """This config with its target written out for so many classes."""
        return self.model_copy(update={"risks": self.risks_for(n_classes)})

    @property
    def chooses_preprocessing(self) -> bool:
        """Whether the run has the stage `preprocess`: not with views, whose tiles are squashed, and not of random
        weights, whose features say nothing.
        """
        backbone = self.backbone
        return backbone.undecided and not backbone.random_weights and self.views.policy is None

    @property
    def pretrains(self) -> bool:
        """Whether the run has the stage `pretrain`."""
        return self.pretrain.folder is not None or self.pretrain.train_images

    @property
    def tunes(self) -> bool:
        """Whether the run has the stage `tune`."""
        return self.adapter.kind != "none" or self.images.unfreeze != "none"

    @model_validator(mode="after")
    def _one_backbone_is_trained(self) -> RunConfig:
        if len(self.backbone.names) > 1 and (self.tunes or self.pretrains):
            what = "images or adapter" if self.tunes else "pretrain"
            raise ValueError(f"backbone.name={self.backbone.name} with {what}: one backbone is trained; name one")
        return self

    @model_validator(mode="after")
    def _views_go_with_the_head(self) -> RunConfig:
        """Heads whose loss or gate is of one image's one vector learn from the whole image alone."""
        learn, head = self.views.train, self.head
        if self.views.adaptive and head.gated:
            what = f"head.gate={head.gate}" if head.gate != "auto" else f"head.kind={head.kind}"
            raise ValueError(
                f"views.adaptive with {what}; it is for heads without a gate, set views.adaptive=false or"
                " head.gate=none"
            )
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

    @model_validator(mode="after")
    def _logistic_goes_with_the_run(self) -> RunConfig:
        """An exact fit is of one linear layer on one vector an image, by cross-entropy."""
        head, train = self.head, self.train
        if train.refit is True and (not head.fitted_once or self.views.policy is not None):
            what = f"head.kind={head.kind}" if not head.fitted_once else "views"
            raise ValueError(f"train.refit=true with {what}; it is for a logistic regression of whole images, leave it")
        if head.kind != "logistic":
            return self
        for what, applies in (
            (f"head.members={head.members}", head.members > 1),
            (f"head.gate={head.gate}", head.gate in ("linear", "mlp")),
            (f"train.objective={train.objective}", train.objective != "ce"),
            (f"train.entropy={train.entropy:g}", train.entropy > 0),
            (f"train.label_smoothing={train.label_smoothing:g}", train.label_smoothing > 0),
            (f"views.train={self.views.train}", self.views.train != "whole"),
            ("sweep.enabled", self.sweep.enabled),
            ("a tuned backbone (adapter.kind, images.unfreeze)", self.tunes),
        ):
            if applies:
                raise ValueError(f"head.kind=logistic with {what}; set head.kind=linear")
        return self

    @model_validator(mode="after")
    def _target_of_policy(self) -> RunConfig:
        """What the policy certifies, as far as it does not depend on how many classes there are."""
        if self.policy.name != DEFAULT_POLICY:  # which takes every target; the others are imported to say
            from stage1.policy.registry import POLICIES

            POLICIES[self.policy.name].takes(self)
        return self

    @field_validator("risks")
    @classmethod
    def _known_risks(cls, risks: dict[str, float] | None) -> dict[str, float] | None:
        if risks is None:
            return None
        known, kinds = [risk.name for risk in risks_for(2)], class_kinds()
        for name in risks:
            kind, dot, of_class = name.partition(".")
            # Class names are known only once the data are read; which of them is meant is checked there.
            if dot and of_class and kind in kinds:
                continue
            if name not in known:
                raise ValueError(f"unknown risk {name!r}{nearest(name, known)}; risks are {', '.join(known)}")
        if not risks:
            raise ValueError("at least one risk is needed, e.g. risks.fnr=0.02")
        return risks
