"""When to exit: policies with one interface, fit -> policy -> decide, and the certificate that each carries."""

from stage1.policy.certificate import Certificate, RiskBound
from stage1.policy.decision import Decision
from stage1.policy.fit import POLICY_FILES, fit_policy, load_policy, policy_file
from stage1.policy.softmax import SoftmaxPolicy

__all__ = [
    "POLICY_FILES",
    "Certificate",
    "Decision",
    "RiskBound",
    "SoftmaxPolicy",
    "fit_policy",
    "load_policy",
    "policy_file",
]
