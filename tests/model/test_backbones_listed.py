"""`stage1 backbones`: what is here, and what a download of others would take."""

from __future__ import annotations

import json

import pytest

from stage1.commands.backbones import backbone_lines, known_backbones
from stage1.errors import ConfigError
from stage1.model.embedded import EMBEDDED


def test_packages_cache_and_given_files_are_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--timm--resnet18.a1_in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(bytes(2_000_000))
    (tmp_path / "hub" / "models--other--empty").mkdir()
    pytest.importorskip("torch")
    local = tmp_path / "mine.safetensors"
    local.write_bytes(bytes(1_000))
    rows = {row["name"]: row for row in known_backbones([str(local)])}
    assert list(rows)[: len(EMBEDDED)] == list(EMBEDDED)
    assert (rows["resnet18.a1_in1k"]["here"], rows["resnet18.a1_in1k"]["bytes"]) == (True, 2_000_000)
    assert not rows["other/empty"]["here"]
    assert rows["mine.safetensors"]["bytes"] == 1_000
    lines = backbone_lines(list(rows.values()))
    assert any("resnet18.a1_in1k" in line and "2.0 MB" in line for line in lines)
    assert json.loads(json.dumps(list(rows.values())))


def test_a_download_is_priced_without_one(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    row = known_backbones(["resnet18.a1_in1k"])[-1]
    weights = sum(tensor.numel() for tensor in timm.create_model("resnet18").state_dict().values())
    assert (row["here"], row["bytes"]) == (False, 4 * weights)
    assert row["where"] == "timm/resnet18.a1_in1k"
    assert "backbone.download=true" in row["note"]
    with pytest.raises(ConfigError, match="nosuch: no model of timm .* and no file"):
        known_backbones(["nosuch"])
