"""What `train` does where the head is a choice: choose it out of fold, fit it, score val_select out of fold."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import DataError, IntegrityError
from stage1.runs.directory import RunDir
from stage1.runs.schema import TRAIN_KIND
from stage1.runs.stage import Context
from stage1.scores import Scores, read_scores, write_scores
from stage1.storage.documents import finite_or_none, read_document, write_document
from stage1.storage.files import digest_file

if TYPE_CHECKING:
    from stage1.config import RunConfig
    from stage1.data.table import SampleTable
    from stage1.training.head_selection import Fitted, Pool, Selection

OUT_OF_FOLD = "val_select_out_of_fold.npz"


def choose_head(run: RunDir, context: Context, pool: Pool) -> tuple[dict[str, Any], Selection | None]:
    """What train.json says of the choice, and the selection; None where head.kind=auto is the linear head by Adam."""
    from stage1.training.head_selection import select_head, why_none_fitted

    config = run.config
    asked = config.head.kind == "logistic"
    reason = why_none_fitted(pool, asked=asked)
    if reason is not None:
        if asked:
            raise DataError(f"head.kind=logistic: {reason}; its strength is chosen in folds, set head.kind=linear")
        context.progress.say(f"  head: linear, not chosen: {reason}")
        return {"kind": "linear", "skipped": reason, "refit": False}, None
    begun = time.process_time()
    found = select_head(
        pool, config=config.train, head=config.head, seed=config.seed, compare_adam=not asked, stop=context.stop
    )
    refit = found.kind == "logistic" and config.train.refit is not False and config.views.policy is None
    facts: dict[str, Any] = {
        "kind": found.kind,
        "refit": refit,
        "folds": found.folds,
        "images": found.images,
        "strength": found.best.strength,
        "scale": found.best.scale,
        "logistic": [
            {"strength": row.strength, "scale": row.scale, "augrc": row.metrics.augrc, "nll": row.metrics.nll}
            for row in found.logistic
        ],
        "adam": [
            {
                "kind": row.kind,
                "augrc": row.metrics.augrc,
                "nll": row.metrics.nll,
                "images": row.images,
                "difference": row.difference,
                "error": finite_or_none(row.error),
            }
            for row in found.adam
        ],
    }
    context.progress.say(f"  head: {_named(found)}; {time.process_time() - begun:.0f} CPU s")
    return facts, found


def _named(found: Selection) -> str:
    best = found.best
    logistic = f"logistic, strength {best.strength:.3g}, {best.scale} scale, AUGRC {best.metrics.augrc:.5f} out of fold"
    against = "".join(f", {row.kind} {row.difference:+.5f} (standard error {row.error:.5f})" for row in found.adam)
    chosen = "" if found.kind == "logistic" else f"{found.kind} ships, better by more than the standard error; "
    return f"{chosen}{logistic} of {found.images} images{against}"


def fit_head(
    run: RunDir, context: Context, pool: Pool, table: SampleTable, facts: dict[str, Any], found: Selection
) -> list[Path]:
    """model_best.pth, train.json and, after a refit on train + val_select, the scores of val_select out of fold."""
    from stage1.model.head import BEST_WEIGHTS, save_weights
    from stage1.training.head_selection import fit_chosen
    from stage1.training.selection import select_metrics

    config = run.config
    fitted = fit_chosen(
        pool, found.best, class_weights=config.train.class_weights, seed=config.seed, refit=facts["refit"]
    )
    labels = pool.labels[pool.select]
    metrics = select_metrics(fitted.select_logits, labels)
    save_weights(run / BEST_WEIGHTS, fitted.head.state_dict())
    written = [run / BEST_WEIGHTS, run / "train.json"]
    if facts["refit"]:
        written.append(_write_scores(run, fitted, table))
        facts = {**facts, "scoring_folds": fitted.folds, "out_of_fold": digest_file(run / OUT_OF_FOLD)}
        context.progress.say(
            f"  fitted again on train and val_select; val_select is scored out of {fitted.folds} folds: AUGRC"
            f" {metrics.augrc:.5f}, NLL {metrics.nll:.4f}"
        )
    write_document(
        run / "train.json",
        {
            "best_epoch": 0,
            "best_metric": getattr(metrics, config.train.select_by),
            "select_by": config.train.select_by,
            "used_ema": False,
            "epochs_run": 0,
            "metrics": metrics.to_json(),
            "choice": facts,
        },
        TRAIN_KIND,
    )
    return written


def _write_scores(run: RunDir, fitted: Fitted, table: SampleTable) -> Path:
    rows = table.rows("val_select")
    scores = Scores(fitted.select_logits.astype(np.float64), labels=table.labels[rows], ids=table.ids[rows])
    write_scores(run / OUT_OF_FOLD, scores)
    return run / OUT_OF_FOLD


def out_of_fold_scores(run: RunDir, ids: NDArray[np.str_]) -> NDArray[np.float32] | None:
    """Logits float32 [M, K] of these images of val_select, in their order; None where the shipped head never saw them.

    Raises IntegrityError where the file is not the one that train.json names, or of other images.
    """
    if not run.config.head.fitted_once:
        return None
    choice = read_document(run / "train.json", TRAIN_KIND).get("choice") or {}
    if not choice.get("refit"):
        return None
    path = run / OUT_OF_FOLD
    if not path.is_file() or digest_file(path) != choice["out_of_fold"]:
        raise IntegrityError(f"{path}: is not the file that train.json names; run `stage1 train` again")
    scores, _ = read_scores(path)
    if scores.ids is None or scores.ids.tolist() != ids.tolist():
        raise IntegrityError(f"{path}: is of other images than val_select; run `stage1 train` again")
    return scores.logits.astype(np.float32)


def head_in_words(run: RunDir) -> str:
    """The kind of the head that ships, and what it was fitted on where that was chosen."""
    if not run.config.head.fitted_once:
        return f"{run.config.head.kind} head"
    choice = read_document(run / "train.json", TRAIN_KIND).get("choice") or {"kind": "linear"}
    if choice["kind"] != "logistic":
        return f"{choice['kind']} head"
    words = f"logistic head (strength {choice['strength']:.3g}, {choice['scale']} scale)"
    return f"{words}, fitted on train and val_select" if choice["refit"] else words


def choice_file(config: RunConfig) -> str:
    """train.json where it says which head was chosen, or ""."""
    return "train.json" if config.head.fitted_once else ""
