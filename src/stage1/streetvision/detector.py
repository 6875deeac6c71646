"""The detector by the client's contract: built by keywords, loaded once, then one float in [0, 1] for every picture."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from stage1.runtime.deadline import DeadlineExecutor
from stage1.streetvision.classifier import Classifier, Stage1Answer, on_side, pixels, remap, trouble_line
from stage1.streetvision.settings import load_settings, load_stage2

if TYPE_CHECKING:
    from stage1.streetvision.cascade import DetectorCascade

log = logging.getLogger("stage1.streetvision")
_COUNTED = ("exit", "stage2", "stage1", "fallback", "stage2_failed", "views_add_nothing")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer with its history.

    value: what the client gets. by: "exit" (stage 1, certified side), "stage2", "stage1" (deferred, no answer of a
    stage 2) or "fallback" (the picture could not be answered). stage1: what the bundle said, None where it could not.
    trouble: one line, or None. stage: of a cascade, the name of the stage that answered ("stage2" is any of the later
    ones).
    """

    value: float
    by: str
    stage1: Stage1Answer | None
    trouble: str | None = None
    stage: str | None = None


class Stage1Detector:
    """A detector of the StreetVision client around one of our bundles. The client's own classes are not needed for it.

    model_name: for the log. config_name: a YAML (every key becomes an attribute; see `Settings`), or a bundle folder.
    device: "cpu", "cuda" or an object with such a text (a torch.device). Loads at once, so that what is wrong with
    bundle or configuration is one line at the miner's start. Raises ConfigError, MissingError, IntegrityError.

    An exit keeps the side that the policy gave it. What defers is asked of stage 2 where there is one, within what is
    left of the deadline; without its answer stage 1's own probability counts. With `cascade` its stages are asked by
    its rules, and `statement` is what is certified of the whole. May be called from several threads.

    Example: Stage1Detector(model_name="stage1", config_name="stage1.yaml", device="cuda")(picture)
    """

    bundle: str
    decision_threshold: float
    stage2: str | None
    stage2_threshold: float
    cascade: str | None
    deadline_s: float
    fallback_answer: float
    threads: int

    def __init__(self, model_name: str = "stage1", config_name: str | None = None, device: Any = "cpu") -> None:
        self.model_name = model_name
        self.config_name = config_name
        self.device = device
        self._loaded = False
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        for name, value in asdict(load_settings(config_name)).items():
            setattr(self, name, value)
        self.load_model()

    def load_model(self) -> None:
        """Check and load the bundle, and import stage 2. A second call does nothing: the client may make it."""
        if self._loaded:
            return
        self._bundle = Classifier(self.bundle, device=self.device, threads=self.threads)
        self.bundle_digest, self.classes = self._bundle.digest, self._bundle.classes
        self._second = None if self.stage2 is None else load_stage2(self.stage2)
        self._on_first, self._on_second = DeadlineExecutor(), DeadlineExecutor()
        self._cascade: DetectorCascade | None = None
        self.statement: str | None = None
        if self.cascade is not None:
            # Not above: the cascade's configuration takes a third of a second that a bundle alone does not need.
            from stage1.streetvision.cascade import DetectorCascade

            self._cascade = DetectorCascade(
                self.cascade, self._bundle, device=self.device, threads=self.threads, deadline_s=self.deadline_s
            )
            self.fallback_answer, self.statement = self._cascade.fallback, self._cascade.statement
        self._loaded = True
        log.info("%s: bundle %s on %s", self.model_name, self.bundle_digest[:12], self.provider)

    def __call__(self, image: Image.Image) -> float:
        """P(roadwork) for the client: above 0.5 is roadwork. A float in [0, 1] for any picture; never raises."""
        try:
            return self.answer(image).value
        except Exception as error:  # the last net: an exception here would leave the client without an answer
            self._count("fallback", f"{type(error).__name__}: {error}")
            return self.fallback_answer

    def answer(self, image: Image.Image) -> Answer:
        """The answer with its history; what went wrong is in it, counted, and logged."""
        until = time.monotonic() + self.deadline_s
        first: Stage1Answer | None = None
        trouble: str | None = None
        try:
            first = self._on_first.call(lambda: self.stage1_answer(image), until)
        except Exception as error:  # whatever it is, the client gets a number
            trouble = trouble_line(error)
        if self._cascade is not None:
            return self._counted(self._of_cascade(self._cascade, image, first, until, trouble))
        if first is None:
            return self._counted(Answer(self.fallback_answer, "fallback", None, trouble))
        own = remap(first.probability, self.decision_threshold)
        if first.exit:
            return self._counted(Answer(on_side(own, first.label == 1), "exit", first))
        stage2 = self._second
        if stage2 is None:
            return self._counted(Answer(own, "stage1", first))
        try:
            asked = self._on_second.call(lambda: stage2(image), until)
        except Exception as error:  # someone else's code: on any failure the answer of stage 1 is kept
            return self._counted(Answer(own, "stage1", first, f"stage2: {trouble_line(error)}"))
        return self._counted(Answer(remap(asked, self.stage2_threshold), "stage2", first))

    def _of_cascade(
        self,
        cascade: DetectorCascade,
        image: Image.Image,
        first: Stage1Answer | None,
        until: float,
        trouble: str | None,
    ) -> Answer:
        settled = cascade.answer(image, first, until, trouble)
        if settled.place < 0:
            return Answer(settled.value, "fallback", first, settled.trouble)
        by = "stage2" if settled.place else "stage1" if settled.fallback else "exit"
        return Answer(settled.value, by, first, settled.trouble, cascade.names[settled.place])

    def stage1_answer(self, image: Image.Image) -> Stage1Answer:
        """Exit, label and probability of stage 1 alone. Raises DataError (no usable picture), IntegrityError (NaN)."""
        found = self._bundle.answer(pixels(image, self._bundle.spec.max_pixels))
        if found.small:
            with self._counting:
                self._counts["views_add_nothing"] += 1
        return found

    @property
    def provider(self) -> str:
        """On what the model runs: CPU or CUDA."""
        return self._bundle.provider

    @property
    def counts(self) -> dict[str, int]:
        """How many answers came from "exit", "stage2", "stage1" and "fallback"; in how many of them stage 2 failed; and
        for how many images the further views of the bundle could add nothing, since the model saw every pixel of them
        anyway.
        """
        with self._counting:
            return {name: self._counts[name] for name in _COUNTED}

    def _counted(self, answer: Answer) -> Answer:
        self._count(answer.by, answer.trouble)
        return answer

    def _count(self, by: str, trouble: str | None) -> None:
        with self._counting:
            self._counts[by] += 1
            self._counts["stage2_failed"] += trouble is not None and by in ("stage1", "stage2")
        if trouble is not None:
            log.warning("%s: %s answers: %s", self.model_name, by, trouble)
