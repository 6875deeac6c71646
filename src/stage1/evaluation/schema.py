"""evaluation.json and the comparison of arms, typed."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from stage1.storage.documents import Document, DocumentKind
from stage1.storage.fields import Count, Digest, Distinct, Holds, PositiveInt, Rate, ScoreScale, Share, Text

# ---- what both share ---------------------------------------------------------------------------------------------


class Measured(TypedDict):
    """A number with its interval; null where undefined."""

    value: float | None
    low: float | None
    high: float | None
    note: NotRequired[Text]
    """Why there is no interval."""


ResamplingUnit = Literal["image", "group"]

# ---- evaluation.json: risks, coverage, curves --------------------------------------------------------------------


class MeasuredRisk(TypedDict):
    """A risk on this role. low, high: exact two-sided Clopper-Pearson, as if images were independent. group_low,
    group_high: over groups (null: images are the unit, or there are too few groups).
    """

    observed: Share | None
    errors: Count
    n: Count
    low: Share
    high: Share
    group_low: Share | None
    group_high: Share | None
    target: float | None


class MeasuredCoverage(TypedDict):
    """Exits among n images."""

    value: Share | None
    exits: Count
    n: Count
    low: Share
    high: Share
    group_low: Share | None
    group_high: Share | None


class EvaluatedCoverage(TypedDict):
    """Exits among all images, and among those of each class."""

    overall: MeasuredCoverage
    per_class: dict[str, MeasuredCoverage]


class ExitConfusion(TypedDict):
    """True classes against answers."""

    rows: list[str]
    columns: list[str]
    counts: list[list[Count]]


class RiskCurve(TypedDict):
    """Coverage 1 first, 0 last."""

    coverage: Annotated[list[float], Field(max_length=400)]
    selective_risk: Annotated[list[float], Field(max_length=400)]
    generalised_risk: Annotated[list[float], Field(max_length=400)]


class ClassErrors(TypedDict):
    """Of one true class."""

    n: Count
    errors: Count


class AnsweredErrors(TypedDict):
    """Images answered and errors of one rule."""

    n: Count
    errors: Count
    per_class: dict[str, ClassErrors]


class BesideArgmax(TypedDict):
    """The policy beside the plain argmax (the class of the larger logit): images answered and errors of each rule, and
    of each true class. same_images: argmax on the images that exit.
    """

    policy: AnsweredErrors
    same_images: AnsweredErrors
    all_images: AnsweredErrors


class OperatingPoint(TypedDict):
    """Where the policy lies on the curve."""

    coverage: Share | None
    selective_risk: Share | None


class ReliabilityBin(TypedDict):
    """Stated against observed in one bin."""

    low: float
    high: float
    count: PositiveInt
    mean_probability: float
    observed_rate: float


class BeforeAfter(TypedDict):
    """Without and with the map, and after - before, from the same bootstrap replicates."""

    before: Measured
    after: Measured
    change: Measured


class EvaluatedMap(TypedDict):
    """The map under nll, brier, ece, reliability and every stated probability, and what it changed on these rows
    (none: identity).
    """

    map: Text
    score: ScoreScale
    """On what the thresholds lie: the raw score, or the score after the map (then curve, histogram, lo and hi too)."""
    reason: Text
    nll: NotRequired[BeforeAfter]
    brier: NotRequired[BeforeAfter]
    ece: NotRequired[BeforeAfter]


class ScoreHistogram(TypedDict):
    """Of the raw score: logit of class 1 - logit of class 0; more than two classes: logit of the largest
    probability.
    """

    edges: list[float]
    counts: dict[str, list[Count]]


class Outcomes(TypedDict):
    """What happened to images."""

    right: Count
    deferred: Count
    wrong: Count


class ByViewsUsed(Outcomes):
    """The images at which so many views were looked."""

    views: PositiveInt


class ByDecidingView(Outcomes):
    """The images that this view decided."""

    view: str


class EvaluatedViews(TypedDict):
    """What happened to the images by the number of views looked at, and by the view that decided."""

    of: PositiveInt
    mean: Annotated[float, Field(ge=1)] | None
    used: list[ByViewsUsed]
    decided: list[ByDecidingView]


# ---- evaluation.json: another balance of the classes -------------------------------------------------------------

ClassShares = dict[str, Annotated[float, Field(ge=0, le=1.000001)]]
"""Class name -> share."""


class LabelledRows(TypedDict):
    """Labelled rows whose rates within each class are restated."""

    n: PositiveInt
    shares: ClassShares


class SourceRows(LabelledRows):
    """Labelled rows that the estimates rest on."""

    role: str


class TargetRows(TypedDict):
    """Unlabelled rows."""

    n: PositiveInt


class ShiftMap(TypedDict):
    """Calibration map for mlls, its kind chosen by cross-validated NLL."""

    name: str
    reason: str


class PriorEstimate(TypedDict):
    """A balance of the classes, and what the policy does at it."""

    method: Literal["mlls", "bbse", "stated"]
    prior: ClassShares
    low: ClassShares | None
    high: ClassShares | None
    coverage: Measured
    error: Measured
    metrics: dict[str, Measured]


class LabelShiftDocument(TypedDict):
    """What the policy does at another balance of the classes, stated or found in unlabelled scores."""

    source: SourceRows
    test: LabelledRows
    target: TargetRows | None
    """null where only a stated balance is given."""
    map: ShiftMap | None
    level: Rate
    resamples: PositiveInt
    intervals: Literal["exact, conservative", "over groups"]
    """Of coverage and error; all carry the uncertainty of the estimated balance."""
    estimates: list[PriorEstimate]
    agree: bool | None
    """Whether chance makes the difference of mlls and bbse; null where there are not both, or few groups."""
    stays: list[str]
    """Certified risks that hold at every balance."""
    moves: list[str]
    """Certified risks that hold only at the balance of their certificate."""
    notes: list[str]


# ---- evaluation.json ---------------------------------------------------------------------------------------------


class WorstImage(TypedDict):
    """One image that the policy got wrong, or nearly."""

    id: str | None
    path: str | None
    label: str
    probability: Share
    decision: str


class SliceExits(TypedDict):
    """Exits in one slice; counts as exit_confusion."""

    slice: str
    value: str
    counts: list[list[Count]]


class EvaluationDocument(Document):
    """How good the scores and the exit policy are on one role."""

    role: Literal["train", "val_select", "val_calib", "val_test"]
    n: PositiveInt
    n_groups: PositiveInt
    unit: ResamplingUnit
    """What the bootstrap draws."""
    intervals: Literal["groups = images", "image-level, groups ignored"]
    """What the exact intervals (low, high) of risks and coverage take as independent. Where groups are ignored, read
    group_low and group_high.
    """
    classes: Annotated[Distinct[str], Field(min_length=2)]
    """In the order of the label indices; the second is positive where there are two."""
    policy: str
    certified: bool
    metrics: Annotated[
        dict[str, Measured],
        Holds("aurc", "e_aurc", "augrc", "auroc_f", "accuracy", "mcc", "nll", "brier", "ece", "coverage"),
    ]
    """Stratified bootstrap intervals at `level`; null where undefined."""
    level: Rate
    resamples: PositiveInt
    """Asked for. From 20,000 units on only metrics that hang on few of them are drawn, of very many rows 200 times."""
    risks: Annotated[dict[str, MeasuredRisk], Holds("error")]
    """fnr, fpr, miss_rate, false_exit_rate (two classes) or fnr.<class>, wrong.<class>, miss_rate.<class>, and
    error.
    """
    coverage: EvaluatedCoverage
    exit_confusion: ExitConfusion
    curve: RiskCurve
    argmax: NotRequired[BesideArgmax]
    operating_point: OperatingPoint
    reliability: list[ReliabilityBin]
    """Equal-mass bins of P(class 1), or of the largest probability where there are more than two classes."""
    reliability_before: NotRequired[list[ReliabilityBin]]
    """As reliability, of the model's own probabilities, before the calibration map; absent where none is applied."""
    calibration: NotRequired[EvaluatedMap]
    histogram: ScoreHistogram
    views: NotRequired[EvaluatedViews]
    label_shift: NotRequired[LabelShiftDocument]
    lo: float | None
    """Exit as class 0 iff raw score < lo; null: never."""
    hi: float | None
    """Exit as class 1 iff raw score > hi; null: never."""
    worst: Annotated[list[WorstImage], Field(max_length=24)]
    """Wrong exits first, then wrong but deferred; in each, least probability for the true class first."""
    slices: NotRequired[Annotated[list[SliceExits], Field(max_length=50)]]


