"""looked.json: which view of each image decided, kept at the scoring, counted at the evaluation, refused where it
is of others.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1.config import load_config
from stage1.errors import IntegrityError, MissingError
from stage1.policy import Decision
from stage1.runs.directory import RunDir
from stage1.runtime.crops import WHOLE, ViewPolicy
from stage1.stages.view_trace import TRACE_FILE, RoleTrace, read_trace, trace_state, write_trace
from stage1.stages.views import views_shown
from stage1.views import ViewsDocument, aggregator

GRID = ViewPolicy(grid=(2, 2))


def frozen(policy: ViewPolicy = GRID, name: str = "mean") -> ViewsDocument:
    return ViewsDocument(policy, aggregator(name, policy), None, None)


def run_in(folder, *overrides, views: ViewsDocument | None = None) -> RunDir:
    config, _ = load_config(recipe="baseline", overrides=["data.table=labels.csv", *overrides])
    if views is not None:
        views.save(folder / "views.json")
    return RunDir(folder, config, {})


def trace_of(used, deciding):
    return SimpleNamespace(used=np.array(used), deciding=np.array(deciding))


def test_what_was_saved_is_read(tmp_path):
    run = run_in(tmp_path, "views.grid=2x2", views=frozen())
    assert list(write_trace(run, trace_of([5, 5, 5], [0, 4, 2]))) == [tmp_path / TRACE_FILE]
    found = read_trace(run, 3)
    assert found.used.tolist() == [5, 5, 5]
    assert found.deciding.tolist() == [0, 4, 2]


def test_a_scoring_without_views_leaves_none_of_before(tmp_path):
    run = run_in(tmp_path, "views.grid=2x2", views=frozen())
    list(write_trace(run, trace_of([5], [0])))
    assert list(write_trace(run, None)) == []
    assert not (tmp_path / TRACE_FILE).exists()
    with pytest.raises(MissingError, match=TRACE_FILE):
        read_trace(run, 1)
    frozen(WHOLE, "whole").save(tmp_path / "views.json")
    assert read_trace(run, 1) is None


@pytest.mark.parametrize(
    ("n", "used", "deciding", "views"),
    [(2, [5], [0], None), (1, [5, 5], [0], None), (1, [6], [0], None), (1, [5], [5], None), (1, [5], [0], "max")],
    ids=["other rows", "uneven", "more views than there are", "no such view", "other views.json"],
)
def test_what_is_of_something_else_is_refused(n, used, deciding, views, tmp_path):
    run = run_in(tmp_path, "views.grid=2x2", views=frozen())
    list(write_trace(run, trace_of(used, deciding)))
    if views is not None:
        frozen(name=views).save(tmp_path / "views.json")
    with pytest.raises(IntegrityError, match="stage1 score"):
        read_trace(run, n)


def test_evaluation_depends_on_it_and_only_in_runs_with_views(tmp_path):
    assert trace_state(run_in(tmp_path)) == ""
    run = run_in(tmp_path, "views.grid=2x2", views=frozen())
    states = [trace_state(run)]
    for used in ([5], [4]):
        list(write_trace(run, trace_of(used, [0])))
        states.append(trace_state(run))
    frozen(name="max").save(tmp_path / "views.json")
    states.append(trace_state(run))
    assert len(set(states)) == 4


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(0, 4), st.booleans(), st.integers(0, 1), st.integers(0, 1)),
        max_size=40,
    )
)
def test_the_summary_counts_every_image_once_by_number_and_by_view(rows):
    columns = [np.array([row[at] for row in rows], dtype=np.int64) for at in range(5)]
    used, deciding, exits, labels, truth = columns
    seen = RoleTrace(frozen(), used, deciding).summary(Decision(exits == 1, labels, np.zeros(len(rows))), truth)
    by_hand = {}
    for views, view, leaves, label, true in rows:
        kind = ("right" if label == true else "wrong") if leaves else "deferred"
        for key in (("used", views), ("decided", GRID.names[view])):
            by_hand.setdefault(key, dict.fromkeys(("right", "deferred", "wrong"), 0))[kind] += 1
    found = {("used", row.pop("views")): row for row in seen["used"]}
    found |= {("decided", row.pop("view")): row for row in seen["decided"]}
    assert found == by_hand
    assert seen["of"] == 5
    assert seen["mean"] == (pytest.approx(np.mean([row[0] for row in rows])) if rows else None)


def test_words_and_box_of_one_image():
    all_views = RoleTrace(frozen(), np.array([5, 5]), np.array([4, 0]))
    assert all_views.words(0, exits=True) == "tile r1c1 decided, 5 views"
    assert all_views.words(1, exits=False) == "the whole image weighed most, 5 views"
    assert all_views.box(0, 100, 200) == (44, 88, 100, 200)
    assert all_views.box(1, 100, 200) == (0, 0, 100, 200)
    adaptive = SimpleNamespace(policy=GRID, sequence=object())
    assert (
        RoleTrace(adaptive, np.array([3]), np.array([1])).words(0, exits=True)
        == "tile r0c0 decided, 3 of 5 views looked at"
    )


def test_what_the_page_is_told_of_views(tmp_path):
    assert views_shown(run_in(tmp_path)) is None
    run = run_in(tmp_path, "views.grid=2x2", views=frozen())
    assert views_shown(run)["ships"]
    frozen(WHOLE, "whole").save(tmp_path / "views.json")
    told = views_shown(run)
    assert (told["ships"], told["asked"], told["order"]) == (False, GRID.description, None)
    assert json.dumps(told)
