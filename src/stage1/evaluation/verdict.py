"""Whether to trust a bundle: green, amber or red, with reasons in words; one function for terminal, page and card.

| colour | when |
|---|---|
| red | nothing is certified |
| red | val_test contradicts the certificate |
| red | AUROC below .5, or most answers that exit are wrong |
| red | accuracy below that of always answering the commonest class |
| amber | an answer that is never given, or a wrong answer without a limit |
| amber | coverage under .2, or few test images or none |
| amber | looks at the same images cost confidence, or groups counted as if independent |
| amber | a class balance that the certificate is not of |
| green | none of these |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from stage1.evaluation.rates import clopper_pearson
from stage1.evaluation.selective import auroc_failure
from stage1.risk import binomial_lower, binomial_upper
from stage1.risk.definition import on_average
from stage1.scores import Scores

Document = Mapping[str, Any]
Colour = Literal["green", "amber", "red"]
Outcome = Literal["consistent", "contradicts", "differs", "no evidence"]

LOW_COVERAGE = 0.2
FEW_IMAGES = 30
"""Of one class (or groups in all) in val_test: with fewer, even a risk of 10 % may show no error at all."""


@dataclass(frozen=True, slots=True)
class Check:
    """One number of the certificate compared with what val_test observed."""

    name: str
    outcome: Outcome
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of page, card and terminal. title: two to five words; line: what to do; reasons: one line each."""

    colour: Colour
    title: str
    line: str
    reasons: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One line: "AMBER  Certified, with care: ..."."""
        why = "; ".join(self.reasons)
        return f"{self.colour.upper()}  {self.title}. {self.line}{f' Because: {why}.' if why else ''}"


@dataclass(frozen=True, slots=True)
class Seen:
    """How model and answers did on labelled rows of `role`.

    of_class: rows of each class. auroc: of two classes, None for more or where undefined. accuracy, accuracy_high: if
    every row were answered, and the upper end of its interval. exits, wrong: answers given, and those of them that are
    wrong.
    """

    role: str
    of_class: Mapping[str, int]
    auroc: float | None
    accuracy: float | None
    accuracy_high: float | None
    exits: int
    wrong: int

    @classmethod
    def of_evaluation(cls, evaluation: Document) -> Seen:
        """From evaluation.json."""
        table, metrics, error = evaluation["exit_confusion"], evaluation["metrics"], evaluation["risks"]["error"]
        accuracy = metrics.get("accuracy", {})
        return cls(
            evaluation["role"],
            {name: sum(row) for name, row in zip(table["rows"], table["counts"], strict=True)},
            metrics.get("auroc", {}).get("value"),
            accuracy.get("value"),
            accuracy.get("high"),
            error["n"],
            error["errors"],
        )

    @classmethod
    def of_scores(
        cls, scores: Scores, exit: ArrayLike, label: ArrayLike, classes: Sequence[str], role: str, level: float = 0.95
    ) -> Seen:
        """From labelled scores (on which the thresholds lie) and each row's decision, bool [N] and int [N]."""
        truth, guess = scores.known_labels, scores.logits.argmax(axis=1)
        leaves, answer = np.asarray(exit, dtype=np.bool_), np.asarray(label)
        right, n = int((guess == truth).sum()), len(truth)
        both = scores.n_classes == 2 and 0 < int((truth == 0).sum()) < n
        return cls(
            role,
            {name: int((truth == index).sum()) for index, name in enumerate(classes)},
            float(auroc_failure(scores.margin, truth == 0)) if both else None,
            right / n if n else None,
            clopper_pearson(right, n, level)[1] if n else None,
            int(leaves.sum()),
            int((leaves & (answer != truth)).sum()),
        )


def interval(row: Document, unit: str) -> tuple[float | None, float | None]:
    """The interval of a risk or coverage of evaluation.json to judge by.

    Exact for independent images; where images share groups (unit "group") the one over groups, which is the wider,
    except where there are too few groups for one and the exact one is all there is.

    >>> row = {"low": 0.001, "high": 0.02, "group_low": 0.0, "group_high": 0.05}
    >>> interval(row, "image"), interval(row, "group")
    ((0.001, 0.02), (0.0, 0.05))
    """
    if unit == "group" and row.get("group_low") is not None and row.get("group_high") is not None:
        return row["group_low"], row["group_high"]
    return row["low"], row["high"]


