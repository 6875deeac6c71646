"""The client's reward of a run or of scores: per level and mixture, at 0.5 and at a threshold fitted on val_select.

Of a folder with a policy it is the reward of what the detector answers (without a stage 2): exits keep the side that
the policy gave them, the threshold decides the other rows. Of bare scores the threshold decides every row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict

from stage1.commands.scores import checked_values
from stage1.errors import ConfigError, DataError, MissingError
from stage1.policy import Policy, has_policy_file, load_policy, reported
from stage1.scores import Scores, read_role, read_scores
from stage1.stages.reporting import SCORES_FILE
from stage1.storage.documents import Document, DocumentKind, finite_or_none, write_document
from stage1.storage.fields import Count, PositiveInt, Rate, Share
from stage1.streetvision.classes import require_order
from stage1.streetvision.reward import DEFAULT, OPEN, LevelRates, LevelReward, reward_threshold, simulated

REWARD_FILE = "reward.json"
LEVEL = "level"
# After so many answers the moving average has forgotten where it started (.95^900 is 1e-20), and 400 of them place its
# 2.5 % and 97.5 % points within about a tenth of their distance.
_ANSWERS, _RUNS = 1000, 400


class FittedThreshold(TypedDict):
    """The threshold fitted on val_select."""

    role: Literal["val_select"]
    rows: Annotated[int, Field(ge=2)]
    modelled_reward: Share


class RewardGain(TypedDict):
    """Reward at the fitted threshold less that at 0.5, with its interval."""

    value: float
    low: float | None
    high: float | None
    verdict: Literal["better", "worse", "not shown"]


class RewardRow(TypedDict):
    """One level of difficulty, or the mixture."""

    level: str
    positives: PositiveInt
    negatives: PositiveInt
    tpr: Share
    fpr: Share
    mcc: Annotated[float, Field(ge=-1, le=1)]
    accuracy: Share
    reward: Share
    low: float | None
    high: float | None


class RewardTable(TypedDict):
    """The levels at one threshold. score_spread: where the client's moving average lies, low and high."""

    threshold: Rate
    score_spread: Annotated[list[float], Field(min_length=2, max_length=2)]
    rows: Annotated[list[RewardRow], Field(min_length=1)]


class RewardDocument(Document):
    """The client's reward of a run or of scores, per level and mixture."""

    source: str
    role: str
    scale: str
    prior: Rate
    level: Rate
    resamples: PositiveInt
    groups: PositiveInt | None
    rows: Annotated[int, Field(ge=2)]
    exits: Count | None
    """Rows whose answer no threshold moves, as they exit; null: no policy."""
    decision_threshold: Rate | None
    fitted: FittedThreshold | None
    gain: RewardGain | None
    tables: Annotated[list[RewardTable], Field(min_length=1)]


REWARD_KIND = DocumentKind("reward", RewardDocument)


@dataclass(frozen=True, slots=True)
class Rows:
    """scores: softmax is the stated probability. exits: int [N] as LevelRates takes them, None: no policy."""

    scores: Scores
    exits: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """select: rows of val_select, or None. test: rows to judge by, of `role`. scale: whose probabilities they are."""

    select: Rows | None
    test: Rows
    role: str
    scale: str


def kept_sides(policy: Policy, scores: Scores) -> NDArray[np.int64]:
    """Of raw scores, [N]: the class as which a row exits, which the detector keeps; OPEN where it defers."""
    decision = policy.decide(scores)
    return np.where(decision.exit, decision.label, OPEN).astype(np.int64)


