"""Paths of a config made absolute: a run directory is used from other working directories than the first one."""

from __future__ import annotations

import os

from stage1.config import RunConfig


def anchored(config: RunConfig) -> RunConfig:
    """The config with its relative paths (sources, weights, unlabelled images) absolute, from the working directory."""
    data = config.data.model_copy(
        update={
            "table": _absolute(config.data.table),
            "role_tables": {role: _absolute(table) for role, table in config.data.role_tables.items()},
        }
    )
    backbone = config.backbone.model_copy(update={"weights": _absolute(config.backbone.weights)})
    pretrain = config.pretrain.model_copy(update={"folder": _absolute(config.pretrain.folder)})
    return config.model_copy(update={"data": data, "backbone": backbone, "pretrain": pretrain})


def _absolute(path: str | None) -> str | None:
    if not path or path.startswith("hf:"):  # nothing, or a name on the hub
        return path
    return os.path.abspath(os.path.expanduser(path))
