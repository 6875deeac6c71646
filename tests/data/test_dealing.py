"""Every group has the same chance of every role, whatever it holds; and what that does to a certificate."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from stage1 import Scores, fit_policy
from stage1.config import SplitConfig
from stage1.config.data import FractionsConfig
from stage1.data.dealing import deal
from stage1.data.splits import assign_roles
from stage1.scores import ROLES

from .old_dealing import dealt_by_size

FRACTIONS = FractionsConfig().model_dump()
DELTA = 0.05


def videos(rng: np.random.Generator, n: int) -> tuple[list[str], np.ndarray]:
    """n groups of 1 to 5 images: of class 0, of class 1, or (a fifth) of both. Names, and images by class [n, 2]."""
    content = np.zeros((n, 2))
    content[np.arange(n), (rng.random(n) < 0.3).astype(int)] = rng.integers(1, 6, n)
    mixed = rng.random(n) < 0.2
    content[mixed] += rng.integers(0, 3, (int(mixed.sum()), 2))
    return [f"video {number}" for number in range(n)], content


def chances(names: list[str], content: np.ndarray, draws: int, how=None) -> np.ndarray:
    """Share of the draws in which each group has each role of FRACTIONS, [G, 4]."""
    how = how or (lambda seed: deal(names, content, FRACTIONS, seed).roles)
    found = np.zeros((len(names), 4))
    for seed in range(draws):
        found += np.array(how(seed))[:, None] == np.array(list(FRACTIONS))[None, :]
    return found / draws


def spread(shares: np.ndarray, draws: int) -> np.ndarray:
    """Mean of (share - f)^2 over its variance, by role [4]: about 1 where all chances are f, more where some differ."""
    f = np.array(list(FRACTIONS.values()))
    return np.asarray(((shares - f) ** 2 / (f * (1 - f) / draws)).mean(axis=0))


@pytest.mark.parametrize("n", [28, 150])
def test_chances_depend_neither_on_size_nor_on_labels(n: int) -> None:
    names, content = videos(np.random.default_rng(0), n)
    draws = 400
    shares = chances(names, content, draws)
    limit = 1 + 4 * np.sqrt(2 / n)  # of a chi-square with n degrees of freedom
    assert (spread(shares, draws) < limit).all(), spread(shares, draws)
    f = np.array(list(FRACTIONS.values()))
    size = content.sum(axis=1)
    for rows in (size <= 2, size >= 4, content[:, 0] == 0, content[:, 1] == 0, (content > 0).all(axis=1)):
        error = np.sqrt(f * (1 - f) / draws / rows.sum())
        assert (np.abs(shares[rows].mean(axis=0) - f) <= 4 * error).all()
    by_size = chances(names, content, 60, lambda seed: dealt_by_size(names, content, FRACTIONS, seed))
    assert spread(by_size, 60).max() > 3  # the control


def test_groups_that_come_later_have_the_same_chance() -> None:
    """One at a time and many at once: each new group is dealt by its own draw, not to where something is missing."""
    names, content = videos(np.random.default_rng(1), 40)
    labels = np.repeat(np.tile([0, 1], 40), content.reshape(-1).astype(int))
    groups = np.repeat(np.repeat(names, 2), content.reshape(-1).astype(int))
    draws = 300
    for late in (1, 12):
        found = np.zeros(4)
        old = np.isin(groups, names[late:])
        for seed in range(draws):
            config = SplitConfig(method="balanced", seed=seed)
            before = dict(zip(groups[old], assign_roles(groups[old], labels[old], None, config), strict=True))
            roles = dict(zip(groups, assign_roles(groups, labels, None, config, before), strict=True))
            assert all(roles[name] == role for name, role in before.items())
            found += [sum(roles[name] == role for name in names[:late]) for role in FRACTIONS]
        f = np.array(list(FRACTIONS.values()))
        assert (np.abs(found / draws / late - f) <= 4 * np.sqrt(f * (1 - f) / draws / late)).all()


def test_quotas_follow_the_fractions_in_every_class_and_band() -> None:
    """Single-class groups: groups of each class and size are shared out to within two of n f."""
    rng = np.random.default_rng(2)
    label, size = rng.integers(0, 3, 300), rng.integers(1, 4, 300)
    content = np.zeros((300, 3))
    content[np.arange(300), label] = size
    roles = np.array(deal([f"g{number}" for number in range(300)], content, FRACTIONS, 0).roles)
    for k in range(3):
        for role, f in FRACTIONS.items():
            assert abs((roles[label == k] == role).sum() - f * (label == k).sum()) < 1
            for images in (1, 2, 3):
                rows = (label == k) & (size == images)
                # A band at each end of a size is shared with its neighbour.
                assert abs((roles[rows] == role).sum() - f * rows.sum()) < 5


def test_few_groups_are_shared_out_better_than_by_hash() -> None:
    """28 segments of 20 to 120 frames, as of a road: shares of both classes lie nearer to the fractions than under
    hash.
    """
    rng = np.random.default_rng(3)
    sizes = rng.integers(20, 120, 28)
    groups = np.repeat([f"segment {number}" for number in range(28)], sizes)
    labels = (rng.random(len(groups)) < np.repeat(rng.uniform(0.05, 0.5, 28), sizes)).astype(np.int64)
    off: dict[str, list[float]] = {"hash": [], "balanced": []}
    for method, found in off.items():
        for seed in range(40):
            roles = assign_roles(groups, labels, None, SplitConfig(method=method, seed=seed))
            shares = [[(roles[labels == label] == role).mean() for role in FRACTIONS] for label in (0, 1)]
            found.append(float(np.abs(np.array(shares) - list(FRACTIONS.values())).mean()))
    assert np.mean(off["balanced"]) < 0.75 * np.mean(off["hash"])
    assert np.mean(off["balanced"]) < 0.04


def test_a_rare_class_reaches_every_role_and_its_holders_have_equal_chances() -> None:
    """Five groups of 40 hold class 1: draws that miss a role are thrown away, whole; sizes do not count."""
    content = np.zeros((40, 2))
    content[:, 0] = np.arange(1, 41)
    content[:5, 0], content[:5, 1] = 0, [1, 10, 100, 2, 50]
    names = [f"g{number}" for number in range(40)]
    found, redraws, draws = np.zeros((5, 4)), 0, 400
    for seed in range(draws):
        dealt = deal(names, content, FRACTIONS, seed)
        assert set(dealt.roles[:5]) == set(ROLES)
        redraws += dealt.redraws
        found += np.array(dealt.roles[:5])[:, None] == np.array(list(FRACTIONS))[None, :]
    assert redraws > 0
    for column in found.T:
        assert stats.chisquare(column).pvalue > 1e-3


def test_no_deal_where_a_class_has_fewer_groups_than_roles() -> None:
    content = np.ones((12, 1)) * [[3, 0]]
    content[:3] = [0, 2]
    assert deal([f"g{number}" for number in range(12)], content, FRACTIONS, 0) is None


def test_any_set_of_roles_may_be_dealt_to() -> None:
    names, content = videos(np.random.default_rng(4), 60)
    dealt = deal(names, content, {"val_select": 0.25, "val_calib": 0.75, "train": 0.0}, 0)
    assert set(dealt.roles) == {"val_select", "val_calib"}
    assert dealt.roles.count("val_calib") == 45
    turned = deal(names[::-1], content[::-1], {"val_select": 0.25, "val_calib": 0.75}, 0)
    assert turned.roles[::-1] == dealt.roles  # the order of names decides nothing


# ---- what it does to a certificate -------------------------------------------------------------------------------


def simulate(n: int, draws: int, how: str, shifts: dict[int, float], target: float, seed: int) -> tuple[float, float]:
    """(violation rate, mean size of a group of val_test less that of all): videos of some sizes, short ones harder.

    shifts: size -> distance of the mean score from 0; each size is equally likely. how: a method of SplitConfig, or "by
    size".
    """
    rng = np.random.default_rng(seed)
    sizes, names = np.array(list(shifts)), np.array([f"video {number}" for number in range(n)])
    distance = np.array(list(shifts.values()))

    def holds(lo: float | None, hi: float | None) -> bool:
        lo, hi = -np.inf if lo is None else lo, np.inf if hi is None else hi
        miss, right = stats.norm.cdf(lo, distance).mean(), stats.norm.sf(hi, distance).mean()
        return bool(miss <= target * (miss + right) and stats.norm.sf(hi, -distance).mean() <= target)

    broken, off = 0, []
    for draw in range(draws):
        kind, label = rng.integers(0, len(sizes), n), (rng.random(n) < 0.4).astype(np.int64)
        index = np.repeat(np.arange(n), sizes[kind])
        labels = label[index]
        score = rng.normal((2 * labels - 1) * distance[kind[index]])
        if how == "by size":
            content = np.zeros((n, 2))
            content[np.arange(n), label] = sizes[kind]
            roles = np.array(dealt_by_size(names.tolist(), content, FRACTIONS, draw))[index]
        else:
            roles = assign_roles(names[index], labels, None, SplitConfig(method=how, seed=draw))
        rows = roles == "val_calib"
        calib = Scores(
            logits=np.stack([np.zeros(rows.sum()), score[rows]], axis=1), labels=labels[rows], groups=names[index[rows]]
        )
        policy = fit_policy("softmax", calib=calib, risks={"fnr": target, "false_exit_rate": target}, seed=draw)
        broken += not holds(policy.lo, policy.hi)
        off.append(sizes[kind[np.unique(index[roles == "val_test"])]].mean() - sizes[kind].mean())
    return broken / draws, float(np.mean(off))


def test_a_certificate_on_dealt_groups_is_true_and_one_on_groups_dealt_by_size_is_not() -> None:
    shifts, draws = {1: 1.0, 2: 3.5}, 40
    limit = DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / draws)
    violation, off = simulate(2500, draws, "balanced", shifts, 0.05, seed=1)
    assert violation <= limit
    assert abs(off) < 0.01
    violation, off = simulate(2500, draws, "by size", shifts, 0.05, seed=1)
    assert violation > limit + 0.1
    assert off < -0.05


@pytest.mark.slow
@pytest.mark.parametrize("n", [1500, 6000])
def test_violation_in_400_draws_of_videos_of_1_to_5_frames(n: int) -> None:
    shifts, draws = {1: 0.6, 2: 1.4, 3: 2.2, 4: 3.0, 5: 3.8}, 400
    limit = DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / draws)
    found = {how: simulate(n, draws, how, shifts, 0.05, seed=n) for how in ("balanced", "hash", "by size")}
    for how, (violation, off) in found.items():
        print(f"{n} groups, {how}: violation {violation:.4f}, size of a group of val_test off by {off:+.4f}")
    assert found["balanced"][0] <= limit
    assert found["hash"][0] <= limit
    assert found["by size"][0] > limit
    # 15 % of the groups; their size has a standard deviation of sqrt(2)
    assert abs(found["balanced"][1]) <= 4 * np.sqrt(2 / (0.15 * n) / draws)
    assert found["by size"][1] < -0.3


@pytest.mark.parametrize("classes", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_classes_of_few_groups_reach_every_role_with_equal_chances_inside_the_class(classes):
    """Classes of 4 images: by the shares alone, no draw in a thousand serves every role."""
    names = [f"{label}-{image}" for label in range(classes) for image in range(4)]
    content = np.repeat(np.eye(classes), 4, axis=0)
    shares = {"train": 0.4, "val_select": 0.1, "val_calib": 0.35, "val_test": 0.15}
    drawn = []
    for seed in range(10):
        found = deal(names, content, shares, seed)
        assert found is not None
        assert found.redraws > 0  # which the certificate says
        roles = np.array(found.roles).reshape(classes, 4)
        assert all(sorted(row) == sorted(shares) for row in roles.tolist())
        drawn.append(np.array(found.roles) == "val_calib")
    chance = np.mean(drawn, axis=0)
    assert np.abs(chance - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / len(drawn))


def test_a_class_of_fewer_groups_than_roles_cannot_be_dealt():
    names = [f"{label}-{image}" for label in range(2) for image in range(3)]
    shares = {"train": 0.4, "val_select": 0.1, "val_calib": 0.35, "val_test": 0.15}
    assert deal(names, np.repeat(np.eye(2), 3, axis=0), shares, 0) is None


def test_common_classes_keep_their_shares_beside_one_of_few_groups():
    names = [f"a{unit}" for unit in range(200)] + [f"b{unit}" for unit in range(4)]
    content = np.zeros((204, 2))
    content[:200, 0] = 1
    content[200:, 1] = 1
    shares = {"train": 0.4, "val_select": 0.1, "val_calib": 0.35, "val_test": 0.15}
    found = deal(names, content, shares, 3)
    assert found is not None
    roles = np.array(found.roles)
    assert {role: int((roles[:200] == role).sum()) for role in shares} == {
        "train": 80,
        "val_select": 20,
        "val_calib": 70,
        "val_test": 30,
    }
