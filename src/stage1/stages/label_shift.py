"""Label shift: what a policy does where the classes have other shares, stated or found in unlabelled scores.

Which rows are for what (they never overlap, but in the last line):

| what | rows | why |
|---|---|---|
| kind of calibration map | val_select | chosen by cross-validated NLL, `choose_map` |
| the map itself, the confusion of bbse | val_calib | chose no model and no map; refitted in every replicate |
| rates within each class, pooled metrics | val_test | as in the rest of evaluation.json |
| all three, where nothing else is labelled | the rows evaluated | the document says so (`source.role`) |

The labels of val_calib are read after the certificate is written; no certificate is made from what is found here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stage1.calibration import CalibrationMap, Choice, Platt, Temperature, Vector, choose_map
from stage1.errors import ConfigError, DataError, MissingError
from stage1.evaluation.intervals import measured
from stage1.evaluation.label_shift import (
    FEWEST_GROUPS,
    Method,
    PriorEstimate,
    checked_shares,
    estimate_prior,
)
from stage1.evaluation.ranking import FloatArray
from stage1.evaluation.restate import ClassCounts, restated_interval, restated_metrics
from stage1.evaluation.summary import confidence_of, pooled_metrics
from stage1.policy import Certificate, Policy, decided_on, reported
from stage1.risk.risks import risk_of
from stage1.runs.directory import RunDir
from stage1.scores import Scores, Values, read_role, read_scores, write_scores
from stage1.storage.files import digest_file

TARGET_FILE = "target_scores.parquet"
NOT_TESTABLE = (
    "Label shift is an assumption: that scores within a class are as they were, and only the shares of the classes"
    " differ. Nothing here can test it; a few labelled rows of the target can."
)


@dataclass(frozen=True, slots=True)
class Shift:
    """What is known of the target. scores: unlabelled, or None. prior: stated P(class 1), or None.

    source: labelled rows of the old balance, of the role `role`; select: labelled rows for the choice of the map, or
    None:
    the source itself.
    """

    scores: Scores | None
    prior: float | None
    source: Scores
    role: str
    select: Scores | None


def label_shift(
    test: Scores, policy: Policy, shift: Shift, *, resamples: int = 500, level: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """The section `label_shift` of evaluation.json: priors of the target, and everything pooled restated at each.

    test: labelled rows under the policy. Estimates: bbse and mlls from shift.scores, stated from shift.prior. Coverage
    and error have exact intervals where rows are independent (`restated_interval`), over groups where they repeat (null
    where nothing was wrong); metrics are bootstrapped. All carry the uncertainty of the estimate.
    Raises ConfigError (nothing given; a stated prior for K > 2), DataError (another number of classes, a class
    missing).
    """
    if shift.scores is None and shift.prior is None:
        raise ConfigError("label shift: give --target FILE with unlabelled scores, or target_prior=0.5")
    names, k = list(policy.classes), test.n_classes
    if shift.prior is not None and k != 2:
        raise ConfigError(
            f"target_prior: {shift.prior:g} is P(class 1) of two classes, these are {k}; use --target FILE"
        )
    found: list[tuple[str, FloatArray, PriorEstimate | None]] = []
    notes: list[str] = []
    chosen: dict[str, Any] | None = None
    agree: bool | None = None
    if shift.scores is not None:
        choice = choose_map(shift.source if shift.select is None else shift.select, seed=seed)
        fitted, chosen = _map_for_shares(choice, shift.source)
        estimates: dict[str, PriorEstimate] = {}
        for method in ("mlls", "bbse"):
            try:
                estimates[method] = _estimate(shift, method, fitted, resamples, level, seed)
            except DataError as error:
                if "replicates" not in str(error) and "singular" not in str(error):
                    raise
                notes.append(f"No estimate by {method}: {error}.")
        found += [(method, np.array(one.prior), one) for method, one in estimates.items()]
        if few := [one.units for one in estimates.values() if one.low is None]:
            notes.append(
                f"No interval of the shares, nor of what is restated at them: {min(few)} groups, {FEWEST_GROUPS} are"
                " needed for one that covers."
            )
        if len(estimates) == 2:
            agree = estimates["mlls"].agrees_with(estimates["bbse"])
            if agree is False:
                notes.append(
                    "mlls and bbse disagree by more than chance: the calibration map is off (then bbse is the"
                    " better), or scores within a class have changed (then neither holds). Label some rows of the"
                    " target."
                )
    if shift.prior is not None:
        found.append(("stated", checked_shares(shift.prior, "target_prior", k), None))
    decision = policy.decide(test)
    ranked = decided_on(
        policy, test
    )  # as in the rest of evaluation.json: the mapped score where the thresholds are on it
    metrics = pooled_metrics(ranked, decision.exit, decision.label, names, reported(policy, test))
    counts = ClassCounts.counted(decision.exit, decision.label, test.known_labels, k)
    grouped = test.groups is not None and len(np.unique(test.groups)) < len(test)
    wrong = ranked.logits.argmax(axis=1) != test.known_labels

    def restated(method: str, prior: FloatArray, estimate: PriorEstimate | None) -> dict[str, Any]:
        replicates = None if estimate is None else estimate.replicates
        intervals = restated_metrics(
            metrics,
            confidence=confidence_of(ranked),
            residuals=wrong,
            labels=test.known_labels,
            groups=test.groups if grouped else None,
            prior=prior,
            replicates=replicates,
            n_resamples=resamples,
            level=level,
            seed=seed,
        )
        exact = restated_interval(prior if replicates is None else replicates, counts, level)
        shown = {name: measured(interval) for name, interval in intervals.items()}
        for name, ends, events in (("coverage", exact[0], counts.exits), ("error", exact[1], counts.errors)):
            if not grouped:
                known = shown[name]["value"] is not None
                shown[name] |= {"low": ends[0] if known else None, "high": ends[1] if known else None}
                shown[name].pop("note", None)
            elif not any(events):  # a bootstrap over groups knows nothing where nothing happened
                shown[name] |= {"low": None, "high": None}
        if estimate is not None and estimate.low is None:
            for numbers in shown.values():
                numbers |= {"low": None, "high": None}
        return {
            "method": method,
            "prior": _by_class(names, prior),
            "low": None if estimate is None or estimate.low is None else _by_class(names, estimate.low),
            "high": None if estimate is None or estimate.high is None else _by_class(names, estimate.high),
            "coverage": shown.pop("coverage"),
            "error": shown.pop("error"),
            "metrics": shown,
        }

    stays, moves = _certified_risks(policy.certificate)
    return {
        "source": {"role": shift.role, "n": len(shift.source), "shares": _shares_of(shift.source, names)},
        "test": {"n": len(test), "shares": _shares_of(test, names)},
        "target": None if shift.scores is None else {"n": len(shift.scores)},
        "map": chosen,
        "level": level,
        "resamples": resamples,
        "intervals": "over groups" if grouped else "exact, conservative",
        "estimates": [restated(*one) for one in found],
        "agree": agree,
        "stays": stays,
        "moves": moves,
        "notes": [*notes, *_words(policy.certificate, stays, moves), NOT_TESTABLE],
    }


def shift_lines(document: Mapping[str, Any]) -> list[str]:
    """The section as lines for people: one row for each estimate, then what follows."""
    classes = list(document["test"]["shares"])
    shown = classes[1:] if len(classes) == 2 else classes
    width = max(12, *(len(f"P({name})") + 2 for name in shown))

    def cell(row: Mapping[str, Any]) -> str:
        if row["value"] is None:
            return "-"
        return f"{row['value']:.4f}" + ("" if row["low"] is None else f" [{row['low']:.4f}, {row['high']:.4f}]")

    lines = [f"{'at':<16}{'class':<{width}}{'share':<26}{'coverage':<26}{'error':<26}"]
    for row in document["estimates"]:
        for index, name in enumerate(shown):
            share = {
                "value": row["prior"][name],
                "low": row["low"] and row["low"][name],
                "high": row["high"] and row["high"][name],
            }
            rest = f"{cell(row['coverage']):<26}{cell(row['error']):<26}" if index == 0 else ""
            lines.append(
                f"{row['method'] if index == 0 else '':<16}{f'P({name})':<{width}}{cell(share):<26}{rest}".rstrip()
            )
    return [*lines, *document["notes"]]


# ---- where the rows come from ------------------------------------------------------------------------------------


def adopt_target(
    folder: Path,
    file: Path,
    *,
    values: Values | None,
    columns: Mapping[str, str],
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Copy unlabelled scores into a run directory as target_scores.parquet; the stage `evaluate` then restates at them.

    Labels that the file may hold are dropped. Raises MissingError where folder is no run directory.
    """
    if not (folder / "certificate.json").is_file():
        raise MissingError(f"{folder}: not a calibrated run; run `stage1 calibrate {folder}` first")
    scores, _ = read_scores(file, values=values, columns=columns, say=say)
    write_scores(folder / TARGET_FILE, Scores(logits=scores.logits, groups=scores.groups, ids=scores.ids))
    return folder / TARGET_FILE


