"""The model behind a detector: one ONNX Runtime session for one image at a time, on the device that the client
names.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage1.errors import IntegrityError

log = logging.getLogger("stage1.streetvision")
GATE, WITHOUT = "gate_logits", "without_view"
Floats = NDArray[np.float64]


class Outputs(NamedTuple):
    """What the model says of the views of one image; a view model, of all of them at once, has one row of logits and
    gate.

    logits: float [V, 2] or [1, 2]. gate: float [V] or [1], None where the model has none. without: float [V, 2], the
    logits were view v like all views on average; of a view model alone.
    """

    logits: Floats
    gate: Floats | None
    without: Floats | None = None


class Session:
    """model: the bytes of model.onnx, already checked. device: anything whose text is "cpu", "cuda" or "cuda:N".

    views: None for a model of single views, [N, 3, S, S]; else the number V of views that a view model takes of every
    image, [N, V, 3, S, S].

    threads: within one image; one gives the very sums of `stage1 predict`, more are faster and may differ in the last
    digit.
    Raises IntegrityError where ONNX Runtime cannot load it, or where it has not the inputs and outputs of an export.
    """

    def __init__(self, model: bytes, where: str, *, device: object, threads: int, size: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = 4  # what matters is raised
        try:
            self._session = ort.InferenceSession(model, options, providers=_providers(ort, str(device)))
        except Exception as error:  # the runtime raises about ten kinds, some of them plain RuntimeError
            why = " ".join(str(error).split())[:160]
            raise IntegrityError(f"{where}: ONNX Runtime cannot load it ({why}); restore or export it anew") from error
        self.provider: str = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        outputs = [item.name for item in self._session.get_outputs()]
        self._input, self.views = _image_input(self._session.get_inputs(), where, size)
        self.has_gate = GATE in outputs
        needed = ["logits"] if self.views is None else ["logits", WITHOUT]
        if missing := [name for name in needed if name not in outputs]:
            raise IntegrityError(f"{where}: no output `{missing[0]}`, which this kind of model has; export it anew")
        self._outputs = [*needed, *([GATE] if self.has_gate else [])]

    def run(self, views: NDArray[np.float32]) -> Outputs:
        """The outputs for float32 [V, 3, S, S], views of one image; a view model takes no other V than its own.

        Raises IntegrityError for NaN, infinity or another shape: such an answer is none.
        """
        batch = views if self.views is None else views[None]
        values = self._session.run(self._outputs, {self._input: batch})
        found = {name: np.asarray(part, dtype=np.float64) for name, part in zip(self._outputs, values, strict=True)}
        rows = len(batch)
        shapes = {"logits": (rows, 2), WITHOUT: (rows, len(views), 2), GATE: (rows,)}
        for name, part in found.items():
            if part.shape != shapes[name]:
                raise IntegrityError(
                    f"model: {name} {list(part.shape)} for {len(views)} view(s) of two classes; export it anew"
                )
        if not all(np.isfinite(part).all() for part in found.values()):
            raise IntegrityError("model: it gives NaN or infinity for this image")
        return Outputs(found["logits"], found.get(GATE), found[WITHOUT][0] if WITHOUT in found else None)


def _image_input(inputs: list[Any], where: str, size: int) -> tuple[str, int | None]:
    """(name, views) of the one input, views None where it is [N, 3, S, S]. Raises IntegrityError for any other
    model.
    """
    shape = inputs[0].shape if len(inputs) == 1 else []
    if len(shape) not in (4, 5) or (len(shape) == 5 and not isinstance(shape[1], int)):
        raise IntegrityError(f"{where}: one image input expected, [N, 3, S, S] or [N, V, 3, S, S]; export it anew")
    if isinstance(shape[-1], int) and shape[-1] != size:
        raise IntegrityError(f"{where}: takes {shape[-1]} px, the bundle says {size}; bundle it anew")
    return str(inputs[0].name), shape[1] if len(shape) == 5 else None


def _providers(ort: Any, device: str) -> list[Any]:
    """CUDA where it is asked for and there, else the CPU; what stands in for another device is logged."""
    if device.partition(":")[0] == "cuda":
        if "CUDAExecutionProvider" in ort.get_available_providers():
            number = device.partition(":")[2]
            # The defaults (TF32, algorithms chosen by timing) would make two runs of one image differ.
            cuda = {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT", "device_id": number or "0"}
            return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]
        log.warning(
            "device %s: this onnxruntime has no CUDA provider (pip install onnxruntime-gpu); running on the CPU", device
        )
    elif device != "cpu":
        log.warning("device %s: unknown here; running on the CPU", device)
    return ["CPUExecutionProvider"]