def check_risk(name: str, promised: Document, observed: Document | None, unit: str) -> Check:
    """Does the interval from val_test leave room for the certified target?

    promised: a risk of certificate.json. observed: the same risk of evaluation.json, None where it was not evaluated.
    unit: of evaluation.json. "contradicts" only where the whole interval lies above the target: a risk observed a
    little above its target in a small test set is what chance does, and is said as such.
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


def risk_checks(certificate: Document, evaluation: Document) -> list[Check]:
    """`check_risk` of every risk of the certificate."""
    rows = certificate["risks"].items()
    return [check_risk(name, row, evaluation["risks"].get(name), evaluation["unit"]) for name, row in rows]


def judge(certificate: Document | None, evaluation: Document | None, calibration: Seen | None = None) -> Verdict:
    """The one verdict on a certificate.

    evaluation: the document of val_test, None where there is none. calibration: what is known before val_test is
    opened; with it a missing evaluation is no reason for doubt yet, without it, it is. certificate: None where a policy
    has none.
    """
    if certificate is None:
        return Verdict(
            "red",
            "No certificate",
            "Do not let this policy answer: no certificate.json stands beside it, so nothing is guaranteed.",
        )
    seen = calibration if evaluation is None else Seen.of_evaluation(evaluation)
    wrong = () if seen is None else _upside_down(seen)
    if not certificate["certified"]:
        return Verdict(
            "red",
            "Not certifiable",
            "Do not let this bundle answer: nothing is guaranteed, so every image defers.",
            tuple(wrong),
        )
    checks = [] if evaluation is None else risk_checks(certificate, evaluation)
    against = [check.name for check in checks if check.outcome == "contradicts"]
    if against:
        assert evaluation is not None
        return Verdict(
            "red",
            "Certified, but contradicted",
            f"Do not trust it yet: {evaluation['role']} contradicts the certificate on {', '.join(against)}. "
            "The images there are not like the calibration images, or something leaked.",
            tuple(wrong),
        )
    if wrong:
        return Verdict("red", "Do not trust it", "The limits hold, and the answers are worthless.", tuple(wrong))
    cautions = (*_limits_of(certificate, evaluation), *_thin_check(evaluation, checks, calibration is not None))
    if cautions:
        return Verdict(
            "amber",
            "Certified, with care",
            "It holds for images like its calibration images; know this first.",
            cautions,
        )
    agrees = (
        "val_test has not been looked at yet (`stage1 evaluate`)."
        if evaluation is None
        else f"the independent check on {evaluation['role']} agrees."
    )
    return Verdict("green", "Certified", f"Trust it for images like its calibration images: {agrees}")


# ---- reasons -----------------------------------------------------------------------------------------------------


def _upside_down(seen: Seen) -> list[str]:
    """Why the answers are worth less than none at all."""
    reasons = []
    if seen.auroc is not None and seen.auroc < 0.5:
        # Near .5 the score may also order nothing; far below it, it orders the classes well, the wrong way round.
        cause = "the most likely cause is" if seen.auroc < 0.4 else "the scores order nothing, or the cause is"
        reasons.append(
            f"on {seen.role} the score ranks the classes upside down (AUROC {seen.auroc:.3f}, below 0.5): {cause}"
            " reversed score columns or class names (check the order of `--columns scores=` and of `data.classes`)"
        )
    if 2 * seen.wrong > seen.exits:
        reasons.append(f"{seen.wrong} of {seen.exits} answers on {seen.role} are wrong")
    n = sum(seen.of_class.values())
    if n and seen.accuracy is not None:
        name, most = max(seen.of_class.items(), key=lambda item: item[1])
        reached = seen.accuracy if seen.accuracy_high is None else max(seen.accuracy, seen.accuracy_high)
        if reached < most / n:
            order = "" if len(seen.of_class) == 2 else "; are the score columns in the order of `data.classes`?"
            reasons.append(
                f"on {seen.role} the model is right for {100 * seen.accuracy:.3g} % of the images, always answering"
                f" '{name}' for {100 * most / n:.3g} %{order}"
            )
    return reasons


def _limits_of(certificate: Document, evaluation: Document | None) -> list[str]:
    """What the certificate itself leaves open."""
    reasons = []
    never = certificate.get("never_answered")
    if never:
        reasons.append(f"no image exits as {', '.join(repr(name) for name in never)}")
    elif never is None and certificate.get("reason"):  # certificates made before it was listed
        reasons.append("one side stays shut")
    reasons += [text.rstrip(".") for text in certificate.get("unlimited", ())]
    share = certificate["coverage"] if evaluation is None else evaluation["coverage"]["overall"]
    if share["value"] is not None and share["value"] < LOW_COVERAGE:
        where = "calibration images" if evaluation is None else f"{evaluation['role']} images"
        reasons.append(f"only {share['exits']} of {share['n']} {where} exit (under {100 * LOW_COVERAGE:g} %)")
    reasons += _looks(certificate)
    if certificate["assume_iid"]:
        reasons.append("images of one group were counted as if they were independent (assume_iid)")
    if evaluation is not None and (moved := _other_balance(certificate, evaluation)):
        reasons.append(moved)
    return reasons


def _looks(certificate: Document) -> list[str]:
    """Whether other looks at the calibration images cost confidence; the one that is printed has paid for them."""
    counted, number = certificate.get("attempts"), certificate["attempt"]
    if counted is None:  # certificates of earlier versions, whose confidence is that of a single one
        single = f"this is attempt {number} on the same calibration images, and the confidence is that of a single one"
        return [single] if number > 1 else []
    if on_average(certificate["method"]):
        # A mean has no confidence that looks could cost.
        best = f"the mean of the best of {number} may be {number} times as large as the one that is stated"
        return [f"this is look {number} at the same calibration images: {best}"] if number > 1 else []
    if counted["headline_confidence"] >= counted["asked_confidence"] - 1e-9:
        return []
    left, asked = (100 * counted[name] for name in ("headline_confidence", "asked_confidence"))
    return [
        f"this is look {number} at the same calibration images: the confidence is {left:.4g} %, not the {asked:.4g} %"
        " that was asked for"
    ]


def _other_balance(certificate: Document, evaluation: Document) -> str:
    """Whether the claim moves with the class balance, and a balance was asked for that it does not cover."""
    shift = evaluation.get("label_shift")
    if shift is None:
        return ""
    moving = [*shift["moves"], *(["the floor on coverage"] if certificate["coverage"].get("floor") is not None else [])]
    prior, positive = certificate["target_prior"], certificate["classes"][-1]
    asked = [row["prior"][positive] for row in shift["estimates"]]
    elsewhere = [share for share in asked if prior is None or abs(share - prior) > 1e-9]
    if not moving or not elsewhere:
        return ""
    at = "the balance of the calibration images" if prior is None else f"{100 * prior:.3g} % {positive}"
    return f"{', '.join(moving)} is certified for {at}, not for the {100 * elsewhere[0]:.3g} % {positive} of the target"


def _thin_check(evaluation: Document | None, checks: Sequence[Check], not_yet: bool) -> list[str]:
    """Where the independent check says little."""
    if evaluation is None:
        return [] if not_yet else ["no independent check was made"]
    seen, reasons = Seen.of_evaluation(evaluation), []
    role, groups = evaluation["role"], evaluation["n_groups"]
    few = [f"{n} images of '{name}'" for name, n in seen.of_class.items() if n < FEW_IMAGES]
    if evaluation["unit"] == "group" and groups < FEW_IMAGES:
        few.append(f"{groups} groups")
    if few:
        reasons.append(f"{role} has only {_joined(few)}, too few to show an error that is there")
    silent = [check.name for check in checks if check.outcome == "no evidence"]
    if silent:
        reasons.append(f"{role} has no image to check {', '.join(silent)}")
    return reasons


def _joined(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
