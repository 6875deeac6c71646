"""What a certificate says of its images: which challenges of the StreetVision client, and which views of each image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stage1.policy.base import Policy
from stage1.policy.certificate import Certificate, ViewsClaim
from stage1.scores import Scores

LEVEL = "level"
LEVELS = ("L0", "L1", "L2", "L3")


def said_of(policy: Policy, calib: Scores) -> Policy:
    """The policy, its certificate saying which challenges it was made of, with their shares in `calib`; else unchanged.

    From the slice `level`, which travels with the scores: a certificate that is made again says the same.
    """
    certificate = policy.certificate
    words = population(calib)
    if certificate is None or not words:
        return policy
    return policy.with_certificate(replace(certificate, statement=f"{certificate.statement} {words}"))


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


def on_views(policy: Policy, views: ViewsClaim | None) -> Policy:
    """The policy with a certificate that names the views under its scores; None: whole images, unchanged.

    >>> from stage1.policy import ViewsClaim, fit_policy
    >>> calib = Scores([[0.0, row - 199.5] for row in range(400)], labels=[0] * 200 + [1] * 200)
    >>> views = ViewsClaim("9f2c", "the whole image and its four quarters")
    >>> viewed = on_views(fit_policy("softmax", calib=calib), views)
    >>> viewed.certificate.statement.split(". ")[-1]
    'Every image is judged on the whole image and its four quarters.'
    """
    if views is None or policy.certificate is None:
        return policy
    return policy.with_certificate(_named(policy.certificate, views))


def _named(certificate: Certificate, views: ViewsClaim) -> Certificate:
    return replace(
        certificate,
        views=views,
        statement=f"{certificate.statement} Every image is judged on {views.description}.",
        assumptions=(
            *certificate.assumptions,
            (
                "The views, how they are aggregated and when looking stops were fixed on val_select, which shares no"
                " image with the calibration images."
            ),
        ),
        void_if=(
            *certificate.void_if,
            f"other views are looked at, or are aggregated in another way (views.json, sha256 {views.digest})",
        ),
    )
