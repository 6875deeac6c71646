"""One bundle as the client's classifier: a picture's pixels, what stage 1 says of them, and the client's answer.

The client decides at one half; `remap` is the monotone map that puts our decision threshold there.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1.errors import ConfigError, DataError, IntegrityError
from stage1.inference import Bundle, load_bundle
from stage1.inference.predictor import GATE, one_line
from stage1.inference.views import SPREAD
from stage1.runtime.deadline import DeadlineExceeded
from stage1.runtime.images import picture_pixels
from stage1.scores import Scores
from stage1.streetvision.classes import require_order

# The client may narrow the float to 32 bits: the smallest answer above one half must survive that.
ABOVE_HALF = 0.5 + 2.0**-24
_EDGE = 12.0  # log odds from which a probability (6e-6 from its end) is not changed


def remap(probability: float, threshold: float) -> float:
    """The client's answer for a probability: above 0.5 iff probability > threshold, exactly 0.5 where they are equal.

    Piecewise linear in log odds: threshold -> 0, -12 and 12 stay where they are, and so does what lies beyond them (a
    threshold outside that range moves the border with it). Rising; the identity for threshold 0.5.

    probability: in [0, 1]. threshold: in (0, 1).

    >>> [round(remap(p, 0.8), 3) for p in (0.0, 0.2, 0.8, 0.9, 1.0)]
    [0.0, 0.063, 0.5, 0.713, 1.0]
    """
    z, t = _logit(probability), _logit(threshold)
    edge = max(_EDGE, abs(t) + 1.0)
    if probability == threshold:
        z = 0.0
    elif abs(z) < edge:
        z = (z - t) * edge / (edge - t if z > t else edge + t)
    return on_side(_sigmoid(z), probability > threshold)


def on_side(answer: float, roadwork: bool) -> float:
    """The answer, moved no further than to the border of the side on which it has to lie (0.5 itself is none)."""
    return max(answer, ABOVE_HALF) if roadwork else min(answer, 0.5)


def _logit(p: float) -> float:
    if p <= 0.0 or p >= 1.0:
        return -math.inf if p <= 0.0 else math.inf
    return math.log(p) - math.log1p(-p)


def _sigmoid(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z)) if z >= 0 else math.exp(z) / (1.0 + math.exp(z))


# ---- pictures ----------------------------------------------------------------------------------------------------


def pixels(image: object, max_pixels: int) -> NDArray[np.uint8]:
    """RGB pixels uint8 [H, W, 3] of any picture, equal to those of `load_bundle(..).predict([image])`.

    Raises DataError (no picture), ImageError (too large, a mode without an agreed range, opened lazily and broken).
    """
    if not isinstance(image, Image.Image):
        raise DataError(f"image: {type(image).__name__}; a PIL image is expected")
    return picture_pixels(image, max_pixels=max_pixels)


def png(rgb: NDArray[np.uint8]) -> bytes:
    """The same pixels as a file, without loss, upright and opaque."""
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def trouble_line(error: Exception) -> str:
    """Why there is no answer: the message where it is ours and says it, else with its kind."""
    text = " ".join(str(error).split())[:200]
    ours = isinstance(error, (DataError, IntegrityError, DeadlineExceeded)) and text
    return text if ours else f"{type(error).__name__}: {text}"


# ---- stage 1 -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stage1Answer:
    """What a bundle says: `exit`, `label` (0 none, 1 roadwork) and P(roadwork), as `load_bundle(..).predict` does.

    small: the bundle's further views could only enlarge what the model sees of the whole picture.
    """

    exit: bool
    label: int
    probability: float
    small: bool = False


class Classifier:
    """A bundle of two classes, for one picture at a time. device, threads (within a picture): as for `Engine`.

    Raises ConfigError (what a detector cannot serve), MissingError, IntegrityError (a byte differs, parts of different
    bundles).
    """

    def __init__(self, folder: str, *, device: object, threads: int) -> None:
        # The detector's own deadline ends the wait for a model; one of the session's costs a thread for each picture.
        try:
            bundle = load_bundle(folder, device=str(device), intra_op_threads=threads, deadline_s=None)
        except DataError as error:  # its model takes another size than its own preprocessing gives
            raise IntegrityError(f"{folder}: {error}; restore the bundle") from error
        if len(bundle.classes) != 2:
            raise ConfigError(
                f"{folder}: {len(bundle.classes)} classes; the client asks for one probability, give a bundle of two"
            )
        require_order(bundle.classes, folder)
        _require_decides(bundle)
        self._predictor = bundle.predictor
        self.spec = bundle.predictor.preprocessing
        self.digest = bundle.digest
        self.classes = (bundle.classes[0], bundle.classes[1])
        self.provider = bundle.predictor.engine.provider

    def answer(self, rgb: NDArray[np.uint8]) -> Stage1Answer:
        """Exit, label, probability for RGB uint8 [H, W, 3]. Raises DataError (no pixels), IntegrityError (NaN)."""
        row = self._predictor.answer(rgb)
        if row.label is None or row.probability is None:
            raise IntegrityError("model: it gives NaN or infinity for this image")
        return Stage1Answer(row.exit, self.classes.index(row.label), row.probability, row.small)


def _require_decides(bundle: Bundle) -> None:
    """Raises ConfigError where the policy needs a signal that no picture carries, IntegrityError where it needs the
    gate of a model that has none: each picture would get the fallback answer.
    """
    if (by := bundle.policy.sliced_by) is not None:
        raise ConfigError(
            f"{bundle.folder}: thresholds differ by {by}, which no picture carries, so each would defer; certify with"
            " policy.slice_thresholds=one"
        )
    views, gate = bundle.predictor.views is not None, GATE in bundle.predictor.engine.output_names
    signals = {SPREAD: np.zeros(1)} if views else {}
    probe = Scores(logits=np.zeros((1, 2)), gate=np.zeros(1), extra=signals)
    try:
        bundle.policy.decide(probe)
    except DataError as error:
        raise ConfigError(
            f"{bundle.folder}: the policy needs what a picture does not carry ({one_line(error)}); fit it without"
        ) from error
    try:
        bundle.policy.decide(probe if gate else Scores(logits=probe.logits, extra=signals))
    except DataError as error:
        raise IntegrityError(
            f"{bundle.folder}/model.onnx: no output `{GATE}`, which the policy needs; bundle it anew"
        ) from error
