"""Thresholds of its own for each slice: the family of two thresholds, once for each value of an attribute.

With S slices, each is a certificate of its own at delta / S: the rule of policy/threshold_choice.py, made for the
number of its units and for its delta, tested on its own units alone. What is fixed before a label of val_calib is
looked at: the paths and their starts (val_select), S and which units are whose (the attribute, which is no label).

Proof. Given the attribute, the units of a slice are an independent sample of that slice. Its procedure claims too much
with probability at most delta / S, so with probability at least 1 - delta every claim of every slice is true, whichever
of them are certified. No slice pays for the thresholds of another, so that an easy one exits as far as it can.

What that says of all images. Every risk of the table is a quotient E[wrong] / E[trial] over the images that are counted
(exits of a class, exits, members of a class). Images of uncertified slices defer: they add nothing to `wrong`. So the
risk of all images is at most the mean of the certified slices' risks, weighted by what each adds to `trial`, whatever
the shares of the slices: at most the largest of their bounds, at no further price. `error` at a stated prior is such a
quotient where that prior is that of each slice; floors on coverage are not (a slice that defers adds to the trials
and not to the exits), so they keep one pair of thresholds for all (policy/two_thresholds.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from stage1.errors import ConfigError
from stage1.policy.certificate import (
    Certificate,
    Coverage,
    RiskBound,
    UnclaimedClass,
    certified_statement,
    percent,
    refused_statement,
)
from stage1.policy.certify import Shortfall, bounded, certify
from stage1.policy.closed_form import Thresholds
from stage1.policy.counts import Exits, observed_risk
from stage1.policy.group_means import Frames, choose_by_means, means_path, risk_rows
from stage1.policy.provenance import LEVEL, population
from stage1.policy.remembered import Remembered
from stage1.policy.slice_thresholds import SliceThresholds
from stage1.policy.slices import SliceClaim, SliceCounts, listed, slice_rows
from stage1.policy.target import Request
from stage1.policy.threshold_choice import choose
from stage1.policy.two_thresholds import FoundThresholds, TwoThresholds
from stage1.policy.units import OWN, SLICE_THRESHOLDS, Counting
from stage1.risk.clusters import group_shares
from stage1.scores import Scores
from stage1.scores.columns import is_blank

Bools = NDArray[np.bool_]


def certify_thresholds(
    family: TwoThresholds, target: Request, calib: Scores, select: Scores | None, counting: Counting
) -> tuple[Thresholds, SliceThresholds | None, Certificate]:
    """(pair for all, thresholds by slice, certificate): one of the two rules, the other defers every image or is None.

    Raises as `certify` does, and ConfigError where counting.slice_thresholds asks for what is not to be had.
    """
    if not own_thresholds(target, calib, counting):
        pair, certificate = certify(family, target, calib, select, counting)
        return pair, None, certificate
    by_slice, certificate = certify(InSlices(family), target, calib, select, counting)
    return Thresholds(None, None), by_slice, replace(certificate, slice_thresholds=OWN)


def own_thresholds(target: Request, calib: Scores, counting: Counting) -> bool:
    """Whether each slice gets thresholds of its own: one column, no floor, and a value that is known when predicting.

    counting.slice_thresholds: auto, own or one. Raises ConfigError for own where that cannot be.
    """
    check_slice_thresholds(counting.slice_thresholds, counting.slices, target.has_floor)
    if not counting.slices or counting.slice_thresholds == "one":
        return False
    if counting.slice_thresholds == OWN:
        return True
    # A level of distortion is known of a challenge that was made, and of no picture that a miner is sent.
    possible = why_one_pair(counting.slices, target.has_floor) is None
    return possible and not (counting.slices[0] == LEVEL and population(calib))


def why_one_pair(slices: Sequence[str], has_floor: bool) -> str | None:
    """Why slices cannot have thresholds of their own; None: they can.

    >>> why_one_pair(["city", "night"], has_floor=False)
    'an image has 2 values (city, night); join them in one column'
    """
    if not slices:
        return "data.slices names no column"
    if len(slices) > 1:
        return f"an image has {len(slices)} values ({', '.join(slices)}); join them in one column"
    return "floors on coverage are for all images together; leave them out" if has_floor else None


def check_slice_thresholds(wanted: str, slices: Sequence[str], has_floor: bool) -> None:
    """Raises ConfigError where own thresholds are wanted and cannot be, or `wanted` is none of auto, own and one."""
    if wanted not in SLICE_THRESHOLDS:
        raise ConfigError(f"slice_thresholds: {wanted!r} is unknown; use {', '.join(SLICE_THRESHOLDS)}")
    if wanted == OWN and (why_not := why_one_pair(slices, has_floor)) is not None:
        raise ConfigError(f"slice_thresholds: own: {why_not}, or use slice_thresholds=auto")


@dataclass(frozen=True, slots=True)
class InSlices:
    """The family of thresholds by slice over a family of two thresholds (policy/certify.py, RuleFamily)."""

    family: TwoThresholds

    @property
    def policy(self) -> str:
        return self.family.policy

    def find(self, target: Request, calib: Scores, select: Scores | None, counting: Counting) -> FoundInSlices:
        """A rule for each slice on its own units. Raises as TwoThresholds.find does."""
        (attribute,) = counting.slices
        # The unit and the rows that are counted; its thresholds for all images are not used.
        whole = self.family.find(target, calib, select, replace(counting, slices=()))
        rows = [row for row in slice_rows(whole.counted, counting.slices) if not is_blank(row[1])]
        if not rows:
            raise ConfigError(f"slices: {attribute!r} is empty in every row of val_calib; fill it or leave it out")
        part = replace(target, confidence=1.0 - (1.0 - target.confidence) / len(rows))
        found = {value: _part(whole, part, inside) for _, value, inside in rows}
        column = whole.counted.slices[attribute]
        return FoundInSlices(target, attribute, column, whole, found)


def _part(whole: FoundThresholds, target: Request, inside: Bools) -> FoundThresholds:
    """The thresholds of one slice, from its own units at its own delta."""
    sample = whole.sample.within(inside)
    select, score = whole.select, whole.select_score
    if isinstance(sample, Frames):
        usable = select is not None and score is not None
        drawn, own = sample.numbers is not None, whole.counted.take(inside)
        path = means_path(select, score, own, target, drawn=drawn) if usable else None  # type: ignore[arg-type]
        choice = choose_by_means(sample, target, path)
    else:
        choice = choose(sample.score, sample.labels, target, score, None if select is None else select.labels)
    # Without val_select no number of images is simulated for each slice: the arithmetic alone says what is missing.
    return replace(whole, target=target, choice=choice, sample=sample, select=None, select_score=None)


@dataclass(frozen=True, slots=True)
class FoundInSlices:
    """Thresholds of every slice on the counted units (Found). column: str [N] of the counted rows; parts: by value."""

    target: Request
    attribute: str
    column: NDArray[np.str_]
    whole: FoundThresholds
    parts: dict[str, FoundThresholds]
    known: Remembered[tuple[Bools, Bools]] = field(default_factory=Remembered, compare=False, repr=False)

    union_null = False  # the bounds below are joint already
    at_end = False

    @property
    def nothing(self) -> SliceThresholds:
        return SliceThresholds(self.attribute, dict.fromkeys(self.parts, FoundThresholds.nothing))

    @property
    def rule(self) -> SliceThresholds:
        chosen = {value: part.rule if part.exits(part.rule) else part.nothing for value, part in self.parts.items()}
        return SliceThresholds(self.attribute, chosen)

    @property
    def method(self) -> str:
        kinds = sorted({part.method for part in self.parts.values()})
        return f"in each slice of {self.attribute} at delta / {len(self.parts)}: {'; '.join(kinds)}"

    @property
    def unit(self) -> str:
        return self.whole.unit

    @property
    def n_units(self) -> int:
        return self.whole.n_units

    @property
    def meaning(self) -> tuple[str, ...]:
        return (
            f"The `{self.attribute}` of an image is known when it is predicted, and means what it means for the"
            " calibration images. Within each of its values the calibration images are an independent random sample of"
            " the images with that value; the shares of the values may differ.",
        )

    def exits(self, rule: SliceThresholds) -> bool:
        return bool(np.logical_or(*self._sides(rule)).any())

    def _sides(self, rule: SliceThresholds) -> tuple[Bools, Bools]:
        return self.known.of(rule, lambda: rule.exits(self.whole.sample.score, self.column))

    def _certified(self, rule: SliceThresholds) -> dict[str, FoundThresholds]:
        return {value: part for value, part in self.parts.items() if rule.pairs[value] != part.nothing}

    def risks(self, rule: SliceThresholds, certified: bool) -> dict[str, RiskBound]:
        """Counted from the decisions of all slices; bounds: the largest of the certified slices (see the proof)."""
        held = self._certified(rule) if certified else {}
        parts = [bounded(part, rule.pairs[value], value in held) for value, part in (held or self.parts).items()]
        negative, positive = self._sides(rule)
        found = {}
        for name, first in parts[0].items():
            wrong, trial = risk_rows(name, self.whole.sample.labels, negative, positive)
            never = all(part[name].by_construction for part in parts)
            found[name] = replace(
                first,
                observed=self._observed(name, wrong, trial, negative, positive),
                bound=max(part[name].bound for part in parts),
                alone=max(part[name].alone or 0.0 for part in parts),
                n=int(trial.sum()),
                errors=int(wrong.sum()),
                by_construction=never,
            )
        return found

    def _observed(self, name: str, wrong: Bools, trial: Bools, negative: Bools, positive: Bools) -> float | None:
        """The risk as counted; `error` at the prior that it is stated for."""
        if name != "error" or self.target.target_prior is None:
            return self._share(wrong, trial)
        labels = self.whole.sample.labels
        exits = [np.array([int((side & (labels == label)).sum())]) for label in (1, 0) for side in (negative, positive)]
        miss, right_positive, right_negative, false_exit = exits
        members = [int((labels == label).sum()) for label in (1, 0)]
        counts = Exits(miss, right_positive, false_exit, right_negative, *members)
        return observed_risk(counts, name, self.target.target_prior)[0]

    def _share(self, hits: Bools, among: Bools) -> float | None:
        """Share of hits in among, None where it is empty; of group means each group with the same weight."""
        if isinstance(self.whole.sample, Frames):
            wrong, idle = group_shares(hits[:, None], among[:, None], self.whole.sample.layout)
            trials = float((1 - idle).sum())
            return float(wrong.sum()) / trials if trials > 0 else None
        return float(hits.sum()) / int(among.sum()) if among.any() else None

    def coverage(self, rule: SliceThresholds, certified: bool) -> tuple[Coverage, dict[str, Coverage]]:
        exits, labels = np.logical_or(*self._sides(rule)), self.whole.sample.labels

        def share(among: Bools) -> Coverage:
            return Coverage(self._share(exits & among, among) or 0.0, int(among.sum()), int((exits & among).sum()))

        per_class = {name: share(labels == index) for index, name in enumerate(self.target.classes)}
        return share(np.ones_like(exits)), per_class

    def slices(self) -> tuple[SliceClaim, ...]:
        rule = self.rule
        held = self._certified(rule)
        claims = []
        for value, part in self.parts.items():
            pair, certified = rule.pairs[value], value in held
            risks = bounded(part, pair, certified)
            reason, needed = part.shortfall(pair, risks, certified)
            coverage, _ = part.coverage(pair, certified)
            claims.append(
                SliceClaim(
                    self.attribute,
                    value,
                    coverage.n,
                    1.0 - part.target.confidence,
                    certified,
                    {
                        name: SliceCounts(
                            risk.target,
                            risk.observed,
                            risk.bound if certified else 1.0,
                            risk.n,
                            risk.errors,
                            risk.alone,
                        )
                        for name, risk in risks.items()
                    },
                    own=True,
                    lo=pair.lo,
                    hi=pair.hi,
                    exits=coverage.exits,
                    reason=None if certified else reason,
                    needed=None if certified else needed,
                )
            )
        return tuple(claims)

    def shortfall(self, rule: SliceThresholds, risks: dict[str, RiskBound], certified: bool) -> Shortfall:
        if certified:
            return None, None
        value, part = max(self.parts.items(), key=lambda item: int((self.column == item[0]).sum()))
        reason, needed = part.shortfall(part.nothing, bounded(part, part.nothing, False), False)
        n = int((self.column == value).sum())
        return (
            f"It is shown in none of the {len(self.parts)} slices of {self.attribute} at"
            f" {percent(part.target.confidence)} each. In the largest, {self.attribute}={value} ({n} images): {reason}",
            needed,
        )

    def unclaimed(self, rule: SliceThresholds) -> tuple[UnclaimedClass, ...]:
        return ()

    def never_answered(self, rule: SliceThresholds) -> tuple[str, ...]:
        answered = rule.answers()
        return tuple(name for side, name in enumerate(self.target.classes) if side not in answered)

    def statement(self, rule: SliceThresholds, certificate: Certificate) -> str:
        if not certificate.certified:
            return refused_statement(self.target, certificate.reason or "")
        never = certificate.never_answered
        sentence = certified_statement(
            self.target,
            certificate.coverage.value,
            self.unit,
            assume_iid=certificate.assume_iid,
            attempts=certificate.attempts,
            closed=None,
            open_ends=(*(f"No image exits as '{name}'." for name in never), *certificate.unlimited),
            where=f"in each of {listed([claim.name for claim in certificate.slices if claim.certified])}: ",
        )
        return sentence + _own_sentence(self.attribute, certificate, self.target)


def _own_sentence(attribute: str, certificate: Certificate, target: Request) -> str:
    """What each slice has of its own, what follows for all images, and which images defer for want of a claim."""
    claims, classes = certificate.slices, certificate.classes
    shared, kept = percent(1.0 - target.confidence), percent(certificate.headline_confidence)
    text = (
        f" Each has thresholds of its own, tested on its own images at {percent(1 - claims[0].delta)} ({len(claims)}"
        f" slices share the {shared} by which a certificate may fail): together they hold with confidence {kept}, and"
        " then the same limits hold for all images, whatever the shares of the slices"
    )
    if target.target_prior is not None and "error" in target.risks:
        text += f", as long as {percent(target.target_prior)} of the images of each slice are {classes[1]}"
    text += "."
    for side, name in enumerate(classes):
        closed = [claim.name for claim in claims if claim.certified and (claim.lo, claim.hi)[side] is None]
        if closed and name not in certificate.never_answered:
            text += f" No image exits as '{name}' in {listed(closed)}."
    missed: Sequence[str] = [claim.name for claim in claims if not claim.certified]
    if missed:
        text += f" Not shown for {listed(missed)}: such images always defer."
    return f"{text} An image with another {attribute}, or none, always defers."
