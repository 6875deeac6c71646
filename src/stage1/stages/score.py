"""score: scores of the roles that judge, by the exported model; views are fixed here, on val_select."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stage1.errors import IntegrityError
from stage1.runs.artifacts import present
from stage1.runs.directory import RunDir
from stage1.runs.schema import FEATURES_KIND, PARITY_KIND
from stage1.runs.stage import Context, Stage
from stage1.runtime.preprocessing import Preprocessing
from stage1.scores import write_role
from stage1.stages.chosen_head import choice_file, out_of_fold_scores
from stage1.stages.view_trace import TRACE_ROLE, write_trace
from stage1.stages.views import (
    choose_views,
    choosing_state,
    pooled_views,
    require_all,
    say_small,
    shipped_views,
)
from stage1.storage.documents import read_document
from stage1.storage.files import digest_file
from stage1.views import VIEWS_FILE

if TYPE_CHECKING:
    from stage1.data.table import SampleTable
    from stage1.inference import Predictor
    from stage1.inference.outputs import ModelOutputs


SCORED_ROLES = ("val_select", "val_calib", "val_test")


def score(run: RunDir, context: Context) -> list[Path]:
    """Scores of the evaluation roles, from image bytes, by the exported model and the predictor that users run.

    Views, where the run has them, are fixed first, on val_select; every other role is then scored with what ships, and
    val_select too, unless what ships was fitted on it (views, or a head that was fitted again on train and val_select):
    then each of its images by a fit on the other folds.
    """
    from stage1.data.table import SampleTable
    from stage1.inference import Predictor
    from stage1.inference.outputs import ModelOutputs

    document = read_document(run / "features.json", FEATURES_KIND)
    parity = read_document(run / "parity.json", PARITY_KIND)
    if not parity["passed"] or parity["model"] != digest_file(run / "model.onnx"):
        raise IntegrityError(f"{run / 'parity.json'}: is not of this model.onnx; run `stage1 export` again")
    table = SampleTable.read(run / "samples.parquet")
    spec = Preprocessing.from_json(document["preprocessing"])
    written: list[Path] = []
    views = None
    known: dict[str, ModelOutputs] = {}
    (run / VIEWS_FILE).unlink(missing_ok=True)
    if (together := pooled_views(run)) is not None:
        together.save(run / VIEWS_FILE)
        written.append(run / VIEWS_FILE)
        views = shipped_views(run)
        predictor = Predictor(run / "model.onnx", spec, table.classes, views=views)
        context.progress.say(f"  views: {together.description}")
    elif run.config.views.policy is not None:
        predictor = Predictor(run / "model.onnx", spec, table.classes)
        chosen = choose_views(run, predictor, table, context.progress.say)
        chosen.views.save(run / VIEWS_FILE)
        written.append(run / VIEWS_FILE)
        views = shipped_views(run)  # as a bundle reads it
        if views is not None:
            known["val_select"] = chosen.answered(spec)
            predictor = Predictor(run / "model.onnx", spec, table.classes, views=views)
    else:
        predictor = Predictor(run / "model.onnx", spec, table.classes)
        if (logits := out_of_fold_scores(run, table.ids[table.rows("val_select")])) is not None:
            known["val_select"] = ModelOutputs(logits, None)
            context.progress.say("  val_select: scored by fits on the other folds, as the head was fitted on it")
    for role in SCORED_ROLES:
        rows = table.rows(role)
        answered = known[role] if role in known else _scored(predictor, table, rows)
        evaluated = "" if answered.trace is None else f", {answered.trace.used.mean():.2f} views on average"
        context.progress.say(f"  {role}: {len(rows)} images{evaluated}")
        if together is not None and role == "val_select" and answered.trace is not None:
            say_small(int(answered.trace.small.sum()), len(rows), spec, context.progress.say)
        if role == TRACE_ROLE:
            written += write_trace(run, answered.trace)
        scores = answered.scores(
            labels=table.labels[rows],
            groups=table.groups[rows],
            ids=table.ids[rows],
            slices={name: values[rows] for name, values in table.slices.items()},
        )
        written += write_role(run.path, role, scores)
    return written


def _scored(predictor: Predictor, table: SampleTable, rows: NDArray[np.int64]) -> ModelOutputs:
    places, answered, failures = predictor.answered(table.items(rows))
    require_all(table, rows, places, failures)
    return answered


STAGE = Stage(
    name="score",
    sections=(),
    reads=lambda config: present(
        "model.onnx",
        "parity.json",
        "samples.parquet",
        "features.json",
        choice_file(config),
    ),
    work=score,
    external=choosing_state,
    modules=("torch",),
)
