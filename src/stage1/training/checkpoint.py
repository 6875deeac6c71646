"""Checkpoints: one safetensors file of tensors and JSON facts, replaced whole; the digests that tie it to its run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage1.config import HeadConfig, TrainConfig, leaves
from stage1.errors import ConfigError, IntegrityError
from stage1.storage.files import digest_bytes, write_bytes

LAST = Path("checkpoints") / "last.safetensors"
_FORMAT = 1
_ROWS = 4096
# These decide what is written how often, never a weight: they may change between a stop and the resume.
_FREE = {"checkpoint_every", "tensorboard"}


def save_checkpoint(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON facts to `path`. A kill leaves the previous file or this one, never a mixture.

    Equal content gives equal bytes. Raises Stage1Error (disk full, read-only folder; the previous file is kept).
    """
    from safetensors.torch import save

    text = json.dumps({"format": _FORMAT, **facts}, sort_keys=True, allow_nan=False)
    whole = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    write_bytes(path, save(whole, metadata={"stage1": text}))


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and facts, or None where there is no checkpoint. Raises IntegrityError where the file is damaged."""
    from safetensors import safe_open

    if not Path(path).exists():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            facts = json.loads(stored.metadata()["stage1"])
            # clone: tensors of safe_open may be at any alignment in the file's bytes; training wants its own memory
            tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as error:  # safetensors, json and the missing key each have their own type; the remedy is the same
        raise IntegrityError(
            f"{path}: damaged checkpoint ({type(error).__name__}); remove the file to train from the start"
        ) from error
    if facts.get("format") != _FORMAT:
        raise IntegrityError(
            f"{path}: checkpoint format {facts.get('format')}, this version reads {_FORMAT}; remove the file to train"
            " from the start"
        )
    return tensors, facts


def run_facts(config: TrainConfig, head: HeadConfig, *, dim: int, n_classes: int, seed: int) -> dict[str, Any]:
    """Everything but the data that decides the trained weights, as nested JSON values."""
    train = {key: value for key, value in config.model_dump(mode="json").items() if key not in _FREE}
    # What this head or objective does not read decides nothing.
    if not head.selective:
        del train["selective"]
    if config.objective == "ce":
        del train["risk"], train["objective"]
    if config.entropy == 0.0:
        del train["entropy"]
    shape = {"kind": "linear", "members": head.members} if head.one_layer else head.model_dump(mode="json")
    if head.members == 1:
        del shape["members"]
    shape.pop("gate", None)  # fitted after the classifier, or only left out of the export
    return {"train": train, "head": shape, "dim": dim, "n_classes": n_classes, "seed": seed}


def config_digest(run: Mapping[str, Any]) -> str:
    """sha256 of `run_facts`."""
    return digest_bytes(json.dumps(run, sort_keys=True).encode())


def data_digest(*arrays: NDArray[Any]) -> str:
    """sha256 of dtype, shape and values of the arrays, in order; memory maps are read in pieces."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str}{array.shape};".encode())
        for start in range(0, len(array), _ROWS):
            sha.update(np.ascontiguousarray(array[start : start + _ROWS]).data)
    return sha.hexdigest()


def check_same_run(path: Path, facts: Mapping[str, Any], run: Mapping[str, Any], data: str) -> None:
    """Refuse a checkpoint of another config or other data. Raises ConfigError: the file, what differs, what to do."""
    remedy = "use another run directory, or remove the file to train from the start"
    if facts.get("config_digest") != config_digest(run):
        before, after = dict(leaves(facts.get("run", {}))), dict(leaves(run))
        keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        changes = ", ".join(f"{key} {before.get(key)!r} -> {after.get(key)!r}" for key in keys[:3]) or "config digest"
        raise ConfigError(f"{path}: made with another config ({changes}); {remedy}")
    if facts.get("data_digest") != data:
        raise ConfigError(f"{path}: made from other features or labels (data digest differs); {remedy}")


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors by name "<parameter index>.<state>"; its hyper-parameters come from the config."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors of `flatten_optimizer` back into an optimizer of the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
