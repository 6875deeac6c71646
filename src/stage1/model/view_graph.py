"""An ONNX graph that takes all views of an image together, made of one that takes images."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.compose


def on_views(backbone: Any, count: int, side: int, dim: int) -> Any:
    """The backbone's graph between two reshapes: `image` [N, V, 3, S, S] -> `features` [N, V, D]; its own nodes are unchanged."""
    rows = _reshape("image", ["N", count, 3, side, side], "views/rows", [-1, 3, side, side])
    apart = _reshape("views/each", ["N", dim], "features", [-1, count, dim])
    inside = onnx.ModelProto()
    inside.CopyFrom(backbone)
    for node in inside.graph.node:
        node.input[:] = ["views/rows_in" if name == "image" else name for name in node.input]
        node.output[:] = ["views/each_out" if name == "features" else name for name in node.output]
    inside.graph.input[0].name, inside.graph.output[0].name = "views/rows_in", "views/each_out"
    for part in (rows, apart):
        part.ir_version = inside.ir_version
        del part.opset_import[:]
        part.opset_import.extend(inside.opset_import)
    joined = onnx.compose.merge_models(rows, inside, io_map=[("views/rows", "views/rows_in")])
    return onnx.compose.merge_models(joined, apart, io_map=[("views/each_out", "views/each")])


def _reshape(source: str, source_shape: list[Any], target: str, target_shape: list[int]) -> Any:
    """A graph of one reshape; -1 in `target_shape` is the free axis."""
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    shape = onnx.numpy_helper.from_array(np.array(target_shape, dtype=np.int64), f"{target}/shape")
    graph = helper.make_graph(
        [helper.make_node("Reshape", [source, shape.name], [target], name=f"{target}/reshape")], "stage1",
        [helper.make_tensor_value_info(source, floats, source_shape)],
        [helper.make_tensor_value_info(target, floats, [f"{target}/N", *target_shape[1:]])], [shape],
    )  # fmt: skip
    return helper.make_model(graph)
