"""bundle.json, typed."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from stage1.storage.documents import Document, DocumentKind
from stage1.storage.fields import Classes, Count, Digest, Holds, PolicyName, PositiveInt, ScoreScale, Text

FilePath = Annotated[str, Field(pattern=r"^[A-Za-z0-9_+][A-Za-z0-9._+-]*(/[A-Za-z0-9_+][A-Za-z0-9._+-]*)*$")]
"""Below the folder of the bundle, with slashes; no hidden file, no way out."""


class BundleProbability(TypedDict):
    """The map of calibration.json under every stated probability."""

    map: Text
    score: ScoreScale
    """On what the thresholds lie."""
    reason: Text


class BundleViews(TypedDict):
    """The views of each image under every answer, of views.json."""

    description: Text
    count: PositiveInt


class BundleBackbone(TypedDict):
    """Where the backbone comes from."""

    name: Text
    licence: Text
    base_model: str | None
    weights_sha256: NotRequired[Digest]


class CreatedFrom(TypedDict):
    """Digests of what the bundle was made of, and the versions that made it."""

    config: str
    """Digest of the run's config."""
    model: Digest
    policy: Digest
    certificate: Digest
    map: NotRequired[Digest]
    views: NotRequired[Digest]
    calibration_ids: Digest
    evaluation: Digest | None
    versions: dict[str, str]


class BundledFile(TypedDict):
    """A file as it was packed."""

    sha256: Digest
    size: Count


class BundleDocument(Document):
    """What a bundle holds, with the sha256 and size of every other file in it. It holds no time of day: the same
    inputs give the same bytes.
    """

    name: Text
    stage1_version: str
    """Version of stage1-pro that wrote the bundle."""
    classes: Classes
    positive_class: str | None
    """The second class where there are two, else null."""
    preprocessing: Annotated[dict[str, Any], Field(min_length=1)]
    """From image bytes to the tensor that the model takes."""
    policy: PolicyName
    policy_file: Literal["thresholds.json", "gateparams.json", "scrcparams.json"]
    certified: bool
    """False: every image defers."""
    probability: NotRequired[BundleProbability]
    """Absent: the softmax of the logits."""
    views: NotRequired[BundleViews]
    """Absent: the whole image alone."""
    backbone: BundleBackbone
    data: dict[str, Any]
    """Summary of the data that the model was made with."""
    evaluation: NotRequired[dict[str, Any] | None]
    """What the card shows of the evaluation on val_test; null: there was none; absent: of an earlier version."""
    created_from: CreatedFrom
    files: Annotated[
        dict[FilePath, BundledFile], Holds("model.onnx", "certificate.json", "calibration.parquet", "README.md")
    ]
    digest: Digest
    """sha256 of this document without this field, in the form in which it is written (so it covers the digest of every
    file): the identity of the bundle.
    """


BUNDLE_KIND = DocumentKind("bundle", BundleDocument)
