"""The figures: what they compute, and that they draw what the documents say."""

from __future__ import annotations

import copy
import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stage1.errors import MissingError
from stage1.evaluation import evaluate
from stage1.report import draw_figures
from stage1.report.risk_figure import risk_path
from stage1.report.score_figure import histogram_edges
from stage1.scores import Scores


def figures(sample) -> dict[str, bytes]:
    return draw_figures(
        certificate=sample.certificate, evaluation=sample.evaluation, policy=sample.policy, scores=sample.scores
    )


def two_class(margin, labels) -> Scores:
    margin = np.asarray(margin, dtype=float)
    return Scores(logits=np.stack([np.zeros_like(margin), margin], axis=1), labels=labels)


# ---- risk paths --------------------------------------------------------------------------------------------------


def brute_force(risk, s, y, lo, hi):
    """(coverage, risk) of every threshold in turn, from the definitions of DESIGN."""
    points = set()
    moving_lo = risk in ("fnr", "miss_rate")
    for cut in [-np.inf, *np.unique(s), np.inf]:
        # just above a score for lo, just below for hi
        low, high = (
            (np.nextafter(cut, np.inf), np.inf if hi is None else hi)
            if moving_lo
            else (-np.inf if lo is None else lo, np.nextafter(cut, -np.inf))
        )
        if low > high:
            continue
        neg, pos = s < low, s > high
        wrong = int((neg & (y == 1)).sum() if moving_lo else (pos & (y == 0)).sum())
        own = y == (1 if moving_lo else 0)
        base = int((own & (neg | pos)).sum()) if risk in ("fnr", "fpr") else int(own.sum())
        if base:
            points.add((round((neg | pos).mean(), 9), round(wrong / base, 9)))
    return points


@given(
    st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=25),
    st.sampled_from(["fnr", "miss_rate", "fpr", "false_exit_rate"]),
)
@settings(deadline=None, max_examples=150)
def test_a_path_holds_the_risks_of_all_thresholds_ties_included(rows, risk):
    s, y = np.array([float(a) for a, _ in rows]), np.array([int(b) for _, b in rows])
    lo, hi = -1.5, 1.5
    path = risk_path(risk, two_class(s, y), lo, hi)
    if not (y == (1 if risk in ("fnr", "miss_rate") else 0)).any():
        assert path is None
        return
    found = {(round(float(a), 9), round(float(b), 9)) for a, b in zip(*path, strict=True)}
    assert found == brute_force(risk, s, y, lo, hi)


def test_a_path_passes_through_the_operating_point(certified):
    point = certified.evaluation["operating_point"]["coverage"]
    for name in certified.certificate["risks"]:
        coverage, risk = risk_path(name, certified.scores, certified.policy["lo"], certified.policy["hi"])
        nearest = np.abs(coverage - point).argmin()
        assert coverage[nearest] == pytest.approx(point, abs=0.005)
        assert risk[nearest] == pytest.approx(certified.evaluation["risks"][name]["observed"], abs=0.005)


def test_no_path_without_a_point_to_start_from(certified):
    assert risk_path("fnr", certified.scores, None, None) is None
    assert risk_path("error", certified.scores, -1.0, 1.0) is None
    assert risk_path("fnr", two_class([-1.0, 1.0], [0, 0]), -1.0, 1.0) is None
    assert len(risk_path("fnr", certified.scores, -1.0, 1.0)[0]) <= 400


# ---- histogram ---------------------------------------------------------------------------------------------------


def test_saturated_scores_do_not_press_the_rest_into_one_bar():
    scores = np.concatenate([np.random.default_rng(0).normal(0, 2, 900), np.full(100, 708.0)])
    edges, beyond = histogram_edges(scores, [-1.0, 2.5])
    assert beyond
    assert edges[-1] < 20
    assert {-1.0, 2.5} <= set(edges)
    assert (np.diff(edges) > 0).all()
    assert len(edges) > 40


@given(st.lists(st.floats(-50, 50), max_size=30), st.lists(st.floats(-20, 20), max_size=2))
def test_edges_are_drawable_whatever_the_scores(values, thresholds):
    edges, _ = histogram_edges(np.array(values), thresholds)
    assert len(edges) >= 2
    assert (np.diff(edges) > 0).all()
    assert set(thresholds) <= set(edges)


# ---- drawing -----------------------------------------------------------------------------------------------------


