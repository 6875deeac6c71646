"""The model behind a detector: one ONNX Runtime session for one image at a time, on the device that the client names."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import IntegrityError

log = logging.getLogger("stage1.streetvision")
GATE = "gate_logits"


class Session:
    """model: the bytes of model.onnx, already checked. device: anything whose text is "cpu", "cuda" or "cuda:N".

    threads: within one image; one gives the very sums of `stage1 predict`, more are faster and may differ in the last digit.
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
        inputs, outputs = self._session.get_inputs(), [item.name for item in self._session.get_outputs()]
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or "logits" not in outputs:
            raise IntegrityError(f"{where}: one image input and an output `logits` expected; export it anew")
        if isinstance(inputs[0].shape[-1], int) and inputs[0].shape[-1] != size:
            raise IntegrityError(f"{where}: takes {inputs[0].shape[-1]} px, the bundle says {size}; bundle it anew")
        self.provider: str = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        self.has_gate = GATE in outputs
        self._input = inputs[0].name
        self._outputs = ["logits", *([GATE] if self.has_gate else [])]

    def run(self, views: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """(logits float [V, 2], gate logits float [V] or None) of float32 [V, 3, S, S].

        Raises IntegrityError for NaN, infinity or another shape: such an answer is none.
        """
        logits, *gate = (
            np.asarray(part, dtype=np.float64) for part in self._session.run(self._outputs, {self._input: views})
        )
        if logits.shape != (len(views), 2) or any(part.shape != (len(views),) for part in gate):
            raise IntegrityError(
                f"model: logits {list(logits.shape)} for {len(views)} view(s) of two classes; export it anew"
            )
        if not all(np.isfinite(part).all() for part in (logits, *gate)):
            raise IntegrityError("model: it gives NaN or infinity for this image")
        return logits, gate[0] if gate else None


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
