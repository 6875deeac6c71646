"""Views in a run: what each stage depends on, and how the stage `score` fixes them on val_select, into views.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stage1.aggregation import VIEWS_FILE, FrozenViews, Refit
from stage1.aggregation import Sequence as Steps
from stage1.errors import SourceChanged
from stage1.files import digest_bytes
from stage1.images import Preprocessing
from stage1.pipeline.rundir import RunDir
from stage1.policy import ViewsClaim
from stage1.views import WHOLE, ViewPolicy, adds_nothing, small_line

if TYPE_CHECKING:
    from stage1.config import RunConfig
    from stage1.data.table import SampleTable
    from stage1.inference import Predictor
    from stage1.inference.answered import Answered
    from stage1.inference.viewing import ViewOutputs


def views_file(config: RunConfig) -> str:
    """views.json where the run has views, or "" where it has none."""
    return "" if config.views.policy is None else VIEWS_FILE


def shipped_views(run: RunDir) -> FrozenViews | None:
    """The views that this run was scored with and ships; None where it looks at whole images alone, by config or by choice."""
    if run.config.views.policy is None:
        return None
    views = FrozenViews.load(run / VIEWS_FILE)
    return None if views.policy == WHOLE else views


def views_claim(run: RunDir) -> ViewsClaim | None:
    """What the certificate says of the views; None for whole images alone."""
    views = shipped_views(run)
    return None if views is None else ViewsClaim(views.digest, views.description)


# ---- what a stage depends on; "" without views, so that a run without them is what it was before there were any ------------


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
        "policy": config.views.policy.digest, "aggregate": config.views.aggregate, "adaptive": config.views.adaptive,
        "resamples": config.views.resamples, "seed": config.seed,
    }  # fmt: skip
    if config.views.adaptive or "learned" in (config.views.names or ("learned",)):
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

    views: FrozenViews
    outputs: ViewOutputs
    refits: tuple[Refit, ...] = ()

    def answered(self, spec: Preprocessing) -> Answered:
        """The answers of val_select: of each image by the refit that has not seen it; where there are none, by what ships."""
        from stage1.inference.answered import Answered, answered_by
        from stage1.inference.viewing import joined_looked, look

        if not self.refits:
            return answered_by(self.outputs, self.views, spec)
        looked = joined_looked([look(_rows_of(self.outputs, refit.rows), refit.views, spec) for refit in self.refits])
        place = np.argsort(np.concatenate([refit.rows for refit in self.refits]))
        parts = {name: getattr(looked, name) for name in looked.__slots__}
        columns: dict[str, Any] = {name: None if part is None else part[place] for name, part in parts.items()}
        looked = replace(looked, **columns)
        return Answered(looked.logits, looked.gate, looked)


def _rows_of(outputs: ViewOutputs, rows: NDArray[np.int64]) -> ViewOutputs:
    gate = None if outputs.gate is None else outputs.gate[rows]
    return replace(outputs, logits=outputs.logits[rows], gate=gate, sizes=outputs.sizes[rows])


def pooled_views(run: RunDir) -> FrozenViews | None:
    """The views of a head on pooled features: there is nothing to choose. None for other heads."""
    from stage1.aggregation import Pooled

    settings = run.config.views
    return (
        FrozenViews(settings.policy, Pooled()) if settings.train == "pooled" and settings.policy is not None else None
    )


def choose_views(run: RunDir, predictor: Predictor, table: SampleTable, say: Callable[[str], None]) -> Chosen:
    """Aggregator and, where asked for, the order and the stops of adaptive views, from the views of val_select and nothing else.

    Raises SourceChanged where an image cannot be read any more.
    """
    from stage1.aggregation import aggregator, choose_aggregator, cross_fitted, fit_sequence

    config, settings = run.config, run.config.views
    policy = settings.policy
    assert policy is not None, "a run without views"
    rows = table.rows("val_select")
    answered, outputs, failures = predictor.view_outputs(table.items(rows), policy)
    require_all(table, rows, answered, failures)
    labels, groups = table.labels[rows], table.groups[rows]
    names = settings.names
    choice = choose_aggregator(
        outputs.logits, labels, groups, policy, resamples=settings.resamples, seed=config.seed,
        **({} if names is None else {"names": names}),
    )  # fmt: skip
    say(f"  views: {policy.description}; {choice.reason}")
    spec = predictor.preprocessing
    small = sum(adds_nothing(height, width, spec, policy) for height, width in outputs.sizes.tolist())
    say_small(small, len(rows), spec, say)
    comparison = choice.to_document()
    if choice.name == "whole":
        say("  views: the bundle ships the whole image alone; scores are made of it")
        return Chosen(FrozenViews(WHOLE, aggregator("whole", WHOLE), None, comparison), outputs)
    units = _units(table, assume_iid=config.assume_iid)

    def fit(part: NDArray[np.int64]) -> FrozenViews:
        logits, truth = outputs.logits[part], labels[part]
        sequence = None
        if settings.adaptive:
            sequence = fit_sequence(
                logits, truth, groups[part], policy, choice.name, risks=config.risks_for(2), confidence=config.confidence,
                calibration_units=units, tolerance=settings.tolerance, seed=config.seed,
            )  # fmt: skip
        return FrozenViews(policy, aggregator(choice.name, policy, logits, truth), sequence, comparison)

    views = fit(np.arange(len(rows)))
    if views.sequence is not None:
        _say_sequence(views.sequence, policy, say)
    if views.sequence is None and choice.name != "learned":
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
            f"{table.paths[rows[place]]}: could be read at the split and cannot now ({error}); restore it, or run `stage1 split` again"
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
