"""The views of a bundle: views.json beside its certificate, and whether the two speak of the same views."""

from __future__ import annotations

from pathlib import Path

from stage1.aggregation import VIEWS_FILE, FrozenViews
from stage1.errors import IntegrityError
from stage1.policy import Certificate


def read_views(folder: Path, certificate: Certificate) -> FrozenViews | None:
    """The frozen views of a bundle, None where every answer rests on the whole image alone.

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
    views = FrozenViews.load(path)
    if views.digest != certificate.views.digest:
        raise IntegrityError(
            f"{path}: is not the one that was certified (sha256 {certificate.views.digest[:12]}); restore the bundle"
        )
    return views
