"""What is known of a backbone's weights, and what is not."""

from __future__ import annotations

import pytest

from stage1.config import BackboneConfig
from stage1.storage.files import digest_file

pytest.importorskip("timm")

from stage1.model.origin import Origin, origin

DINOV3 = "vit_small_patch16_dinov3.lvd1689m"


def test_a_file_has_no_licence_and_no_base_model_unless_stated(tmp_path):
    """It took timm's licence and base_model of the architecture, for a file that nothing was known of."""
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"weights")
    found = origin(BackboneConfig(name=DINOV3, weights=str(file)))
    assert found == Origin("unknown", None, digest_file(file))
    stated = origin(BackboneConfig(name=DINOV3, weights=str(file), licence="MIT", base_model="me/mine"))
    assert (stated.licence, stated.base_model) == ("MIT", "me/mine")
    assert origin(BackboneConfig(weights=str(file))).licence == "unknown"


def test_named_weights_have_their_own():
    assert origin(BackboneConfig(name=DINOV3)) == Origin("dinov3-license", f"timm/{DINOV3}")
    assert origin(BackboneConfig()) == Origin("Apache-2.0", None)


def test_untrained_weights_come_from_nowhere():
    assert origin(BackboneConfig(name=DINOV3, random_weights=True)) == Origin("unknown", None)
