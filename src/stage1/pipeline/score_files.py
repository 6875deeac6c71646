"""calibrate and evaluate on scores of any model, without images and without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.config import RunConfig
from stage1.errors import ConfigError, DataError
from stage1.files import locked
from stage1.pipeline.certify_stages import save_policy, write_evaluation
from stage1.pipeline.fitting import fit_configured
from stage1.policy import Policy, load_policy
from stage1.scores import ROLES, Scores, Values, read_scores, write_scores

_SPLIT_ROLES = ROLES[1:]


def calibrate_scores(
    path: Path,
    folder: Path,
    *,
    config: RunConfig,
    values: str,
    columns: Mapping[str, str],
    shares: str,
    say: Callable[[str], None] = lambda text: None,
) -> Policy:
    """Certify on the rows of val_calib; writes the policy file, certificate.json and scores.parquet (with roles).

    The roles come from the file, or from hash(seed, group or id or row number) by `shares`: the same file gives the same
    roles. Raises ConfigError, DataError, MissingError; an uncertifiable target is a policy that defers everything.
    """
    scores, roles = read_scores(path, values=checked_values(values), columns=columns)
    if roles is None:
        roles = hashed_roles(scores, _shares(shares), config.split.seed)
    if not (roles == "val_calib").any():
        raise DataError(f"{path}: no row has the role val_calib; the certificate is made of these")
    policy = fit_configured(
        config, select=scores.take(roles == "val_select"), calib=scores.take(roles == "val_calib"),
        classes=config.data.classes or ("negative", "positive"), say=say,
    )  # fmt: skip
    with locked(folder):
        write_scores(folder / "scores.parquet", scores, roles)
        save_policy(folder, policy)
    return policy


def evaluate_scores(
    path: Path, policy_folder: Path, folder: Path, *, config: RunConfig, values: str, columns: Mapping[str, str]
) -> dict[str, Any]:
    """Metrics of the rows of val_test (of all rows, where the file has no roles) under a policy; evaluation.json, CSV.

    Raises DataError where no row is left or labels are missing.
    """
    scores, roles = read_scores(path, values=checked_values(values), columns=columns)
    policy = load_policy(policy_folder)
    if roles is not None:
        scores = scores.take(roles == "val_test")
    if len(scores) == 0:
        raise DataError(f"{path}: no row has the role val_test; nothing to evaluate on")
    targets = {name: risk.target for name, risk in policy.certificate.risks.items()} if policy.certificate else {}
    with locked(folder):
        _, document = write_evaluation(
            folder, scores, policy, targets=targets, paths=None, resamples=config.evaluation.resamples,
            level=config.evaluation.level, seed=config.seed,
        )  # fmt: skip
    return document


def hashed_roles(scores: Scores, shares: tuple[float, float, float], seed: int) -> NDArray[np.str_]:
    """A role for each row: where hash(seed, unit) falls on [0, 1); the unit is the group, else the id, else the row number."""
    if scores.groups is not None:
        units = scores.groups
    elif scores.ids is not None:
        units = scores.ids
    else:
        units = np.arange(len(scores)).astype(np.str_)
    places = np.array(
        [int.from_bytes(hashlib.sha256(f"{seed}|{unit}".encode()).digest()[:8]) / 2**64 for unit in units.tolist()]
    )
    return np.array(_SPLIT_ROLES)[np.searchsorted(np.cumsum(shares)[:2], places, side="right")]


def _shares(text: str) -> tuple[float, float, float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--shares {text}: three numbers are needed, e.g. 0.1,0.6,0.3") from error
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"--shares {text}: three shares that sum to 1 are needed, e.g. 0.1,0.6,0.3")
    return shares[0], shares[1], shares[2]


def checked_values(text: str) -> Values:
    """`text` as one of the two kinds of values. Raises ConfigError for anything else."""
    if text not in ("logits", "probabilities"):
        raise ConfigError(f"--values {text}: say logits or probabilities; it is never guessed")
    return "logits" if text == "logits" else "probabilities"
