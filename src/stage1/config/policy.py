"""Sections calibration and policy: the probability that is stated, and when the first stage answers."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from stage1.config.nearest import nearest
from stage1.config.section import Section


class CalibrationConfig(Section):
    map: Literal["auto", "none", "temperature", "platt", "beta", "isotonic", "vector", "dirichlet"] = "auto"
    """From raw scores to the probability that is stated; fitted on val_select, kept only if it lowers the cross-validated NLL.

    auto: the best of those that leave every decision as it is (two classes: temperature, platt, beta; more: temperature).
    isotonic, vector, dirichlet move the order of the scores: thresholds and certificate are then of the mapped score.
    """


class PolicyConfig(Section):
    name: Literal["softmax", "gate", "scrc"] = "softmax"
    """The one exit policy of the run."""
    variant: Literal["I", "T"] = "I"
    """Only for scrc: I holds with the stated confidence, T in expectation."""
    confidence_score: str = "auto"
    """Only for softmax with more than two classes: msp, margin, entropy, energy or maxlogit_pnorm(P), P from 1 on.
    auto: the one of least AUGRC on val_select."""
    thresholds: Literal["auto", "one", "per_class"] = "auto"
    """Only for softmax with more than two classes: one threshold, or one per answered class. auto: by predicted coverage."""

    against_argmax: bool = False
    """Let an image exit as a class that its calibrated probability does not favour, where the target allows it.

    The probability is that of calibration.json, at target_prior, else at the balance of val_select. Without it no image exits
    against its probability: fewer wrong exits under the same certificate, at a coverage that is nearly the same."""

    @field_validator("confidence_score")
    @classmethod
    def _known_score(cls, name: str) -> str:
        from stage1.confidence import CONFIDENCES, PNORM, known

        if name != "auto" and not known(name):
            names = ("auto", *CONFIDENCES, f"{PNORM}(3)")
            raise ValueError(
                f"unknown confidence{nearest(name, names)}; use {', '.join(names[:-1])} or {PNORM}(P), P >= 1"
            )
        return name
