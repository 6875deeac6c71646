"""How the calibration groups came to val_calib, in a certificate: what it assumes of the data follows from that.

| dealing | val_calib is | certified |
|---|---|---|
| hash | every group drawn for itself, with the same chance | yes |
| stratified-random | drawn inside strata of label mix and size, every group with the same chance | yes |
| stratified-redrawn | the same, until every role had every class: equal chances for groups of equal classes | yes |
| by-size | what earlier versions dealt: large groups too often | no |
| given | what the data say; that it is a fair sample is its author's claim | yes |

Strata are those of data/dealing.py; the last redraws are by raised shares.
None: nothing was recorded (earlier versions, scores of any model).
"""

from __future__ import annotations

from dataclasses import replace

from stage1.policy.base import Policy

BY_SIZE = "by-size"
BY_SIZE_REASON = (
    "Some groups of val_calib were dealt by size (split.method=balanced of an earlier version): large groups are in it"
    " too often, so it is no random sample. Deal anew with another seed: run again with split.seed=1 --allow-change."
)

_STRATIFIED = (
    "The groups of the data are an independent random sample of the groups that the bundle will see. The calibration"
    " groups were drawn from them at random within strata of label mix and size, {}: a stratified sample, whose counts"
    " vary less than those of an independent one."
)
_DRAWN = {
    "stratified-random": _STRATIFIED.format("every group with the same chance"),
    "stratified-redrawn": _STRATIFIED.format(
        "again until each role held every class, groups that hold the same classes with the same chance"
    ),
}


def dealt(policy: Policy, dealing: str | None) -> Policy:
    """The policy, its certificate saying how its groups were dealt and assuming just that; None: as it stands.

    >>> from stage1 import Scores
    >>> from stage1.policy import fit_policy
    >>> calib = Scores([[0.0, row - 199.5] for row in range(400)], labels=[0] * 200 + [1] * 200)
    >>> policy = fit_policy("softmax", calib=calib)
    >>> dealt(policy, "stratified-random").certificate.dealing
    'stratified-random'
    """
    certificate = policy.certificate
    if dealing is None or certificate is None:
        return policy
    drawn = (_DRAWN[dealing],) if dealing in _DRAWN else certificate.assumptions[:1]
    return policy.with_certificate(
        replace(certificate, dealing=dealing, assumptions=(*drawn, *certificate.assumptions[1:]))
    )
