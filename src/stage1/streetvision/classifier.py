"""The monotone map from our probability to the client's: our decision threshold lands on exactly 0.5.

What is done to a picture once: the pixels that the bundle was certified on, and the file that stages elsewhere are
sent.

One bundle as a classifier of pictures: checked, loaded, and asked with pixels; on onnxruntime, numpy and Pillow alone.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1.errors import DataError, IntegrityError
from stage1.runtime.images import picture_pixels
from stage1.runtime.preprocessing import Preprocessing
from stage1.streetvision.bare_session import Session
from stage1.streetvision.classes import require_order
from stage1.streetvision.looks import views_of
from stage1.streetvision.sealed import open_bundle
from stage1.streetvision.verdict import judge

# The client may narrow the float to 32 bits: the smallest answer above one half must survive that.
ABOVE_HALF = 0.5 + 2.0**-24
_EDGE = 12.0  # log odds from which a probability (6e-6 from its end) is left as it is


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


def pixels(image: object, max_pixels: int) -> NDArray[np.uint8]:
    """RGB pixels uint8 [H, W, 3] of a picture of any size and mode, equal to those of
    `load_bundle(..).predict([image])`.

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


@dataclass(frozen=True, slots=True)
class Stage1Answer:
    """What a bundle says: `exit`, `label` (0 none, 1 roadwork) and P(roadwork), as `load_bundle(..).predict` does."""

    exit: bool
    label: int
    probability: float


class Classifier:
    """A bundle of two classes. device, threads: as for `Session`.

    Raises ConfigError (what a detector cannot serve), MissingError, IntegrityError (a byte differs, parts of different
    bundles).
    """

    def __init__(self, folder: str, *, device: object, threads: int) -> None:
        sealed = open_bundle(Path(folder))
        names = [str(name) for name in sealed.manifest["classes"]]
        require_order(names, folder)
        self._judge = judge(sealed)
        certified = sealed.certificate.get("views")
        self._views = views_of(sealed.views, certified, sealed.views_digest, gated=self._judge.needs_gate)
        self.spec = Preprocessing.from_json(dict(sealed.manifest["preprocessing"]))
        where = f"{folder}/model.onnx"
        self._session = Session(sealed.model, where, device=device, threads=threads, size=self.spec.size)
        self._views.require_model(self._session.views, where)
        if self._views.steps and self._session.has_gate:
            raise IntegrityError(f"{where}: has a gate, which adaptive views do not go with; bundle it anew")
        if self._judge.needs_gate and not self._session.has_gate:
            raise IntegrityError(f"{where}: no output `gate_logits`, which the policy needs; bundle it anew")
        self.digest = sealed.digest
        self.classes = (names[0], names[1])
        self.provider = self._session.provider

    def answer(self, rgb: NDArray[np.uint8]) -> Stage1Answer:
        """Exit, label and probability for RGB pixels uint8 [H, W, 3]. Raises DataError (no pixels), IntegrityError
        (NaN).
        """
        verdict = self._judge(self._views.look(rgb, self.spec, self._session.run))
        return Stage1Answer(bool(verdict.exit[0]), int(verdict.label[0]), float(verdict.probability[0]))

    def adds_nothing(self, rgb: NDArray[np.uint8]) -> bool:
        """Whether its further views could only enlarge what the model sees of these pixels anyway."""
        return self._views.adds_nothing(rgb.shape[0], rgb.shape[1], self.spec)
