"""Views of a head on pooled features: which of them decided, and that nothing is aggregated twice."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.errors import DataError, IntegrityError
from stage1.runtime.crops import ViewPolicy
from stage1.views import Pooled, Sequence, Step, ViewsDocument, deciding_view, weight_of_views
from stage1.views.pooling import Pool

GRID = ViewPolicy(grid=(1, 2))


def test_weights_by_hand_for_two_classes_and_three():
    logits = [[0.0, 2.0], [1.0, -1.0]]
    without = [[[0, 2], [0, -1], [0, 5]], [[1, -1], [0, 1], [2, -2]]]
    # The first answers 1 with margin 2, the second 0 with margin 2.
    assert weight_of_views(logits, without).tolist() == [[0, 3, -3], [0, 3, -2]]
    assert deciding_view(logits, without).tolist() == [1, 1]
    # Three classes: class 2 leads by 1; without the view class 1 leads it by 2.
    assert weight_of_views([[0.0, 1.0, 2.0]], [[[0, 3, 1]]]).tolist() == [[3]]


def test_the_first_of_equal_views_decided():
    assert deciding_view([[0.0, 1.0]], [[[0, 0], [0, 0], [0, 1]]]).tolist() == [0]


@pytest.mark.parametrize(
    ("logits", "without"), [([[0, 1]], [[[0, np.nan]]]), ([[0, 1]], [[[0, 1, 2]]]), ([[0, 1], [0, 1]], [[[0, 1]]])]
)
def test_what_does_not_fit_is_named(logits, without):
    with pytest.raises(DataError, match="view logits"):
        weight_of_views(logits, without)


def test_the_file_comes_back_and_other_ways_of_looking_are_refused(tmp_path):
    views = ViewsDocument(GRID, Pooled())
    assert views.pooled
    assert views.description == "3 views (whole + 1x2 tiles, 12 % overlap), by their pooled features"
    views.save(tmp_path / "views.json")
    found = ViewsDocument.load(tmp_path / "views.json")
    assert found == views
    assert found.digest == views.digest
    assert not ViewsDocument(GRID, Pool("mean")).pooled
    with pytest.raises(DataError, match="already"):
        views.aggregate(np.zeros((1, 3, 2)))
    steps = tuple(Step(Pool("mean"), 1.0, 0.0, None, None, None) for _ in range(3))
    with pytest.raises(DataError, match="has no sequence"):
        ViewsDocument(GRID, Pooled(), Sequence((0, 1, 2), steps, {}))
    text = (tmp_path / "views.json").read_text()
    (tmp_path / "views.json").write_text(text.replace('"pooled"', '"poolde"'))
    with pytest.raises(IntegrityError, match=r"views\.json"):
        ViewsDocument.load(tmp_path / "views.json")
