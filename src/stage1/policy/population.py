"""Which images a certificate is of, where the calibration images are challenges of the StreetVision client."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from stage1.policy.decision import Policy
from stage1.scores import Scores

LEVEL = "level"
LEVELS = ("L0", "L1", "L2", "L3")


def said_of(policy: Policy, calib: Scores) -> Policy:
    """The policy, its certificate saying which challenges it was made of, with their shares in `calib`; else as it is.

    From the slice `level`, which travels with the scores: a certificate that is made again says the same.
    """
    certificate = policy.certificate
    words = population(calib)
    if certificate is None or not words:
        return policy
    base: Any = policy  # every policy is a frozen dataclass with this field; the protocol cannot say so
    again: Policy = replace(base, certificate=replace(certificate, statement=f"{certificate.statement} {words}"))
    return again


def population(calib: Scores) -> str:
    """One sentence; "" where the images are no challenges."""
    levels = calib.slices.get(LEVEL)
    if levels is None or not len(levels) or not set(np.unique(levels).tolist()) <= set(LEVELS):
        return ""
    shares = {name: float((levels == name).mean()) for name in LEVELS}
    present = [name for name in LEVELS if shares[name] > 0]
    if len(present) == 1:
        return f"An image here is a frame as the StreetVision client distorts it at level {present[0]}, as 224 px JPEG."
    parts = ", ".join(f"{name} {100 * shares[name]:.3g} %" for name in present)
    claim = "the claim for all images is for this mixture" if len(present) == len(LEVELS) else "the claim is for these"
    return f"An image here is a frame as the StreetVision client distorts it, as 224 px JPEG ({parts}): {claim}."
