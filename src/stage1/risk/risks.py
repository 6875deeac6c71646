"""THE table of risks: what each counts, of which class, and how it is said. Every user of a risk's name asks here.

A risk is a share: errors (wrong answers that are given) among trials, row by row. From its `counts` on rows follows
everything else that is counted: at many thresholds (policy/counts.py), in a model (policy/ordering.py), in group means.

| asked with | rows of the table |
|---|---|
| two classes, 1 = positive | fnr, fpr, miss_rate, false_exit_rate, error |
| more classes | fnr.<class>, wrong.<class>, miss_rate.<class>, error |

A risk is added by its row alone: `register_risk(Risk(...))`, or `RISKS[risk.key] = risk`. It is then certified along
the calibrated path (fixed sequence, exact binomial); closed forms stay with the risks that they are proved for.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from stage1.errors import ConfigError
from stage1.risk.definition import OF_CLASS, ORDER, Bools, Counting, Ints, Risk, Side

# ---- what is counted ---------------------------------------------------------------------------------------------


def _among_exits(exits: Bools, answer: Ints, truth: Ints, k: int | None = None) -> tuple[Bools, Bools]:
    """Images of class k that exit with a wrong answer, among those of class k that exit."""
    trials = exits & (truth == k)
    return trials & (answer != truth), trials


def _among_members(exits: Bools, answer: Ints, truth: Ints, k: int | None = None) -> tuple[Bools, Bools]:
    """Images of class k that exit with a wrong answer, among all of class k."""
    errors = exits & (truth == k) & (answer != truth)
    return errors, np.broadcast_to(truth == k, errors.shape)


def _among_answers(exits: Bools, answer: Ints, truth: Ints, k: int | None = None) -> tuple[Bools, Bools]:
    """Wrong ones among images that exit as class k."""
    trials = exits & (answer == k)
    return trials & (answer != truth), trials


def _among_all_exits(exits: Bools, answer: Ints, truth: Ints, k: int | None = None) -> tuple[Bools, Bools]:
    """Wrong ones among images that exit."""
    wrong = exits & (answer != truth)
    return wrong, np.broadcast_to(exits, wrong.shape)


def _of(k: int, counting: Counting) -> Counting:
    """The same of the class k of two, whatever class is asked."""

    def counts(exits: Bools, answer: Ints, truth: Ints, _: int | None = None) -> tuple[Bools, Bools]:
        return counting(exits, answer, truth, k)

    return counts


RISKS: dict[str, Risk] = {
    risk.key: risk
    for risk in (
        Risk(
            "fnr",
            side="positive",
            among="exits",
            monotone=False,
            words="among {positives} that exit, {at_most} are called '{negative}'",
            counts=_of(1, _among_exits),
            meaning="of {positive} images that exit, the share answered {negative}",
        ),
        Risk(
            "fpr",
            side="negative",
            among="exits",
            monotone=False,
            words="among {negatives} that exit, {at_most} are called '{positive}'",
            counts=_of(0, _among_exits),
            meaning="of {negative} images that exit, the share answered {positive}",
        ),
        Risk(
            "miss_rate",
            side="positive",
            among="members",
            monotone=True,
            words="{at_most} of all {positives} exit as '{negative}'",
            counts=_of(1, _among_members),
            meaning="of all {positive} images, the share that exits as {negative}",
        ),
        Risk(
            "false_exit_rate",
            side="negative",
            among="members",
            monotone=True,
            words="{at_most} of all {negatives} exit as '{positive}'",
            counts=_of(0, _among_members),
            meaning="of all {negative} images, the share that exits as {positive}",
        ),
        Risk(
            "fnr",
            side="class",
            among="exits",
            monotone=False,
            words="among '{of}' images that exit, {at_most} are answered wrongly",
            counts=_among_exits,
            meaning="of {of} images that exit, the share answered wrongly",
        ),
        Risk(
            "wrong",
            side="class",
            among="exits",
            monotone=False,
            words="of the images that exit as '{of}', {at_most} are not '{of}'",
            counts=_among_answers,
            meaning="of images that exit as {of}, the share that is not {of}",
        ),
        Risk(
            "miss_rate",
            side="class",
            among="members",
            monotone=True,
            words="{at_most} of all '{of}' images exit with a wrong answer",
            counts=_among_members,
            meaning="of all {of} images, the share that exits with a wrong answer",
        ),
        Risk(
            "error",
            side="both",
            among="exits",
            monotone=False,
            words="among images that exit, {at_most} are answered wrongly",
            counts=_among_all_exits,
            meaning="of all images that exit, the share answered wrongly",
        ),
    )
}


def register_risk(risk: Risk) -> Risk:
    """Add a row to the table; it can then be named in a target. Returns it.

    Raises ConfigError where the table has another risk of this name.

    >>> def wrong_positives(exits, answer, truth, k=None):
    ...     trials = exits & (answer == 1)
    ...     return trials & (truth == 0), trials
    >>> words = "{at_most} of '{positive}' answers are wrong"
    >>> risk = register_risk(Risk("false_discovery", "negative", "exits", False, words, wrong_positives))
    >>> risk.text("at most 5 %", ("none", "roadwork"))
    "at most 5 % of 'roadwork' answers are wrong"
    >>> del RISKS["false_discovery"]
    """
    if RISKS.get(risk.key, risk) != risk:
        raise ConfigError(f"risk {risk.name!r}: the table has another one of this name")
    RISKS[risk.key] = risk
    return risk


# ---- which there are ---------------------------------------------------------------------------------------------


def risks_for(n_classes: int) -> tuple[Risk, ...]:
    """The rows that can be asked for with so many classes, in the order of the table.

    >>> [risk.key for risk in risks_for(3)]
    ['fnr.<class>', 'wrong.<class>', 'miss_rate.<class>', 'error']
    """
    return tuple(risk for risk in RISKS.values() if risk.side in _sides(n_classes))


def _sides(n_classes: int) -> tuple[Side, ...]:
    return ("positive", "negative", "both") if n_classes == 2 else ("both", "class")


def _in_order(n_classes: int) -> list[Risk]:
    return sorted(risks_for(n_classes), key=lambda risk: ORDER.index(risk.side))


def risk_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Every risk that can be asked for with these classes, in the order of a target.

    >>> risk_names(["none", "roadwork"])
    ('fnr', 'miss_rate', 'fpr', 'false_exit_rate', 'error')
    """
    return tuple(
        name
        for risk in _in_order(len(classes))
        for name in ([f"{risk.name}.{of}" for of in classes] if risk.side == "class" else [risk.name])
    )


