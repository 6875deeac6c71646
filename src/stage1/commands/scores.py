"""calibrate and evaluate on scores of any model, without images and without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage1.bundle.manifest import CALIBRATION, SELECTION
from stage1.config import RunConfig, to_yaml
from stage1.errors import ConfigError, DataError
from stage1.policy import Policy, load_policy
from stage1.policy.ledger import LEDGER_FILE, Ledger, file_beside, files_beside, folders_beside, scores_digest
from stage1.scores import ROLES, Scores, Values, read_ids, read_scores, write_scores
from stage1.scores.roles import hashed_roles
from stage1.stages.calibrate import save_policy
from stage1.stages.evaluate import write_evaluation
from stage1.stages.fitting import fit_configured
from stage1.stages.label_shift import shift_of_files
from stage1.stages.reporting import OPTIONS_FILE, SCORES_FILE
from stage1.storage.files import leaving_no_trace, locked, write_text

_SPLIT_ROLES = ROLES[1:]


class Calibrated(NamedTuple):
    """calib: the rows of val_calib, which need not be read again to be looked at."""

    policy: Policy
    calib: Scores


def calibrate_scores(
    path: Path,
    folder: Path,
    *,
    config: RunConfig,
    values: str | None,
    columns: Mapping[str, str],
    shares: str,
    say: Callable[[str], None] = lambda text: None,
) -> Calibrated:
    """Certify on rows of val_calib; writes policy, calibration.json, certificate.json, scores.parquet, options.yaml and
    attempts.json.

    The roles come from the file, or from hash(seed, group or id or row number) by `shares`: the same file gives the
    same roles. Raises ConfigError, DataError, MissingError; an uncertifiable target is a policy that defers everything.
    """
    scores, roles = read_scores(
        path,
        values=checked_values(values),
        columns=columns,
        classes=config.data.classes,
        slices=config.data.slices,
        say=say,
    )
    _refuse_missing_slices(path, scores, config.data.slices)
    config = config.for_classes(scores.n_classes)  # the options that are written name the target
    if roles is None:
        roles = hashed_roles(scores, _SPLIT_ROLES, _shares(shares), config.split.seed)
    if not (roles == "val_calib").any():
        raise DataError(f"{path}: no row has the role val_calib; the certificate is made of these")
    select, calib = (scores.take(roles == role) for role in ("val_select", "val_calib"))
    with leaving_no_trace(folder), locked(folder):
        policy = fit_configured(
            config,
            select=select,
            calib=calib,
            classes=config.data.classes or class_names(scores.n_classes),
            say=say,
            ledger=_ledger(path, folder, say),
            of={"scores": scores_digest(calib, select)},
        )
        write_scores(folder / SCORES_FILE, scores, roles)
        # What was asked for: with the scores and their roles, all that it takes to make the certificate again.
        write_text(folder / OPTIONS_FILE, to_yaml(config))
        save_policy(folder, policy)
    return Calibrated(policy, calib)


def _refuse_missing_slices(path: Path, scores: Scores, wanted: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in scores.slices]:
        there = ", ".join(scores.slices) or "none"
        raise DataError(
            f"{path}: data.slices names {missing[0]!r}, and no column is called slice_{missing[0]} or {missing[0]}"
            f" (attributes that it has: {there}); name the column with --columns slice_{missing[0]}=COLUMN"
        )


def _ledger(path: Path, folder: Path, say: Callable[[str], None]) -> Ledger:
    """Looks known in the output folder, in its siblings, and beside the score file, which gets a copy."""
    if not path.is_file():  # a pipe has no place
        return Ledger(folder / LEDGER_FILE, others=folders_beside(folder), say=say)
    return Ledger(
        folder / LEDGER_FILE,
        others=[*folders_beside(folder), *files_beside(path)],
        copies=[file_beside(path)],
        say=say,
    )


def evaluate_scores(
    path: Path,
    policy_folder: Path,
    folder: Path,
    *,
    config: RunConfig,
    values: str | None,
    columns: Mapping[str, str],
    target: Path | None = None,
    target_values: str | None = None,
    target_columns: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Metrics of the rows of val_test (of all rows, where the file has no roles) under a policy; evaluation.json, CSV.

    target: unlabelled scores of the same model elsewhere; the section `label_shift` then restates everything there, and
    at config.target_prior (or the one the certificate is for). target_values, target_columns: as the labelled file's
    where not given. Raises DataError where no row is left, labels are missing, or rows were used to make the policy.
    """
    policy = load_policy(policy_folder)
    asked = policy.certificate.slices_asked if policy.certificate else ()
    scores, roles = read_scores(
        path, values=checked_values(values), columns=columns, classes=policy.classes, slices=asked, say=say
    )
    rows = {} if roles is None else {role: scores.take(roles == role) for role in ("val_select", "val_calib")}
    if roles is not None:
        scores = scores.take(roles == "val_test")
    if len(scores) == 0:
        raise DataError(f"{path}: no row has the role val_test; nothing to evaluate on")
    refuse_used_rows(scores, policy_folder, str(path))
    targets = {name: risk.target for name, risk in policy.certificate.risks.items()} if policy.certificate else {}
    prior = config.target_prior
    if prior is None and policy.certificate is not None:
        prior = policy.certificate.target_prior
    unlabelled = None
    if target is not None:
        unlabelled, _ = read_scores(
            target,
            values=checked_values(target_values or values),
            classes=policy.classes,
            columns=columns if target_columns is None else target_columns,
            say=say,
        )
    shift = shift_of_files(unlabelled, prior, rows=rows, policy_folder=policy_folder, test=scores)
    with locked(folder):
        _, document = write_evaluation(
            folder,
            scores,
            policy,
            targets=targets,
            paths=None,
            resamples=config.evaluation.resamples,
            level=config.evaluation.level,
            seed=config.seed,
            shift=shift,
        )
    return document


