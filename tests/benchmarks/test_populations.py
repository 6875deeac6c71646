"""The benchmark scripts measure what they say: the peer's rule, the populations, the commands of the table."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from pytest import approx
from scipy import stats

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import peer  # noqa: E402
import populations  # noqa: E402
import power  # noqa: E402
import validity  # noqa: E402

real = pytest.mark.skipif(not populations.SHARED.is_dir(), reason="../shared/data is not beside this checkout")


# ---- the peer


def labelled(n, seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(np.int64)
    return rng.normal(size=n) + 3.0 * labels, labels


def test_the_peers_grid_looks_at_scores_alone_and_leaves_out_what_nothing_exits_beyond():
    pairs = peer.quantile_pairs(np.array([0.0] * 5 + [1.0, 2.0, 3.0] + [9.0] * 12), 10)
    assert (pairs[:, 0] <= pairs[:, 1]).all()
    assert pairs.min() > 0.0
    assert pairs.max() < 9.0
    assert len(np.unique(pairs, axis=0)) == len(pairs)


@pytest.mark.parametrize("fwer", ["bonferroni", "bonferroni_holm"])
def test_the_peer_certifies_the_pair_that_exact_tails_and_the_correction_allow(fwer):
    pytest.importorskip("mapie", reason="MAPIE is the peer")
    select, calib = labelled(400, 0), labelled(1500, 1)
    score, labels = (np.concatenate(part) for part in zip(select, calib, strict=True))
    pairs = peer.quantile_pairs(select[0], 9)
    p_values, coverage = [], []
    for lo, hi in pairs:
        as_0, as_1 = score < lo, score > hi
        tails = [
            stats.binom.cdf((wrong & own).sum(), ((as_0 | as_1) & own).sum(), 0.05)
            for wrong, own in ((as_0, labels == 1), (as_1, labels == 0))
        ]
        p_values.append(max(tails))
        coverage.append((as_0 | as_1).mean())
    order, passed = np.argsort(p_values), []
    for place, index in enumerate(order):
        if p_values[index] > 0.05 / (len(pairs) - (place if fwer == "bonferroni_holm" else 0)):
            break
        passed.append(index)
    found = peer.certified_pair(select, calib, pairs, 0.05, fwer)
    assert found is not None
    assert ((score < found[0]) | (score > found[1])).mean() == max(coverage[index] for index in passed)


def test_the_peer_says_none_where_nothing_passes():
    pytest.importorskip("mapie", reason="MAPIE is the peer")
    select = labelled(60, 0)
    for pairs in peer.grids(*select).values():
        assert peer.certified_pair(select, labelled(60, 1), pairs, 0.01, "bonferroni_holm") is None


def test_the_square_grid_has_a_threshold_on_either_side_of_even_odds():
    score, labels = labelled(20_000, 3)
    pairs = peer.grids(score, labels)["s19"]
    assert len(pairs) == 19 * 19
    middle = (4.5 - np.log(0.4 / 0.6)) / 3.0  # where P(y = 1 | s) = 1/2 in this design
    assert pairs[:, 0].max() < middle + 0.1
    assert pairs[:, 1].min() > middle - 0.1


def test_coverage_and_risk_of_a_pair():
    scores = populations.gaussian().take(range(100_000))
    coverage, risk = power.exits(scores, 0.5, 2.0)
    m, c = stats.norm.cdf(-2.0), stats.norm.sf(-0.5)
    f, t = stats.norm.sf(2.0), stats.norm.cdf(0.5)
    assert coverage == approx(0.3 * (m + c) + 0.7 * (f + t), abs=0.01)
    assert risk == approx(max(m / (m + c), f / (f + t)), abs=0.005)
    assert power.exits(scores, None, None) == (0.0, 0.0)


# ---- populations


@real
def test_populations_are_what_the_issue_names():
    assert len(populations.coco()) == 4952
    pair = populations.cifar(populations.CAT, populations.DOG)
    assert len(pair) == 2000
    assert pair.labels.mean() == 0.5
    classes = populations.cifar_classes()
    rows = np.isin(classes.labels, [3, 5])
    p = classes.probabilities[rows]
    assert pair.probabilities[:, 1] == approx(p[:, 5] / (p[:, 3] + p[:, 5]), abs=1e-6)
    sides = populations.cifar(populations.VEHICLES, populations.ANIMALS)
    assert sides.probabilities[:, 1] == approx(classes.probabilities[:, populations.ANIMALS].sum(axis=1), abs=1e-6)
    assert (sides.labels == np.isin(classes.labels, populations.ANIMALS)).all()


# ---- the table


def test_the_table_has_every_cell_that_the_issue_asks_for():
    cells = list(validity.cells(None))
    for name in ("COCO person", "cat / dog", "animal / vehicle"):
        for policy in ("softmax", "gate", "scrc"):
            assert sum((cell.population.name, cell.policy) == (name, policy) for cell in cells) == 3
    assert sum(cell.population.name == "10 classes" for cell in cells) == 6
    assert len({cell.command(1000, Path("scores")) for cell in cells}) == len(cells)


@real
def test_a_cell_is_what_its_command_prints(tmp_path, capsys):
    from typer.testing import CliRunner

    from stage1.cli import app
    from stage1.scores import write_scores

    cell = next(cell for cell in validity.cells("cat / dog") if cell.policy == "scrc")
    write_scores(tmp_path / f"{cell.population.file}.npz", cell.population.make())
    found, _ = validity.run(cell, 3, tmp_path)
    arguments = shlex.split(cell.command(3, tmp_path))
    assert arguments[0] == "stage1"
    result = CliRunner().invoke(app, [*arguments[1:], "--json", "--quiet"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert {name: printed[name] for name in found} == found
    assert f"| {found['coverage']:.3f} |" in validity.row(cell, found)
