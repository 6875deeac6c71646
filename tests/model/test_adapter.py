from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
import timm
import torch

from stage1.config import AdapterConfig, BackboneConfig
from stage1.errors import ConfigError, IntegrityError, MissingError
from stage1.model.adapter import (
    LOW_RANK,
    Adapted,
    adapt,
    adapter_state,
    layer_counts,
    layer_ids,
    left_out,
    linear_targets,
    load_adapter,
    merge,
    save_adapter,
)
from stage1.model.backbone import Backbone, load_backbone

KINDS = (*LOW_RANK, "norm", "bias")


def vit(seed: int = 0, name: str = "test_vit", **fields: Any) -> Backbone:
    return load_backbone(BackboneConfig(name=name, random_weights=True, **{"input_size": 64, **fields}), seed=seed)


def images(n: int = 4, side: int = 64) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(n, 3, side, side)).astype(np.float32)


def trained(adapted: Adapted, steps: int = 5, rate: float = 0.02) -> list[float]:
    """A few steps on an arbitrary target; the losses."""
    module = adapted.backbone.module
    target = torch.from_numpy(np.random.default_rng(6).normal(size=(4, adapted.backbone.dim)).astype(np.float32))
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (module(torch.from_numpy(images())) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_is_base_training_moves_it_reload_and_merge_keep_it(kind, tmp_path):
    backbone = vit()
    before = backbone.features(images())
    frozen = {name: p.detach().clone() for name, p in backbone.module.model.named_parameters()}
    adapted = adapt(backbone, AdapterConfig(kind=kind, rank=4), seed=1)
    np.testing.assert_allclose(backbone.features(images()), before, atol=1e-5)
    losses = trained(adapted)
    assert losses[-1] < losses[0]
    after = backbone.features(images())
    assert np.abs(after - before).max() > 1e-2
    if kind in LOW_RANK:  # the weights below the adapter did not move
        base = {n.replace(".base_layer", ""): p for n, p in adapted.model.named_parameters() if "lora_" not in n}
        assert base.keys() == frozen.keys()
        assert all(torch.equal(base[name], frozen[name]) for name in frozen)

    save_adapter(adapted, tmp_path)
    again = load_adapter(vit(), tmp_path)
    assert again.layers == adapted.layers
    np.testing.assert_allclose(again.backbone.features(images()), after, atol=1e-4)

    merged = merge(adapted)
    assert {name for name, _ in merged.module.model.named_parameters()} == set(frozen)
    np.testing.assert_allclose(merged.features(images()), after, atol=1e-4)
    assert merged.fingerprint != vit().fingerprint
    assert not any(p.requires_grad for p in merged.module.parameters())


def test_lora_and_dora_are_their_formulas():
    """W + (alpha/r) BA; alpha/sqrt(r); m (W + sBA) / ||.|| per output row: on one layer, from the stored tensors."""
    for kind, scale in (("lora", 6 / 4), ("rslora", 6 / 2), ("dora", 6 / 4)):
        adapted = adapt(vit(), AdapterConfig(kind=kind, rank=4, alpha=6, targets=["fc1"], blocks=1), seed=3)
        trained(adapted, 3)
        layer = adapted.model.get_submodule(adapted.layers[0])
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        weight = layer.base_layer.weight + scale * b @ a
        if kind == "dora":
            magnitude = layer.lora_magnitude_vector["default"].weight
            weight = magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
        merge(adapted)
        torch.testing.assert_close(adapted.model.get_submodule(adapted.layers[0]).weight, weight, atol=1e-6, rtol=1e-5)


def test_the_seed_alone_decides_the_first_weights():
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    first, second, other = (adapter_state(adapt(vit(), AdapterConfig(kind="lora"), seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    "name, leaves",
    [
        ("test_vit", {"qkv", "proj", "fc1", "fc2"}),
        ("vit_small_patch16_dinov3", {"qkv", "proj", "fc1", "fc2"}),
        ("swin_tiny_patch4_window7_224", {"qkv", "proj", "fc1", "fc2"}),
    ],
)
def test_timm_names_are_found_and_blocks_are_counted_from_the_end(name, leaves):
    model = timm.create_model(name, num_classes=0)
    every = linear_targets(model, AdapterConfig(kind="lora"), name)
    assert {path.rsplit(".", 1)[-1] for path in every} == leaves
    last = linear_targets(model, AdapterConfig(kind="lora", blocks=1), name)
    assert last == every[-len(last) :]
    assert len(last) == len(leaves)
    only = linear_targets(model, AdapterConfig(kind="lora", targets=["qkv"], blocks=2), name)
    assert len(only) == 2


def test_hugging_face_names_are_found_and_train():
    from transformers import ViTConfig, ViTModel

    model = ViTModel(
        ViTConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=32)
    )
    every = linear_targets(model, AdapterConfig(kind="lora"))
    assert len(every) == 3 * 6  # q, k, v, output; two of the MLP
    assert not any("pooler" in path for path in every)
    last = linear_targets(model, AdapterConfig(kind="lora", blocks=1))
    assert last == every[-6:]


def test_share_counts_what_is_trained():
    adapted = adapt(vit(), AdapterConfig(kind="lora", rank=2, targets=["qkv"]), seed=0)
    depth, dim = len(adapted.model.blocks), adapted.model.embed_dim
    assert adapted.trainable == depth * 2 * (dim + 3 * dim)
    total = sum(p.numel() for p in vit().module.parameters())
    assert adapted.share == pytest.approx(adapted.trainable / (total + adapted.trainable))
    norm = adapt(vit(), AdapterConfig(kind="norm", blocks=1), seed=0)
    assert set(norm.layers) == {f"blocks.{depth - 1}.norm{i}.{w}" for i in (1, 2) for w in ("weight", "bias")} | {
        "norm.weight",
        "norm.bias",
    }


def test_a_convnet_takes_norm_and_bias_and_refuses_lora_by_name():
    backbone = vit(name="test_efficientnet")
    with pytest.raises(
        ConfigError, match=r"test_efficientnet has no attention or MLP layers.*norm.*bias.*unfreeze=last"
    ):
        adapt(backbone, AdapterConfig(kind="lora"), seed=0)
    before = vit(name="test_efficientnet").features(images())
    for kind in ("norm", "bias"):
        adapted = adapt(vit(name="test_efficientnet"), AdapterConfig(kind=kind), seed=0)
        np.testing.assert_allclose(adapted.backbone.features(images()), before, atol=1e-5)
        trained(adapted)
        assert np.abs(adapted.backbone.features(images()) - before).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "adapted", "others"),
    [
        ("pvt_v2_b0", {"q", "kv", "proj", "fc1", "fc2"}, {}),
        ("twins_svt_small", {"qkv", "q", "kv", "proj", "fc1", "fc2"}, {}),
        ("cait_xxs24_224", {"qkv", "q", "k", "v", "proj", "proj_l", "proj_w", "fc1", "fc2"}, {}),
        ("crossvit_tiny_240", {"qkv", "wq", "wk", "wv", "proj", "fc1", "fc2"}, {"2": 12}),
        ("swinv2_cr_tiny_224", {"qkv", "proj", "fc1", "fc2"}, {"reduction": 3}),
    ],
)
def test_queries_keys_and_values_are_adapted_under_any_name_and_the_rest_is_counted(name, adapted, others):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    names = linear_targets(model, AdapterConfig(kind="lora"))
    assert set(layer_counts(names)) == adapted
    assert left_out(model, names) == others


