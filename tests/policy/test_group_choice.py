"""Many draws of one image of each group are left where each of them, at half of delta, is out of reach."""

from __future__ import annotations

import numpy as np

from stage1.policy import group_means
from stage1.policy.group_means import better_unit, draws_within_reach, means_path
from stage1.policy.target import Request
from stage1.scores import Scores


def signs(rng, n_groups, size=10, separation=3.0):
    """A label a group, one in six positive; images of a group agree in part. Scores near their log odds."""
    labels = np.arange(n_groups) % 6 == 0
    middle = np.where(labels, separation, -separation) / 2 + rng.normal(size=n_groups)
    score = np.repeat(middle, size) + rng.normal(size=n_groups * size) - 1
    names = np.repeat(np.arange(n_groups), size).astype(np.str_)
    logits = np.stack([np.zeros_like(score), score], axis=1)
    return Scores(logits=logits, labels=np.repeat(labels, size).astype(np.int64), groups=names)


def test_many_draws_are_not_taken_where_half_of_delta_is_out_of_reach(monkeypatch):
    request, calib = Request({"error": 0.05}), signs(np.random.default_rng(0), 105)
    taken = {"as it is": 0, "by power alone": 0}
    for seed in range(12):
        select = signs(np.random.default_rng(100 + seed), 30)
        path = means_path(select, select.margin, calib, request)
        for name in taken:
            with monkeypatch.context() as patched:
                if name == "by power alone":
                    patched.setattr(group_means, "draws_within_reach", lambda *_: True)
                taken[name] += better_unit(select, select.margin, request, 105, path, 0) == "group_draws"
    assert taken["as it is"] == 0
    assert taken["by power alone"] > 0


def test_many_draws_are_within_reach_of_many_groups():
    select = signs(np.random.default_rng(1), 60, separation=6.0)
    assert draws_within_reach(select, select.margin, Request({"error": 0.1}), 600)
