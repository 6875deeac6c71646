"""The StreetVision client's detector: our bundle behind its contract, on onnxruntime, numpy and Pillow alone."""

from stage1.streetvision.detector import Answer, Stage1Detector
from stage1.streetvision.launch import register

__all__ = ["Answer", "Stage1Detector", "register"]