def refuse_used_rows(scores: Scores, policy_folder: Path, where: str) -> None:
    """Raises DataError where rows of `scores` helped to make the policy: by their ids, else by being the same file.

    What was used is kept beside the policy: scores.parquet of `calibrate --scores`, calibration.parquet and
    selection.parquet of a bundle, the ids of a run directory.
    """
    used, seen = _used(policy_folder)
    if scores.ids is not None and used:
        again = [name for name in scores.ids.tolist() if name in used]
        if again:
            raise DataError(
                f"{where}: {len(again)} of {len(scores)} rows (the first is id {again[0]!r}) were used to make the"
                f" policy in {policy_folder}; evaluate on rows that it has not seen, such as those of role val_test"
            )
    elif seen is not None and np.array_equal(scores.logits, seen):
        raise DataError(
            f"{where}: these are the {len(seen)} rows that the policy in {policy_folder} was made on; evaluate on"
            f" others, or on {policy_folder / SCORES_FILE}, whose roles say which are left for the test"
        )


def _used(folder: Path) -> tuple[set[str], NDArray[np.float64] | None]:
    """(ids of train, val_select and val_calib as kept beside the policy; all logits of a score file)."""
    used: set[str] = set()
    if (folder / SCORES_FILE).is_file():
        kept, roles = read_scores(folder / SCORES_FILE)
        if kept.ids is not None and roles is not None:
            used.update(kept.ids[roles != "val_test"].tolist())
        return used, kept.logits
    for name in (CALIBRATION, SELECTION):
        if (folder / name).is_file() and (ids := read_scores(folder / name)[0].ids) is not None:
            used.update(ids.tolist())
    for role in ("val_select", "val_calib"):
        if (folder / f"{role}_ids.json").is_file():
            used.update(read_ids(folder, role) or ())
    return used, None


def class_names(n_classes: int) -> tuple[str, ...]:
    """Names where the config gives none: two classes are negative and positive, more are named by their numbers."""
    return ("negative", "positive") if n_classes == 2 else tuple(str(index) for index in range(n_classes))


def _shares(text: str) -> tuple[float, float, float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--shares {text}: three numbers are needed, e.g. 0.1,0.6,0.3") from error
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"--shares {text}: three shares that sum to 1 are needed, e.g. 0.1,0.6,0.3")
    return shares[0], shares[1], shares[2]


def checked_values(text: str | None) -> Values | None:
    """`text` as one of the two kinds of values; None stays None: the file says it. Raises ConfigError otherwise."""
    if text is None:
        return None
    if text not in ("logits", "probabilities"):
        raise ConfigError(f"--values {text}: say logits or probabilities; it is never guessed")
    return "logits" if text == "logits" else "probabilities"
