"""bundle.json and what it lists: the names of the files of a bundle, the manifest with its own digest, and the readers.

views.json is read beside the certificate, which must be about the same views.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage1.bundle.schema import BUNDLE_KIND
from stage1.errors import IntegrityError, MissingError
from stage1.policy import Certificate
from stage1.scores import Scores
from stage1.storage.documents import read_document
from stage1.storage.files import digest_bytes
from stage1.views import VIEWS_FILE

if TYPE_CHECKING:
    from stage1.views import ViewsDocument

MANIFEST = "bundle.json"
MODEL = "model.onnx"
CERTIFICATE = "certificate.json"
CALIBRATION = "calibration.parquet"
SELECTION = "selection.parquet"
CARD = "README.md"
LICENCES = "LICENSES"


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with its `digest` field, in last place: sha256 of all the other fields as written."""
    content = {name: value for name, value in document.items() if name != "digest"}
    return {**content, "digest": digest_bytes(_written(content))}


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """bundle.json, checked against its schema and against its own digest.

    The file must be byte for byte what `write_bundle` writes for its content: a changed value breaks the digest, and a
    change that JSON does not see (white space, escapes, order or repetition of keys) breaks the equality of the bytes.
    Raises MissingError (no such folder, or not a bundle), IntegrityError (damaged, edited, or a newer schema_version).
    """
    path = Path(folder) / MANIFEST
    if not path.parent.is_dir():
        raise MissingError(f"{folder}: no such bundle folder; give the folder that `stage1 bundle` wrote")
    if not path.is_file():
        raise MissingError(f"{folder}: not a bundle (it has no {MANIFEST}); give the folder that `stage1 bundle` wrote")
    document = read_document(path, BUNDLE_KIND)
    if path.read_bytes() != _written(sealed(document)):
        raise IntegrityError(f"{path}: was changed after it was written (its digest does not fit); restore the bundle")
    return document


def _written(document: Mapping[str, Any]) -> bytes:
    # The form of `documents.write_document`; packing verifies what it wrote, so the two cannot drift apart unseen.
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def read_calibration(folder: str | os.PathLike[str]) -> Scores:
    """The scores in calibration.parquet, labels and ids included. Raises MissingError, DataError, IntegrityError."""
    return _labelled(Path(folder) / CALIBRATION)


def read_selection(folder: str | os.PathLike[str]) -> Scores | None:
    """Scores in selection.parquet (val_select); None: the bundle has none. Raises DataError, IntegrityError."""
    path = Path(folder) / SELECTION
    return _labelled(path) if path.exists() else None


def _labelled(path: Path) -> Scores:
    from stage1.scores import read_scores

    scores, _ = read_scores(path)
    if scores.ids is None or scores.labels is None:
        raise IntegrityError(f"{path}: no column {'id' if scores.ids is None else 'label'!r}; bundle it anew")
    return scores


def read_views(folder: Path, certificate: Certificate) -> ViewsDocument | None:
    """The frozen views of a bundle, None where every answer is made from the whole image alone.

    Raises IntegrityError where views.json is missing, damaged, not the one that was certified, or not spoken of.
    """
    path = folder / VIEWS_FILE
    if certificate.views is None:
        if path.exists():
            raise IntegrityError(f"{path}: the certificate beside it is of whole images; restore the bundle")
        return None
    if not path.exists():
        raise IntegrityError(
            f"{path}: missing; the certificate is of {certificate.views.description}: restore the bundle"
        )
    from stage1.views import ViewsDocument

    views = ViewsDocument.load(path)
    if views.digest != certificate.views.digest:
        raise IntegrityError(
            f"{path}: is not the one that was certified (sha256 {certificate.views.digest[:12]}); restore the bundle"
        )
    return views
