"""When to exit: policies with one interface, fit -> policy -> decide, and the certificate that each carries."""

from typing import TYPE_CHECKING

from stage1.late import names

if TYPE_CHECKING:
    from stage1.policy.attempts import Attempts, Plan
    from stage1.policy.base import Decision, Policy
    from stage1.policy.calibrated import CalibratedPolicy, decided_on, reported
    from stage1.policy.certificate import Certificate, RiskBound, ViewsClaim
    from stage1.policy.gate import GatePolicy
    from stage1.policy.group_dealing import dealt
    from stage1.policy.kind import FitInputs, PolicyKind
    from stage1.policy.ledger import Ledger
    from stage1.policy.provenance import on_views
    from stage1.policy.registry import (
        POLICIES,
        POLICY_FILES,
        fit_policy,
        has_policy_file,
        load_policy,
        policy_file,
        policy_kind,
        refit,
    )
    from stage1.policy.scrc import ScrcPolicy
    from stage1.policy.softmax import SoftmaxPolicy
    from stage1.policy.softmax_multiclass import MulticlassPolicy
else:
    __getattr__ = names(
        __name__,
        attempts="Attempts Plan",
        base="Decision Policy",
        calibrated="CalibratedPolicy decided_on reported",
        certificate="Certificate RiskBound ViewsClaim",
        gate="GatePolicy",
        group_dealing="dealt",
        kind="FitInputs PolicyKind",
        ledger="Ledger",
        provenance="on_views",
        registry="POLICIES POLICY_FILES fit_policy has_policy_file load_policy policy_file policy_kind refit",
        scrc="ScrcPolicy",
        softmax="SoftmaxPolicy",
        softmax_multiclass="MulticlassPolicy",
    )

__all__ = [
    "POLICIES",
    "POLICY_FILES",
    "Attempts",
    "CalibratedPolicy",
    "Certificate",
    "Decision",
    "FitInputs",
    "GatePolicy",
    "Ledger",
    "MulticlassPolicy",
    "Plan",
    "Policy",
    "PolicyKind",
    "RiskBound",
    "ScrcPolicy",
    "SoftmaxPolicy",
    "ViewsClaim",
    "dealt",
    "decided_on",
    "fit_policy",
    "has_policy_file",
    "load_policy",
    "on_views",
    "policy_file",
    "policy_kind",
    "refit",
    "reported",
]
