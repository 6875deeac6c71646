"""One bundle as a classifier of pictures: checked, loaded, and asked with pixels; on onnxruntime, numpy and Pillow alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stage1.errors import IntegrityError
from stage1.images import Preprocessing
from stage1.integrations.client_classes import require_order
from stage1.integrations.streetvision.looks import views_of
from stage1.integrations.streetvision.sealed import open_bundle
from stage1.integrations.streetvision.session import Session
from stage1.integrations.streetvision.verdict import judge


@dataclass(frozen=True, slots=True)
class Stage1Answer:
    """What a bundle says: `exit`, `label` (0 none, 1 roadwork) and P(roadwork), as `load_bundle(..).predict` does."""

    exit: bool
    label: int
    probability: float


class Classifier:
    """A bundle of two classes. device, threads: as for `Session`.

    Raises ConfigError (what a detector cannot serve), MissingError, IntegrityError (a byte differs, parts of different bundles).
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
        """Exit, label and probability for RGB pixels uint8 [H, W, 3]. Raises DataError (no pixels), IntegrityError (NaN)."""
        verdict = self._judge(self._views.look(rgb, self.spec, self._session.run))
        return Stage1Answer(bool(verdict.exit[0]), int(verdict.label[0]), float(verdict.probability[0]))

    def adds_nothing(self, rgb: NDArray[np.uint8]) -> bool:
        """Whether its further views could only enlarge what the model sees of these pixels anyway."""
        return self._views.adds_nothing(rgb.shape[0], rgb.shape[1], self.spec)