def target_state(run: RunDir) -> str:
    """Digest of the target's scores, "" where there are none: part of what the stage `evaluate` depends on."""
    file = run / TARGET_FILE
    return digest_file(file) if file.is_file() else ""


def shift_of_run(run: RunDir) -> Shift | None:
    """What a run directory knows of its target; None where nothing."""
    file = run / TARGET_FILE
    scores = read_scores(file)[0] if file.is_file() else None
    if scores is None and run.config.target_prior is None:
        return None
    source, select = read_role(run.path, "val_calib"), read_role(run.path, "val_select")
    return Shift(scores, run.config.target_prior, source, "val_calib", select if len(select) else None)


def shift_of_files(
    target: Scores | None, prior: float | None, *, rows: Mapping[str, Scores], policy_folder: Path, test: Scores
) -> Shift | None:
    """The same for scores of any model. rows: role -> labelled rows of the evaluated file, where it has roles.

    Else the scores.parquet that `calibrate --scores` left beside the policy is the source, else the evaluated rows.
    """
    if target is None and prior is None:
        return None
    if not _labelled(rows.get("val_calib")) and (policy_folder / "scores.parquet").is_file():
        scores, roles = read_scores(policy_folder / "scores.parquet")
        rows = {} if roles is None else {str(role): scores.take(roles == role) for role in np.unique(roles)}
    calib, select = rows.get("val_calib"), rows.get("val_select")
    if calib is None or not _labelled(calib) or calib.n_classes != test.n_classes:
        return Shift(target, prior, test, "val_test", None)
    return Shift(target, prior, calib, "val_calib", select if _labelled(select) else None)


