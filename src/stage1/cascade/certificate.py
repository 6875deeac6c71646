"""The certificate of a cascade (configuration, promises, shared delta, measured failures), and its statement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stage1.cascade.calls import ANSWERED, OUTAGES
from stage1.cascade.candidates import Candidate, base_rules, candidates, start_of
from stage1.cascade.certify import Risk, Sample, answers_of, better_unit, counted_unit, measure, walk_in_order
from stage1.cascade.config import CascadeConfig
from stage1.cascade.rules import Recorded, Rule, final_answers
from stage1.errors import ConfigError, DataError
from stage1.policy.attempts import Attempts, counted_words, headline
from stage1.policy.certificate import images, percent
from stage1.policy.certify import calibration_digest
from stage1.policy.joint import joint_risks
from stage1.policy.units import clustered
from stage1.scores import Scores


@dataclass(frozen=True, slots=True)
class Labelled:
    """Recorded answers of one role with what is known of its images. known: labels, groups, ids (logits unused)."""

    recorded: Recorded
    known: Scores

    def __len__(self) -> int:
        return len(self.recorded)


@dataclass(frozen=True, slots=True)
class StageClaim:
    """The certificate that a stage with exit: own keeps for itself."""

    stage: str
    certified: bool
    delta: float
    statement: str


@dataclass(frozen=True, slots=True)
class CascadeCertificate:
    """What is promised of the answers of the whole cascade, or why nothing is.

    rules: of the configuration that is meant. risks: as measured for it on the counted units of val_calib. failures: by
    stage, the calls on val_calib and how they ended. place, tested: its index in the order of testing. delta:
    spent on the whole.
    """

    certified: bool
    statement: str
    confidence: float
    delta: float
    method: str
    unit: str
    assume_iid: bool
    rules: tuple[Rule, ...]
    risks: dict[str, Risk]
    deferred: float
    failures: dict[str, dict[str, int]]
    fallbacks: int
    n_images: int
    n_units: int
    calib_digest: str
    tested: int
    attempt: int
    stages: tuple[StageClaim, ...]
    assumptions: tuple[str, ...]
    void_if: tuple[str, ...]
    reason: str | None = None
    needed: str | None = None
    attempts: Attempts | None = None

    @property
    def headline_confidence(self) -> float:
        """Of the claim about the whole, after all looks at the calibration images (policy/attempts.py)."""
        return headline(self.attempts, 1.0 - self.delta)

    def to_document(self) -> dict[str, Any]:
        """Plain values."""
        document = asdict(self)
        document["rules"] = [rule.to_document() for rule in self.rules]
        for name in ("stages", "assumptions", "void_if"):
            document[name] = list(document[name])
        if self.attempts is None:
            del document["attempts"]
        return document


def certify_cascade(
    config: CascadeConfig,
    calib: Labelled,
    select: Labelled | None,
    *,
    stages: tuple[StageClaim, ...] = (),
    attempts: Attempts | None = None,
) -> tuple[CascadeCertificate, list[Candidate]]:
    """The certificate of the whole, and the configurations in the order of testing.

    calib: answers and labels of val_calib, none of which was used to choose anything in the cascade; select: of
    val_select, for what is `auto`. stages: certificates of stages with exit: own, made on other images. attempts:
    the looks at these calibration images; None: not counted. Raises ConfigError (delta, unit, select), DataError
    (stages not asked).
    """
    delta = whole_delta(config, stages)
    if config.needs_select and (select is None or not len(select)):
        raise ConfigError("val_select: exit or answer_above auto is chosen on it; give labelled images with that role")
    ordered = _ordered(config, calib, select, delta)
    configurations = [candidate.rules for candidate in ordered]
    for candidate in configurations:
        _check_asked(calib.recorded, candidate, config)
    start = start_of(ordered)
    unit = counted_unit(calib.known, config.unit, config.assume_iid)
    targets = dict(config.risks)
    if unit == "group" and config.unit == "auto" and select is not None and targets:
        first = answers_of(select.recorded, configurations[start : start + 1], config.default_probability)[:, 0]
        groups = len(np.unique(calib.known.groups)) if calib.known.groups is not None else 0
        unit = better_unit(select.known, first, targets, delta, groups, config.seed)
    sample = Sample.of(calib.known, unit, config.seed)
    answers = answers_of(calib.recorded.take(sample.rows), configurations, config.default_probability)
    tested = walk_in_order(sample, answers, targets, delta, config.target_prior, start)
    place = start if tested.place is None else tested.place
    asked: dict[str, float | None] = dict(targets) or {"miss_rate": None, "false_exit_rate": None}
    # Bounds without a target are one statement each, and all are to hold: delta is shared. Targets are tested together.
    each = delta if targets else delta / len(asked)
    risks = measure(sample, answers[:, place], asked, each, config.target_prior)
    if targets and all(risk.holds for risk in risks.values()):
        risks = joint_risks(risks, at_end=place == len(configurations) - 1)
    outages = sum(
        int(np.isin(part.recorded.outcome, OUTAGES).any(axis=1).sum()) for part in (calib, select) if part is not None
    )
    reason, needed = _shortfall(risks, config, outages, sample)
    if attempts is not None and attempts.reason is not None:
        reason, needed = attempts.reason, "fresh labelled images in val_calib"
    final = final_answers(calib.recorded, configurations[place], config.default_probability)
    failures = _failures(calib.recorded, final.asked, config)
    iid = config.assume_iid and unit == "image" and clustered(calib.known)
    certificate = CascadeCertificate(
        certified=reason is None,
        statement="",
        confidence=config.confidence,
        delta=delta,
        method=method(config),
        unit=unit,
        assume_iid=iid,
        rules=configurations[place],
        risks=risks,
        deferred=float(final.asked[:, 1].mean()),
        failures=failures,
        fallbacks=int(final.fallback.sum()),
        n_images=len(calib),
        n_units=len(sample),
        calib_digest=calibration_digest(calib.known),
        tested=len(tested.passed) + (tested.place is None),
        attempt=1 if attempts is None else attempts.number,
        stages=stages,
        assumptions=assumptions(config, unit, iid),
        void_if=VOID_IF,
        reason=reason,
        needed=needed,
        attempts=attempts,
    )
    values = {name: getattr(certificate, name) for name in certificate.__slots__}
    return CascadeCertificate(**values | {"statement": statement(certificate, config)}), ordered


def whole_delta(config: CascadeConfig, stages: tuple[StageClaim, ...]) -> float:
    """What is left of delta for the claim about the whole. Raises ConfigError where nothing is."""
    delta = 1.0 - config.confidence
    spent = sum(claim.delta for claim in stages if claim.certified) if config.joint else 0.0
    if spent >= delta - 1e-12:
        raise ConfigError(
            f"joint: the stages' own certificates spend delta {spent:.4g} of {delta:.4g}; certify them at a higher"
            " confidence, lower `confidence` here, or set joint: false (both then hold together at less than"
            " `confidence`)"
        )
    return delta - spent


def _ordered(config: CascadeConfig, calib: Labelled, select: Labelled | None, delta: float) -> list[Candidate]:
    if not config.needs_select or select is None:
        return [Candidate(base_rules(config), float("nan"), 1.0, 0.0)]
    _check_asked(select.recorded, None, config)
    return candidates(
        select.recorded, select.known.known_labels, config, n_calib=len(calib), delta=delta, varied=config.auto_exits
    )


def _check_asked(recorded: Recorded, rules: tuple[Rule, ...] | None, config: CascadeConfig) -> None:
    """Every stage that the rules (None: any rules) would ask has been asked."""
    if rules is None:
        needed = np.ones(recorded.outcome.shape, dtype=np.bool_)
    else:
        needed = final_answers(recorded, rules, config.default_probability).asked
    # An image whose bytes could not be read was asked of no stage: it is answered by the default.
    readable = (recorded.outcome != "").any(axis=1, keepdims=True)
    missing = needed & readable & (recorded.outcome == "")
    if missing.any():
        row, place = (int(index) for index in np.argwhere(missing)[0])
        raise DataError(
            f"{recorded.images[row]}: stage {config.stages[place].name!r} was not asked"
            f" ({int(missing.any(axis=1).sum())} images); answers for a certificate come from `stage1 cascade"
            " evaluate`, which asks every stage"
        )


def _failures(recorded: Recorded, asked: np.ndarray[Any, Any], config: CascadeConfig) -> dict[str, dict[str, int]]:
    """By stage, of the images sent there: "asked", "failed", and how many ended in each outcome but an answer."""
    found = {}
    for place, stage in enumerate(config.stages):
        outcomes = recorded.outcome[:, place][asked[:, place] & (recorded.outcome[:, place] != "")]
        kinds, counts = np.unique(outcomes[outcomes != ANSWERED], return_counts=True)
        each = dict(zip(kinds.tolist(), counts.tolist(), strict=True))
        found[stage.name] = {"asked": len(outcomes), "failed": sum(each.values()), **each}
    return found


def _shortfall(
    risks: Mapping[str, Risk], config: CascadeConfig, outages: int, sample: Sample
) -> tuple[str | None, str | None]:
    """Why nothing is certified, and what it takes; (None, None) where all holds."""
    if outages:
        return (
            (
                f"{outages} labelled images were not asked for because a stage was left alone (breaker_open,"
                " over_budget). Outages come in runs, so that images are not independent."
            ),
            "run the same command again: it asks these images anew",
        )
    if empty := [name for name, risk in risks.items() if risk.n == 0]:
        return f"No image of val_calib counts for {empty[0]}.", "labelled images of both classes in val_calib"
    for name, risk in risks.items():
        if not risk.holds:
            assert risk.target is not None, "a risk without a target holds"
            # Group means count groups, the others units of the class.
            counted = len(sample) if sample.unit == "group_mean" else risk.n
            if risk.needed is not None and counted < risk.needed:
                what = "images" if sample.unit == "image" else "groups"
                return (
                    f"{counted} {what} cannot certify {name} <= {risk.target:g} even with no error.",
                    f"{risk.needed} {what} of that class with no error",
                )
            return (
                (
                    f"{name}: {risk.errors} of {risk.n} wrong, upper bound {risk.bound:.4g} above the limit"
                    f" {risk.target:g}."
                ),
                "more labelled images, a better last stage, or a larger limit",
            )
    return None, None


VOID_IF = (
    "a stage is changed: another bundle, model, prompt, endpoint, threshold, timeout or number of retries",
    (
        "calls fail more often than where it was measured, or an outage lasts: the answers are then those of the stage"
        " before"
    ),
    "the images come from another kind of source (camera, place, season, compression) than the calibration images",
    "the calibration images are used for other configurations, beyond the looks that the confidence counts",
)


def method(config: CascadeConfig) -> str:
    if config.auto_exits:
        moved = " and ".join(repr(config.stages[place].name) for place in config.auto_exits)
        return f"fixed sequence of thresholds of {moved} ordered on val_select, exact bounds, union null"
    if config.needs_select:
        return "one configuration chosen on val_select, tested once, exact bounds, union null"
    return "one configuration fixed by the cascade file, tested once, exact bounds, union null"


def risk_words(name: str, limit: float, config: CascadeConfig) -> str:
    """One limit on the answers of the whole in words."""
    negative, positive = config.classes
    at_most = f"at most {percent(limit)}"
    if name == "error":
        return (
            f"{at_most} of all images are answered wrongly (where {percent(config.target_prior or 0)} are {positive})"
        )
    of, called = (positive, negative) if name == "miss_rate" else (negative, positive)
    return f"{at_most} of all {images(of)} are answered '{called}'"


def statement(certificate: CascadeCertificate, config: CascadeConfig) -> str:
    limits = [
        risk_words(name, risk.bound if risk.target is None else risk.target, config)
        for name, risk in certificate.risks.items()
    ]
    claim = f"by the whole cascade, which answers every image, {', and '.join(limits)}"
    if not certificate.certified:
        return f"Not certifiable at confidence {percent(1 - certificate.delta)}: {claim}. {certificate.reason}"
    sentence = f"With confidence {percent(certificate.headline_confidence)}, {claim}. {_spent(certificate, config)}"
    if certificate.unit != "image":
        how = (
            "one image of each group was counted" if certificate.unit == "group" else "each group with the same weight"
        )
        sentence += f" An image here is a random image of a random group ({how})."
    if certificate.assume_iid:
        sentence += (
            " This holds only if images are independent of each other although they come in groups (assume_iid)."
        )
    sentence += _own_claims(certificate, config) + _failure_words(certificate)
    return sentence + counted_words(certificate.attempts, 1 - certificate.delta)


def _spent(certificate: CascadeCertificate, config: CascadeConfig) -> str:
    """How delta was shared out."""
    if not config.risks:
        return f"Delta {certificate.delta:.4g} is shared equally by the {len(certificate.risks)} bounds."
    each = "all risks of a configuration are tested together, so each has the whole of it"
    if config.auto_exits:
        return (
            f"Delta {certificate.delta:.4g} was spent on configurations tested one after the other in an order fixed on"
            f" val_select, up to the first that fails ({certificate.tested} passed, the last of them is meant); {each}."
        )
    return f"Delta {certificate.delta:.4g} was spent on one configuration tested once; {each}."


def _own_claims(certificate: CascadeCertificate, config: CascadeConfig) -> str:
    kept = [claim for claim in certificate.stages if claim.certified]
    if not kept:
        return ""
    own = 1 - certificate.headline_confidence  # what other looks at the same images cost is in it
    spent = own + sum(claim.delta for claim in kept)
    names = ", ".join(f"'{claim.stage}' (delta {claim.delta:.4g})" for claim in kept)
    together = f"delta {own:.4g} + {spent - own:.4g}, so all hold together with confidence {percent(1 - spent)}"
    return f" Beside it stands the own certificate of {names}: {together}."


def _failure_words(certificate: CascadeCertificate) -> str:
    parts = []
    for name, counts in certificate.failures.items():
        if counts["failed"]:
            kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items() if kind not in ("asked", "failed"))
            parts.append(
                f"{percent(counts['failed'] / counts['asked'])} of {counts['asked']} calls to '{name}' ({kinds})"
            )
    if not parts:
        return " It was measured with no failed call."
    return f" It was measured with these calls failed and answered by the stage before: {'; '.join(parts)}."


def assumptions(config: CascadeConfig, unit: str, iid: bool) -> tuple[str, ...]:
    what = "images" if unit == "image" else "groups"
    listed = [
        f"The calibration {what} are an independent random sample of those that the cascade will see, class by class.",
        (
            "No calibration image was used for training a stage, for choosing a threshold or a prompt, or for choosing"
            " the limits."
        ),
        "The labels of the calibration images are right.",
        (
            "Calls fail as often, and as much by chance, as where it was measured; outages (breaker open, budget spent)"
            " are not covered."
        ),
        "The share of each class may differ: miss_rate and false_exit_rate are per class.",
    ]
    if iid:
        listed.append(
            "assume_iid: images of one group are treated as independent. If they are not, the bound is too small."
        )
    return tuple(listed)
