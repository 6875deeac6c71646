"""stages.json: a cascade file with its rules settled, sealed by a digest; what a detector's key `cascade` names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage1.cascade import Cascade, Rule
from stage1.errors import ConfigError, IntegrityError, MissingError
from stage1.storage.documents import SCHEMA_VERSION, validate, write_document
from stage1.storage.files import digest_bytes
from stage1.storage.texts import read_json
from stage1.streetvision.schema import FROZEN_CASCADE_KIND

_MAKE = "`stage1 streetvision cascade`"


@dataclass(frozen=True, slots=True)
class SealedCascade:
    """The document, and the file its paths start from. statement: what was certified of the whole, or None."""

    path: Path
    document: Mapping[str, Any]

    @property
    def stages(self) -> Sequence[Mapping[str, Any]]:
        stages: list[dict[str, Any]] = self.document["stages"]
        return stages

    @property
    def statement(self) -> str | None:
        return None if self.document["certificate"] is None else str(self.document["certificate"]["statement"])

    def beside(self, name: str) -> str:
        """A path of the document, from here."""
        return str(self.path.parent / name)


def seal_cascade(
    cascade: Cascade, path: Path, rules: Sequence[Rule], output: Path, certificate: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write the stages of a cascade file with their rules to `output`; paths in it start from its folder.

    path: of the cascade file. certificate: what `cascade evaluate` says of these rules; it must be certified.
    Raises ConfigError where the first stage is no bundle: a detector is a bundle of its own.
    """
    config, bundles = cascade.config, cascade.bundles
    if 0 not in bundles:
        raise ConfigError(
            f"{path}: stage {cascade.names[0]!r} is no bundle; the first stage of a detector is the bundle that it runs"
        )
    here = output.resolve().parent

    def beside(name: str) -> str:
        return os.path.relpath((path.parent / name).resolve(), here)

    stages: list[dict[str, Any]] = []
    for place, (stage, rule) in enumerate(zip(config.stages, rules, strict=True)):
        bundle = None if stage.bundle is None else {"folder": beside(stage.bundle), "digest": bundles[place].digest}
        function = None if stage.callable is None else {"name": stage.callable, "folder": beside("")}
        http = None if stage.http is None else stage.http.model_dump(mode="json")
        stages.append(
            {
                "name": stage.name,
                "rule": rule.to_document(),
                "bundle": bundle,
                "callable": function,
                "http": http,
                "calls": stage.calls.model_dump(mode="json"),
            }
        )
    kept = None if certificate is None else _kept(certificate)
    content = {
        "name": config.name,
        "classes": config.classes,
        "default_probability": config.default_probability,
        "seed": config.seed,
        "stages_digest": cascade.digest,
        "certificate": kept,
        "stages": stages,
    }
    document = {**content, "digest": _digest(content)}
    write_document(output, document, FROZEN_CASCADE_KIND)
    return document


def _kept(certificate: Mapping[str, Any]) -> dict[str, Any]:
    """The sentence, and the confidence that it states."""
    attempts = certificate.get("attempts")
    reported = certificate["confidence"] if attempts is None else attempts["headline_confidence"]
    return {"confidence": reported, "statement": certificate["statement"]}


def read_sealed_cascade(path: Path) -> SealedCascade:
    """The document of `seal_cascade`. Raises MissingError, ConfigError (other), IntegrityError (changed, newer)."""
    if not path.is_file():
        raise MissingError(f"cascade: {path}: no such file; make it with {_MAKE}")
    try:
        document = read_json(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        # Most likely the cascade file itself, whose rules may still be open.
        raise ConfigError(f"cascade: {path} is no JSON; give the file that {_MAKE} makes of a cascade file") from error
    if not isinstance(document, dict) or not {"stages", "stages_digest", "digest"} <= document.keys():
        raise ConfigError(f"cascade: {path} is not a file of {_MAKE}; give one")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise IntegrityError(
            f"cascade: {path}: schema_version {document.get('schema_version')} is not one this stage1 reads"
            f" ({SCHEMA_VERSION}); upgrade stage1-pro"
        )
    content = {name: value for name, value in document.items() if name not in ("schema_version", "digest")}
    if document["digest"] != _digest(content):
        raise IntegrityError(
            f"cascade: {path}: was changed after it was written (its digest does not fit); make it anew with {_MAKE}"
        )
    validate(document, FROZEN_CASCADE_KIND, f"cascade: {path}")
    return SealedCascade(path, document)


def _digest(content: Mapping[str, Any]) -> str:
    return digest_bytes(json.dumps(content, sort_keys=True).encode())
