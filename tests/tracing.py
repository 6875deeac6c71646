"""One trace of a backbone for all tests, in all workers: torch takes 8 s of CPU for the same graph each time."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
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
    """While open, what the exporter makes anew for every graph, though it hangs on torch alone, is made once a process:
    its library (some 500 functions of onnxscript, from their source), the register of them, the table of
    decompositions. Of a head's export that is nine tenths of the time.
    """
    # torch's own names: another version has others, and then takes its time.
    with contextlib.ExitStack() as stack:
        for module, path, kept in (
            ("torch.onnx._internal.exporter._registration", "onnxscript_apis.get_torchlib_ops", _once),
            ("torch.onnx._internal.exporter._registration", "ONNXRegistry.from_torchlib", _once),
            ("torch.onnx._internal.exporter._decomp", "create_onnx_friendly_decomposition_table", _copied),
            ("torch.export.exported_program", "_collect_all_valid_cia_ops", _copied),
            ("torch.export.decomp_utils", "_collect_all_valid_cia_ops", _copied),
        ):
            with contextlib.suppress(ImportError, AttributeError):
                *outer, name = path.split(".")
                owner = functools.reduce(getattr, outer, importlib.import_module(module))
                stack.enter_context(mock.patch.object(owner, name, staticmethod(kept(getattr(owner, name)))))
        yield


@functools.cache
def _once(function: Any) -> Any:
    return functools.cache(function)


@functools.cache
def _copied(function: Any) -> Any:
    """The set or dict that `function` made of the same arguments before, as a copy: its callers take things out."""
    made = functools.cache(lambda *sets: function(*sets))

    def copied(*sets: Any) -> Any:
        return made(*map(frozenset, sets)).copy()

    return copied


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
