"""The certificate of a cascade in words: what is claimed, how delta was shared, which failures were measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stage1.inference.cascade.config import CascadeConfig
from stage1.policy.certificate import images, percent

if TYPE_CHECKING:
    from stage1.inference.cascade.whole import CascadeCertificate

VOID_IF = (
    "a stage is changed: another bundle, model, prompt, endpoint, threshold, timeout or number of retries",
    "calls fail more often than where it was measured, or an outage lasts: the answers are then those of the stage before",
    "the images come from another kind of source (camera, place, season, compression) than the calibration images",
    "the calibration images are used again to try other configurations until one passes",
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
    sentence = f"With confidence {percent(1 - certificate.delta)}, {claim}. {_spent(certificate, config)}"
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
    if certificate.attempt > 1:
        sentence += f" This is attempt {certificate.attempt} on the same calibration images: the confidence is that of one configuration fixed in advance, not of the best of several."
    return sentence


def _spent(certificate: CascadeCertificate, config: CascadeConfig) -> str:
    """How delta was shared out."""
    if not config.risks:
        return f"Delta {certificate.delta:.4g} is shared equally by the {len(certificate.risks)} bounds."
    each = "all risks of a configuration are tested together, so each has the whole of it"
    if config.auto_exits:
        return (
            f"Delta {certificate.delta:.4g} was spent on configurations tested one after the other in an order fixed on val_select, "
            f"up to the first that fails ({certificate.tested} passed, the last of them is meant); {each}."
        )
    return f"Delta {certificate.delta:.4g} was spent on one configuration tested once; {each}."


def _own_claims(certificate: CascadeCertificate, config: CascadeConfig) -> str:
    kept = [claim for claim in certificate.stages if claim.certified]
    if not kept:
        return ""
    spent = certificate.delta + sum(claim.delta for claim in kept)
    names = ", ".join(f"'{claim.stage}' (delta {claim.delta:.4g})" for claim in kept)
    together = f"delta {certificate.delta:.4g} + {spent - certificate.delta:.4g}, so all hold together with confidence {percent(1 - spent)}"
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
        "No calibration image was used for training a stage, for choosing a threshold or a prompt, or for choosing the limits.",
        "The labels of the calibration images are right.",
        "Calls fail as often, and as much by chance, as where it was measured; outages (breaker open, budget spent) are not covered.",
        "The share of each class may differ: miss_rate and false_exit_rate are per class.",
    ]
    if iid:
        listed.append(
            "assume_iid: images of one group are treated as independent. If they are not, the bound is too small."
        )
    return tuple(listed)
