"""A certificate of scores that were made from several views of each image: it holds for exactly those views."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stage1.policy.certificate import Certificate, ViewsClaim
from stage1.policy.decision import Policy


def on_views(policy: Policy, views: ViewsClaim | None) -> Policy:
    """The policy with a certificate that names the views under its scores; None: scores of whole images, as it stands."""
    if views is None or policy.certificate is None:
        return policy
    base: Any = policy  # every policy is a frozen dataclass with this field; the protocol cannot say so
    viewed: Policy = replace(base, certificate=_named(policy.certificate, views))
    return viewed


def _named(certificate: Certificate, views: ViewsClaim) -> Certificate:
    return replace(
        certificate,
        views=views,
        statement=f"{certificate.statement} Every image is judged on {views.description}.",
        assumptions=(
            *certificate.assumptions,
            "The views, how they are aggregated and when looking stops were fixed on val_select, which shares no image with the "
            "calibration images.",
        ),
        void_if=(
            *certificate.void_if,
            f"other views are looked at, or are aggregated in another way (views.json, sha256 {views.digest})",
        ),
    )