def test_layers_of_a_model_that_timm_does_not_group_are_counted_by_their_names():
    with torch.device("meta"):
        model = timm.create_model("poolformerv2_s12", num_classes=0)
    coarse, fine = layer_ids(model), layer_ids(model, fine=True)
    assert coarse["stem.conv.weight"] == 0
    assert coarse["stages.3.blocks.1.mlp.fc1.weight"] == 4
    assert max(coarse.values()) == 4
    assert fine["stages.3.blocks.1.mlp.fc1.weight"] == max(fine.values())
    places = [fine[name] for name, _ in model.named_parameters() if name.startswith("stages")]
    assert places == sorted(places)


def test_what_matches_nothing_is_an_error():
    with pytest.raises(ConfigError, match=r"\['q'\].*it has fc1, fc2, proj, qkv"):
        adapt(vit(), AdapterConfig(kind="lora", targets=["q"]), seed=0)
    with pytest.raises(ConfigError, match=r"adapter\.blocks=99"):
        adapt(vit(), AdapterConfig(kind="lora", blocks=99), seed=0)
    with pytest.raises(ConfigError, match="kind=none"):
        adapt(vit(), AdapterConfig(), seed=0)


def test_a_layer_that_is_never_called_is_named():
    """EVA with q and v biases reads `qkv.weight`; an adapter there would look trained and do nothing."""
    backbone = load_backbone(BackboneConfig(name="eva02_tiny_patch14_224", random_weights=True), seed=0)
    attention = backbone.module.model.blocks[0].attn
    if attention.qkv is None or attention.q_bias is None:
        pytest.skip("this timm has another attention in EVA-02")
    with pytest.raises(ConfigError, match=r"qkv is never called as a layer"):
        adapt(backbone, AdapterConfig(kind="lora", targets=["qkv"]), seed=0)