def _labelled(scores: Scores | None) -> bool:
    return scores is not None and scores.labels is not None and len(scores) > 0


# ---- parts of the document ---------------------------------------------------------------------------------------


def _estimate(shift: Shift, method: Method, fitted: Any, resamples: int, level: float, seed: int) -> PriorEstimate:
    assert shift.scores is not None
    return estimate_prior(
        shift.source, shift.scores, method=method, calibration=fitted, n_resamples=resamples, level=level, seed=seed
    )


def _map_for_shares(choice: Choice, source: Scores) -> tuple[CalibrationMap | None, dict[str, Any]]:
    """The map for mlls, fitted on source, and how it came about.

    A small val_select keeps the identity, or the temperature, where an intercept is needed: the estimate is then off by
    more than its interval. With an intercept refitted in every replicate, the interval holds that too.
    """
    if choice.map is not None and choice.map.name != Temperature.name:
        return choice.map.refit(source), {"name": choice.name, "reason": choice.reason}
    with_intercept: type[CalibrationMap] = Platt if source.n_classes == 2 else Vector
    try:
        fitted = with_intercept.fit(source)
    except DataError as error:
        kept = None if choice.map is None else choice.map.refit(source)
        return kept, {"name": choice.name, "reason": f"{choice.reason}; no {with_intercept.name}: {error}"}
    why = f"{choice.name} has no intercept, without which the shares may be off by more than their interval"
    return fitted, {"name": with_intercept.name, "reason": f"{with_intercept.name}: {why} ({choice.reason})"}


def _certified_risks(certificate: Certificate | None) -> tuple[list[str], list[str]]:
    """(risks that hold at every balance, risks that hold at their own), of what is certified."""
    if certificate is None or not certificate.certified:
        return [], []
    stays = [name for name in certificate.risks if risk_of(name, certificate.classes)[0].of_one_class]
    return stays, [name for name in certificate.risks if name not in stays]


def _words(certificate: Certificate | None, stays: list[str], moves: list[str]) -> list[str]:
    if certificate is None or not certificate.certified:
        return ["Nothing is certified here, so nothing certified moves."]
    confidence = f"{certificate.headline_confidence:g}"
    notes = []
    if stays:
        kept = " and ".join(f"{name} <= {certificate.risks[name].target:g}" for name in stays)
        notes.append(
            f"Certified at {confidence} and unchanged at every balance, as they look at one class at a time: {kept}."
        )
    if moves:
        at = (
            "the balance of val_calib"
            if certificate.target_prior is None
            else f"P({certificate.classes[-1]}) = {certificate.target_prior:g}"
        )
        gone = " and ".join(f"{name} <= {certificate.risks[name].target:g}" for name in moves)
        notes.append(
            f"Certified at {confidence} for {at} only: {gone}. What is restated here is measured, not certified."
        )
    return notes


def _by_class(names: list[str], values: Any) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _shares_of(scores: Scores, names: list[str]) -> dict[str, float]:
    counts = np.bincount(scores.known_labels, minlength=len(names))
    return _by_class(names, counts / counts.sum())
