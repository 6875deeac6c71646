"""The figures: what they compute, and that they draw what the documents say."""

from __future__ import annotations

import copy
import io
import re
import sys
from dataclasses import asdict, replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stage1.errors import DataError, MissingError
from stage1.evaluation import evaluate
from stage1.report import draw_figures
from stage1.report.explorer import Evidence, collect
from stage1.report.figures.drawing import Drawing, fitting, style
from stage1.report.figures.exit import exits, split_exits
from stage1.report.figures.figure import Material
from stage1.report.figures.need import error_steps, units_needed
from stage1.report.figures.plan import draw_plan
from stage1.report.figures.registry import FIGURES
from stage1.report.figures.reliability import reliability
from stage1.report.figures.risk import risk_path
from stage1.report.figures.score import histogram_edges
from stage1.report.figures.threshold import feasible, threshold_plane
from stage1.risk import binomial_upper, plan
from stage1.scores import Scores

from ..drawing import figures_undrawn

NAMES = {
    "risk_coverage",
    "score_histogram",
    "reliability",
    "exit_confusion",
    "exits",
    "units_needed",
    "threshold_plane",
}


def material(sample) -> Material:
    return Material(
        certificate=sample.certificate,
        evaluation=sample.evaluation,
        policy=sample.policy,
        scores=sample.scores,
        calibration=sample.calibration,
    )


def figures(sample) -> dict[str, Drawing]:
    return draw_figures(
        certificate=sample.certificate,
        evaluation=sample.evaluation,
        policy=sample.policy,
        scores=sample.scores,
        calibration=sample.calibration,
    )


def some(sample, names) -> dict[str, Drawing]:
    """These figures alone: all of them take seconds."""
    with style():
        return {name: FIGURES[name].draw(material(sample)) for name in names}


@pytest.fixture(scope="module")
def unchanged(_certified) -> dict[str, Drawing]:
    return figures(_certified)


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


def test_figures_are_pictures_of_a_readable_size(unchanged):
    assert set(unchanged) == NAMES
    for drawing in unchanged.values():
        picture = Image.open(io.BytesIO(drawing.png)).convert("RGB")
        assert picture.width >= 1000
        assert len(picture.getcolors(1 << 24)) > 30, "blank"
        assert picture.getpixel((2, 2)) == (255, 255, 255), "the panel is white on a dark page too"
        vector = ElementTree.fromstring(drawing.svg)
        assert vector.tag.endswith("}svg")
        width, height = (float(vector.get(side).removesuffix("pt")) for side in ("width", "height"))
        assert width / height == pytest.approx(picture.width / picture.height, rel=0.01)
        assert len(vector.findall(".//{*}path")) > 20, "blank"
        assert not re.search(rb"\d{4}-\d\d-\d\dT|<text|/home/|/tmp/", drawing.svg), (
            "a date, a font or a path of this machine"
        )


def test_the_same_documents_give_the_same_bytes(certified, unchanged):
    import matplotlib

    with matplotlib.rc_context({"font.size": 25, "axes.facecolor": "black"}):
        assert figures(certified) == unchanged
        assert matplotlib.rcParams["font.size"] == 25, "the reader's own settings are left as they were"


CHANGES = [
    ("certificate", ("risks", "fnr", "target"), "risk_coverage"),
    ("certificate", ("risks", "fnr", "bound"), "risk_coverage"),
    ("evaluation", ("operating_point", "coverage"), "risk_coverage"),
    ("evaluation", ("operating_point", "selective_risk"), "risk_coverage"),
    ("evaluation", ("risks", "false_exit_rate", "observed"), "risk_coverage"),
    ("evaluation", ("risks", "false_exit_rate", "high"), "risk_coverage"),
    ("evaluation", ("curve", "selective_risk", 40), "risk_coverage"),
    ("evaluation", ("curve", "generalised_risk", 40), "risk_coverage"),
    ("evaluation", ("curve", "coverage", 40), "risk_coverage"),
    ("policy", ("lo",), "score_histogram"),
    ("policy", ("hi",), "score_histogram"),
    ("evaluation", ("exit_confusion", "counts", 0, 1), "score_histogram"),
    ("evaluation", ("exit_confusion", "counts", 0, 1), "exit_confusion"),
    ("evaluation", ("reliability", 5, "count"), "reliability"),
    ("evaluation", ("reliability", 5, "observed_rate"), "reliability"),
    ("evaluation", ("reliability", 5, "mean_probability"), "reliability"),
    ("evaluation", ("level",), "reliability"),
    ("evaluation", ("exit_confusion", "counts", 1, 2), "exits"),
    ("certificate", ("risks", "fnr", "target"), "units_needed"),
    ("certificate", ("risks", "fnr", "n"), "units_needed"),
    ("certificate", ("risks", "fnr", "errors"), "units_needed"),
    ("certificate", ("risks", "fnr", "delta"), "units_needed"),
]


