"""The page of a run with views says what views.json and evaluation.json say of them; that of a run without says
nothing.
"""

from __future__ import annotations

import copy
import html
import io

import pytest
from PIL import Image

from stage1.evaluation.schema import EVALUATION_KIND
from stage1.report import Thumb, draw_figures, write_report
from stage1.report.figures.views import draw_trace
from stage1.report.page import render_page
from stage1.storage.documents import validate

from .test_page import leaves, text_of

TABLE = [
    {
        "name": "whole",
        "augrc": 0.0311,
        "raw_augrc": 0.0322,
        "difference": None,
        "low": None,
        "high": None,
        "ece_before": 0.051,
        "ece_after": 0.041,
    },
    {
        "name": "topk:3",
        "augrc": 0.0203,
        "raw_augrc": 0.0214,
        "difference": -0.0108,
        "low": -0.0151,
        "high": -0.0062,
        "ece_before": 0.112,
        "ece_after": 0.0433,
    },
]
VIEWS = {
    "asked": "5 views (whole + 2x2 tiles, 12 % overlap)",
    "ships": True,
    "description": "5 views (whole + 2x2 tiles, 12 % overlap), aggregated by topk:3",
    "aggregator": "topk:3",
    "comparison": {
        "chosen": "topk:3", "reference": "whole", "reason": "topk:3: the reason given",
        "n": 811, "n_groups": 407, "resamples": 213, "seed": 5, "table": TABLE,
    },
    "order": None,
    "expected": None,
}  # fmt: skip
ADAPTIVE = VIEWS | {
    "order": ["whole", "tile r1c1", "tile r0c0", "tile r1c0", "tile r0c1"],
    "expected": {"views": 2.31, "coverage": 0.613, "coverage_all": 0.627, "tolerance": 0.0049},
}
SEEN = {
    "of": 5,
    "mean": 2.47,
    "used": [
        {"views": 1, "right": 700, "deferred": 31, "wrong": 9},
        {"views": 4, "right": 400, "deferred": 350, "wrong": 10},
    ],
    "decided": [
        {"view": "whole", "right": 613, "deferred": 121, "wrong": 12},
        {"view": "tile r1c1", "right": 487, "deferred": 260, "wrong": 7},
    ],
}


@pytest.fixture(scope="module")
def drawn(_certified):
    sample = _certified
    return draw_figures(
        certificate=sample.certificate,
        evaluation=sample.evaluation,
        policy=sample.policy,
        scores=sample.scores,
        calibration=sample.calibration,
    )


@pytest.fixture
def viewed(certified):
    certified.evaluation["views"] = copy.deepcopy(SEEN)
    validate(certified.evaluation, EVALUATION_KIND, "evaluation")
    words = ["tile r1c1 decided, 3 of 5 views looked at", "the whole image weighed most, 1 of 5 views looked at"]
    certified.thumbnails = [
        Thumb(thumb.jpeg, thumb.caption, thumb.label, thumb.decision, thumb.probability, said)
        for thumb, said in zip(certified.thumbnails, words, strict=False)
    ]
    return certified


def render(sample, figures, views):
    arguments = {name: value for name, value in sample.arguments().items() if name != "scores"}
    found = draw_trace(sample.evaluation, views) if views else None
    return render_page(figures=figures if found is None else figures | {"views": found}, views=views, **arguments)


def test_the_section_says_what_is_looked_at_and_how_it_was_chosen(viewed, drawn):
    text = text_of(render(viewed, drawn, VIEWS))
    assert f"{VIEWS['description']}. Here topk:3 is the mean of the 3 largest log-odds." in text
    assert "How it was chosen: topk:3: the reason given." in text
    assert "topk:3 ships 0.0203 0.0214 -0.0108 -0.0151 to -0.0062 0.0433 0.112" in text
    assert "tile r1c1 754 50.3 % 487 260 7" in text
    assert "Looking stops" not in text


def test_adaptive_views_show_order_expectation_and_what_was_taken(viewed, drawn):
    page = render(viewed, drawn, ADAPTIVE)
    text = text_of(page)
    assert "Order: whole, tile r1c1, tile r0c0, tile r1c0, tile r0c1." in text
    assert "val_select expected 2.31 views per image and a coverage of 61.3 %, against 62.7 % with all 5" in text
    assert "val_test took 2.47 of 5 views per image on average" in text
    assert "<h3>Views looked at</h3>" in page


