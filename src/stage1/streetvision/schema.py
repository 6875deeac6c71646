"""The document of a sealed cascade, typed."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from stage1.cascade.schema import RuleDocument
from stage1.storage.documents import Document, DocumentKind
from stage1.storage.fields import Digest, Rate, Share, Text


class FrozenCertificate(TypedDict):
    """What the detector says of the certificate of the whole."""

    confidence: Rate
    statement: Text


class FrozenBundle(TypedDict):
    """A stage that is a bundle."""

    folder: Text
    digest: Digest


class FrozenCallable(TypedDict):
    """A stage that is a function."""

    name: Annotated[str, Field(min_length=3)]
    folder: Text


class FrozenStage(TypedDict):
    """A stage, its rule and how it is called."""

    name: Text
    rule: RuleDocument
    bundle: FrozenBundle | None
    callable: FrozenCallable | None
    http: dict[str, Any] | None
    calls: dict[str, Any]


class FrozenCascadeDocument(Document):
    """The stages of a cascade with their rules, for the StreetVision detector; its digest is over all else but
    schema_version.
    """

    name: str
    classes: Annotated[list[str], Field(min_length=2, max_length=2)]
    default_probability: Share
    seed: int
    stages_digest: Digest
    certificate: FrozenCertificate | None
    stages: Annotated[list[FrozenStage], Field(min_length=2)]
    digest: Digest


FROZEN_CASCADE_KIND = DocumentKind("frozen_cascade", FrozenCascadeDocument)
