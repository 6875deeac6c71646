"""One trace of a backbone for all tests, in all workers: torch takes 8 s of CPU for the same graph each time."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from .once import common_folder, made_once


@contextlib.contextmanager
def traced_once(folder: Path) -> Iterator[None]:
    """While open, the export of a backbone whose graph is in `folder` takes that graph. What follows (check against
    torch, file) is done each time. Equal means: modules, their settings, every weight, input and outputs. A test that
    puts another exporter in torch's place has that one.
    """
    if find_spec("timm") is None:  # without the extra train nothing is traced
        yield
        return
    import onnx
    import torch

    from stage1.model import export

    trace, exporter = export._exported, torch.onnx.export
    if isinstance(trace, mock.Mock):  # it is open already, in this folder or another
        yield
        return

    def exported(module: Any, shape: tuple[int, ...], input_name: str, *output_names: str) -> Any:
        if input_name != "image" or torch.onnx.export is not exporter:  # heads change from run to run
            return trace(module, shape, input_name, *output_names)

        def graph() -> bytes:
            return trace(module, shape, input_name, *output_names).SerializeToString(deterministic=True)

        return onnx.load_from_string(made_once(folder / _key(module, shape, output_names), graph))

    with library_read_once(), mock.patch.object(export, "_exported", side_effect=exported):
        yield


@contextlib.contextmanager
def library_read_once() -> Iterator[None]:
    """While open, the exporter translates its own library (some 500 functions of onnxscript, from their source) once a
    process instead of once a graph: more than half of the time of a head's export.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, AttributeError):  # torch's own names: another version has others
            from torch.onnx._internal.exporter import _registration

            interface = _registration.onnxscript_apis
            stack.enter_context(mock.patch.object(interface, "get_torchlib_ops", _once(interface.get_torchlib_ops)))
        yield


@functools.cache
def _once(function: Any) -> Any:
    return functools.cache(function)


@pytest.fixture(scope="module", autouse=True)
def exporter_reads_its_library_once() -> Iterator[None]:
    """For each module that imports it: every graph is traced, the exporter's library is read once."""
    with library_read_once():
        yield


@pytest.fixture(scope="module", autouse=True)
def backbones_traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For each module that imports it, and for every test of runs."""
    with traced_once(common_folder(tmp_path_factory) / "graphs"):
        yield


def _key(module: Any, shape: tuple[int, ...], output_names: tuple[str, ...]) -> str:
    import torch

    digest = hashlib.sha256(_words((module, shape, output_names)))
    for name, part in module.named_modules():
        settings = {key: value for key, value in sorted(vars(part).items()) if not key.startswith("_")}
        digest.update(_words((name, type(part), settings)))
    for name, tensor in module.state_dict().items():
        digest.update(_words((name, tensor.dtype, tuple(tensor.shape))))
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _words(value: Any) -> bytes:
    """Its repr without addresses: those differ from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value)).encode()