def test_each_thumbnail_names_its_view_under_it_and_in_its_text(viewed, drawn):
    page = render(viewed, drawn, ADAPTIVE)
    for thumb in viewed.thumbnails:
        assert page.count(thumb.decided) == 2
    assert page.count('class="framed"') == len(viewed.thumbnails)


def test_a_choice_for_whole_images_is_told_without_frames(certified, drawn):
    alone = VIEWS | {"ships": False, "aggregator": "whole", "comparison": VIEWS["comparison"] | {"chosen": "whole"}}
    page = render(certified, drawn, alone)
    text = text_of(page)
    assert (
        "as a whole, as in a run without views. 5 views (whole + 2x2 tiles, 12 % overlap) were tried on val_select"
        in text
    )
    assert "whole ships 0.0311" in text
    assert "Which view pulled most" not in text
    assert 'class="framed"' not in page
    assert "The frame is" not in text


def test_without_a_comparison_there_is_no_table(viewed, drawn):
    for comparison in (None, VIEWS["comparison"] | {"table": []}):
        assert "Ways to make one answer" not in text_of(render(viewed, drawn, VIEWS | {"comparison": comparison}))


def test_without_views_the_page_has_no_trace_of_them(certified, drawn):
    page = render(certified, drawn, None)
    assert page == render_page(
        figures=drawn, **{key: value for key, value in certified.arguments().items() if key != "scores"}
    )
    for word in ("framed", "Views", "tile r", ".chosen", "The frame"):
        assert word not in page


def test_every_number_is_on_the_page_or_in_the_figure(viewed, drawn):
    before = render(viewed, drawn, ADAPTIVE)
    tried = 0
    for which, document in (("views", ADAPTIVE), ("evaluation", SEEN)):
        for path in leaves(document):
            changed = copy.deepcopy(document)
            place = changed
            for key in path[:-1]:
                place = place[key]
            old = place[path[-1]]
            place[path[-1]] = old + 3 if isinstance(old, int) else 0.37 * old + 0.013
            sample = copy.copy(viewed)
            if which == "evaluation":
                sample.evaluation = viewed.evaluation | {"views": changed}
            after = render(sample, drawn, changed if which == "views" else ADAPTIVE)
            assert after != before, f"{which}.{'.'.join(map(str, path))} = {old} is not on the page"
            tried += 1
    assert tried > 30


def test_names_from_strangers_are_text(viewed, drawn):
    evil = '<img src=x onerror=alert(2)>"'
    views = copy.deepcopy(ADAPTIVE)
    views["order"][1] = views["description"] = views["comparison"]["reason"] = views["comparison"]["table"][1][
        "name"
    ] = evil
    viewed.evaluation["views"]["decided"][0]["view"] = evil
    page = render(viewed, drawn, views)
    assert "<img src=x" not in page
    assert page.count(html.escape(evil, quote=False).replace('"', "&#34;")) == 5


def test_the_figure_is_for_adaptive_views_and_depends_on_nothing_else(viewed):
    assert draw_trace(viewed.evaluation, VIEWS) is None
    assert draw_trace({}, ADAPTIVE) is None
    first, second = (draw_trace(viewed.evaluation, ADAPTIVE) for _ in range(2))
    assert (first.png, first.svg) == (second.png, second.svg)
    assert Image.open(io.BytesIO(first.png)).size[0] > 900


def test_the_figure_stands_beside_the_page(viewed, tmp_path):
    written = write_report(tmp_path, **viewed.arguments(), views=ADAPTIVE)
    assert tmp_path / "figures" / "views.png" in written
    assert written[0].read_text(encoding="utf-8").count("<h2>Views</h2>") == 1


def test_folds_of_val_select_and_why_nothing_stops_early_are_on_the_page(viewed, drawn):
    why = "no image stops early, each is looked at with 5 of 5 views: the reason given"
    said = ADAPTIVE | {"select_folds": 10, "expected": ADAPTIVE["expected"] | {"none_early": why}}
    text = text_of(render(viewed, drawn, said))
    assert f"Here {why}." in text
    assert "On val_select each image is scored by a fit on the other 9 of 10 folds" in text
    text = text_of(render(viewed, drawn, ADAPTIVE | {"select_folds": None}))
    assert "fit on the other" not in text
    assert "stops early" not in text
