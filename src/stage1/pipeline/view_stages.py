"""Views in a run: what each stage depends on, and how the stage `score` fixes them on val_select, into views.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stage1.aggregation import VIEWS_FILE, FrozenViews
from stage1.errors import ConfigError, Stage1Error
from stage1.files import digest_bytes
from stage1.images import Preprocessing
from stage1.pipeline.rundir import RunDir
from stage1.policy import ViewsClaim
from stage1.views import WHOLE, adds_nothing, small_line

if TYPE_CHECKING:
    from stage1.config import RunConfig
    from stage1.data.table import SampleTable
    from stage1.inference import Predictor
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
    if config.views.adaptive:  # where looking stops depends on what is to be certified
        facts |= {
            "tolerance": config.views.tolerance,
            "risks": dict(config.risks),
            "confidence": config.confidence,
            "assume_iid": config.assume_iid,
        }
    return digest_bytes(json.dumps(facts, sort_keys=True).encode())


# ---- choosing on val_select --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chosen:
    """views: what ships (policy WHOLE: the whole image alone). outputs: the views of val_select that it was chosen on."""

    views: FrozenViews
    outputs: ViewOutputs


def pooled_views(run: RunDir) -> FrozenViews | None:
    """The views of a head on pooled features: there is nothing to choose. None for other heads."""
    from stage1.aggregation import Pooled

    settings = run.config.views
    return (
        FrozenViews(settings.policy, Pooled()) if settings.train == "pooled" and settings.policy is not None else None
    )


def choose_views(run: RunDir, predictor: Predictor, table: SampleTable, say: Callable[[str], None]) -> Chosen:
    """Aggregator and, where asked for, the order and the stops of adaptive views, from the views of val_select and nothing else.

    Raises ConfigError where config and model do not go together, Stage1Error where an image cannot be read any more.
    """
    from stage1.aggregation import aggregator, choose_aggregator, fit_sequence

    config, settings = run.config, run.config.views
    policy = settings.policy
    assert policy is not None, "a run without views"
    rows = table.rows("val_select")
    answered, outputs, failures = predictor.view_outputs(table.items(rows), policy)
    require_all(table, rows, answered, failures)
    if settings.adaptive and (len(table.classes) != 2 or outputs.gate is not None):
        what = f"{len(table.classes)} classes" if len(table.classes) != 2 else "a head that has a gate"
        raise ConfigError(
            f"views.adaptive: with {what}; it is for two classes and heads without a gate, set views.adaptive=false"
        )
    labels, groups = table.labels[rows], table.groups[rows]
    names = _names(settings.aggregate)
    choice = choose_aggregator(
        outputs.logits, labels, groups, policy, resamples=settings.resamples, seed=config.seed,
        **({} if names is None else {"names": names}),
    )  # fmt: skip
    say(f"  views: {policy.description}; {choice.reason}")
    small = sum(adds_nothing(height, width, predictor.preprocessing) for height, width in outputs.sizes.tolist())
    say_small(small, len(rows), predictor.preprocessing, say)
    comparison = choice.to_document()
    if choice.name == "whole":
        say("  views: the bundle ships the whole image alone; scores are made of it")
        return Chosen(FrozenViews(WHOLE, aggregator("whole", WHOLE), None, comparison), outputs)
    sequence = None
    if settings.adaptive:
        sequence = fit_sequence(
            outputs.logits, labels, groups, policy, choice.name, risks=config.risks, confidence=config.confidence,
            calibration_units=_units(table, assume_iid=config.assume_iid), tolerance=settings.tolerance, seed=config.seed,
        )  # fmt: skip
        expected = sequence.expected
        say(
            f"  adaptive: {expected['views']:.2f} of {policy.count} views expected on average, first "
            f"{policy.names[sequence.order[0]]}"
        )
    fitted = aggregator(choice.name, policy, outputs.logits, labels)
    return Chosen(FrozenViews(policy, fitted, sequence, comparison), outputs)


def require_all(
    table: SampleTable, rows: NDArray[np.int64], answered: NDArray[np.int64], failures: Sequence[tuple[int, Exception]]
) -> None:
    """Raises Stage1Error unless every image of these rows was answered."""
    if failures:
        place, error = failures[0]
        raise Stage1Error(
            f"{table.paths[rows[place]]}: could be read at the split and cannot now ({error}); restore it, or split again"
        )
    assert (answered == np.arange(len(rows))).all(), "scores out of order"


def _names(aggregate: str | list[str]) -> list[str] | None:
    if aggregate == "auto":
        return None
    return [aggregate] if isinstance(aggregate, str) else list(aggregate)


def _units(table: SampleTable, *, assume_iid: bool) -> int:
    """How many independent units val_calib has: its groups, or its images where these count as independent."""
    rows = table.rows("val_calib")
    return len(rows) if assume_iid else len(np.unique(table.groups[rows]))


def say_small(small: int, n: int, spec: Preprocessing, say: Callable[[str], None]) -> None:
    """The line on images that tiles only enlarge, where there are any."""
    if small:
        say(f"  {small_line(small, n, spec.size)}")
