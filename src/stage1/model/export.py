"""Trained torch modules -> ONNX files: the backbone once, each head as a small graph behind the very same backbone.

Tracing the backbone takes seconds to minutes, a head changes often. And where features were made by `backbone.onnx`,
the model that ships must hold that graph, not another trace of the same weights. So `export_model` never sees the
backbone's torch module: it copies the nodes and weights of `backbone.onnx` and hangs the head's graph on their output.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
import torch
from numpy.typing import NDArray
from torch import nn

from stage1.errors import ConfigError, IntegrityError, MissingError
from stage1.model.backbone import Backbone
from stage1.model.view_pooling import ViewModel, on_views
from stage1.runtime.crops import ViewPolicy
from stage1.runtime.session import Engine
from stage1.storage.files import digest_file, write_bytes

OPSET = 18
_IR_VERSION = 9  # the newest that onnxruntime 1.17 reads; opset 18 needs no more
_TOLERANCE = 1e-4  # of the largest output: float32 sums in another order
_CHECKED_BATCHES = (1, 2, 7)
_PROTOBUF_LIMIT = 2**31 - 1
_BACKBONE_KEY = "stage1.backbone_sha256"

log = logging.getLogger("stage1")


def export_backbone(backbone: Backbone, path: str | os.PathLike[str]) -> None:
    """Write the backbone as one ONNX file: `image` float32 [N, 3, S, S] -> `features` float32 [N, dim].

    The same weights and library versions give the same bytes; no path, time or stack trace is in them. float32 whatever
    the backbone's dtype. Checked by the shipped engine against torch at batch 1, 2 and 7 before the file appears.
    Raises ConfigError (weights past 2 GiB, an operator that ONNX has not), IntegrityError (outputs differ).
    """
    device = backbone.device
    size = backbone.preprocessing.size
    backbone.to("cpu")
    try:
        data = _exported(backbone.module, (3, size, size), "image", "features").SerializeToString(deterministic=True)

        def reference(batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
            with torch.inference_mode():
                return (np.asarray(backbone.module(torch.from_numpy(batch)).numpy()),)

        _check(data, reference, (3, size, size), str(path))
    finally:
        backbone.to(device)
    write_bytes(path, data)


def require_exportable(backbone: Backbone) -> None:
    """Trace the backbone to ONNX and drop the result, before hours of training depend on it. Raises ConfigError."""
    size, device = backbone.preprocessing.size, backbone.device
    backbone.to("cpu")
    try:
        _exported(backbone.module, (3, size, size), "image", "features")
    finally:
        backbone.to(device)


def export_model(
    backbone_onnx: str | os.PathLike[str],
    head: nn.Module,
    path: str | os.PathLike[str],
    *,
    views: ViewPolicy | None = None,
) -> None:
    """Write backbone and head as one ONNX file: `image` float32 [N, 3, S, S] -> `logits` float32 [N, K].

    A head that returns a pair (logits, gate logits [N]) gives the file a second output, `gate_logits` float32 [N].
    views: the head is one on pooled features of these views (`pool_features`); the file then takes all views of an
    image together, `image` [N, V, 3, S, S], and has a last output `without_view` [N, V, K] (see `ViewModel`).

    backbone_onnx: what `export_backbone` wrote; its graph goes in unchanged and its sha256 into the file's metadata
    (`backbone_digest` reads it). head: module from float32 [N, D] (with views: [N, `pooled_width`]) to [N, K] (exported
    in eval mode on the CPU; unchanged itself). Takes about a second. Checked at batch 1, 2 and 7: engine on the
    whole against the torch head on the engine's features. Raises MissingError, ConfigError, IntegrityError.
    """
    if not Path(backbone_onnx).is_file():
        raise MissingError(f"{backbone_onnx}: no such file; export the backbone first")
    base = Engine(backbone_onnx)
    base_proto = onnx.load(os.fspath(backbone_onnx))
    output = base_proto.graph.output[0]
    dims = [dim.dim_value for dim in output.type.tensor_type.shape.dim]
    if [item.name for item in base_proto.graph.output] != ["features"] or len(dims) != 2 or base.input_size is None:
        raise IntegrityError(f"{backbone_onnx}: not a backbone that this version exported; export it anew")
    module: nn.Module = copy.deepcopy(head).cpu().eval()
    shape: tuple[int, ...] = (dims[1],)
    if views is not None:
        module, shape = ViewModel(module, views), (views.count, dims[1])
        base_proto = on_views(base_proto, views.count, base.input_size, dims[1])
    names = _output_names(module, shape)
    head_proto = _exported(module, shape, "head_input", *names)
    head_proto = onnx.compose.add_prefix(head_proto, "head/", rename_inputs=False, rename_outputs=False)
    merged = onnx.compose.merge_models(base_proto, head_proto, io_map=[("features", "head_input")])
    _strip(merged)
    merged.ir_version = _IR_VERSION
    entry = merged.metadata_props.add()
    entry.key, entry.value = _BACKBONE_KEY, digest_file(backbone_onnx)
    data = merged.SerializeToString(deterministic=True)

    def reference(batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        features = base.run(batch.reshape(-1, *batch.shape[-3:]))[0].reshape(-1, *shape)
        with torch.inference_mode():
            made = module(torch.from_numpy(features))
        return tuple(np.asarray(part.numpy()) for part in (made if isinstance(made, tuple) else (made,)))

    pixels = (3, base.input_size, base.input_size)
    _check(data, reference, pixels if views is None else (views.count, *pixels), str(path))
    write_bytes(path, data)


def _output_names(module: nn.Module, shape: tuple[int, ...]) -> list[str]:
    with torch.inference_mode():
        made = module(torch.zeros(2, *shape))
    last = ["without_view"] if isinstance(module, ViewModel) else []
    gates = (len(made) if isinstance(made, tuple) else 1) - 1 - len(last)
    return ["logits", *["gate_logits"] * gates, *last]


def backbone_digest(path: str | os.PathLike[str]) -> str | None:
    """sha256 of the `backbone.onnx` whose graph the model holds, or None where the file does not say."""
    if not Path(path).is_file():
        raise MissingError(f"{path}: no such model file; run the stage that exports it")
    entries = onnx.load(os.fspath(path), load_external_data=False).metadata_props
    return next((entry.value for entry in entries if entry.key == _BACKBONE_KEY), None)


def _exported(module: nn.Module, shape: tuple[int, ...], input_name: str, *output_names: str) -> Any:
    """The module's ONNX graph with a free batch axis and its weights inside, stripped of everything but the model."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size > _PROTOBUF_LIMIT:
        raise ConfigError(f"{size / 2**30:.1f} GiB of weights: one ONNX file holds 2 GiB; use a smaller backbone")
    # Traced with two rows: with one, the exporter would take the batch axis for a constant.
    example = torch.zeros(2, *shape)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[input_name],
                output_names=list(output_names),
                dynamic_shapes=({0: torch.export.Dim("N")},),
                verbose=False,
            )
    except Exception as error:  # exporter errors of any kind: the model cannot be expressed
        why = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{type(getattr(module, 'model', module)).__name__} cannot be exported to ONNX ({why}); use another"
            " backbone"
        ) from error
    assert program is not None  # dynamo=True always returns one
    proto = program.model_proto
    _strip(proto)
    proto.ir_version = _IR_VERSION
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """stdout belongs to results, and the exporter's remarks tell a user nothing; errors are raised."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if text := printed.getvalue():
            log.debug("the exporter printed: %s", " ".join(text.split()))


def _strip(proto: Any) -> None:
    """Remove what is not the model: traces with local paths, and intermediate shapes (the engine infers them)."""
    graph = proto.graph
    del graph.value_info[:]
    proto.doc_string = graph.doc_string = ""
    proto.producer_name, proto.producer_version = "stage1-pro", ""
    graph.name = "stage1"
    for item in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *proto.functions):
        del item.metadata_props[:]
        item.doc_string = ""
    for function in proto.functions:
        del function.value_info[:]
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""


def _check(
    data: bytes, reference: Callable[[Any], tuple[NDArray[np.float32], ...]], shape: tuple[int, ...], where: str
) -> None:
    """onnx's checker, then all outputs of the engine against `reference`; batch sizes vary. Raises IntegrityError."""
    try:
        onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    except Exception as error:
        raise IntegrityError(f"{where}: the export is not valid ONNX ({' '.join(str(error).split())[:160]})") from error
    engine = Engine(data)
    rng = np.random.default_rng(0)
    for count in _CHECKED_BATCHES:
        batch = rng.standard_normal((count, *shape), dtype=np.float32)
        outputs, wanted = engine.run(batch), reference(batch)
        if len(outputs) != len(wanted):
            raise IntegrityError(
                f"{where}: the export has {len(outputs)} outputs, torch {len(wanted)}; it was not written"
            )
        for made, expected in zip(outputs, wanted, strict=True):
            scale = float(np.abs(expected).max()) or 1.0
            gap = float(np.abs(made - expected).max()) if made.shape == expected.shape else float("inf")
            if not gap <= _TOLERANCE * scale:
                raise IntegrityError(
                    f"{where}: at batch {count} the export differs from torch by {gap:.2g} (allowed"
                    f" {_TOLERANCE * scale:.2g}); it was not written"
                )
