"""The family of rules of SCRC: tau and class floors chosen, their counts certified, the certificate in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from stage1.errors import ConfigError
from stage1.policy.certificate import Certificate, Coverage, RiskBound, UnclaimedClass
from stage1.policy.certify import Shortfall, counted_units
from stage1.policy.remembered import Remembered
from stage1.policy.scrc import Bools, ScrcPolicy
from stage1.policy.scrc_choice import Choice, Sample, Selected, Target, choose, measured, select, unclaimed_classes
from stage1.policy.scrc_unclaimed import reached
from stage1.policy.scrc_words import claimed, meaning, shortfall, statement
from stage1.policy.slices import SliceClaim
from stage1.policy.target import Request, passing_targets, settable
from stage1.policy.units import Counting, choose_unit
from stage1.scores import Scores

_COVERAGES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
"""Shares to be selected that are tried where the one that was asked for does not do."""

METHODS = {
    "I": "SCRC-I, PAC: order statistics of the confidence and of each class among the selected images, exact binomial",
    "T": (
        "SCRC-T, in expectation: conformal risk control of each class among the selected images, floor((m + 1) alpha) -"
        " 1 losses allowed"
    ),
}


@dataclass(frozen=True, slots=True)
class SelectedSets:
    """The family of selection and class floors (RuleFamily of policy/certify.py); its rules are uncertified policies.

    coverage: the least share of images to be selected. targets: one of each class.
    """

    variant: str
    coverage: float
    targets: tuple[Target, ...]

    policy = ScrcPolicy.name

    def find(self, target: Request, calib: Scores, select: Scores | None, counting: Counting) -> FoundSets:
        """tau and floors from the counted units alone."""
        unit = choose_unit(calib, counting.unit, counting.assume_iid)
        return self.on(target, counted_units(calib, unit, counting.seed), unit)

    def selected(self, sample: Sample, confidence: float) -> Selected:
        """tau and the classes that are kept."""
        return select(sample, self.targets, self.coverage, 1.0 - confidence, self.variant)

    def on(self, target: Request, counted: Scores, unit: str) -> FoundSets:
        """tau, classes that are kept, and floors on counted units."""
        kind = "softmax" if counted.gate is None else "gate"
        sample = Sample.of(counted, kind)
        chosen = choose(sample, kind, self.targets, self.selected(sample, target.confidence), target.boundary)
        several = len(target.classes) > 2
        kept = self.targets if chosen.kept is None else chosen.kept
        policy = ScrcPolicy(
            self.variant,
            kind,
            chosen.of.tau,
            chosen.floors,
            tuple(target.classes),
            True,
            self.coverage,
            {item.risk: item.value for item in self.targets},
            likeliest_in_set=not target.against_argmax and several,
            unclaimed=tuple(target.classes[item.k] for item in self.targets if item not in kept) if several else None,
        )
        return FoundSets(self, chosen, policy, counted, unit, target)


@dataclass(frozen=True, slots=True)
class FoundSets:
    """Selection and floors on the counted units (policy/certify.py, Found). best: the policy at `chosen`."""

    family: SelectedSets
    chosen: Choice
    best: ScrcPolicy
    counted: Scores
    unit: str
    target: Request
    known: Remembered[tuple[Bools, Bools, Bools]] = field(default_factory=Remembered, compare=False, repr=False)

    # Each risk has its share of delta, and the coverage of the images that exit is no claim.
    union_null = False
    at_end = False

    @property
    def nothing(self) -> ScrcPolicy:
        unclaimed = None if self.best.unclaimed is None else ()
        floors = (-inf,) * len(self.best.classes)
        return replace(self.best, tau=-inf, floors=floors, certified=False, unclaimed=unclaimed)

    @property
    def rule(self) -> ScrcPolicy:
        return self.best if self.chosen.kept is not None else self.nothing

    @property
    def method(self) -> str:
        return METHODS[self.family.variant]

    @property
    def n_units(self) -> int:
        return len(self.counted)

    @property
    def meaning(self) -> tuple[str, ...]:
        return meaning(self.family.variant)

    def exits(self, rule: ScrcPolicy) -> bool:
        return bool(self._sets(rule)[2].any())

    def _sets(self, rule: ScrcPolicy) -> tuple[Bools, Bools, Bools]:
        """(selected [N], in_set [N, K], exits [N]) of the counted units."""

        def made() -> tuple[Bools, Bools, Bools]:
            selected, in_set = rule.sets(self.counted)
            return selected, in_set, rule.leaving(self.counted, selected, in_set)

        return self.known.of(rule, made)

    def _claimed(self, rule: ScrcPolicy) -> tuple[Target, ...]:
        """The targets that the rule keeps; of one that defers every image all, as they were asked for."""
        return self.chosen.kept if rule.certified and self.chosen.kept is not None else self.family.targets

    def risks(self, rule: ScrcPolicy, certified: bool) -> dict[str, RiskBound]:
        return measured(rule, self.chosen, self._sets(rule)[1], self.counted.known_labels, self._claimed(rule))

    def coverage(self, rule: ScrcPolicy, certified: bool) -> tuple[Coverage, dict[str, Coverage]]:
        exits, labels = self._sets(rule)[2], self.counted.known_labels
        return _share(exits), {name: _share(exits[labels == k]) for k, name in enumerate(rule.classes)}

    def slices(self) -> tuple[SliceClaim, ...]:
        raise ConfigError("slices: claims for slices are not for scrc; leave them out")

    def unclaimed(self, rule: ScrcPolicy) -> tuple[UnclaimedClass, ...]:
        """Classes without a claim; () where nothing is certified."""
        if not rule.certified:
            return ()
        return self._without_claim(rule, self._claimed(rule))

    def _without_claim(self, rule: ScrcPolicy, kept: Sequence[Target]) -> tuple[UnclaimedClass, ...]:
        labels = self.counted.known_labels
        missing = [target for target in self.family.targets if target not in kept]
        return unclaimed_classes(self.chosen, self._sets(rule)[2], labels, missing, rule)

    def shortfall(self, rule: ScrcPolicy, risks: dict[str, RiskBound], certified: bool) -> Shortfall:
        enough = [item for item in self._claimed(rule) if risks[item.risk].n >= risks[item.risk].needed]
        short = self._without_claim(rule, enough)
        instead = "" if certified and not short else self._instead()
        return shortfall(short, self.chosen.of, rule, len(self.counted), self.target.confidence, self.unit, instead)

    def _instead(self) -> str:
        """Settings under which these units certify every class, the coverage or the target changed; "" for none."""
        sample, here = Sample.of(self.counted, self.best.confidence), self.family.coverage

        def failing(coverage: float, other: Request) -> dict[str, float] | None:
            targets = tuple(replace(item, value=other.risks[item.risk]) for item in self.family.targets)
            family = replace(self.family, coverage=coverage, targets=targets)
            selected = family.selected(sample, other.confidence)
            if not selected.covers:
                return None
            counts = np.bincount(sample.labels[selected.rows], minlength=sample.n_classes)
            levels = {
                item.risk: reached(int(counts[item.k]), selected.kept.delta_of_all, self.family.variant)
                for item in targets
            }
            short = {item.risk: levels[item.risk] for item in targets if levels[item.risk] > item.value}
            if short:
                return short
            found = family.on(other, self.counted, self.unit)
            return {} if found.exits(found.rule) else None

        beyond = [share for share in _COVERAGES if share > here] + [s for s in _COVERAGES[::-1] if s < here]
        found = next((share for share in beyond if failing(share, self.target) == {}), None)
        settings = [] if found is None else [f"coverage={found:g}"]
        if (targets := passing_targets(self.target, lambda other: failing(here, other))) is not None:
            settings.append(settable(targets))
        return f"{' or '.join(settings)}, which the present ones certify" if settings else ""

    def never_answered(self, rule: ScrcPolicy) -> tuple[str, ...]:
        return rule.never_answered

    def statement(self, rule: ScrcPolicy, certificate: Certificate) -> str:
        confidence = certificate.headline_confidence if certificate.certified else self.target.confidence
        claims = claimed(rule, self._claimed(rule), confidence)
        if not certificate.certified:
            return f"Not certifiable {claims}. {certificate.reason} Every image defers."
        selected, _, exits = self._sets(rule)
        return statement(
            claims,
            rule,
            selected,
            exits,
            self.unit,
            unclaimed=certificate.unclaimed,
            unlimited=certificate.unlimited if certificate.unclaimed else (),
            iid_assumed=certificate.assume_iid,
            attempts=certificate.attempts,
            confidence=certificate.confidence,
        )


def _share(exits: Bools) -> Coverage:
    return Coverage(value=float(exits.mean()) if len(exits) else 0.0, n=len(exits), exits=int(exits.sum()))
