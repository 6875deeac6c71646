"""Views in a run: what each stage depends on, and how the stage `score` fixes them on val_select, into views.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import SourceChanged
from stage1.policy import ViewsClaim
from stage1.runs.directory import RunDir
from stage1.runtime.crops import WHOLE, ViewPolicy, adds_nothing, small_line
from stage1.runtime.preprocessing import Preprocessing
from stage1.storage.files import digest_bytes
from stage1.views import VIEWS_FILE, Refit, ViewsDocument
from stage1.views import Sequence as Steps
from stage1.views.registry import default_names, is_fitted

if TYPE_CHECKING:
    from stage1.data.table import SampleTable
    from stage1.inference import Predictor
    from stage1.inference.outputs import ModelOutputs
    from stage1.inference.views import ViewOutputs


def shipped_views(run: RunDir) -> ViewsDocument | None:
    """The views that this run was scored with and ships; None: whole images alone, by config or by choice."""
    if run.config.views.policy is None:
        return None
    views = ViewsDocument.load(run / VIEWS_FILE)
    return None if views.policy == WHOLE else views


def views_claim(run: RunDir) -> ViewsClaim | None:
    """What the certificate says of the views; None for whole images alone."""
    views = shipped_views(run)
    return None if views is None else ViewsClaim(views.digest, views.description)


def views_shown(run: RunDir) -> dict[str, Any] | None:
    """What the page says of views.json, also where the choice fell on whole images; None: a run without it."""
    asked = run.config.views.policy
    if asked is None:
        return None
    frozen = ViewsDocument.load(run / VIEWS_FILE)
    sequence = frozen.sequence
    return {
        "asked": asked.description,
        "ships": frozen.policy != WHOLE,
        "description": frozen.description,
        "aggregator": frozen.aggregator.name,
        "comparison": frozen.comparison,
        "order": None if sequence is None else [frozen.policy.names[view] for view in sequence.order],
        "select_folds": frozen.select_folds,
        "expected": None if sequence is None else dict(sequence.expected),
    }


# ---- what a stage depends on; "" without views, so that a run without them is what it was before there were any ------


def cut_state(run: RunDir) -> str:
    """How images are cut, for `export` and its parity."""
    policy = run.config.views.policy
    return "" if policy is None else policy.digest


def cached_state(run: RunDir) -> str:
    """Whose features are cached, for `extract`: the views, where the head learns from them."""
    cached = run.config.views.cached
    return "" if cached is None else cached.digest


def learning_state(run: RunDir) -> str:
    """How the head learns from views, for `train`."""
    views = run.config.views
    return "" if views.cached is None else f"{views.train} {views.pool} {views.cached.digest}"


def choosing_state(run: RunDir) -> str:
    """What decides views.json, for `score`."""
    config = run.config
    if config.views.policy is None:
        return ""
    facts: dict[str, Any] = {
        "policy": config.views.policy.digest,
        "aggregate": config.views.aggregate,
        "adaptive": config.views.adaptive,
        "resamples": config.views.resamples,
        "seed": config.seed,
    }
    if config.views.adaptive or any(is_fitted(name) for name in config.views.names or default_names()):
        facts["select"] = "out of fold"  # runs of before have other scores of val_select
    if config.views.adaptive:  # where looking stops depends on what is to be certified
        facts |= {
            "tolerance": config.views.tolerance,
            "risks": config.risks_for(2),  # adaptive views are for two classes
            "confidence": config.confidence,
            "assume_iid": config.assume_iid,
        }
    return digest_bytes(json.dumps(facts, sort_keys=True).encode())


# ---- choosing on val_select --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chosen:
    """views: what ships (policy WHOLE: the whole image alone). outputs: the views of val_select that it was chosen on.

    refits: the same fit without each fold of val_select, where anything was fitted on it.
    """

    views: ViewsDocument
    outputs: ViewOutputs
    refits: tuple[Refit, ...] = ()

    def answered(self, spec: Preprocessing) -> ModelOutputs:
        """The answers of val_select: each image by the refit that has not seen it, else by what ships."""
        from stage1.inference.outputs import ModelOutputs, outputs_of_views
        from stage1.inference.views import joined_traces, look

        if not self.refits:
            return outputs_of_views(self.outputs, self.views, spec)
        trace = joined_traces([look(_rows_of(self.outputs, refit.rows), refit.views, spec) for refit in self.refits])
        place = np.argsort(np.concatenate([refit.rows for refit in self.refits]))
        parts = {name: getattr(trace, name) for name in trace.__slots__}
        columns: dict[str, Any] = {name: None if part is None else part[place] for name, part in parts.items()}
        trace = replace(trace, **columns)
        return ModelOutputs(trace.logits, trace.gate, trace)


def _rows_of(outputs: ViewOutputs, rows: NDArray[np.int64]) -> ViewOutputs:
    gate = None if outputs.gate is None else outputs.gate[rows]
    return replace(outputs, logits=outputs.logits[rows], gate=gate, sizes=outputs.sizes[rows])


def pooled_views(run: RunDir) -> ViewsDocument | None:
    """The views of a head on pooled features: there is nothing to choose. None for other heads."""
    from stage1.views import Pooled

    settings = run.config.views
    return (
        ViewsDocument(settings.policy, Pooled()) if settings.train == "pooled" and settings.policy is not None else None
    )


def choose_views(run: RunDir, predictor: Predictor, table: SampleTable, say: Callable[[str], None]) -> Chosen:
    """Aggregator and, where asked for, order and stops of adaptive views, from the views of val_select alone.

    Raises SourceChanged where an image cannot be read any more.
    """
    from stage1.views import aggregator, choose_aggregator, cross_fitted, fit_sequence

    config, settings = run.config, run.config.views
    policy = settings.policy
    assert policy is not None, "a run without views"
    rows = table.rows("val_select")
    answered, outputs, failures = predictor.view_outputs(table.items(rows), policy)
    require_all(table, rows, answered, failures)
    labels, groups = table.labels[rows], table.groups[rows]
    choice = choose_aggregator(
        outputs.logits,
        labels,
        groups,
        policy,
        names=settings.names,
        resamples=settings.resamples,
        seed=config.seed,
    )
    say(f"  views: {policy.description}; {choice.reason}")
    spec = predictor.preprocessing
    small = sum(adds_nothing(height, width, spec, policy) for height, width in outputs.sizes.tolist())
    say_small(small, len(rows), spec, say)
    comparison = choice.to_document()
    if choice.name == "whole":
        say("  views: the bundle ships the whole image alone; scores are made of it")
        return Chosen(ViewsDocument(WHOLE, aggregator("whole", WHOLE), None, comparison), outputs)
    units = _units(table, assume_iid=config.assume_iid)

    def fit(part: NDArray[np.int64]) -> ViewsDocument:
        logits, truth = outputs.logits[part], labels[part]
        sequence = None
        if settings.adaptive:
            sequence = fit_sequence(
                logits,
                truth,
                groups[part],
                policy,
                choice.name,
                risks=config.risks_for(2),
                confidence=config.confidence,
                calibration_units=units,
                tolerance=settings.tolerance,
                seed=config.seed,
            )
        return ViewsDocument(policy, aggregator(choice.name, policy, logits, truth), sequence, comparison)

    views = fit(np.arange(len(rows)))
    if views.sequence is not None:
        _say_sequence(views.sequence, policy, say)
    if views.sequence is None and not is_fitted(choice.name):
        return Chosen(views, outputs)
    refits, why = cross_fitted(labels, groups, fit, seed=config.seed)
    say(
        f"  val_select: each image is scored by a fit on the other {len(refits) - 1} of {len(refits)} folds"
        if refits
        else f"  WARNING val_select is scored by what was fitted on it: {why}; stated probabilities may be too sure"
    )
    return Chosen(replace(views, select_folds=len(refits)), outputs, refits)


def _say_sequence(sequence: Steps, policy: ViewPolicy, say: Callable[[str], None]) -> None:
    expected = sequence.expected
    say(
        f"  adaptive: {expected['views']:.2f} of {policy.count} views expected on average, first "
        f"{policy.names[sequence.order[0]]}"
    )
    if "none_early" in expected:
        say(f"  adaptive: {expected['none_early']}")


def require_all(
    table: SampleTable, rows: NDArray[np.int64], answered: NDArray[np.int64], failures: Sequence[tuple[int, Exception]]
) -> None:
    """Raises SourceChanged unless every image of these rows was answered."""
    if failures:
        place, error = failures[0]
        raise SourceChanged(
            f"{table.paths[rows[place]]}: could be read at the split and cannot now ({error}); restore it, or run"
            " `stage1 split` again"
        )
    assert (answered == np.arange(len(rows))).all(), "scores out of order"


def _units(table: SampleTable, *, assume_iid: bool) -> int:
    """How many independent units val_calib has: its groups, or its images where these count as independent."""
    rows = table.rows("val_calib")
    return len(rows) if assume_iid else len(np.unique(table.groups[rows]))


def say_small(small: int, n: int, spec: Preprocessing, say: Callable[[str], None]) -> None:
    """The line on images that tiles only enlarge, where there are any."""
    if small:
        say(f"  {small_line(small, n, spec.size)}")