def test_figures_are_pictures_of_a_readable_size(certified):
    drawn = figures(certified)
    assert set(drawn) == {"risk_coverage", "score_histogram", "reliability", "exit_confusion"}
    for png in drawn.values():
        picture = Image.open(io.BytesIO(png)).convert("RGB")
        assert picture.width >= 1000
        assert len(picture.getcolors(1 << 24)) > 30, "blank"
        assert picture.getpixel((2, 2)) == (255, 255, 255), "the panel is white on a dark page too"


def test_the_same_documents_give_the_same_bytes(certified):
    import matplotlib

    first = figures(certified)
    with matplotlib.rc_context({"font.size": 25, "axes.facecolor": "black"}):
        assert figures(certified) == first
        assert matplotlib.rcParams["font.size"] == 25, "the reader's own settings are left as they were"


CHANGES = [
    ("certificate", ("risks", "fnr", "target"), "risk_coverage"), ("certificate", ("risks", "fnr", "bound"), "risk_coverage"),
    ("evaluation", ("operating_point", "coverage"), "risk_coverage"), ("evaluation", ("operating_point", "selective_risk"), "risk_coverage"),
    ("evaluation", ("risks", "false_exit_rate", "observed"), "risk_coverage"), ("evaluation", ("risks", "false_exit_rate", "high"), "risk_coverage"),
    ("evaluation", ("curve", "selective_risk", 40), "risk_coverage"), ("evaluation", ("curve", "generalised_risk", 40), "risk_coverage"),
    ("evaluation", ("curve", "coverage", 40), "risk_coverage"), ("policy", ("lo",), "score_histogram"), ("policy", ("hi",), "score_histogram"),
    ("evaluation", ("exit_confusion", "counts", 0, 1), "score_histogram"), ("evaluation", ("exit_confusion", "counts", 0, 1), "exit_confusion"),
    ("evaluation", ("reliability", 5, "count"), "reliability"), ("evaluation", ("reliability", 5, "observed_rate"), "reliability"),
    ("evaluation", ("reliability", 5, "mean_probability"), "reliability"), ("evaluation", ("level",), "reliability"),
]  # fmt: skip


@pytest.fixture(scope="module")
def unchanged(_certified) -> dict[str, bytes]:
    return figures(_certified)


@pytest.mark.parametrize("document,path,figure", CHANGES)
def test_a_changed_number_changes_its_figure(certified, unchanged, document, path, figure):
    *parents, last = path
    place = getattr(certified, document)
    for key in parents:
        place = place[key]
    place[last] = place[last] + 40 if isinstance(place[last], int) else place[last] * 0.8
    from stage1.report import drawing
    from stage1.report import figures as room

    only = {
        "risk_coverage": lambda: room.risk_coverage(certified.certificate, certified.evaluation, certified.policy, certified.scores),
        "score_histogram": lambda: room.score_histogram(certified.evaluation, certified.policy, certified.scores),
        "reliability": lambda: room._reliability(certified.evaluation),
        "exit_confusion": lambda: room._exit_confusion(certified.evaluation),
    }[figure]  # fmt: skip
    with drawing.style():
        assert only() != unchanged[figure]


def test_shut_thresholds_and_one_shut_side_are_drawn(not_certifiable, make_sample):
    assert not_certifiable.policy["lo"] is None
    assert len(figures(not_certifiable)) == 4
    one = make_sample(n_calib=200, n_test=300)
    assert one.policy["lo"] is None
    assert one.policy["hi"] is not None
    assert len(figures(one)) == 4


def test_three_classes_are_drawn_from_the_document(not_certifiable):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    scores = Scores(logits=rng.normal(size=(90, 3)) + 2 * np.eye(3)[labels], labels=labels)
    evaluation = evaluate(
        scores,
        np.zeros(90, bool),
        labels,
        lo=None,
        hi=None,
        classes=["a", "b", "c"],
        targets={},
        policy="softmax",
        certified=False,
        resamples=1,
    )
    sample = copy.copy(not_certifiable)
    sample.evaluation, sample.scores = evaluation, scores
    drawn = figures(sample)
    evaluation["histogram"]["counts"]["c"][20] += 50
    assert figures(sample)["score_histogram"] != drawn["score_histogram"]


def test_without_matplotlib_the_extra_is_named(certified, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingError, match=r"pip install stage1-pro\[report\]") as caught:
        figures(certified)
    assert caught.value.exit_code == 3
