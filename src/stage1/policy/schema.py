"""The documents of a policy, typed: thresholds.json, gateparams.json, scrcparams.json and certificate.json."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Discriminator, Field, Tag
from typing_extensions import TypedDict

from stage1.storage.documents import Document, DocumentKind
from stage1.storage.fields import (
    Classes,
    Count,
    Digest,
    Distinct,
    PolicyName,
    PositiveInt,
    Rate,
    ScoreScale,
    Share,
    Text,
    Unit,
)


class _Policy(Document):
    """What every policy file says."""

    certified: bool
    """False: every image defers."""
    score: NotRequired[ScoreScale]
    """On what the thresholds lie: the raw score, or the score after the map in calibration.json. Absent: raw."""
    calibration: NotRequired[Digest]
    """sha256 of calibration.json, where the score is mapped."""


class SlicePair(TypedDict):
    """Exit as class 0 iff the score < lo, as class 1 iff > hi; null: never."""

    value: Text
    lo: float | None
    hi: float | None


class SlicePairs(TypedDict):
    """Thresholds for each value of an attribute; an image with another value, or none, defers."""

    attribute: Text
    values: Annotated[list[SlicePair], Field(min_length=1, max_length=50)]


# ---- softmax -----------------------------------------------------------------------------------------------------


class TwoClassThresholds(_Policy):
    """Exit as class 0 iff logit_1 - logit_0 < lo, as class 1 iff > hi; null: never."""

    policy: Literal["softmax"]
    classes: Annotated[Distinct[Text], Field(min_length=2, max_length=2)]
    lo: float | None
    hi: float | None
    by_slice: NotRequired[SlicePairs]
    """Thresholds of each slice; lo and hi are then null."""


class MulticlassThresholds(_Policy):
    """Exit as the likeliest class iff its confidence is above the threshold of that class; null: never."""

    policy: Literal["softmax"]
    classes: Annotated[Distinct[Text], Field(min_length=3)]
    confidence_score: Annotated[str, Field(pattern=r"^(msp|margin|entropy|energy|maxlogit_pnorm\([0-9.]+\))$")]
    """What is compared with the thresholds, a function of the logits."""
    thresholds: Annotated[list[float | None], Field(min_length=3)]
    """One a class, by the answered class; null: nothing exits as that class."""
    mode: Literal["one", "per_class"]
    """Whether one threshold was sought for all, or one per answered class."""


def _of_how_many(document: Any) -> str:
    classes = document.get("classes") if isinstance(document, dict) else None
    return "more" if isinstance(classes, list) and len(classes) > 2 else "two"


ThresholdsDocument = Annotated[
    Annotated[TwoClassThresholds, Tag("two")] | Annotated[MulticlassThresholds, Tag("more")],
    Discriminator(_of_how_many),
]
THRESHOLDS_KIND = DocumentKind("thresholds", ThresholdsDocument)

# ---- gate --------------------------------------------------------------------------------------------------------


class GateMap(TypedDict):
    """The calibration map of the gate, as calibration.json holds one."""

    name: Literal["platt", "beta", "isotonic"]
    parameters: dict[str, Any]
    n: PositiveInt
    n_classes: Literal[2]
    fitted_on: Digest | None
    monotone: bool
    constrained: Distinct[str]


class GateModelDocument(TypedDict):
    """The model of g = P(the answer is right)."""

    source: Literal["gate", "meta", "constant"]
    features: Distinct[Text]
    means: list[float]
    scales: list[Annotated[float, Field(gt=0)]]
    weights: list[float]
    intercept: float
    map: GateMap | None
    chosen: str
    n: PositiveInt
    accuracy: Share
    collapsed: Text | None


class _Gate(_Policy):
    policy: Literal["gate"]
    classes: Annotated[Distinct[Text], Field(min_length=2, max_length=2)]
    model: GateModelDocument
    by_slice: NotRequired[SlicePairs]
    """Thresholds of each slice, on the score of lo and hi, which are then null."""


SignedScore = Annotated[float, Field(ge=-1, le=1)]


class GateDecides(_Gate):
    """Exit thresholds on the signed gate score u (+g where class 1 is predicted, -g where class 0 is): exit as class 0
    iff u < lo, as class 1 iff u > hi; null: never.
    """

    kept: Literal["gate"]
    lo: SignedScore | None
    hi: SignedScore | None


class SoftmaxDecides(_Gate):
    """The gate was refused: lo and hi are on logit_1 - logit_0; null: never."""

    kept: Literal["softmax"]
    lo: float | None
    hi: float | None


GateDocument = Annotated[GateDecides | SoftmaxDecides, Field(discriminator="kept")]
GATEPARAMS_KIND = DocumentKind("gateparams", GateDocument)

# ---- SCRC --------------------------------------------------------------------------------------------------------


class ScrcDocument(_Policy):
    """Parameters of the SCRC policy: an image is selected iff its confidence passes tau, and exits iff its set holds
    one class.
    """

    policy: Literal["scrc"]
    variant: Literal["I", "T"]
    """I: selected iff g > tau, bound with confidence over calibration sets. T: selected iff g >= tau, bound in
    expectation.
    """
    confidence: Literal["softmax", "gate"]
    """What g is: the largest softmax probability, or the sigmoid of the gate logit."""
    tau: float | None
    """Threshold of g as log odds log(g / (1 - g)), for the gate its logit; null: every image is selected."""
    floors: Annotated[list[float | None], Field(min_length=2)]
    """Per class: class k is in the set iff log(p_k / (1 - p_k)) >= floor, which is p_k >= 1 - lambda_k with lambda_k =
    1 / (1 + exp(floor)); null: always in the set.
    """
    classes: Classes
    likeliest_in_set: NotRequired[bool]
    """The set holds the likeliest class whatever its floor, so that no image exits as another one. Absent: false."""
    unclaimed: NotRequired[list[str]]
    """Classes of more than two that are in a set only as its likeliest class, and as which no image exits; with variant
    T an image at tau defers then. Absent: none (two classes, earlier versions).
    """
    xi: Rate
    """Claimed share of selected images."""
    alpha: Annotated[dict[str, Rate], Field(min_length=1)]
    """Risk -> target that was asked for, counted among selected images of the class."""


SCRCPARAMS_KIND = DocumentKind("scrcparams", ScrcDocument)

# ---- the ledger of looks -----------------------------------------------------------------------------------------


class KnownImages(TypedDict):
    """The calibration images of looks."""

    n: Count
    by: Literal["id", "content", "digest"]
    """What the keys are of; digest: an earlier version kept the digest of the set alone."""
    keys: str
    """One of 8 bytes for each image, sorted, little-endian, base64 (policy/image_keys.py)."""


class KnownLook(TypedDict):
    """One certificate that was asked for: `Look`."""

    look: Digest
    """Of what was asked of which model; with the images it says which look it is."""
    images: Digest
    wish: Rate | None
    """The confidence that was asked for."""
    confidence: Rate | None
    """Of its own tests. null: an earlier version did not keep it."""
    planned: PositiveInt | None
    schedule: Literal["plain", "sequential"]
    asked: dict[str, Any]
    """In words, for people."""


class LedgerDocument(Document):
    """Every certificate that calibration images were asked for, as far as the folder knows. It holds no time of day."""

    dealt: list[Digest]
    """Sets of images that were dealt into this folder before any of them was looked at."""
    images: dict[Digest, KnownImages]
    looks: list[KnownLook]


class EarlierAttempt(TypedDict):
    """A certificate of a run, as 0.1.0 kept it."""

    calib_digest: Digest
    model: Digest
    policy: Text
    risks: dict[str, float]
    confidence: float
    assume_iid: bool
    coverage: float | None
    class_coverage: dict[str, float]
    target_prior: float | None
    views: NotRequired[Digest]
    against_argmax: NotRequired[bool]
    calibration: NotRequired[Text]


class EarlierCascadeAttempt(TypedDict):
    """A configuration of a cascade, as 0.1.0 kept it."""

    calib_digest: Digest
    configuration: Digest


class EarlierAttempts(Document):
    """The same of 0.1.0, which counted sets of images by their digest alone."""

    attempts: list[EarlierAttempt | EarlierCascadeAttempt]


def _of_which_version(document: Any) -> str:
    return "earlier" if isinstance(document, dict) and "attempts" in document else "ledger"


ATTEMPTS_KIND = DocumentKind(
    "attempts",
    Annotated[
        Annotated[LedgerDocument, Tag("ledger")] | Annotated[EarlierAttempts, Tag("earlier")],
        Discriminator(_of_which_version),
    ],
)

# ---- the certificate ---------------------------------------------------------------------------------------------

RiskName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\..+)?$")]
"""A risk of the table (risk/risks.py); or, of more than two classes, one of a class: "fnr.CLASS"."""


class CertifiedRisk(TypedDict):
    """One risk limit: `RiskBound` without its name."""

    target: Rate
    observed: Share | None
    bound: Share
    n: Count
    errors: Count
    delta: Rate
    needed: Count
    by_construction: bool


class CertifiedCoverage(TypedDict):
    """Exits among n units: `Coverage`."""

    value: Share
    n: Count
    exits: Count
    floor: Share | None
    bound: Share | None


class SliceRisk(TypedDict):
    """One risk where an attribute has a value: `SliceCounts`."""

    target: Share
    observed: Share | None
    bound: Share
    n: Count
    errors: Count


class SliceDocument(TypedDict):
    """The same risks where an attribute has a value."""

    attribute: str
    value: str
    n: Count
    delta: Rate
    certified: bool
    risks: dict[str, SliceRisk]
    own: NotRequired[bool]
    """True: it has thresholds of its own, lo and hi. Absent: one pair is for all images."""
    lo: NotRequired[float | None]
    hi: NotRequired[float | None]
    exits: NotRequired[Count | None]
    """Units of the slice that exit."""
    reason: NotRequired[Text | None]
    """Why the slice is not certified: its images defer."""
    needed: NotRequired[Text | None]


class CertifiedViews(TypedDict):
    """Which views of each image the scores are made of."""

    digest: Digest
    description: Text


class CountedAttempts(TypedDict):
    """The looks at the calibration images, and the confidence that is true after them: `Attempts`."""

    number: PositiveInt
    """Looks that share an image with this one, itself included."""
    spent: Share
    """Probability, at most, with which any of them is false; under a plan, any of the plan."""
    headline_confidence: Share
    """1 - spent: the confidence of the statement."""
    asked_confidence: Rate
    planned: PositiveInt | None
    schedule: Literal["plain", "sequential"]
    ledger: Digest | None
    """Digest of the looks that were known; null: counted by the caller, without a ledger."""
    look: Digest | None
    """Which look of the ledger this is."""


class UnclaimedDocument(TypedDict):
    """A class as which no image exits and of whose images nothing is claimed: `UnclaimedClass`."""

    name: Text
    risk: RiskName
    target: Rate
    n: Count
    """Selected calibration images of the class, of `members`."""
    errors: Count
    """Those of them that exit, as another class."""
    members: Count
    needed: Count
    """n that could certify the whole target with no error."""


class CertificateDocument(Document):
    """What is guaranteed of one policy, on what evidence, under which assumptions; or why nothing is."""

    certified: bool
    statement: Text
    policy: PolicyName
    method: Text
    confidence: Rate
    """Of the tests of this look alone; what is true after all looks is attempts.headline_confidence."""
    delta: Rate
    unit: Unit
    assume_iid: bool
    risks: Annotated[dict[RiskName, CertifiedRisk], Field(min_length=1)]
    coverage: CertifiedCoverage
    per_class: dict[str, CertifiedCoverage]
    classes: Classes
    n_images: Count
    n_units: Count
    calib_digest: Digest
    seed: int
    attempt: PositiveInt
    target_prior: Share | None
    assumptions: Annotated[list[Text], Field(min_length=1)]
    void_if: Annotated[list[Text], Field(min_length=1)]
    reason: Text | None
    needed: Text | None
    slices: NotRequired[Annotated[list[SliceDocument], Field(max_length=50)]]
    slices_asked: NotRequired[list[str]]
    slice_thresholds: NotRequired[Literal["own"]]
    """own: each slice has thresholds of its own. Absent: one pair is for all images."""
    never_answered: NotRequired[list[str]]
    """Classes as which no image exits."""
    unlimited: NotRequired[list[str]]
    """One sentence for each kind of wrong answer that is given and that no risk limits."""
    unclaimed: NotRequired[Annotated[list[UnclaimedDocument], Field(min_length=1)]]
    """Classes without a claim, as SCRC has them; their risks are none of `risks`. Absent: none."""
    bounds: NotRequired[Literal["joint"]]
    """joint: the bounds of a certified target hold together with its confidence, none above its target (SCRC-T: the
    target, on average). Absent (earlier versions): each is of one risk alone at its delta.
    """
    dealing: NotRequired[Literal["hash", "stratified-random", "stratified-redrawn", "by-size", "given"]]
    """How groups came to val_calib; absent: not recorded (earlier versions, scores of any model)."""
    against_argmax: NotRequired[bool]
    """Whether images may exit as a class that their probability does not favour. Absent: true, as before there was a
    choice.
    """
    boundary: NotRequired[Annotated[list[float], Field(min_length=2, max_length=2)] | None]
    """Limits of the thresholds [lo, hi] where they may not: even odds of the stated probability, fixed before
    val_calib; the largest number a double holds where no score favours a class.
    """
    views: NotRequired[CertifiedViews]
    """Absent: of the whole image alone."""
    attempts: NotRequired[CountedAttempts]
    """Absent: looks were not counted (earlier versions, Python without a ledger)."""


CERTIFICATE_KIND = DocumentKind("certificate", CertificateDocument)
