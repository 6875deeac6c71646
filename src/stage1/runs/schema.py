"""The JSON documents of a run directory that stages write for the stages and pages after them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from stage1.storage.documents import Document, DocumentKind
from stage1.storage.fields import Count, Digest, NotNegative, Pooling, PositiveInt, PositiveShare, Text

SelectBy = Literal["nll", "accuracy", "augrc"]

# ---- what each stage made ----------------------------------------------------------------------------------------


class OutputState(TypedDict):
    """A file as the stage left it."""

    sha256: Digest
    size: int
    mtime_ns: int


class StageState(TypedDict):
    """One finished stage. inputs: digest of all that it depends on."""

    inputs: Digest
    seconds: float
    peak_mib: NotRequired[float | None]
    """Most memory that the process held meanwhile, MiB; null where the system does not say."""
    outputs: dict[str, OutputState]


class StagesDocument(Document):
    """What each stage of a run has made from what."""

    stage1_version: str
    stages: dict[str, StageState]


STAGES_KIND = DocumentKind("stages", StagesDocument)

# ---- the backbone and its features -------------------------------------------------------------------------------


class FitOfImages(TypedDict):
    """How an image becomes the model's square. size: its side, pixels; crop_pct: 1 but for center_crop."""

    fit: Literal["squash", "center_crop", "letterbox"]
    size: PositiveInt
    crop_pct: PositiveShare


class FitCandidate(FitOfImages):
    """One line of the comparison: a logistic regression on its features, out of fold.

    nll_excess: above the least NLL of the table; standard_error: of that difference, paired, over groups.
    """

    augrc: NotNegative
    nll: NotNegative
    accuracy: NotNegative
    auroc: float | None
    """For two classes, else null."""
    nll_excess: NotNegative
    standard_error: NotNegative


class PreprocessingDocument(Document):
    """What was chosen of what the config left open, on images of train and val_select alone."""

    chosen: FitOfImages
    reason: Text
    images: Count
    """Images that were judged, by every candidate the same."""
    groups: Count
    seed: int
    table: list[FitCandidate]
    """In order of preference; empty where nothing was compared."""
    left_out: list[Text]
    """Candidates that were not compared, and why."""


PREPROCESSING_KIND = DocumentKind("preprocessing", PreprocessingDocument)


class PretrainDocument(Document):
    """How the backbone was pretrained on unlabelled images."""

    objective: Literal["masked", "dino"]
    images: PositiveInt
    loss_first: float
    loss_last: float
    rank_before: float
    rank_after: float
    spread_before: float
    spread_after: float
    share: PositiveShare
    adapted: Count
    fingerprint: Digest


PRETRAIN_KIND = DocumentKind("pretrain", PretrainDocument)


class FeaturesDocument(Document):
    """Which backbone made the features of a run, and where they are."""

    backbone: Text
    pooling: Pooling
    fingerprint: Digest
    licence: Text
    base_model: NotRequired[str | None]
    weights_sha256: NotRequired[Digest | None]
    weights: Text
    dim: PositiveInt
    preprocessing: dict[str, Any]
    backbone_onnx: Digest
    engine: Literal["onnx", "torch"]
    key: str | dict[str, Any]
    store: str | None
    seed: int
    views: NotRequired[dict[str, Any]]
    """The views of each image whose features stand side by side; absent: those of the whole image."""


FEATURES_KIND = DocumentKind("features", FeaturesDocument)

# ---- training ----------------------------------------------------------------------------------------------------


class Chosen(Document):
    """The epoch and the weights that were kept, by what they reach on val_select."""

    best_epoch: Count
    best_metric: float
    select_by: SelectBy
    used_ema: bool
    epochs_run: Count
    metrics: dict[str, float]


class TuneBudget(TypedDict):
    """What was planned for images.minutes; cut_short: the time was over before the plan was."""

    minutes: float
    epochs: PositiveInt
    steps: PositiveInt
    cut_short: bool


class TuneDocument(Chosen):
    """How the backbone was tuned on labelled images."""

    trainable: PositiveInt
    share: PositiveShare
    processes: PositiveInt
    fingerprint: Digest
    budget: NotRequired[TuneBudget]


TUNE_KIND = DocumentKind("tune", TuneDocument)


class GateFacts(TypedDict):
    """The gate on val_select."""

    collapsed: str | None
    passed: float
    low: float
    high: float
    auroc: float | None


class HeadMetrics(TypedDict):
    """What a head reaches on val_select."""

    nll: float
    accuracy: float
    augrc: float
    scaled_nll: float


