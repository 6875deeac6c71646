"""One trace of a backbone for all tests of whole runs: torch takes 8 s of CPU for the same graph each time."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any
from unittest import mock

import pytest

_graphs: dict[str, bytes] = {}


@contextlib.contextmanager
def traced_once() -> Iterator[None]:
    """While open, the export of a backbone that this process has traced before takes that graph. What follows (check
    against torch, file) is done each time. Equal means: exporter (a test may put one that fails in its place), modules,
    their settings, every weight, input and outputs.
    """
    if find_spec("timm") is None:  # without the extra train nothing is traced
        yield
        return
    import onnx

    from stage1.model import export

    trace = export._exported

    def exported(module: Any, shape: tuple[int, ...], input_name: str, *output_names: str) -> Any:
        if input_name != "image":  # heads change from run to run
            return trace(module, shape, input_name, *output_names)
        key = _key(module, shape, output_names)
        if key not in _graphs:
            _graphs[key] = trace(module, shape, input_name, *output_names).SerializeToString(deterministic=True)
        return onnx.load_from_string(_graphs[key])

    with mock.patch.object(export, "_exported", exported):
        yield


@pytest.fixture(scope="module", autouse=True)
def backbones_traced_once() -> Iterator[None]:
    """For each module that imports it, and for every test of runs."""
    with traced_once():
        yield


def _key(module: Any, shape: tuple[int, ...], output_names: tuple[str, ...]) -> str:
    import torch

    digest = hashlib.sha256(repr((torch.onnx.export, module, shape, output_names)).encode())
    for name, part in module.named_modules():
        settings = {key: value for key, value in sorted(vars(part).items()) if not key.startswith("_")}
        digest.update(repr((name, type(part), settings)).encode())
    for name, tensor in module.state_dict().items():
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
