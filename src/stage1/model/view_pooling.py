"""Models that take all views of an image together: pooled features for the head, and the ONNX graph around it.

The head's row holds the whole view's features (where there is a whole view), the largest of each column over the other
views, and their mean. The largest says that something is there though it fills one tile of ten, the mean what the place
looks like; which counts is learned. Concatenated global poolings are old practice in fine-tuning (Howard and Gugger
2020, section 3.2: average and maximum side by side); over the tiles of a large image they are the embedding-level
pooling of Ilse et al. 2018, section 2.2.

The graph is made of one that takes images, between two reshapes: views become rows before it, and rows views behind.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.compose
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stage1.model.head_modules import split
from stage1.runtime.crops import ViewPolicy


def pooled_width(dim: int, views: ViewPolicy) -> int:
    """How many columns a row of pooled features has, of D = `dim` features of each view."""
    return dim * (3 if _apart(views) else 2)


def pool_features(features: NDArray[np.float32], views: ViewPolicy) -> NDArray[np.float32]:
    """float32 [N, 2D or 3D] of the features of the views [N, V, D], in the order of the policy."""
    others = features[:, 1:] if _apart(views) else features
    parts = [features[:, 0]] if _apart(views) else []
    return np.concatenate([*parts, others.max(axis=1), others.mean(axis=1)], axis=1)


def _apart(views: ViewPolicy) -> bool:
    return views.whole and views.count > 1


class ViewModel(nn.Module):
    """A head behind the pool: [N, V, D] -> (logits [N, K], gate logits [N] if gated, without_view [N, V, K]).

    without_view: the logits were one view like the average of all of them: what that view adds is the difference. It
    says which view decided for any kind of head, exactly, where a head on pooled features has no logits of single
    views.
    """

    def __init__(self, head: nn.Module, views: ViewPolicy) -> None:
        super().__init__()
        self.head = head
        self.count, self.apart = views.count, _apart(views)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        logits, gate = split(self.head(self._pooled(features)))
        average = features.mean(dim=1)[:, None, None]
        own = torch.eye(self.count, dtype=torch.bool)[None, :, :, None]
        replaced = torch.where(own, average, features[:, None])
        without, _ = split(self.head(self._pooled(replaced.flatten(0, 1))))
        without = without.reshape(-1, self.count, logits.shape[1])
        return (logits, without) if gate is None else (logits, gate, without)

    def _pooled(self, features: Tensor) -> Tensor:
        others = features[:, 1:] if self.apart else features
        parts = [others.amax(dim=1), others.mean(dim=1)]
        return torch.cat([features[:, 0], *parts] if self.apart else parts, dim=1)


def on_views(backbone: Any, count: int, side: int, dim: int) -> Any:
    """The backbone's graph between two reshapes: `image` [N, V, 3, S, S] -> `features` [N, V, D]; nodes unchanged."""
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
        [helper.make_node("Reshape", [source, shape.name], [target], name=f"{target}/reshape")],
        "stage1",
        [helper.make_tensor_value_info(source, floats, source_shape)],
        [helper.make_tensor_value_info(target, floats, [f"{target}/N", *target_shape[1:]])],
        [shape],
    )
    return helper.make_model(graph)
