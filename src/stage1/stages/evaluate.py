"""evaluate: what is true on val_test, as documents, figures and a page."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stage1.evaluation.calibration_report import Reported
from stage1.evaluation.schema import EVALUATION_KIND
from stage1.policy import Policy, decided_on, load_policy, reported
from stage1.runs.artifacts import chosen_policy_file, preprocessing_file, present, role_files
from stage1.runs.directory import RunDir
from stage1.runs.stage import Context, Stage
from stage1.scores import Scores, read_role
from stage1.stages.acceptance import accept, acceptance_lines, read_acceptance, reference_state
from stage1.stages.chosen_head import choice_file
from stage1.stages.label_shift import Shift, label_shift, shift_of_run, target_state
from stage1.stages.reporting import report_of_run
from stage1.stages.view_trace import RoleTrace, read_trace, trace_state
from stage1.storage.documents import read_document, write_document
from stage1.storage.files import write_text

if TYPE_CHECKING:
    from stage1.data.table import SampleTable


def evaluate(run: RunDir, context: Context) -> list[Path]:
    """What is true on val_test: evaluation.json, eval_metrics.csv, figures and report.html."""
    from stage1.data.table import SampleTable

    config = run.config
    table = SampleTable.read(run / "samples.parquet")
    rows = table.rows("val_test")
    scores = read_role(run.path, "val_test")
    policy = load_policy(run.path)
    written, document = write_evaluation(
        run.path,
        scores,
        policy,
        targets=certified_targets(policy),
        paths=_shown_paths(table, rows),
        resamples=config.evaluation.resamples,
        level=config.evaluation.level,
        seed=config.seed,
        shift=shift_of_run(run),
        trace=read_trace(run, len(scores)),
    )
    written += report_of_run(run, table, scores, policy, document)
    written += accept(run, document)
    if (judged := read_acceptance(run.path)) is not None:
        for line in acceptance_lines(judged, config.evaluation.level):
            context.progress.say(f"  {line}")
    return written


def evaluation_state(run: RunDir) -> str:
    """What `evaluate` reads beyond every run's files: target scores, the reference run of acceptance, views."""
    return target_state(run) + reference_state(run) + trace_state(run)


def _shown_paths(table: SampleTable, rows: NDArray[np.int64]) -> list[str]:
    """Paths below the folder that all images share: the place of a run must not change its documents."""
    root = os.path.commonpath([os.path.dirname(path) for path in table.paths.tolist()])
    return [os.path.relpath(path, root) for path in table.paths[rows].tolist()]


def reported_beside(policy: Policy, scores: Scores) -> Reported | None:
    """What the policy states of these rows beside the model's probabilities; None: no map (old folders)."""
    after = reported(policy, scores)
    if policy.own_probability:
        return Reported(scores, after, "gate", "raw", "the gate states a probability of its own")
    frozen = policy.frozen
    if frozen is None:
        return None
    return Reported(scores, after, frozen.map.name, frozen.score, frozen.reason)


def certified_targets(policy: Policy) -> dict[str, float]:
    """Risks of the policy's certificate with targets (scrc: miss_rate of each class, once in the config)."""
    return {name: risk.target for name, risk in policy.certificate.risks.items()} if policy.certificate else {}


def write_evaluation(
    folder: Path,
    scores: Scores,
    policy: Policy,
    *,
    targets: dict[str, float],
    paths: list[str] | None,
    resamples: int,
    level: float,
    seed: int,
    shift: Shift | None = None,
    trace: RoleTrace | None = None,
) -> tuple[list[Path], dict[str, Any]]:
    """evaluation.json and eval_metrics.csv of labelled scores under a policy; returns their paths and the document.

    shift: what is known of a target of another class balance; everything pooled is then restated there too. looked: how
    which views of the images were evaluated, where they have several.
    """
    from stage1.evaluation.summary import evaluate as evaluated
    from stage1.evaluation.summary import metrics_rows

    decision = policy.decide(scores)
    document = evaluated(
        decided_on(policy, scores),
        decision.exit,
        decision.label,
        lo=policy.margin_thresholds[0],
        hi=policy.margin_thresholds[1],
        classes=policy.classes,
        targets=targets,
        policy=policy.name,
        certified=policy.certified,
        paths=paths,
        level=level,
        resamples=resamples,
        seed=seed,
        calibration=reported_beside(policy, scores),
    )
    if shift is not None:
        # Each replicate of mlls refits its map; more than 500 would say nothing more about two digits.
        document["label_shift"] = label_shift(
            scores, policy, shift, resamples=min(resamples, 500), level=level, seed=seed
        )
    if trace is not None:
        document["views"] = trace.summary(decision, scores.known_labels)
    write_document(folder / "evaluation.json", document, EVALUATION_KIND)
    table = io.StringIO()
    rows = metrics_rows(document)
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "eval_metrics.csv", table.getvalue())
    return [folder / "evaluation.json", folder / "eval_metrics.csv"], read_document(
        folder / "evaluation.json", EVALUATION_KIND
    )


STAGE = Stage(
    name="evaluate",
    sections=("evaluation", "acceptance", "name", "seed"),
    reads=lambda config: (
        *role_files("val_test"),
        *role_files("val_calib"),
        chosen_policy_file(config),
        "certificate.json",
        "calibration.json",
        "samples.parquet",
        "splits.json",
        "features.json",
        *present(preprocessing_file(config)),
        *present(choice_file(config)),
    ),
    work=evaluate,
    external=evaluation_state,
    modules=("torch", "matplotlib", "jinja2"),
)
