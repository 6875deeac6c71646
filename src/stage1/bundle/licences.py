"""The licence of a backbone's weights: in the header that the hub reads, and as a file of the bundle."""

from __future__ import annotations

import re

# Licences that the hub knows by name; any other is "other" with its own name beside.
_HUB = (
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "gpl-3.0",
    "mpl-2.0",
    "unlicense",
    "openrail",
    "apple-amlr",
    "apple-ascl",
    "gemma",
)
_DINOV3 = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
_LINKS = {
    "dinov3-license": _DINOV3,
    "cc-by-nc-4.0": "https://creativecommons.org/licenses/by-nc/4.0/legalcode",
    "gemma": "https://ai.google.dev/gemma/terms",
    "nvidia-open-model-license": (
        "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/"
    ),
}
_NOT_COMMERCIAL = ("cc-by-nc-4.0", "apple-amlr", "fair-noncommercial-research-license", "seer-license")
_DINOV3_TEXT = f"""{{weights}} are DINO Materials under the DINOv3 License of Meta Platforms, Inc.: {_DINOV3}

What follows is a summary and not the licence; the text behind the link holds.
- Who passes on these weights, or anything derived from them (this bundle is), does so under the terms of that\
 agreement and
  gives a copy of it along.
- A publication of results that were obtained with them acknowledges that.
- Use must comply with the law, trade controls included; military, weapons, nuclear and espionage uses are excluded.
- There is no warranty. Built with DINOv3.
"""


def licence_header(licence: str) -> dict[str, str]:
    """The fields `license`, and where the hub does not know it `license_name` and `license_link`."""
    name = licence.lower()
    if name in _HUB:
        return {"license": name}
    return {
        "license": "other",
        "license_name": re.sub(r"[^a-z0-9.]+", "-", name).strip("-") or "unknown",
        "license_link": _LINKS.get(_key(licence), "LICENSES"),
    }


def licence_text(name: str, licence: str, weights_sha256: str | None) -> str:
    """What LICENSES/ says of weights whose licence text is not available. name: of the backbone."""
    weights = f"Weights of {name}" + ("" if weights_sha256 is None else f" (file with sha256 {weights_sha256})")
    key = _key(licence)
    if key == "unknown":
        return (
            f"{weights}: the licence is unknown.\n\nThey came from a file of which nothing was stated. Find out under"
            " which licence they are before you publish or sell anything made with them, and state it with"
            " backbone.licence and backbone.base_model.\n"
        )
    if key == "dinov3-license":
        return _DINOV3_TEXT.format(weights=weights)
    text = f"{weights}: {licence}\n"
    if key in _LINKS:
        text += f"{_LINKS[key]}\n"
    if key in _NOT_COMMERCIAL:
        text += "\nThis licence does not allow commercial use.\n"
    return text


def _key(licence: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")