EVALUATION_KIND = DocumentKind("evaluation", EvaluationDocument)

# ---- the comparison of arms --------------------------------------------------------------------------------------

ArmMetric = Literal["augrc", "aurc", "nll", "mcc", "accuracy", "coverage", "exit_error"]


class RoleImages(TypedDict):
    """Images of a role, and the digest of their ids, equal in all runs."""

    n: Count
    digest: Digest


class RolesOfArms(TypedDict):
    """The split that all runs share."""

    train: RoleImages
    val_select: RoleImages
    val_calib: RoleImages
    val_test: RoleImages


class ArmMeasured(Measured):
    """A metric of an arm over its seeds."""

    sd: float | None
    """Spread from seed to seed (n - 1); null for one seed."""
    per_seed: Annotated[list[float | None], Field(min_length=1)]


class ArmRun(TypedDict):
    """One run of an arm, and what it cost."""

    run: str
    seed: int
    certified: bool | None
    parameters: int | None
    """Numbers in the float weights of model.onnx."""
    model_bytes: int | None
    train_seconds: float | None
    seconds: float | None
    """All stages, as they last ran."""
    images_per_second: float | None
    """Images scored by the exported model, reading and decoding included, over the seconds of the stage score."""
    score_peak_mib: float | None
    """Most memory that the process held in the stage score, MiB."""


