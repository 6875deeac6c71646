"""Whether to trust the bundle: the certificate held against the independent check on val_test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stage1.errors import IntegrityError
from stage1.risk import binomial_lower, binomial_upper
from stage1.scores import Scores

Document = Mapping[str, Any]
Outcome = Literal["consistent", "contradicts", "differs", "no evidence"]


@dataclass(frozen=True, slots=True)
class Check:
    """One number of the certificate held against what val_test observed."""

    name: str
    outcome: Outcome
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer that the page opens with."""

    kind: Literal["trusted", "untested", "contradicted", "refused"]
    title: str
    line: str


def interval(row: Document, unit: str) -> tuple[float | None, float | None]:
    """The interval of a risk or coverage of evaluation.json to judge by.

    Exact for independent images; where images share groups (unit "group") the one over groups, which is the wider, except
    where it is undefined (no error at all, or nothing but errors) and the exact one is all there is.
    """
    if unit == "group" and row.get("group_low") is not None and row.get("group_high") is not None:
        return row["group_low"], row["group_high"]
    return row["low"], row["high"]


def check_risk(name: str, promised: Document, observed: Document | None, unit: str) -> Check:
    """Does the interval from val_test leave room for the certified target?

    promised: a risk of certificate.json. observed: the same risk of evaluation.json, None where it was not evaluated.
    unit: of evaluation.json. "contradicts" only where the whole interval lies above the target: a risk observed a little
    above its target in a small test set is what chance does, and is said as such.
    """
    if promised.get("by_construction") and (observed is None or not observed["errors"]):
        return Check(name, "consistent", "the wrong answer is never given: that side never exits")
    if observed is None or not observed["n"] or observed["observed"] is None:
        return Check(name, "no evidence", "no image to test it on")
    low, high = interval(observed, unit)
    if low is not None and low > promised["target"]:
        return Check(name, "contradicts", "the whole interval lies above the target")
    if high is not None and high <= promised["target"]:
        return Check(name, "consistent", "the whole interval lies below the target")
    if observed["observed"] > promised["target"]:
        return Check(name, "consistent", "observed above the target, but chance alone can do that with so few images")
    return Check(name, "consistent", "observed below the target, which lies inside the interval")


def check_coverage(promised: Document, observed: Document, unit: str, level: float) -> Check:
    """Do the coverages of calibration and test overlap, each with its interval at `level`?

    Not a promise: coverage moves with the share of each class, so a lower one says that the mix of images differs.
    """
    if not observed["n"] or not promised["n"] or observed["value"] is None:
        return Check("coverage", "no evidence", "no image to compare")
    tail = (1.0 - level) / 2.0
    low, high = interval(observed, unit)
    if high is not None and high < binomial_lower(promised["exits"], promised["n"], tail):
        return Check("coverage", "differs", "lower than on the calibration images: another mix of classes or of images")
    if low is not None and low > binomial_upper(promised["exits"], promised["n"], tail):
        return Check(
            "coverage", "differs", "higher than on the calibration images: another mix of classes or of images"
        )
    return Check("coverage", "consistent", "as on the calibration images, within chance")


def judge(certificate: Document, evaluation: Document, checks: list[Check]) -> Verdict:
    """The one verdict of the page from the certificate and the checks of its risks."""
    if not certificate["certified"]:
        return Verdict(
            "refused", "Not certifiable", "Do not let this bundle answer: nothing is guaranteed, so every image defers."
        )
    against = [check.name for check in checks if check.outcome == "contradicts"]
    if against:
        return Verdict(
            "contradicted", "Certified, but contradicted",
            f"Do not trust it yet: {evaluation['role']} contradicts the certificate on {', '.join(against)}. "
            "The images there are not like the calibration images, or something leaked.",
        )  # fmt: skip
    silent = [check.name for check in checks if check.outcome == "no evidence"]
    if silent:
        return Verdict(
            "untested", "Certified",
            f"Trust the certificate for images like its calibration images; {evaluation['role']} has no image to check {', '.join(silent)}.",
        )  # fmt: skip
    return Verdict(
        "trusted", "Certified",
        f"Trust it for images like its calibration images: the independent check on {evaluation['role']} agrees.",
    )  # fmt: skip


def refuse_disagreement(certificate: Document, evaluation: Document, policy: Document, scores: Scores) -> None:
    """A report over documents of different runs would lie, so there is none.

    Raises IntegrityError (one line) where the documents disagree on the certificate, the thresholds or the number of images.
    """
    for field, values in (
        ("certified", (certificate["certified"], evaluation["certified"], policy["certified"])),
        ("lo", (policy["lo"], evaluation["lo"])),
        ("hi", (policy["hi"], evaluation["hi"])),
        ("n", (evaluation["n"], len(scores))),
    ):
        if any(value != values[0] for value in values[1:]):
            shown = " and ".join(repr(value) for value in values)
            raise IntegrityError(
                f"report: `{field}` is {shown} in certificate, evaluation, policy or scores; run `stage1 evaluate` again"
            )
