"""Bounds that hold together: what may be printed beside a target, at thresholds chosen on the same data.

A test of several risks at one pair of thresholds, each at the full delta, refused where one fails (union null), shows
the target set, not the single bounds: read off afterwards, some true risk lies above its own bound in up to twice delta
of the cases.

| walk along a path | bound of risk r | because |
|---|---|---|
| stopped by a failure | target_r | where it stops depends on the same counts; what is proved there is the target |
| reached the end | s target_r, s = max_r u_r / target_r | the end is a pair that was fixed beforehand |

u_r: exact upper bound of risk r alone at 1 - delta. At a fixed pair all risks are at most s times their targets at once
with confidence 1 - delta, at no price: let r be the risk whose true value is the largest share of its target. If any
risk is above its bound, then r is, by more than s target_r >= u_r, which has probability at most delta. Certified means
u_r <= target_r for all r, so s <= 1 and no bound exceeds its target.

Both rows together: if some pair of the path is truly too risky, a false bound means that the walk went past the first
such pair, which has probability at most delta (fixed sequence); if none is, only a bound at the end can be false: at
most delta.
Where delta is split over two sequences, add them up.

The closed-form rules share delta between the risks beforehand (one order statistic or walk for each class): their
bounds are joint as they are; of the ratio in a walk that is shown by simulation (tests/policy/test_joint.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from stage1.policy.certificate import Certificate, Coverage

Risk = TypeVar("Risk")
JOINT = "joint"


def joint_risks(risks: Mapping[str, Risk], *, at_end: bool, never: frozenset[str] = frozenset()) -> dict[str, Risk]:
    """Risks with joint bounds; risks (dataclasses with `bound` and `target`) each tested at the full delta, and held.

    at_end: the pair is the last of its path, or the only one that was tested. never: risks that are 0 by construction.
    """
    tested: dict[str, Any] = {name: risk for name, risk in risks.items() if name not in never}
    scale = max((risk.bound / risk.target for risk in tested.values()), default=0.0)
    assert scale <= 1, "joint bounds are for targets that hold"
    scale = scale if at_end else 1.0
    joint = {name: replace(risk, bound=min(scale * risk.target, risk.target)) for name, risk in tested.items()}
    return {name: joint.get(name, risk) for name, risk in risks.items()}


def joint_coverage(
    overall: Coverage, per_class: Mapping[str, Coverage], *, at_end: bool
) -> tuple[Coverage, dict[str, Coverage]]:
    """The same for floors on coverage, of all images and by class: shares that defer, against 1 - floor."""
    floors = [share for share in (overall, *per_class.values()) if share.bound is not None and share.floor is not None]
    scale = max(((1 - share.bound) / (1 - share.floor) for share in floors), default=0.0)  # type: ignore[operator]
    scale = scale if at_end else 1.0

    def joint(share: Coverage) -> Coverage:
        if share.bound is None or share.floor is None:
            return share
        return replace(share, bound=max(1 - scale * (1 - share.floor), share.floor))

    return joint(overall), {name: joint(share) for name, share in per_class.items()}


def as_earlier(certificate: Certificate) -> Certificate:
    """The certificate with the bounds that earlier versions stated: of each risk alone. For comparing with theirs."""

    def own(counted: Any) -> Any:
        return counted if counted.alone is None else replace(counted, bound=counted.alone)

    return replace(
        certificate,
        bounds=None,
        risks={name: own(risk) for name, risk in certificate.risks.items()},
        coverage=own(certificate.coverage),
        per_class={name: own(share) for name, share in certificate.per_class.items()},
        slices=tuple(
            replace(claim, risks={name: own(counts) for name, counts in claim.risks.items()})
            for claim in certificate.slices
        ),
    )