@pytest.mark.parametrize("document,path,figure", CHANGES)
def test_a_changed_number_changes_its_figure(certified, unchanged, document, path, figure):
    *parents, last = path
    place = getattr(certified, document)
    for key in parents:
        place = place[key]
    place[last] = place[last] + 40 if isinstance(place[last], int) else place[last] * 0.8
    changed = some(certified, [figure])[figure]
    assert changed.png != unchanged[figure].png
    assert changed.svg != unchanged[figure].svg


def test_shut_thresholds_and_one_shut_side_are_drawn(not_certifiable, make_sample):
    assert not_certifiable.policy["lo"] is None
    assert set(figures(not_certifiable)) == NAMES
    one = make_sample(n_calib=200, n_test=300)
    assert one.policy["lo"] is None
    assert one.policy["hi"] is not None
    assert set(figures(one)) == NAMES


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
    drawn = figures(sample)["score_histogram"]
    evaluation["histogram"]["counts"]["c"][20] += 50
    assert some(sample, ["score_histogram"])["score_histogram"] != drawn


# ---- threshold plane ---------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=3, max_size=60),
    st.lists(st.tuples(st.integers(-7, 7), st.integers(0, 7)), min_size=1, max_size=10),
)
@settings(deadline=None, max_examples=60)
def test_the_feasible_set_is_that_of_the_exact_bounds(rows, pairs):
    s, y = np.array([float(a) for a, _ in rows]), np.array([int(b) for _, b in rows])
    targets = {"fnr": 0.3, "false_exit_rate": 0.4, "error": 0.35}
    evidence = Evidence(
        np.sort(s[y == 0]), np.sort(s[y == 1]), None, None, False, targets, dict.fromkeys(targets, 0.1), ()
    )
    lo = np.array([a / 2 for a, _ in pairs])
    hi = lo + np.array([b / 2 for _, b in pairs])
    held, coverage = feasible(evidence, lo, hi)
    for i in range(len(pairs)):
        neg, pos = s < lo[i], s > hi[i]
        assert coverage[i] == pytest.approx((neg | pos).mean())
        for name, wrong, among in (
            ("fnr", neg & (y == 1), (neg | pos) & (y == 1)),
            ("false_exit_rate", pos & (y == 0), y == 0),
            ("error", (neg & (y == 1)) | (pos & (y == 0)), neg | pos),
        ):
            assert held[name][i] == (binomial_upper(wrong.sum(), among.sum(), 0.1) <= targets[name] + 1e-12)


def test_the_certified_point_is_feasible_and_the_plane_moves_with_the_scores(certified, unchanged):
    evidence = collect(certified.certificate, certified.policy, certified.calibration)
    held, coverage = feasible(evidence, np.array([evidence.lo]), np.array([evidence.hi]))
    assert all(inside[0] for inside in held.values())
    assert coverage[0] == certified.certificate["coverage"]["value"]
    with style():
        fewer = replace(evidence, positives=evidence.positives[200:])
        assert threshold_plane(fewer, ["none", "roadwork"]).png != unchanged["threshold_plane"].png
        moved = replace(evidence, lo=evidence.lo - 1.0)
        assert threshold_plane(moved, ["none", "roadwork"]).png != unchanged["threshold_plane"].png
        # Nothing within reach, one side shut, all scores tied: still a figure.
        for odd in (
            replace(evidence, targets={"fnr": 1e-6, "false_exit_rate": 1e-6}),
            replace(evidence, lo=None),
            replace(evidence, negatives=np.zeros(5), positives=np.zeros(4), lo=None, hi=None, certified=False),
        ):
            assert threshold_plane(odd, ["none", "roadwork"]).png != unchanged["threshold_plane"].png


def test_without_calibration_there_is_no_plane(certified):
    certified.calibration = None
    with figures_undrawn():
        assert set(figures(certified)) == NAMES - {"threshold_plane"}


# ---- units needed, reliability before and after, slices, plan ----------------------------------------------------


def test_steps_are_all_counts_where_they_fit():
    assert error_steps(10) == list(range(11))
    thinned = error_steps(4000)
    assert (thinned[0], thinned[-1]) == (0, 4000)
    assert len(thinned) <= 45


@pytest.mark.parametrize("several", [3, 9])
def test_risks_of_one_target_share_a_name_where_their_names_would_cover_the_dots(several):
    row = {"target": 0.05, "delta": 0.006, "n": 600}
    risks = {f"fnr.{k}": row | {"errors": k} for k in range(several)}
    with style():
        drawn = units_needed({"unit": "image", "risks": risks})
    named = [f"fnr.{k} ≤" in drawn.svg.decode() for k in range(several)]
    assert all(named) if several == 3 else not any(named)
    assert ("9 risks ≤" in drawn.svg.decode()) == (several == 9)


def test_a_map_before_and_after_is_drawn_where_the_document_has_it(certified, unchanged):
    with style():
        assert reliability(certified.evaluation) == unchanged["reliability"]
        certified.evaluation["reliability_before"] = copy.deepcopy(certified.evaluation["reliability"])
        both = reliability(certified.evaluation)
        assert both.png != unchanged["reliability"].png
        certified.evaluation["reliability_before"][3]["observed_rate"] = 0.9
        assert reliability(certified.evaluation).png != both.png


