"""A bundle read with the standard library: every byte that decides is checked against bundle.json before it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage1.errors import IntegrityError, MissingError
from stage1.storage.files import digest_bytes

MANIFEST = "bundle.json"
_MODEL, _CERTIFICATE, _CALIBRATION, _VIEWS = "model.onnx", "certificate.json", "calibration.json", "views.json"
_SCHEMA_VERSION = 1
_NEEDED = ("name", "classes", "preprocessing", "policy", "policy_file", "certified", "files", "digest")


@dataclass(frozen=True, slots=True)
class SealedBundle:
    """What a detector needs of a bundle.

    model: the bytes of model.onnx. policy, certificate, calibration, views: the documents; None where there is none.
    """

    folder: Path
    manifest: Mapping[str, Any]
    model: bytes
    policy: Mapping[str, Any]
    certificate: Mapping[str, Any]
    calibration: Mapping[str, Any] | None
    views: Mapping[str, Any] | None

    @property
    def digest(self) -> str:
        """The identity of the bundle, 64 hexadecimal digits."""
        return str(self.manifest["digest"])

    @property
    def views_digest(self) -> str | None:
        """sha256 of views.json, None where there is none."""
        return None if self.views is None else str(self.manifest["files"][_VIEWS]["sha256"])


def open_bundle(folder: Path) -> SealedBundle:
    """Read a bundle whole. `stage1 verify` does the same and more; it needs packages that the client may not have.

    Raises MissingError (no such folder, no bundle), IntegrityError (a byte differs from what bundle.json says).
    """
    manifest = _manifest(folder)
    content = {name: _checked(folder, name, listed) for name, listed in manifest["files"].items()}
    for name in (_MODEL, _CERTIFICATE, manifest["policy_file"]):
        if name not in content:
            raise IntegrityError(f"{folder}: {name} is not listed in {MANIFEST}; restore the bundle")
    policy, certificate = (_document(folder / name, content[name]) for name in (manifest["policy_file"], _CERTIFICATE))
    stated = [(part.get("policy"), part.get("certified")) for part in (policy, certificate, manifest)]
    if stated[0] != stated[1] or stated[0] != stated[2]:
        raise IntegrityError(f"{folder}: {MANIFEST}, policy and certificate speak of different things; bundle it anew")
    calibration, views = (
        _document(folder / name, content[name]) if name in content else None for name in (_CALIBRATION, _VIEWS)
    )
    certified = certificate.get("views")
    described = None if certified is None or views is None else _described(certified, views)
    if manifest.get("views") != described or (certified is None) != (views is None):
        raise IntegrityError(
            f"{folder}: {MANIFEST}, {_CERTIFICATE} and {_VIEWS} speak of different views; bundle it anew"
        )
    if policy.get("score") == "mapped" and policy.get("calibration") != digest_bytes(content.get(_CALIBRATION, b"")):
        raise IntegrityError(f"{folder}: {_CALIBRATION} is not the map that was certified; restore the bundle")
    return SealedBundle(folder, manifest, content[_MODEL], policy, certificate, calibration, views)


def _described(certified: Mapping[str, Any], views: Mapping[str, Any]) -> dict[str, Any]:
    """What bundle.json says of these views."""
    names = views.get("views")
    return {"description": certified.get("description"), "count": len(names) if isinstance(names, list) else None}


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise MissingError(f"{folder}: not a bundle (it has no {MANIFEST}); give the folder that `stage1 bundle` wrote")
    data = path.read_bytes()
    document = _document(path, data)
    content = {name: value for name, value in document.items() if name != "digest"}
    # The bytes that `stage1 bundle` writes for this content; anything else was edited.
    inner = digest_bytes(_written(content))
    if data != _written({**content, "digest": inner}):
        raise IntegrityError(f"{path}: was changed after it was written (its digest does not fit); restore the bundle")
    if missing := [name for name in _NEEDED if name not in document]:
        raise IntegrityError(f"{path}: field {missing[0]!r} is missing; bundle it anew")
    return document


def _written(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def _document(path: Path, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: not valid JSON; it is damaged, restore the bundle") from error
    if not isinstance(document, dict):
        raise IntegrityError(f"{path}: {type(document).__name__}; a mapping is expected, restore the bundle")
    version = document.get("schema_version")
    if not isinstance(version, int) or version > _SCHEMA_VERSION:
        raise IntegrityError(
            f"{path}: schema_version {version} is not one this stage1 reads ({_SCHEMA_VERSION}); upgrade stage1-pro"
        )
    return document


def _checked(folder: Path, name: str, listed: Mapping[str, Any]) -> bytes:
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise IntegrityError(f"{folder}: {name} is missing; restore the bundle") from error
    except OSError as error:
        raise IntegrityError(f"{folder}: {name} cannot be read ({error.strerror}); check its permissions") from error
    if len(data) != listed["size"]:
        raise IntegrityError(
            f"{folder}: {name} has {len(data)} bytes, {listed['size']} were written; restore the bundle"
        )
    if digest_bytes(data) != listed["sha256"]:
        raise IntegrityError(f"{folder}: {name} was changed (its sha256 does not fit); restore the bundle")
    return data