def reward(
    source: Path,
    *,
    level_column: str | None = None,
    values: str | None = None,
    columns: Mapping[str, str] | None = None,
    prior: float = 0.5,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    exits: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The document reward.json (no schema_version) of a run directory, of `calibrate --scores`, or of a score file.

    level_column: the slice (or, in a file, the column) that holds the level; None: `level` where there is one, else all
    rows are one level. Of a folder with a policy exits keep their side and the probabilities are those that the policy
    states, which is what the detector answers; of a file they are those of the scores. prior: P(class 1) where the
    client draws.
    exits: False: the threshold decides every row of a folder too, as in the stock folder of `export --to hf`.
    Raises MissingError, ConfigError (also classes in the other order), DataError (no labels, more than two classes, no
    such level column).
    """
    if not 0.0 < prior < 1.0:
        raise ConfigError(f"--prior {prior:g}: P(class 1) between 0 and 1 is needed, 0.5 for the client")
    if resamples < 1:
        raise ConfigError(f"--resamples {resamples}: give 1 or more (1000 is usual)")
    judged = _read_folder(source) if source.is_dir() else _read_file(source, values, columns or {}, level_column, say)
    test = judged.test.scores
    kept, kept_select = (rows.exits if rows is not None and exits else None for rows in (judged.test, judged.select))
    rates = LevelRates(
        _positive(test),
        test.known_labels,
        _levels(test, level_column, source),
        test.groups,
        exits=kept,
        resamples=resamples,
        seed=seed,
    )
    chosen, fitted, gain = None, None, None
    if judged.select is not None:
        select = judged.select.scores
        chosen, modelled = reward_threshold(
            _positive(select), select.known_labels, _levels(select, level_column, source), prior, kept_select
        )
        fitted = {"role": "val_select", "rows": len(select), "modelled_reward": modelled}
        found = asdict(rates.gain(chosen, prior, level))
        gain = {**found, "low": finite_or_none(found["low"]), "high": finite_or_none(found["high"])}
    groups = test.groups
    return {
        "source": source.name,
        "role": judged.role,
        "scale": judged.scale,
        "prior": prior,
        "level": level,
        "resamples": resamples,
        "groups": None if groups is None else len(np.unique(groups)),
        "rows": len(test),
        "exits": None if kept is None else int((kept != OPEN).sum()),
        "decision_threshold": chosen,
        "fitted": fitted,
        "gain": gain,
        "tables": [
            _table(rates, threshold, prior, level, seed)
            for threshold in dict.fromkeys([DEFAULT, *([] if chosen is None else [chosen])])
        ],
    }


def write_reward(document: dict[str, Any], path: Path) -> None:
    """Write reward.json; the detector takes its `decision_threshold` as a key of its own config."""
    write_document(path, document, REWARD_KIND)


def reward_lines(document: dict[str, Any]) -> list[str]:
    """The document as tables for people."""
    groups = "" if document["groups"] is None else f", {document['groups']} groups"
    lines = [
        f"{document['role']} of {document['source']}{groups}; labels at P(class 1) = {document['prior']:g};"
        f" {document['scale']}"
    ]
    rows, exits = document["rows"], document["exits"]
    if exits is not None:
        lines.append(
            f"{exits} of {rows} rows exit: they keep their side whatever the threshold, as in the detector; it decides"
            f" the other {rows - exits} (no stage 2 is asked)"
        )
    which = "answers" if exits is None else "of the rows that do not exit, answers"
    for table in document["tables"]:
        lines += [
            "",
            f"{which} above {table['threshold']:.4f} say class 1",
            f"{'level':<10}{'pos':>6}{'neg':>6}{'TPR':>8}{'FPR':>8}{'MCC':>8}"
            + f"{'acc':>8}{'reward':>9}{'low':>8}{'high':>8}",
            *(_line(row) for row in table["rows"]),
            "{:.0%} of the time a miner's moving average lies in {:.3f} .. {:.3f}".format(0.95, *table["score_spread"]),
        ]
    if document["gain"] is None:
        return [*lines, "", "no rows of val_select: no threshold was fitted"]
    gain = document["gain"]
    interval = "" if gain["low"] is None else f" [{gain['low']:+.4f}, {gain['high']:+.4f}]"
    return [
        *lines,
        "",
        (
            f"threshold {document['decision_threshold']:.4f} fitted on {document['fitted']['rows']} rows of val_select;"
            f" on {document['role']} it brings {gain['value']:+.4f}{interval}: {gain['verdict']}"
        ),
        f"for the detector's config:  decision_threshold: {document['decision_threshold']:.6g}",
    ]


def _line(row: dict[str, Any]) -> str:
    low, high = ("-" if row[key] is None else f"{row[key]:.3f}" for key in ("low", "high"))
    return (
        f"{row['level']:<10}{row['positives']:>6}{row['negatives']:>6}{row['tpr']:>8.4f}{row['fpr']:>8.4f}"
        f"{row['mcc']:>8.3f}{row['accuracy']:>8.4f}{row['reward']:>9.3f}{low:>8}{high:>8}"
    )


def _table(rates: LevelRates, threshold: float, prior: float, level: float, seed: int) -> dict[str, Any]:
    rows = rates.table(threshold, prior, level)
    ends = simulated(rows[-1].tpr, rows[-1].fpr, prior=prior, answers=_ANSWERS, runs=_RUNS, seed=seed)
    return {
        "threshold": threshold,
        "rows": [_document(row) for row in rows],
        "score_spread": [float(end) for end in np.quantile(ends, [0.025, 0.975])],
    }


def _document(row: LevelReward) -> dict[str, Any]:
    return {**asdict(row), "low": finite_or_none(row.low), "high": finite_or_none(row.high)}


# ---- input -------------------------------------------------------------------------------------------------------


def _read_folder(folder: Path) -> Judged:
    policy = load_policy(folder) if has_policy_file(folder) else None
    scale = (
        "probabilities of the scores (no policy file)" if policy is None else "probabilities as the policy states them"
    )
    if policy is not None:
        require_order(policy.classes, str(folder))
    if (folder / SCORES_FILE).is_file():
        scores, roles = read_scores(folder / SCORES_FILE)
        judged = _by_role(scores, None if roles is None else roles.astype(np.str_), folder / SCORES_FILE, scale)
    elif (folder / "bundle.json").is_file():
        raise MissingError(f"{folder}: a bundle holds no scores of val_test; give the run directory, or a score file")
    else:
        select, test = (Rows(read_role(folder, role)) for role in ("val_select", "val_test"))
        judged = Judged(select, test, "val_test", scale)
    if policy is None:
        return judged
    chosen_on = None if judged.select is None else _answered(policy, judged.select.scores)
    return Judged(chosen_on, _answered(policy, judged.test.scores), judged.role, scale)


def _answered(policy: Policy, scores: Scores) -> Rows:
    return Rows(reported(policy, scores), kept_sides(policy, scores))


def _read_file(
    path: Path, values: str | None, columns: Mapping[str, str], level_column: str | None, say: Callable[[str], None]
) -> Judged:
    kind, wanted = checked_values(values), level_column or LEVEL
    scores, roles = read_scores(path, values=kind, columns=columns, slices=(wanted,), say=say)
    if level_column is not None and wanted not in scores.slices:
        raise DataError(f"{path}: no column {wanted!r} (given for level); name a column that it has")
    return _by_role(scores, roles, path, "probabilities of the scores")


def _by_role(scores: Scores, roles: Any, path: Path, scale: str) -> Judged:
    if roles is None:
        return Judged(None, Rows(scores), "all rows", scale)
    select, test = (scores.take(roles == role) for role in ("val_select", "val_test"))
    if not len(test):
        raise DataError(f"{path}: no row has the role val_test; the reward is judged on these")
    return Judged(Rows(select) if len(select) else None, Rows(test), "val_test", scale)


def _positive(scores: Scores) -> Any:
    if scores.n_classes != 2:
        raise DataError(f"logits: {scores.n_classes} classes; the client's reward is for two")
    return scores.probabilities[:, 1]


def _levels(scores: Scores, level_column: str | None, source: Path) -> Any:
    if level_column is None:
        return scores.slices.get(LEVEL)
    if level_column not in scores.slices:
        raise DataError(f"{source}: no slice {level_column!r}; it has {', '.join(sorted(scores.slices)) or 'none'}")
    return scores.slices[level_column]