class HeadComparison(TypedDict):
    """Where the backbone was tuned: this head (again) and the one trained along with the backbone (along) on the same
    features of val_select. The better one by select_by ships, again where they are equal; for nll it is scaled_nll that
    decides, the NLL at the temperature that is best for each. What the document says is of the one that ships. skipped:
    why they were not compared.
    """

    ships: Literal["again", "along"]
    skipped: NotRequired[str]
    along: NotRequired[HeadMetrics]
    again: NotRequired[HeadMetrics]


def _compared_or_skipped(choice: HeadComparison) -> HeadComparison:
    skipped = "skipped" in choice and choice["ships"] == "again"
    if skipped == ("along" in choice and "again" in choice):
        raise ValueError("along: either `skipped` and again ships, or the metrics of both heads")
    return choice


class SweepChoice(TypedDict):
    """The configuration that the sweep chose, and whether it ends the same trained alone."""

    learning_rate: float
    weight_decay: float
    label_smoothing: float
    hidden: PositiveInt
    seed: int
    augrc: float
    augrc_low: float | None
    augrc_high: float | None
    largest_difference: float
    agrees: bool


class LogisticRow(TypedDict):
    """A logistic regression, judged out of fold."""

    strength: float
    scale: Literal["common", "column"]
    augrc: float
    nll: float


class AdamRow(TypedDict):
    """A head by Adam, judged out of fold on `images` images. difference: of its AUGRC minus that of the best logistic
    regression on the same images; error: its standard error over groups, null for one group.
    """

    kind: Literal["linear", "mlp"]
    augrc: float
    nll: float
    images: PositiveInt
    difference: float
    error: float | None


class HeadSelection(TypedDict):
    """The head that was chosen out of fold on train + val_select, groups whole; skipped: why none was (then the linear
    head by Adam).

    refit: it was fitted again on train + val_select, and the scores of val_select are those of fits on the other of
    `scoring_folds` folds, in the file whose digest is out_of_fold.
    """

    kind: Literal["logistic", "linear", "mlp"]
    refit: bool
    skipped: NotRequired[str]
    folds: NotRequired[PositiveInt]
    images: NotRequired[PositiveInt]
    strength: NotRequired[float]
    scale: NotRequired[Literal["common", "column"]]
    logistic: NotRequired[list[LogisticRow]]
    adam: NotRequired[list[AdamRow]]
    scoring_folds: NotRequired[PositiveInt]
    out_of_fold: NotRequired[Digest]


class TrainDocument(Chosen):
    """How the shipped head came about; without epochs (0) for a logistic regression."""

    choice: NotRequired[HeadSelection]

    gate: NotRequired[GateFacts]
    along: NotRequired[Annotated[HeadComparison, AfterValidator(_compared_or_skipped)]]
    sweep: NotRequired[SweepChoice]


TRAIN_KIND = DocumentKind("train", TrainDocument)

# ---- the exported model ------------------------------------------------------------------------------------------


class ParityDocument(Document):
    """Trained model against exported model, on real images through the full path."""

    images: PositiveInt
    tolerance: float
    largest_difference: NotNegative
    same_class: Count
    passed: bool
    model: Digest
    weights: Digest


PARITY_KIND = DocumentKind("parity", ParityDocument)


class TraceDocument(Document):
    """How many views of each image of val_test were looked at, and which one decided."""

    role: Literal["val_test"]
    views: Digest
    """sha256 of views.json."""
    used: list[PositiveInt]
    deciding: list[Count]


TRACE_KIND = DocumentKind("looked", TraceDocument)

# ---- limits -------------------------------------------------------------------------------------------------------


class AcceptanceGate(TypedDict):
    """One gate, judged."""

    phase: int | None
    metric: Text
    by: Literal["value", "bound"]
    at_least: float | None
    at_most: float | None
    limit: float
    observed: float | None
    bound: float | None
    """Lower end for at_least, upper end for at_most."""
    passed: bool
    reason: Text


class AcceptanceDocument(Document):
    """The acceptance gates of a run, judged after `evaluate`."""

    passed: bool
    """Every gate passed."""
    reference: str | None
    """Name of the run that gain.METRIC compares with."""
    gates: Annotated[list[AcceptanceGate], Field(min_length=1)]
    look: NotRequired[PositiveInt]
    """Number of this look at the images of val_test; missing in older documents, which did not count."""


ACCEPTANCE_KIND = DocumentKind("acceptance", AcceptanceDocument)


class Look(TypedDict):
    """Gates were judged on val_test: a state of the run (outputs, policy, gates), and the number of the look."""

    state: Digest
    look: PositiveInt


class LooksDocument(Document):
    """How often the images of val_test were looked at for acceptance, by this run."""

    looks: Annotated[list[Look], Field(min_length=1)]


LOOKS_KIND = DocumentKind("val_test_looks", LooksDocument)
