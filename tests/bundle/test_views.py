"""A bundle with views carries them, and none whose certificate speaks of others is written or opened."""

from __future__ import annotations

import json

import pytest

from stage1.bundle import verify_bundle
from stage1.bundle.manifest import sealed
from stage1.bundle.schema import BUNDLE_KIND
from stage1.errors import IntegrityError, MissingError
from stage1.inference import load_bundle
from stage1.policy import ViewsClaim, load_policy, on_views
from stage1.policy.schema import CERTIFICATE_KIND
from stage1.runtime.crops import ViewPolicy
from stage1.storage.documents import read_document
from stage1.storage.files import digest_bytes
from stage1.views import Pool, ViewsDocument

VIEWS = ViewsDocument(ViewPolicy(grid=(2, 2)), Pool("topk:2"))


@pytest.fixture
def viewed(parts):
    """The files of a run whose certificate is of VIEWS."""
    claim = ViewsClaim(VIEWS.digest, VIEWS.description)
    on_views(load_policy(parts.run), claim).certificate.save(parts.run / "certificate.json")
    VIEWS.save(parts.run / "views.json")
    return parts


def test_views_travel_and_are_named(viewed, tmp_path):
    folder = viewed.write(tmp_path / "bundle", views_file=viewed.run / "views.json")
    assert verify_bundle(folder, recompute=True).problems == ()
    manifest = read_document(folder / "bundle.json", BUNDLE_KIND)
    assert manifest["views"] == {"description": VIEWS.description, "count": 5}
    assert manifest["created_from"]["views"] == VIEWS.digest == manifest["files"]["views.json"]["sha256"]
    bundle = load_bundle(folder)
    assert bundle.predictor.views == VIEWS
    assert bundle.about["views"] == VIEWS.description
    assert VIEWS.description in (folder / "README.md").read_text()


def test_a_certificate_of_views_needs_exactly_these(viewed, tmp_path):
    with pytest.raises(IntegrityError, match=r"views\.json: missing"):
        viewed.write(tmp_path / "bundle")
    with pytest.raises(MissingError, match="stage1 score"):
        viewed.write(tmp_path / "bundle", views_file=tmp_path / "views.json")
    ViewsDocument(ViewPolicy(grid=(2, 2), overlap=0.2), Pool("topk:2")).save(tmp_path / "views.json")
    with pytest.raises(IntegrityError, match="not the one that was certified"):
        viewed.write(tmp_path / "bundle", views_file=tmp_path / "views.json")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("taken", [("views.json",), ("certificate",), ("views.json", "certificate"), ("manifest",)])
def test_a_resealed_bundle_that_lost_its_views_is_opened_by_nobody(viewed, tmp_path, taken):
    """Whoever makes all digests fit again still leaves one document that speaks of views."""
    folder = viewed.write(tmp_path / "bundle", views_file=viewed.run / "views.json")
    assert load_bundle(folder).predictor.views == VIEWS
    manifest = read_document(folder / "bundle.json", BUNDLE_KIND)
    if "views.json" in taken:
        (folder / "views.json").unlink()
        del manifest["files"]["views.json"]
    if "certificate" in taken:
        document = read_document(folder / "certificate.json", CERTIFICATE_KIND)
        del document["views"]
        (folder / "certificate.json").write_text(json.dumps(document))
        written = (folder / "certificate.json").read_bytes()
        manifest["files"]["certificate.json"].update(size=len(written), sha256=digest_bytes(written))
    if "manifest" in taken:
        del manifest["views"]
    (folder / "bundle.json").write_text(json.dumps(sealed(manifest), indent=2, ensure_ascii=False) + "\n")
    with pytest.raises(IntegrityError):
        load_bundle(folder)


def test_a_certificate_of_whole_images_takes_no_views(parts, tmp_path):
    VIEWS.save(tmp_path / "views.json")
    with pytest.raises(IntegrityError, match="the certificate beside it is of whole images"):
        parts.write(tmp_path / "bundle", views_file=tmp_path / "views.json")
