"""When to exit: policies with one interface, fit -> policy -> decide, and the certificate that each carries."""

from stage1.policy.certificate import Certificate, RiskBound
from stage1.policy.decision import Decision, Policy
from stage1.policy.fit import POLICY_FILES, fit_policy, load_policy, policy_file, refit
from stage1.policy.gate import GatePolicy
from stage1.policy.scrc import ScrcPolicy
from stage1.policy.softmax import SoftmaxPolicy

__all__ = [
    "POLICY_FILES",
    "Certificate",
    "Decision",
    "GatePolicy",
    "Policy",
    "RiskBound",
    "ScrcPolicy",
    "SoftmaxPolicy",
    "fit_policy",
    "load_policy",
    "policy_file",
    "refit",
]
