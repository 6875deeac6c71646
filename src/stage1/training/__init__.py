"""Training of heads on cached features."""

from stage1.model.head import load_head
from stage1.training.trainer import TrainResult, train_head

__all__ = ["TrainResult", "load_head", "train_head"]
