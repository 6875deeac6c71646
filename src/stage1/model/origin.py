"""Where a backbone's weights come from and under which licence: what is known of them, and never more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stage1.config import BackboneConfig
from stage1.model.embedded import EMBEDDED, LICENCE
from stage1.model.weights import weights_file
from stage1.storage.files import digest_file

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Origin:
    """licence: as its owner names it (SPDX where there is one), "unknown" unless known or stated. base_model: its name
    on the hub, or None. weights_sha256: of the file that the config names, None for weights that are known by name."""

    licence: str
    base_model: str | None
    weights_sha256: str | None = None


def origin(config: BackboneConfig) -> Origin:
    """Of the weights that the config names. A file may hold anything that fits the architecture: what timm says of the
    weights that bear the architecture's name does not hold for it, so it has the licence and base model that are
    stated, or none.

    Raises MissingError where the file is not there.
    """
    if config.weights is not None:
        digest = digest_file(weights_file(Path(config.weights)))
        return Origin(config.licence or UNKNOWN, config.base_model, digest)
    if config.random_weights:
        return Origin(config.licence or UNKNOWN, config.base_model)
    if config.name in EMBEDDED:
        return Origin(config.licence or LICENCE, config.base_model)
    import timm

    known = timm.get_pretrained_cfg(config.name)
    licence = known.license if known is not None else None
    base = (known.hf_hub_id or "").partition("@")[0] if known is not None else ""
    return Origin(config.licence or licence or UNKNOWN, config.base_model or base or f"timm/{config.name}")
