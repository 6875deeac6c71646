"""Heads on pooled features: the pool by hand, its twin in the exported graph, and what is said of single views."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from stage1.config import BackboneConfig, HeadConfig  # noqa: E402
from stage1.errors import DataError  # noqa: E402
from stage1.model.backbone import load_backbone  # noqa: E402
from stage1.model.export import export_backbone, export_model  # noqa: E402
from stage1.model.head import build_gate, build_head, split  # noqa: E402
from stage1.model.head_modules import GatedHead  # noqa: E402
from stage1.model.view_pooling import ViewModel, pool_features, pooled_width  # noqa: E402
from stage1.runtime.crops import ViewPolicy  # noqa: E402
from stage1.runtime.session import Engine  # noqa: E402

from ..tracing import exporter_reads_its_library_once  # noqa: E402, F401 (fixture)

GRID = ViewPolicy(grid=(2, 2))
TILES = ViewPolicy(whole=False, grid=(1, 3))


def test_the_pool_by_hand():
    features = np.array([[[1, 5], [2, 0], [4, -3], [0, 6], [2, 1]]], dtype=np.float32)
    assert pool_features(features, GRID).tolist() == [[1, 5, 4, 6, 2, 1]]
    assert pool_features(features[:, 1:4], TILES).tolist() == [[4, 6, 2, 1]]
    assert (pooled_width(2, GRID), pooled_width(2, TILES)) == (6, 4)


@given(seed=st.integers(0, 10_000), order=st.permutations([1, 2, 3, 4]))
@settings(max_examples=40, deadline=None)
def test_it_is_a_function_of_the_set_of_tiles(seed, order):
    features = np.random.default_rng(seed).normal(size=(3, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(pool_features(features[:, [0, *order]], GRID), pool_features(features, GRID), atol=1e-6)


def heads(width: int):
    gated = HeadConfig(gate="linear")
    plain = build_head(HeadConfig(), width, 2, 0)
    yield "linear", plain
    yield "mlp of three classes", build_head(HeadConfig(kind="mlp", hidden=8), width, 3, 1)
    yield "ensemble", build_head(HeadConfig(kind="mlp", hidden=8, members=2), width, 2, 2)
    yield "sat, gated", build_head(HeadConfig(kind="sat", hidden=8), width, 2, 3)
    yield "gate after the head", GatedHead(plain, build_gate(gated, width + 3, 1.0, 0.0, 4))


@pytest.mark.parametrize("policy", [GRID, TILES], ids=["whole and tiles", "tiles"])
def test_the_module_pools_as_training_does_and_leaves_views_out_one_by_one(policy):
    features = np.random.default_rng(1).normal(size=(4, policy.count, 6)).astype(np.float32)
    for name, head in heads(pooled_width(6, policy)):
        head.eval()
        with torch.inference_mode():
            logits, *gate, without = ViewModel(head, policy)(torch.from_numpy(features))
            expected, expected_gate = split(head(torch.from_numpy(pool_features(features, policy))))
        np.testing.assert_allclose(logits, expected, atol=1e-6, err_msg=name)
        assert len(gate) == (0 if expected_gate is None else 1), name
        if expected_gate is not None:
            np.testing.assert_allclose(gate[0], expected_gate, atol=1e-6, err_msg=name)
        for view in range(policy.count):
            replaced = features.copy()
            replaced[:, view] = features.mean(axis=1)
            with torch.inference_mode():
                by_hand, _ = split(head(torch.from_numpy(pool_features(replaced, policy))))
            np.testing.assert_allclose(without[:, view], by_hand, atol=1e-5, err_msg=f"{name}, view {view}")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    backbone = load_backbone(BackboneConfig(name="test_vit", random_weights=True, input_size=64), 0)
    export_backbone(backbone, folder / "backbone.onnx")
    return backbone, folder


def test_the_exported_model_takes_all_views_together(vit):
    backbone, folder = vit
    images = np.random.default_rng(0).standard_normal((3, GRID.count, 3, 64, 64), dtype=np.float32)
    features = np.stack([backbone.features(views) for views in images])
    for name, head in heads(pooled_width(backbone.dim, GRID)):
        export_model(folder / "backbone.onnx", head, folder / "model.onnx", views=GRID)
        engine = Engine(folder / "model.onnx")
        assert (engine.views, engine.input_size) == (5, 64)
        made = dict(zip(engine.output_names, engine.run(images), strict=True))
        logits, gate = split(head.eval()(torch.from_numpy(pool_features(features, GRID))))
        np.testing.assert_allclose(made["logits"], logits.detach(), atol=1e-4, err_msg=name)
        assert made["without_view"].shape == (3, 5, logits.shape[1])
        assert ("gate_logits" in made) == (gate is not None)
        assert [part.shape[0] for part in engine.empty()] == [0] * len(made)
        # One image alone answers as among others.
        alone = dict(zip(engine.output_names, engine.run(images[1:2]), strict=True))
        np.testing.assert_allclose(alone["logits"][0], made["logits"][1], atol=1e-5)
    with pytest.raises(DataError, match=r"the model takes \['N', 5, 3, 64, 64\]"):
        engine.run(images[:, :4])
    with pytest.raises(DataError, match="the model takes"):
        engine.run(images[:, 0])


def test_the_same_inputs_give_the_same_bytes(vit):
    _, folder = vit
    head = build_head(HeadConfig(), pooled_width(vit[0].dim, GRID), 2, 0)
    for name in ("one", "two"):
        export_model(folder / "backbone.onnx", head, folder / f"{name}.onnx", views=GRID)
    assert (folder / "one.onnx").read_bytes() == (folder / "two.onnx").read_bytes()