def test_another_backbone_is_refused(tmp_path):
    save_adapter(adapt(vit(seed=1), AdapterConfig(kind="lora"), seed=0), tmp_path)
    with pytest.raises(IntegrityError, match="load the backbone that it was trained on"):
        load_adapter(vit(seed=2), tmp_path)
    with pytest.raises(IntegrityError, match="test_efficientnet"):
        load_adapter(vit(name="test_efficientnet"), tmp_path)
    assert load_adapter(vit(seed=1), tmp_path).layers
    # Pooling does not change weights: the same adapter serves.
    assert load_adapter(vit(seed=1, pooling="mean"), tmp_path).layers


def test_files_that_are_no_adapter(tmp_path):
    with pytest.raises(MissingError, match="no adapter there"):
        load_adapter(vit(), tmp_path)
    adapted = adapt(vit(), AdapterConfig(kind="bias"), seed=0)
    save_adapter(adapted, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(IntegrityError, match="restore or train it again"):
        load_adapter(vit(), tmp_path)


@pytest.mark.parametrize("kind", LOW_RANK)
def test_peft_reads_the_folder(kind, tmp_path):
    from peft import PeftModel

    adapted = adapt(vit(), AdapterConfig(kind=kind, rank=3, blocks=1), seed=0)
    trained(adapted)
    save_adapter(adapted, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 3
    plain = vit().module.model
    with torch.inference_mode():
        own = adapted.model(torch.from_numpy(images())).numpy()
        theirs = PeftModel.from_pretrained(plain, tmp_path)(torch.from_numpy(images())).numpy()
    np.testing.assert_allclose(theirs, own, atol=1e-5)


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    with pytest.raises(MissingError, match=r"stage1-pro\[peft\]"):
        adapt(vit(), AdapterConfig(kind="lora"), seed=0)
    assert adapt(vit(), AdapterConfig(kind="norm"), seed=0).layers  # needs no peft


def test_layer_ids_go_from_input_to_output():
    vit_ids = layer_ids(vit().module.model)
    assert vit_ids["patch_embed.proj.weight"] == 0
    assert vit_ids["norm.weight"] == vit_ids["blocks.5.attn.qkv.weight"] == max(vit_ids.values())
    conv = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    coarse, fine = layer_ids(conv), layer_ids(conv, fine=True)
    assert coarse["conv_head.weight"] == max(coarse.values()) < max(fine.values())
