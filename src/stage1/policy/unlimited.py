"""Which wrong answers a certificate leaves without any limit, and which answers are never given; in words.

Derived from the risks *and* the thresholds: "only fnr is limited" says nothing of the other side. With fnr alone images
exit on both sides, and the other error is without a limit; with miss_rate alone the other side abstains, and there is
none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from stage1.policy.certificate import images
from stage1.risk.risks import RISKS, closed_forms, risk_of


def unlimited(risks: Collection[str], classes: Sequence[str], never_answered: Collection[str]) -> tuple[str, ...]:
    """One sentence for each kind of wrong answer that is given and that no risk limits; () where all are limited.

    risks: names of the certified risks. never_answered: classes as which no image exits. A wrong answer (an image of
    class t that exits as class a) is limited by `error`, by fnr or miss_rate of t, or by wrong of a.
    """
    rates = unlimited_rates(risks, classes, never_answered)
    if not rates:
        return ()
    nothing = f"this certificate does not limit {', '.join(rates)}."
    if len(classes) == 2:
        index = 0 if RISKS[rates[0]].side == "negative" else 1
        return (
            (
                f"Wrong answers to {images(classes[index])} have no limit: any number of them may exit as"
                f" '{classes[1 - index]}'; {nothing}"
            ),
        )
    names = _listed([name.partition(".")[2] for name in rates])
    if rates[0].startswith("wrong."):
        return (f"Wrong answers among the images that exit as {names} have no limit: {nothing}",)
    by_answer = [name for name in _limited(risks, classes)[1] if name not in never_answered]
    but = f", except those that exit as {_listed(by_answer)}" if by_answer else ""
    return (f"Wrong answers to images of class {names} have no limit{but}: {nothing}",)


def unlimited_rates(risks: Collection[str], classes: Sequence[str], never_answered: Collection[str]) -> tuple[str, ...]:
    """Names of the rates (as evaluation.json has them) of the wrong answers that are given and that no risk limits."""
    limits_all = any(risk_of(name, classes)[0].side == "both" for name in risks)
    if limits_all or len(never_answered) == len(classes):
        return ()
    by_truth, by_answer = _limited(risks, classes)
    given = [name for name in classes if name not in never_answered]
    if len(classes) == 2:
        open_sides = [
            side
            for truth, answer, side in ((classes[0], classes[1], "negative"), (classes[1], classes[0], "positive"))
            if answer in given and truth not in by_truth
        ]
        return tuple(name for name, risk in closed_forms().items() if risk.side in open_sides)
    free = [name for name in given if name not in by_answer]
    truths = [truth for truth in classes if truth not in by_truth and any(answer != truth for answer in free)]
    if truths and not by_truth:
        return tuple(f"wrong.{name}" for name in free)
    return tuple(f"fnr.{name}" for name in truths)


def abstains_by_target(never_answered: Sequence[str], closed: str | None) -> tuple[str, ...]:
    """Of two classes: what is said of a side that abstains and that the target does not limit.

    closed: the side that the sentence already names, with its own reason.
    """
    return tuple(
        f"No image exits as '{name}': the target says nothing of that answer, so it is never given."
        for name in never_answered
        if name != closed
    )


def _limited(risks: Collection[str], classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """(classes whose images' wrong answers are limited, classes whose wrong exits are limited), in their order."""
    if len(classes) == 2:
        sides = {RISKS[name].side for name in risks}
        return [name for name, side in zip(classes, ("negative", "positive"), strict=True) if side in sides], []
    limited = [risk_of(name, classes) for name in risks]
    by_truth = {index for risk, index in limited if not risk.by_answer}
    by_answer = {index for risk, index in limited if risk.by_answer}
    return [name for k, name in enumerate(classes) if k in by_truth], [
        name for k, name in enumerate(classes) if k in by_answer
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
