"""Licence and origin of weights: unknown unless known or stated, with their own words where they have some."""

from __future__ import annotations

import yaml

from stage1.bundle.licences import licence_header, licence_text

DIGEST = "ab" * 32


def test_header_is_what_the_hub_reads():
    assert licence_header("Apache-2.0") == {"license": "apache-2.0"}
    assert licence_header("unknown") == {"license": "other", "license_name": "unknown", "license_link": "LICENSES"}
    dinov3 = licence_header("dinov3-license")
    assert (dinov3["license"], dinov3["license_name"]) == ("other", "dinov3-license")
    assert dinov3["license_link"].startswith("https://ai.meta.com/")


def test_dinov3_weights_carry_their_own_words():
    text = licence_text("vit_small_patch16_dinov3.lvd1689m", "dinov3-license", None)
    for word in ("DINOv3 License", "Meta", "https://ai.meta.com/", "copy", "acknowledges", "not the licence"):
        assert word in text


def test_non_commercial_weights_say_so():
    assert "does not allow commercial use" in licence_text("x", "cc-by-nc-4.0", None)
    assert "does not allow commercial use" not in licence_text("x", "mit", None)


def test_weights_of_a_file_are_unknown_and_named_by_their_digest(parts, tmp_path):
    facts = parts.facts | {"backbone_licence": "unknown", "weights_sha256": DIGEST}
    text = licence_text("tiny", "unknown", DIGEST)
    assert "licence is unknown" in text
    assert DIGEST in text
    folder = parts.write(tmp_path / "bundle", facts=facts, licences={"backbone": text})
    _, header, body = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["license_name"] == "unknown"
    assert "base_model" not in yaml.safe_load(header)
    assert f"- weights: from a file, sha256 `{DIGEST}`" in body