class MeasuredArm(TypedDict):
    """An arm and its metrics."""

    name: Text
    seeds: PositiveInt
    metrics: Annotated[dict[ArmMetric, ArmMeasured], Field(min_length=1)]


class ArmDocument(MeasuredArm):
    """An arm with its runs."""

    runs: Annotated[list[ArmRun], Field(min_length=1)]


class ArmDifference(TypedDict):
    """One metric of an arm against the reference."""

    arm: str
    metric: ArmMetric
    difference: float | None
    """arm - reference."""
    low: float | None
    high: float | None
    better: str | None
    """The arm, or the reference, where the interval excludes 0."""
    verdict: Text
    note: NotRequired[Text]
    """Why there is no interval."""


class Confirmation(TypedDict):
    """The chosen arm against the reference, on val_test."""

    role: Literal["val_test"]
    n: PositiveInt
    n_groups: PositiveInt
    unit: ResamplingUnit
    level: Rate
    resamples: PositiveInt
    seed: int
    reference: str
    arms: Annotated[list[MeasuredArm], Field(min_length=1)]
    differences: list[ArmDifference]


class ArmsDocument(Document):
    """Run directories on one split, grouped into arms of several seeds: paired differences to the first arm, the arm
    chosen, and its confirmation.
    """

    on: Literal["val_select", "val_test"]
    by: ArmMetric
    classes: Annotated[list[str], Field(min_length=2)]
    target: dict[str, float] | None
    """The one target that every run was certified for; null: coverage and exit_error are not compared."""
    splits: RolesOfArms
    n: PositiveInt
    n_groups: PositiveInt
    unit: ResamplingUnit
    level: Rate
    resamples: PositiveInt
    seed: int
    reference: str
    arms: Annotated[list[ArmDocument], Field(min_length=1)]
    differences: list[ArmDifference]
    chosen: str
    confirmation: Confirmation | None
    conclusion: Text
    notes: list[str]


COMPARISON_ARMS_KIND = DocumentKind("comparison_arms", ArmsDocument)
