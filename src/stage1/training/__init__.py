"""Training of heads on cached features."""

from stage1.model.head import load_head
from stage1.training.gate import GateTargets, cross_fitted_gate_targets
from stage1.training.gate_diagnosis import GateHealth, gate_health
from stage1.training.head import TrainResult, train_head

__all__ = [
    "GateHealth",
    "GateTargets",
    "TrainResult",
    "cross_fitted_gate_targets",
    "gate_health",
    "load_head",
    "train_head",
]
