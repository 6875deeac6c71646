"""The StreetVision client: our bundle as its detector, its challenges, and what it pays."""

from stage1.streetvision.detector import Answer, Stage1Detector
from stage1.streetvision.miner import register

__all__ = ["Answer", "Stage1Detector", "register"]
