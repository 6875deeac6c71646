"""cascade.json, typed: the certificate of a cascade as a whole, and its cost against its risk."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from stage1.policy.schema import CountedAttempts
from stage1.storage.documents import Document, DocumentKind
from stage1.storage.fields import Count, Digest, Holds, NotNegative, PositiveInt, Rate, Share, Text, Unit

# ---- rules and counts --------------------------------------------------------------------------------------------


class RuleDocument(TypedDict):
    """When a stage answers, and with which class."""

    kind: Literal["own", "thresholds", "always"]
    below: Share | None
    above: Share | None
    answer_above: Share


Rules = Annotated[list[RuleDocument], Field(min_length=2)]
"""One for each stage."""


class AnswerRates(TypedDict):
    """What the answers of a cascade got wrong."""

    miss_rate: Share | None
    false_exit_rate: Share | None
    positives: Count
    negatives: Count
    misses: Count
    false_exits: Count


class DeferredShare(TypedDict):
    """A share of images that come in groups, as `ClusterShare` holds it: what its bound needs."""

    images: PositiveInt
    share: Share
    groups: PositiveInt
    effective: NotNegative
    guarded: Share
    error: NotNegative
    spread: NotNegative


class DeferredClusters(TypedDict):
    """The share that is deferred, of all images and of each class; null for a class without an image."""

    all: DeferredShare
    negative: DeferredShare | None
    positive: DeferredShare | None


class DeferredCounts(TypedDict):
    """What reaches a later stage: images, of all and of the positive ones."""

    stage: str
    deferred: Count
    deferred_positives: Count
    clusters: NotRequired[DeferredClusters]
    """Where images share groups. Older documents have none, and count one image of each group."""


# ---- the certificate ---------------------------------------------------------------------------------------------


class CascadeRisk(TypedDict):
    """One risk of the whole; target null: none was asked for."""

    name: Literal["miss_rate", "false_exit_rate", "error"]
    target: Share | None
    observed: Share | None
    bound: Share
    errors: Count
    n: Count
    delta: Share
    needed: int | None


class CertifiedStage(TypedDict):
    """What a stage brings with it."""

    stage: str
    certified: bool
    delta: Share
    statement: str


class WholeCertificate(TypedDict):
    """What is guaranteed of the answers of the whole."""

    certified: bool
    statement: Text
    confidence: Share
    delta: Rate
    method: str
    unit: Unit
    assume_iid: bool
    rules: Rules
    risks: Annotated[dict[str, CascadeRisk], Field(min_length=1)]
    deferred: Share
    failures: dict[str, Annotated[dict[str, Count], Holds("asked", "failed")]]
    """By stage: images asked of it, of these failed, and by the kind of failure."""
    fallbacks: Count
    n_images: Count
    n_units: Count
    calib_digest: Digest
    tested: Count
    attempt: PositiveInt
    stages: list[CertifiedStage]
    assumptions: list[str]
    void_if: list[str]
    reason: str | None
    needed: str | None
    attempts: NotRequired[CountedAttempts]
    """Absent: an earlier version wrote it."""


# ---- cost against risk -------------------------------------------------------------------------------------------


class RoleSizes(TypedDict):
    """Images of each role."""

    val_select: Count
    val_calib: Count
    val_test: Count


class StageCost(TypedDict):
    """What one call of a stage costs."""

    stage: str
    kind: Literal["bundle", "callable", "http"]
    calls: Count
    attempts: float
    failed: Share
    median_milliseconds: float | None
    p95_milliseconds: float | None
    waited_milliseconds: NotRequired[NotNegative]
    """Mean wait for calls.per_minute; missing in older documents, whose milliseconds hold it."""
    money: float
    milliseconds: float


class PointRisk(TypedDict):
    """One risk at a point of the frontier."""

    observed: Share | None
    bound: Share
    target: Share | None


class FrontierPoint(TypedDict):
    """A set of rules: what it costs, and what it gets wrong. select: on val_select."""

    rules: Rules
    deferred: Share
    reach: list[Share]
    money: float
    milliseconds: float
    certified: bool
    risks: dict[str, PointRisk]
    select: AnswerRates | None
    counted: NotRequired[Annotated[list[DeferredCounts], Field(min_length=1)]]
    """What reaches each later stage, counted as in `defer`; missing in older documents."""


class TestRates(AnswerRates):
    """The chosen rules on val_test. contradicted: the risks whose bound val_test speaks against."""

    contradicted: list[str]


class Deferral(TypedDict):
    """What the chosen rules send on. units, positives: images counted (older documents: one of each group)."""

    role: Literal["val_test", "val_calib"]
    choices: PositiveInt
    units: Count
    positives: Count
    stages: Annotated[list[DeferredCounts], Field(min_length=1)]


class CascadeDocument(Document):
    """What is promised of the answers of a cascade as a whole, on what evidence; and its cost against its risk."""

    name: str
    classes: Annotated[list[str], Field(min_length=2, max_length=2)]
    stages: Annotated[list[str], Field(min_length=2)]
    stages_digest: Digest
    currency: str
    certificate: WholeCertificate
    history: Annotated[list[Digest], Field(min_length=1)]
    roles: RoleSizes
    roles_from: Literal["given", "bundles", "hash"]
    left_out: dict[str, Count]
    costs: list[StageCost]
    chosen: FrontierPoint
    frontier: list[FrontierPoint]
    test: TestRates | None
    defer: Deferral
    fallback_alone: AnswerRates


CASCADE_KIND = DocumentKind("cascade", CascadeDocument)
