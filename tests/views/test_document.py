"""views.json: written, read back, refused where its parts do not belong together; and which view decided."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stage1.errors import DataError, IntegrityError, MissingError
from stage1.runtime.crops import ViewPolicy
from stage1.storage.documents import read_document
from stage1.storage.files import digest_file
from stage1.views import VIEWS_FILE, Learned, Pool, ViewsDocument, aggregator, choose_aggregator, fit_sequence
from stage1.views.schema import VIEWS_KIND


@pytest.fixture(scope="module")
def frozen(draw_small, ten):
    logits, labels = draw_small(300, seed=0)
    choice = choose_aggregator(logits, labels, None, ten, resamples=50)
    plan = fit_sequence(logits, labels, None, ten, "learned", risks={"fnr": 0.05, "false_exit_rate": 0.05})
    return ViewsDocument(ten, aggregator("learned", ten, logits, labels), plan, choice.to_document())


def test_what_is_read_is_what_was_written(frozen, tmp_path, draw_small):
    path = tmp_path / VIEWS_FILE
    frozen.save(path)
    found = ViewsDocument.load(path)
    assert found == frozen
    assert found.digest == frozen.digest == digest_file(path)
    logits, _ = draw_small(100, seed=1)
    for one, other in zip(found.aggregate(logits), frozen.aggregate(logits), strict=True):
        assert (one == other).all()
    assert read_document(path, VIEWS_KIND)["views"][:2] == ["whole", "tile r0c0"]


@pytest.mark.parametrize("name", ["topk:3.0", "topk:1e1", "lse:8.0", "lse:1e-3"])
def test_every_pool_that_can_be_made_can_be_written(name, tmp_path):
    made = ViewsDocument(ViewPolicy(grid=(2, 2)), Pool(name))
    made.save(tmp_path / "views.json")
    assert ViewsDocument.load(tmp_path / "views.json") == made


def test_any_change_changes_the_digest(frozen, ten):
    plain = ViewsDocument(ten, Pool("mean"))
    assert (
        len(
            {
                frozen.digest,
                plain.digest,
                ViewsDocument(ten, Pool("max")).digest,
                ViewsDocument(ViewPolicy(), Pool("mean")).digest,
            }
        )
        == 4
    )
    assert plain.description == "10 views (whole + 3x3 tiles, 12 % overlap), aggregated by mean"
    assert "as many of them in turn" in frozen.description


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda d: d["policy"].update(grid=[2, 2]), "is for 10 views, the policy has 5"),
        (lambda d: d["aggregator"].update(slopes=[1.0]), "aggregator is for 1 views"),
        (lambda d: d["sequence"].update(order=[0, 1]), "one step for each view"),
        (lambda d: d["views"].reverse(), "views are not those of its policy"),
        (lambda d: d.update(aggregator={"name": "median"}), "median. is unknown"),
        (lambda d: d.update(aggregator={"name": "topk:0"}), "how many views"),
        (lambda d: d.pop("policy"), "policy"),
        (lambda d: d.update(more=1), "more"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(frozen, tmp_path, change, says):
    path = tmp_path / VIEWS_FILE
    frozen.save(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match=says) as caught:
        ViewsDocument.load(path)
    assert "\n" not in str(caught.value)


def test_missing_and_impossible():
    with pytest.raises(MissingError):
        ViewsDocument.load("nowhere/views.json")
    with pytest.raises(DataError, match="no whole view"):
        ViewsDocument(ViewPolicy(whole=False, grid=(2, 2)), Pool("whole"))
    with pytest.raises(DataError, match="for 4 views, the policy has 10"):
        ViewsDocument(ViewPolicy(grid=(3, 3)), Learned(True, (1.0,) * 4, 0.0))
    with pytest.raises(DataError, match="3 views, the policy has 10"):
        ViewsDocument(ViewPolicy(grid=(3, 3)), Pool("mean")).aggregate(np.zeros((2, 3, 2)))


def test_the_view_that_pulls_most_towards_the_answer_decides():
    policy = ViewPolicy(whole=True, grid=(1, 2))
    m = np.array([[1.0, 4.0, -2.0], [-1.0, 2.0, -3.0], [0.0, -1.0, -5.0]])
    logits = np.stack([-m / 2, m / 2], axis=2)

    def decided(pool):
        return ViewsDocument(policy, pool).aggregate(logits)[2].tolist()

    assert decided(Pool("mean")) == [1, 2, 2]
    assert decided(Pool("whole")) == [0, 0, 0]
    assert decided(Pool("max")) == [1, 1, 0]  # the largest margin is what max answers by, whatever it answers
    assert decided(Learned(True, (1.0, 0.0, 0.0), 0.0)) == [0, 0, 0]


def test_many_classes_by_the_margin_over_the_next_class():
    policy = ViewPolicy(whole=True, grid=(1, 2))
    logits = np.array([[[0.0, 1.0, 0.0], [0.0, 5.0, 0.0], [3.0, 2.0, 0.0]]])
    made, used, deciding = ViewsDocument(policy, Pool("mean")).aggregate(logits)
    assert made.shape == (1, 3)
    assert (used.tolist(), deciding.tolist()) == ([3], [1])
    assert ViewsDocument(policy, Pool("whole")).aggregate(logits)[2].tolist() == [0]