def risk_of(name: str, classes: Sequence[str]) -> tuple[Risk, int]:
    """(row of the table, class) of a risk with these classes: "fnr.cat" -> (fnr of a class, 3); class -1: of no one.

    Raises ConfigError for a name that `risk_names` does not hold, saying which there are.

    >>> risk, index = risk_of("wrong.cat", ["dog", "cow", "cat"])
    >>> risk.text("at most 5 %", ["dog", "cow", "cat"], index)
    "of the images that exit as 'cat', at most 5 % are not 'cat'"
    """
    found = _find(name, classes)
    if found is None:
        raise ConfigError(_unknown(name, classes))
    return found


def risk_parts(name: str, classes: Sequence[str]) -> tuple[str, int]:
    """(name of the row, class) of a risk: "fnr.cat" -> ("fnr", 3), "error" -> ("error", -1). Raises as `risk_of`.

    >>> risk_parts("fnr.cat", ["cow", "cat", "dog"]), risk_parts("error", ["cow", "cat", "dog"])
    (('fnr', 1), ('error', -1))
    """
    risk, index = risk_of(name, classes)
    return risk.name, index


def is_risk(name: str, classes: Sequence[str]) -> bool:
    """Whether a risk of this name can be asked for with these classes.

    >>> is_risk("fnr", ["none", "roadwork"]), is_risk("fnr", ["cow", "cat", "dog"])
    (True, False)
    """
    return _find(name, classes) is not None


def _find(name: str, classes: Sequence[str]) -> tuple[Risk, int] | None:
    kind, dot, of = name.partition(".")
    risk = RISKS.get(kind + OF_CLASS if dot else name)
    if risk is None or risk.side not in _sides(len(classes)) or (dot and of not in classes):
        return None
    return risk, list(classes).index(of) if dot else -1


def _unknown(name: str, classes: Sequence[str]) -> str:
    kinds = class_kinds()
    kind, dot, of = name.partition(".")
    if len(classes) > 2 and name in RISKS:
        known = f"{kind}.<class>" if kind in kinds else "fnr.<class>"
        return (
            f"risk {name!r} is for two classes, there are {len(classes)}; use error, or {known}, e.g. "
            f"{known.split('.')[0]}.{classes[0]}; risks={{error: 0.05}} replaces the whole target"
        )
    shown = ", ".join(risk.key for risk in _in_order(len(classes)))
    if dot and kind in kinds:
        if len(classes) == 2:
            return f"risk {name!r} is for more than two classes; with two, risks are {shown}"
        near = difflib.get_close_matches(of, classes, n=1, cutoff=0.5)
        meant = f"; did you mean {kind}.{near[0]}?" if near else ""
        return f"risk {name!r}: no class {of!r}{meant}; classes are {', '.join(classes)}"
    return f"risk {name!r} is unknown; risks are {shown}"


def class_kinds() -> tuple[str, ...]:
    """The names of the risks that are said of one class of more than two."""
    return tuple(risk.name for risk in RISKS.values() if risk.side == "class")


def closed_forms() -> dict[str, Risk]:
    """Risks of two classes with trials of one class, in a target's order: their samples can be planned by arithmetic.

    >>> list(closed_forms())
    ['fnr', 'miss_rate', 'fpr', 'false_exit_rate']
    """
    return {risk.name: risk for risk in _in_order(2) if risk.of_one_class}
