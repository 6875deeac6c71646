"""The StreetVision client's detector: our bundle behind its contract, on onnxruntime, numpy and Pillow alone."""

from stage1.integrations.streetvision.detector import Answer, Stage1Detector
from stage1.integrations.streetvision.launch import register

__all__ = ["Answer", "Stage1Detector", "register"]