def test_exits_are_split_by_the_true_class():
    assert split_exits(["exit as a", "defer", "exit as b"], ["a", "b"], [[7, 2, 1], [3, 4, 5]]) == [
        (7, 2, 1),
        (5, 4, 3),
    ]
    three = split_exits(
        ["exit as a", "exit as b", "exit as c", "defer"], ["a", "b", "c"], [[5, 1, 2, 9], [0, 6, 0, 1], [1, 1, 1, 0]]
    )
    assert three == [(5, 9, 3), (6, 1, 0), (1, 0, 2)]


def test_slices_add_their_bars(certified, unchanged):
    certified.evaluation["slices"] = [
        {"slice": "city", "value": "Ulm", "counts": [[30, 10, 2], [1, 9, 40]]},
        {"slice": "city", "value": "Bonn", "counts": [[3, 1, 0], [0, 0, 0]]},
        {"slice": "night", "value": "yes", "counts": [[3, 9, 9], [1, 9, 4]]},
    ]
    with style():
        drawn = exits(certified.evaluation)
        tall, short = (Image.open(io.BytesIO(item.png)).height for item in (drawn, unchanged["exits"]))
        assert tall > 2 * short
        certified.evaluation["slices"][2]["counts"][0][0] += 1
        assert exits(certified.evaluation).png != drawn.png


def test_the_plan_is_drawn_from_its_rows():
    needs = [asdict(need) for need in plan({"fnr": 0.02, "false_exit_rate": 0.05}, prior=0.3)]
    first = draw_plan(needs, confidence=0.95)
    assert Image.open(io.BytesIO(first)).width >= 1000
    assert draw_plan(needs, confidence=0.95) == first
    assert draw_plan(needs, confidence=0.95, at_hand={"positive": 900, "negative": 400}) != first
    for field in ("target", "errors", "in_class", "in_total", "risk"):
        other = copy.deepcopy(needs)
        other[1][field] = "miss_rate" if field == "risk" else other[1][field] * 3
        assert draw_plan(other, confidence=0.95) != first, field
    with pytest.raises(DataError, match="no rows"):
        draw_plan([])
    with pytest.raises(DataError, match="`in_total`"):
        draw_plan([{key: value for key, value in needs[0].items() if key != "in_total"}])


def test_without_matplotlib_the_extra_is_named(certified, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingError, match=r"pip install 'stage1-pro\[report\]'") as caught:
        figures(certified)
    assert caught.value.exit_code == 3


ODD_NAMES = {
    "money": ("$0-$10", "$10-$50"),
    "half a formula": ("$50_$100", "more"),
    "TeX": (r"\frac{1}", r"a\$b$^{2}$"),
    "markup": ("<b>x</b>", '&amp; "it\'s"'),
    "underscores": ("_", "__a"),
    "braces": ("{}", "{0!r:>{1}}"),
    "letters that the font lacks": ("🚧 works", "日本語"),
    "long": ("a" * 300, "b " * 150),
    "breaks and tabs": ("a\nb", "c\td"),
}


def renamed(value, names):
    """The document with its classes called otherwise, in keys and texts."""
    if isinstance(value, dict):
        return {renamed(key, names): renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item, names) for item in value]
    return (
        value.replace("roadwork", "\0").replace("none", names[0]).replace("\0", names[1])
        if isinstance(value, str)
        else value
    )


NAMING = {"reliability", "exits", "exit_confusion", "score_histogram", "threshold_plane"}
"""The figures in which classes are named; the others do not change with the names."""


def with_names(sample, names):
    return replace(sample, certificate=renamed(sample.certificate, names), evaluation=renamed(sample.evaluation, names))


def test_the_figures_that_name_no_class_do_not_change_with_the_names(certified, unchanged):
    for names in (ODD_NAMES["money"], ODD_NAMES["long"]):
        for figure, drawn in some(with_names(certified, names), NAMES - NAMING).items():
            assert drawn == unchanged[figure], figure


@pytest.mark.parametrize("kind", ODD_NAMES)
def test_names_are_drawn_as_they_are_and_never_read_as_formulas(kind, certified, monkeypatch, recwarn):
    from matplotlib.mathtext import MathTextParser

    def never(*_, **__):
        raise AssertionError("a name was read as a formula")

    monkeypatch.setattr(MathTextParser, "parse", never)
    names = ODD_NAMES[kind]
    drawings = some(with_names(certified, names), NAMING)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    assert all(figure.png for figure in drawings.values())
    if kind in ("money", "half a formula"):  # an SVG says in a comment what its outlines spell
        for figure in NAMING:
            shown = names[1:] if figure == "reliability" else names
            assert all(name.encode() in drawings[figure].svg for name in shown), figure


def test_a_name_too_long_for_a_figure_keeps_both_ends():
    assert fitting("short") == "short"
    assert fitting("front page of the newspaper, second edition") != fitting(
        "front page of the newspaper, third edition!"
    )
    assert len(fitting("x" * 400)) == 28
    assert fitting("two\nlines") == "two lines"
