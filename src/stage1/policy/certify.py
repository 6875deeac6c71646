"""From a family of rules and a target to the rule and its certificate; the one procedure of every policy.

| family | rule | file |
|---|---|---|
| two thresholds | exit as 0 below lo, as 1 above hi: softmax of two classes, gate (another score) | two_thresholds.py |
| class thresholds | exit as the likeliest class above its own: softmax of more classes | class_thresholds.py |
| selection and class floors | exit where the set of classes holds a single one: SCRC | scrc_fit.py |

A family chooses its rule by its own tests on the counted units. What is claimed is then recounted from the decisions of
that rule.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, TypeVar

from stage1.policy.certificate import VOID_IF, Certificate, Coverage, RiskBound, UnclaimedClass, assumptions
from stage1.policy.joint import JOINT, joint_coverage, joint_risks
from stage1.policy.slices import SliceClaim
from stage1.policy.target import Request
from stage1.policy.units import Counting, clustered, one_per_group
from stage1.policy.unlimited import unlimited
from stage1.scores import Scores
from stage1.storage.files import digest_bytes, digest_ids

Rule = TypeVar("Rule")
Shortfall = tuple[str | None, str | None]
"""(reason, needed): why nothing, or one side, can exit, and what that takes; None where all is certified."""


class Found(Protocol[Rule]):
    """What a family found on the counted units: its rule, and what is counted under any rule of the family."""

    @property
    def rule(self) -> Rule:
        """The rule that was chosen; `nothing` where no test passed."""
        ...

    @property
    def nothing(self) -> Rule:
        """The rule that defers every image."""
        ...

    @property
    def method(self) -> str: ...

    @property
    def unit(self) -> str:
        """ "image", "group" or "group_mean"."""
        ...

    @property
    def n_units(self) -> int: ...

    @property
    def union_null(self) -> bool:
        """Whether all risks were tested together, each at the whole delta; else they share it."""
        ...

    @property
    def at_end(self) -> bool:
        """Whether the rule is the last of its sequence: no failure stopped the walk."""
        ...

    @property
    def meaning(self) -> tuple[str, ...]:
        """What the numbers count, beside the assumptions that every certificate has."""
        ...

    def exits(self, rule: Rule) -> bool:
        """Whether any counted unit exits."""
        ...

    def risks(self, rule: Rule, certified: bool) -> dict[str, RiskBound]:
        """Errors and trials of each risk counted from the decisions of the rule, each with its own bound.

        certified: images exit, so that an answer which is never given is a claim, not a failure.
        """
        ...

    def coverage(self, rule: Rule, certified: bool) -> tuple[Coverage, dict[str, Coverage]]:
        """Exits of all and of each class, with the bound of each floor alone."""
        ...

    def slices(self) -> tuple[SliceClaim, ...]:
        """The same risks in each slice that was asked for."""
        ...

    def unclaimed(self, rule: Rule) -> tuple[UnclaimedClass, ...]:
        """Classes as which no image exits and of whose images nothing is claimed: their risks are none of `risks`."""
        ...

    def shortfall(self, rule: Rule, risks: dict[str, RiskBound], certified: bool) -> Shortfall: ...

    def never_answered(self, rule: Rule) -> tuple[str, ...]:
        """Classes as which no image exits."""
        ...

    def statement(self, rule: Rule, certificate: Certificate) -> str:
        """The sentence that opens certificate, model card and report; certificate: all of it but this sentence."""
        ...


class RuleFamily(Protocol[Rule]):
    """Rules of one form, and how one of them is chosen."""

    @property
    def policy(self) -> str:
        """Name of the policy that the certificate is of."""
        ...

    def find(self, target: Request, calib: Scores, select: Scores | None, counting: Counting) -> Found[Rule]:
        """Choose a rule on the units of `calib`. Raises ConfigError (unit, select, slices), DataError (no labels)."""
        ...


def certify(
    family: RuleFamily[Rule], target: Request, calib: Scores, select: Scores | None, counting: Counting
) -> tuple[Rule, Certificate]:
    """Choose a rule of the family for `target` and certify it on the units of `calib`.

    select: labelled scores of val_select, where the family needs them. Where nothing can be certified, the rule defers
    every image and the certificate says why. Raises as `family.find` does.
    """
    found = family.find(target, calib, select, counting)
    rule = found.rule if counting.uncertified_because is None else found.nothing
    certified = found.exits(rule)
    if not certified:
        rule = found.nothing
    risks = bounded(found, rule, certified)
    overall, per_class = joint_coverage(*found.coverage(rule, certified), at_end=found.at_end)
    reason, needed = counting.uncertified_because, None
    if reason is None:
        reason, needed = found.shortfall(rule, risks, certified)
    iid_assumed = counting.assume_iid and found.unit == "image" and clustered(calib)
    never = found.never_answered(rule)
    certificate = Certificate(
        certified=certified,
        statement="",
        policy=family.policy,
        method=found.method,
        confidence=target.confidence,
        delta=1.0 - target.confidence,
        unit=found.unit,
        assume_iid=iid_assumed,
        risks=risks,
        coverage=overall,
        per_class=per_class,
        classes=tuple(target.classes),
        n_images=len(calib),
        n_units=found.n_units,
        calib_digest=calibration_digest(calib),
        seed=counting.seed,
        attempt=1 if counting.attempts is None else counting.attempts.number,
        target_prior=target.target_prior,
        assumptions=(*assumptions(found.unit, iid_assumed, target), *found.meaning),
        void_if=VOID_IF,
        reason=reason,
        needed=needed,
        slices=found.slices() if counting.slices and certified else (),
        slices_asked=tuple(counting.slices),
        never_answered=never,
        unlimited=unlimited(risks, target.classes, never) if certified else (),
        against_argmax=target.against_argmax,
        boundary=None if target.boundary is None else (target.boundary.lo, target.boundary.hi),
        bounds=JOINT,
        attempts=counting.attempts,
        unclaimed=found.unclaimed(rule),
    )
    return rule, replace(certificate, statement=found.statement(rule, certificate))


def bounded(found: Found[Rule], rule: Rule, certified: bool) -> dict[str, RiskBound]:
    """The risks of the rule, with bounds that hold together where it is certified."""
    risks = found.risks(rule, certified)
    assert not certified or all(bound.holds for bound in risks.values()), "a chosen rule with a bound above its target"
    if certified and found.union_null:
        never_wrong = frozenset(name for name, bound in risks.items() if bound.by_construction)
        risks = joint_risks(risks, at_end=found.at_end, never=never_wrong)
    return risks


def counted_units(calib: Scores, unit: str, seed: int) -> Scores:
    """The rows that are counted: one image of each group where the unit is the group, else all."""
    return calib.take(one_per_group(calib, seed)) if unit == "group" else calib


def calibration_digest(calib: Scores) -> str:
    """Which images were used: sha256 over the sorted ids, or over labels and logits where there are no ids."""
    if calib.ids is not None:
        return digest_ids(calib.ids.tolist())
    return digest_bytes(calib.known_labels.tobytes() + calib.logits.tobytes())
