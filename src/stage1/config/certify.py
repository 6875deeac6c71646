"""Sections of what is promised and judged: calibration, policy, evaluation and acceptance.

In this order: the stated probability, when the first stage answers, the intervals of the report, and the limits that
a run must keep.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from stage1.config.base import OneOf, Rate, Section, nearest
from stage1.risk.risks import class_kinds, risks_for


def _map_names() -> tuple[str, ...]:
    from stage1.calibration.registry import config_names

    return config_names()


DEFAULT_POLICY = "softmax"


class CalibrationConfig(Section):
    map: Annotated[str, OneOf(_map_names)] = "auto"
    """From raw scores to the probability that is stated; fitted on val_select, kept only if it lowers the
    cross-validated NLL.

    auto: the best of those that leave every decision as it is (two classes: temperature, platt, beta; more:
    temperature).
    isotonic, vector, dirichlet move the order of the scores: thresholds and certificate are then of the mapped score.
    """


def _policy_names() -> tuple[str, ...]:
    from stage1.policy.registry import POLICIES

    return tuple(POLICIES)


class PolicyConfig(Section):
    name: Annotated[str, OneOf(_policy_names)] = DEFAULT_POLICY
    """The one exit policy of the run."""
    variant: Literal["I", "T"] = "I"
    """Only for scrc: I holds with the stated confidence, T in expectation."""
    confidence_score: str = "auto"
    """Only for softmax with more than two classes: msp, margin, entropy, energy or maxlogit_pnorm(P), P from 1 on.
    auto: the one of least AUGRC on val_select."""
    thresholds: Literal["auto", "one", "per_class"] = "auto"
    """Only for softmax with more than two classes: one threshold, or one per answered class. auto: by predicted
    coverage.
    """

    against_argmax: bool = False
    """Let an image exit as a class that its calibrated probability does not favour, where the target allows it.

    The probability is that of calibration.json, at target_prior, else at the balance of val_select. Without it no image
    exits against its probability: fewer wrong exits under the same certificate, at a coverage that is nearly the same.
    """

    slice_thresholds: Literal["auto", "own", "one"] = "auto"
    """With data.slices: own thresholds for each value of one column, which every image that is predicted must then
    have, or one pair for all.

    auto: own where there is one column and no floor on coverage (and it is no level of made challenges).
    """

    @field_validator("confidence_score")
    @classmethod
    def _known_score(cls, name: str) -> str:
        from stage1.scores.confidence import CONFIDENCES, PNORM, known

        if name != "auto" and not known(name):
            names = ("auto", *CONFIDENCES, f"{PNORM}(3)")
            raise ValueError(
                f"unknown confidence{nearest(name, names)}; use {', '.join(names[:-1])} or {PNORM}(P), P >= 1"
            )
        return name


class AttemptsConfig(Section):
    """How delta = 1 - confidence is spent where the same calibration images are looked at more than once."""

    planned: Annotated[int, Field(ge=1)] | None = None
    """So many looks (targets, models, seeds) share delta, and all of them hold together; one more is refused. null:
    each is tested at the whole delta, and the stated confidence falls with each: 95 %, 90 %, .."""
    schedule: Literal["plain", "sequential"] = "plain"
    """sequential: look j is tested at 6 delta / (pi^2 j^2), and all looks hold together however many follow: for labels
    that arrive over time."""

    @model_validator(mode="after")
    def _one_plan(self) -> AttemptsConfig:
        if self.planned is not None and self.schedule == "sequential":
            raise ValueError(
                f"planned={self.planned} with schedule=sequential: give one of them (planned: a number of looks known"
                " beforehand; sequential: labels that arrive over time)"
            )
        return self


class EvaluationConfig(Section):
    resamples: Annotated[int, Field(ge=1)] = 1000
    """Bootstrap resamples for the intervals of the report; from 20,000 images (or groups) on hardly any are needed."""
    level: Rate = 0.95


_ACCEPTED = (
    "auroc",
    "aurc",
    "e_aurc",
    "augrc",
    "e_augrc",
    "auroc_f",
    "accuracy",
    "mcc",
    "nll",
    "brier",
    "ece",
    "coverage",
)
_GAINS = ("augrc", "aurc", "nll", "mcc", "accuracy", "coverage", "exit_error")


class AcceptanceGate(Section):
    """One limit, judged after evaluate; see stages/acceptance.py for what each metric is."""

    metric: str
    """Of evaluation.json: accuracy, augrc, error, coverage, coverage.CLASS ..; certificate.RISK,
    certificate.coverage; gate.gain; gain.METRIC.
    """
    at_least: float | None = None
    at_most: float | None = None
    by: Literal["value", "bound"] = "value"
    """bound: the end of the interval that counts against the run must keep the limit, not the value alone."""
    phase: Annotated[int, Field(ge=0, le=6)] | None = None
    """The phase that the gate ends: a label in acceptance.json and in messages."""

    @model_validator(mode="after")
    def _one_limit(self) -> AcceptanceGate:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"gate {self.metric}: one of at_least and at_most is needed")
        head, _, rest = self.metric.partition(".")
        known = {"gain": rest in _GAINS, "gate": rest == "gain", "certificate": bool(rest)}
        accepted = (*_ACCEPTED, *dict.fromkeys((*(risk.name for risk in risks_for(2)), *class_kinds())))
        if not known.get(head, head in accepted):
            names = (
                *accepted,
                "certificate.RISK",
                "certificate.coverage",
                "gate.gain",
                *(f"gain.{name}" for name in _GAINS),
            )
            raise ValueError(f"gate {self.metric!r} is unknown{nearest(self.metric, names)}; use {', '.join(names)}")
        upward = self.metric == "certificate.coverage"
        if head == "certificate" and self.by == "bound" and (self.at_most if upward else self.at_least) is not None:
            raise ValueError(
                f"gate {self.metric}: its bound is a {'lower' if upward else 'upper'} one; give"
                f" {'at_least' if upward else 'at_most'}"
            )
        return self


class AcceptanceConfig(Section):
    """Limits that a run must keep before it is bundled; none by default."""

    gates: list[AcceptanceGate] = []
    reference: str | None = None
    """Run directory on the same split that gain.METRIC compares with."""

    @model_validator(mode="after")
    def _reference_given(self) -> AcceptanceConfig:
        if self.reference is None and (
            gains := [gate.metric for gate in self.gates if gate.metric.startswith("gain.")]
        ):
            raise ValueError(f"gate {gains[0]} compares with another run; set acceptance.reference=RUN")
        return self
