"""Tensors of the Open Inference Protocol: out of a request's body, into a response's, as JSON or in binary.

The binary extension puts raw little-endian elements after the JSON (whose length is in a header), in the order of the
tensors; an element of BYTES has its length before it, 4 bytes. In JSON an element of BYTES is base64 in a request,
where it is an image, and plain text in a response.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.serving.refusal import Refusal, bad_request

Json = dict[str, Any]
HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input. datatype: BYTES or FP32. elements: bytes of each; or an array float32 of the shape."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: list[bytes] | NDArray[np.float32]

    @property
    def texts(self) -> list[str]:
        """Elements of BYTES as texts. Raises Refusal (400)."""
        if not isinstance(self.elements, list):
            raise bad_request(f"input {self.name!r}: BYTES are expected")
        try:
            return [element.decode() for element in self.elements]
        except UnicodeDecodeError as error:
            raise bad_request(f"input {self.name!r}: UTF-8 is expected") from error


def split_body(body: bytes, header: str | None) -> tuple[bytes, memoryview]:
    """(the JSON, what comes after it). header: the one that says how long the JSON is; None: all of it."""
    if header is None:
        return body, memoryview(b"")
    if not header.isdecimal() or not 0 < int(header) <= len(body):
        raise bad_request(f"{HEADER}: {header[:40]!r}; the length of the JSON is expected, of a body of {len(body)}")
    return body[: int(header)], memoryview(body)[int(header) :]


def read_inputs(inputs: Any, binary: memoryview, *, texts: Sequence[str]) -> dict[str, Tensor]:
    """Every input by name. texts: names of BYTES inputs whose elements are text in JSON too. Raises Refusal (400)."""
    if not isinstance(inputs, list):
        raise bad_request('give {"inputs": [{"name": .., "shape": .., "datatype": .., "data": ..}]}')
    found: dict[str, Tensor] = {}
    for one in inputs:
        name, datatype, shape = _head(one)
        if name in found:
            raise bad_request(f"input {name!r} comes twice")
        size = (
            one.get("parameters", {}).get("binary_data_size") if isinstance(one.get("parameters", {}), dict) else None
        )
        if size is not None:
            if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(binary):
                raise bad_request(f"input {name!r}: binary_data_size {size!r}, of {len(binary)} bytes that are left")
            part, binary = binary[:size], binary[size:]
            found[name] = Tensor(name, datatype, shape, _of_binary(name, datatype, shape, part))
        else:
            found[name] = Tensor(name, datatype, shape, _of_json(name, datatype, shape, one.get("data"), name in texts))
    if len(binary):
        raise bad_request(f"{len(binary)} bytes after the last tensor")
    return found


def _head(one: Any) -> tuple[str, str, tuple[int, ...]]:
    if not isinstance(one, dict) or not isinstance(one.get("name"), str):
        raise bad_request("inputs: objects with a name are expected")
    name, datatype, shape = one["name"][:100], one.get("datatype"), one.get("shape")
    if datatype not in ("BYTES", "FP32"):
        raise bad_request(f"input {name!r}: datatype BYTES or FP32 is expected")
    whole = isinstance(shape, list) and all(isinstance(side, int) and not isinstance(side, bool) for side in shape)
    if not whole or not shape or min(shape) < 1 or math.prod(shape) > 1 << 28:
        raise bad_request(f"input {name!r}: a shape of whole numbers above 0 is expected")
    return name, datatype, tuple(shape)


def _of_binary(name: str, datatype: str, shape: tuple[int, ...], part: memoryview) -> Any:
    if datatype == "FP32":
        if len(part) != 4 * math.prod(shape):
            raise bad_request(f"input {name!r}: {len(part)} bytes for {math.prod(shape)} numbers of 4")
        return np.frombuffer(part, dtype="<f4").reshape(shape)
    elements = []
    while len(part):
        size = int.from_bytes(part[:4], "little")
        if len(part) < 4 + size:
            raise bad_request(f"input {name!r}: an element of {size} bytes, {max(0, len(part) - 4)} are left")
        elements.append(bytes(part[4 : 4 + size]))
        part = part[4 + size :]
    return _counted(name, elements, shape)


def _of_json(name: str, datatype: str, shape: tuple[int, ...], data: Any, is_text: bool) -> Any:
    if not isinstance(data, list):
        raise bad_request(f"input {name!r}: no data, neither in the JSON nor after it")
    flat = _flat(data, name)
    if datatype == "FP32":
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in flat):
            raise bad_request(f"input {name!r}: numbers are expected")
        try:
            return np.array(_counted(name, flat, shape), dtype=np.float32).reshape(shape)
        except OverflowError as error:
            raise bad_request(f"input {name!r}: a number is too large") from error
    if not all(isinstance(value, str) for value in flat):
        raise bad_request(f"input {name!r}: texts are expected")
    try:
        elements = [v.encode() if is_text else base64.b64decode(v, validate=True) for v in flat]
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"input {name!r}: an element is not base64") from error
    return _counted(name, elements, shape)


def _flat(data: list[Any], name: str, depth: int = 0) -> list[Any]:
    if depth > 8:
        raise bad_request(f"input {name!r}: data is nested too deep")
    flat: list[Any] = []
    for value in data:
        if isinstance(value, list):
            flat += _flat(value, name, depth + 1)
        else:
            flat.append(value)
    return flat


def _counted(name: str, elements: list[Any], shape: tuple[int, ...]) -> list[Any]:
    if len(elements) != math.prod(shape):
        raise bad_request(f"input {name!r}: {len(elements)} elements for the shape {list(shape)}")
    return elements


# ---- responses ---------------------------------------------------------------------------------------------------


def write_outputs(
    head: Json, outputs: dict[str, tuple[str, list[int], list[Any]]], binary: Sequence[str]
) -> tuple[bytes, int | None]:
    """(body, length of its JSON where binary follows it). outputs: name -> (datatype, shape, flat data).

    binary: names of those that come after the JSON. A number that is not there (None) is NaN in binary, null in JSON.
    """
    described: list[Json] = []
    parts: list[bytes] = []
    for name, (datatype, shape, data) in outputs.items():
        one: Json = {"name": name, "datatype": datatype, "shape": shape}
        if name in binary:
            parts.append(_packed(datatype, data))
            one["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            one["data"] = data
        described.append(one)
    text = json.dumps({**head, "outputs": described}, allow_nan=False).encode()
    return b"".join((text, *parts)), len(text) if parts else None


def _packed(datatype: str, data: list[Any]) -> bytes:
    if datatype == "BYTES":
        encoded = [text.encode("utf-8", "backslashreplace") for text in data]
        return b"".join(len(one).to_bytes(4, "little") + one for one in encoded)
    if datatype == "BOOL":
        return bytes(map(int, data))
    return np.array([np.nan if value is None else value for value in data], dtype="<f8").tobytes()


def wanted_outputs(document: Json, known: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names of the outputs that are asked for, those of them in binary). Raises Refusal (400)."""
    parameters = document.get("parameters", {})
    all_binary = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    asked = document.get("outputs")
    if asked is None:
        return list(known), list(known) if all_binary else []
    if not isinstance(asked, list) or not all(isinstance(one, dict) for one in asked):
        raise bad_request("outputs: a list of objects with a name is expected")
    names, binary = [], []
    for one in asked:
        name = one.get("name")
        if name not in known:
            raise Refusal(400, "no_such_output", f"output {str(name)[:60]!r}; there are {', '.join(known)}")
        if name in names:
            raise bad_request(f"output {name!r} comes twice")
        names.append(name)
        own = one.get("parameters")
        if (own.get("binary_data", all_binary) if isinstance(own, dict) else all_binary) is True:
            binary.append(name)
    return names, binary
