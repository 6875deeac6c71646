"""The policy beside the plain argmax, counted by hand; and in every place that shows it."""

from __future__ import annotations

import numpy as np
from pytest import approx

from stage1.cli.printing import argmax_lines as printed
from stage1.evaluation.argmax import argmax_lines, beside_argmax
from stage1.evaluation.summary import evaluate
from stage1.scores import Scores

LABELS = np.array([0, 0, 0, 1, 1, 1])
LOGITS = np.stack([np.zeros(6), np.array([-2.0, -1.0, 1.0, -1.0, 2.0, 3.0])], axis=1)  # argmax: row 2 and row 3 wrong
EXIT = np.array([True, True, True, False, True, True])
LABEL = np.array([0, 1, 1, 0, 1, 0])  # rows 1, 2 and 5 wrong: against the argmax in rows 1 and 5


def test_each_rule_is_counted_on_its_images_and_by_true_class():
    found = beside_argmax(Scores(logits=LOGITS, labels=LABELS), EXIT, LABEL, ("cat", "dog"))
    assert found["policy"] == {
        "n": 5,
        "errors": 3,
        "per_class": {"cat": {"n": 3, "errors": 2}, "dog": {"n": 2, "errors": 1}},
    }
    assert found["same_images"]["errors"] == 1
    assert found["all_images"] == {
        "n": 6,
        "errors": 2,
        "per_class": {"cat": {"n": 3, "errors": 1}, "dog": {"n": 3, "errors": 1}},
    }


def test_the_document_has_it_and_the_terminal_shows_it():
    document = evaluate(
        Scores(logits=LOGITS, labels=LABELS),
        EXIT,
        LABEL,
        lo=-0.5,
        hi=0.5,
        classes=("cat", "dog"),
        targets={},
        policy="softmax",
        certified=True,
        resamples=10,
    )
    rows = argmax_lines(document)
    assert [(row.n, row.errors) for row in rows] == [(5, 3), (5, 1), (6, 2)]
    assert rows[0].coverage == approx(5 / 6)
    assert rows[2].error == approx(1 - document["metrics"]["accuracy"]["value"])
    lines = "\n".join(printed(document))
    assert "policy, images that exit" in lines
    assert "argmax, the same images" in lines
    assert "2 of 3" in lines


def test_nothing_is_shown_of_documents_from_before_there_was_such_a_section():
    assert argmax_lines({"n": 3}) == []
    assert printed({"n": 3}) == []
