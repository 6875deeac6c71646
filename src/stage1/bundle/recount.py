"""A certificate of another version counted again at its own thresholds, which are not found anew.

Another version may find other thresholds on the same data, and both certificates be true. What does not depend on the
version is checked: which images exit, the errors among them, and whether each exact bound at the delta that was spent
keeps its target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from stage1.policy import Certificate, Policy
from stage1.policy.certificate import RiskBound, claim
from stage1.policy.certify import counted_units
from stage1.policy.units import ALL_IMAGES
from stage1.risk import binomial_upper
from stage1.risk.definition import on_average
from stage1.risk.risks import risk_of
from stage1.scores import Scores

_RELATIVE = 1e-9


def recounted(policy: Policy, certificate: Certificate, calibration: Scores) -> Iterator[str]:
    """A line for each number of the certificate that the decisions of the policy do not give; field first."""
    units = counted_units(calibration, certificate.unit, certificate.seed)
    decision, labels = policy.decide(units), units.known_labels
    counts = units.groups if certificate.unit in ALL_IMAGES else None
    yield from _unequal("n_images", certificate.n_images, len(calibration))
    yield from _unequal("n_units", certificate.n_units, len(units) if counts is None else len(np.unique(counts)))
    yield from _unequal("delta", certificate.delta, 1.0 - certificate.confidence)
    of_class = {name: labels == index for index, name in enumerate(certificate.classes)}
    for where, share, rows in (
        ("coverage", certificate.coverage, np.ones(len(units), dtype=np.bool_)),
        *((f"per_class.{name}", certificate.per_class[name], of_class[name]) for name in certificate.per_class),
    ):
        yield from _unequal(f"{where}.n", share.n, int(rows.sum()))
        yield from _unequal(f"{where}.exits", share.exits, int(decision.exit[rows].sum()))
    selected = {share.name: share for share in policy.selected_shares(units)}
    for name, risk in certificate.risks.items():
        if name in selected:
            errors, n = int(selected[name].hits.sum()), int(selected[name].among.sum())
        else:
            kind, of = risk_of(name, certificate.classes)
            wrong, among = kind.counts(decision.exit, decision.label, labels, of)
            errors, n = int(wrong.sum()), int(among.sum())
        yield from _unequal(f"risks.{name}.errors", risk.errors, errors)
        yield from _unequal(f"risks.{name}.n", risk.n, n)
        yield from _bound(f"risks.{name}", name, risk, certificate)


def _bound(where: str, name: str, risk: RiskBound, certificate: Certificate) -> Iterator[str]:
    if not certificate.certified:
        return
    if risk.bound > risk.target:
        yield f"{where}.bound is {risk.bound!r}, above its target {risk.target!r}"
    exact = (
        certificate.unit not in ALL_IMAGES
        and not risk.by_construction
        and not on_average(certificate.method)
        and (certificate.target_prior is None or risk_of(name, certificate.classes)[0].of_one_class)
    )
    if exact and certificate.bounds is None:  # of an earlier version: each bound is of its risk alone
        upper = float(binomial_upper(risk.errors, risk.n, risk.delta))
        yield from _unequal(f"{where}.bound", risk.bound, upper)
    elif exact and (upper := float(binomial_upper(risk.errors, risk.n, risk.delta))) > risk.target * (1 + _RELATIVE):
        yield f"{where}: {risk.errors} of {risk.n} give an upper bound of {upper!r} at delta {risk.delta!r}"


def claims_in_words(certificate: Certificate) -> str:
    """The targets as this version says them; of SCRC what its claim about selected images says of all (scrc_words)."""
    if not certificate.certified:
        return "nothing is certified"
    prior = certificate.target_prior
    return ", and ".join(
        claim(name, risk.target, certificate.classes, prior) for name, risk in certificate.risks.items()
    )


def _unequal(where: str, reported: Any, again: Any) -> Iterator[str]:
    same = math.isclose(reported, again, rel_tol=_RELATIVE) if isinstance(again, float) else reported == again
    if not same:
        yield f"{where} is {reported!r}, counted again {again!r}"
