"""Looks at calibration images are counted, by image, and the confidence that is stated is the one that is true."""

from __future__ import annotations

import json
from dataclasses import replace
from math import pi

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stage1 import Scores, fit_policy
from stage1.errors import ConfigError
from stage1.policy import ledger as ledgers
from stage1.policy.attempts import Attempts, ImageSet, Look, Plan, counted_words, standing
from stage1.policy.image_keys import image_set, keys_of_texts
from stage1.policy.ledger import Ledger, file_beside, folders_beside, look_of, read_ledger

WISH = 0.95


def images(*members: int) -> ImageSet:
    keys = np.array(sorted(members), dtype=np.uint64)
    return ImageSet(f"{hash(members):064x}"[-64:], keys, len(members))


def scores(seed: int = 0, n: int = 800, ids: bool = True, apart: float = 3.0) -> Scores:
    rng = np.random.default_rng(seed)
    labels = np.tile([0, 1], n // 2)
    margin = rng.normal(apart * (2 * labels - 1), 2.0)
    names = [f"image {row}" for row in range(n)] if ids else None
    return Scores(np.stack([0 * margin, margin], axis=1), labels=labels, ids=names)


TARGET = {"fnr": 0.05, "false_exit_rate": 0.05}


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_what_two_looks_share_is_what_two_sets_share(one, other):
    assume(one != other)
    assert images(*one).shared(images(*other)) == images(*other).shared(images(*one)) == len(one & other)


# ---- what a look costs: against the union bound written out ------------------------------------------------------


def test_looks_alike_cost_delta_each():
    known: list[Look] = []
    for number in range(1, 25):
        counted, own = standing(known, Look(f"{number:064d}", images(1, 2, 3)), WISH, Plan())
        known.append(own)
        assert counted.number == number
        assert counted.headline_confidence == pytest.approx(max(1 - 0.05 * number, 0))
        assert own.confidence == WISH
        assert (counted.reason is None) == (number < 20)
    assert "100 %" in counted.reason


def test_the_same_asked_again_is_no_new_look_and_counts_what_is_known_by_now():
    _, first = standing([], Look("1" * 64, images(1)), WISH, Plan())
    _, second = standing([first], Look("2" * 64, images(1)), 0.9, Plan())
    again, _ = standing([first, second], Look("1" * 64, images(1)), WISH, Plan())
    assert (again.number, again.spent) == (2, pytest.approx(0.15))


def test_planned_looks_share_delta_and_one_more_is_refused():
    known: list[Look] = []
    for number in range(1, 6):
        counted, own = standing(known, Look(f"{number:064d}", images(1)), WISH, Plan(planned=5))
        known.append(own)
        assert own.confidence == pytest.approx(0.99)
        assert (counted.number, counted.headline_confidence) == (number, WISH)
    with pytest.raises(ConfigError, match="attempts.planned: 5 looks .* were planned, and 5 were made"):
        standing(known, Look("6" * 64, images(1)), WISH, Plan(planned=5))
    standing(known, known[2], WISH, Plan(planned=5))  # asked again
    # A look outside the plan costs on top of it, and the plan on top of that look.
    outside, own = standing(known, Look("7" * 64, images(1)), WISH, Plan())
    assert outside.headline_confidence == pytest.approx(0.90)
    assert standing([own], known[0], WISH, Plan(planned=5))[0].headline_confidence == pytest.approx(0.90)


def test_sequential_looks_hold_together_however_many_follow():
    known: list[Look] = []
    for number in range(1, 200):
        grown = images(*range(number + 3))
        counted, own = standing(known, Look("1" * 64, grown), WISH, Plan(schedule="sequential"))
        known.append(own)
        assert 1 - own.confidence == pytest.approx(6 * 0.05 / (pi * number) ** 2)
        assert counted.headline_confidence == WISH
    assert sum(1 - look.confidence for look in known) < 0.05


def test_one_image_in_common_is_an_overlap_and_none_is_not():
    _, first = standing([], Look("1" * 64, images(1, 2, 3)), WISH, Plan())
    _, other = standing([first], Look("1" * 64, images(7, 8)), WISH, Plan())
    assert standing([first], Look("1" * 64, images(7, 8)), WISH, Plan())[0].number == 1
    assert standing([first, other], Look("1" * 64, images(3, 9)), WISH, Plan())[0].number == 2
    assert standing([first, other], Look("1" * 64, images(3, 8)), WISH, Plan())[0].number == 3


@given(st.lists(st.tuples(st.sets(st.integers(0, 8), min_size=1), st.sampled_from([0.9, 0.95])), max_size=8))
@settings(max_examples=60, deadline=None)
def test_the_headline_is_one_minus_the_deltas_of_all_that_overlap(looks):
    """Oracle: the union bound, by sets."""
    known: list[Look] = []
    for number, (members, wish) in enumerate(looks):
        counted, own = standing(known, Look(f"{number:064d}", images(*members)), wish, Plan())
        spent = (1 - wish) + sum(1 - w for m, w in looks[:number] if m & members)
        assert counted.spent == pytest.approx(min(spent, 1.0))
        assert counted.headline_confidence == pytest.approx(max(1 - spent, 0.0))
        known.append(own)


@pytest.mark.parametrize("plan", [{"planned": 0}, {"planned": 3, "schedule": "sequential"}, {"schedule": "often"}])
def test_a_plan_that_is_none_is_refused(plan):
    with pytest.raises(ConfigError, match=r"attempts\.(planned|schedule)"):
        Plan(**plan)


def test_words_say_what_the_confidence_counts():
    assert counted_words(None, WISH) == ""
    assert counted_words(Attempts.of(WISH, 1), WISH) == ""
    said = counted_words(Attempts.of(WISH, 3), WISH)
    assert "look 3 at these calibration images" in said
    assert "at most 15 % one of the 3 is false, so the confidence is 85 %, not 95 %" in said
    planned = replace(Attempts.of(WISH, 1), planned=5)
    assert "5 were planned, each tested at 1 %: all of them hold together" in counted_words(planned, 0.99)
    assert "however many follow" in counted_words(replace(planned, planned=None, schedule="sequential"), 0.97)


# ---- which images ------------------------------------------------------------------------------------------------


def test_ids_have_one_number_in_whatever_array_they_stand():
    names = np.array(["a", "frame 7", "x" * 64, "ä€"])
    assert keys_of_texts(names).tolist() == keys_of_texts(names.astype("<U99")).tolist()
    many = np.array([f"{row:x}" for row in range(200_000)])
    assert len(np.unique(keys_of_texts(many))) == len(many)


def test_without_ids_the_same_rows_are_known_and_common_values_are_not_taken_for_images():
    whole = scores(ids=False)
    assert image_set(whole).shared(image_set(whole.take(np.arange(0, 800, 2)))) == 400
    assert image_set(whole).shared(image_set(scores(seed=1, ids=False))) == 0
    coarse = [Scores(np.round(scores(seed, ids=False).logits), labels=np.tile([0, 1], 400)) for seed in (0, 1)]
    assert image_set(coarse[0]).shared(image_set(coarse[1])) == 0


# ---- the ledger --------------------------------------------------------------------------------------------------


def test_what_is_another_look(tmp_path):
    calib, path = scores(), tmp_path / "attempts.json"
    asked = [
        {},
        {"risks": TARGET | {"fnr": 0.04}},
        {"confidence": 0.9},
        {"seed": 1},
        {"against_argmax": True},
        {"calib": scores(1)},  # another model on these images
        {"calib": scores(n=1000)},  # grown
    ]
    for number, change in enumerate(asked, 1):
        certificate = fit_policy("softmax", **({"calib": calib, "risks": TARGET} | change), ledger=path).certificate
        assert certificate.attempts.number == number, change
        assert certificate.attempts.ledger == Ledger(path).digest
    again = fit_policy("softmax", calib=calib, risks=TARGET, ledger=path).certificate
    assert again.attempts.number == len(asked)
    assert len(read_ledger(path)[0]) == len(asked)


def test_the_statement_falls_and_the_test_of_each_look_stays():
    ledger, calib = Ledger(), scores()
    found = [
        fit_policy("softmax", calib=calib, risks=TARGET | {"fnr": fnr}, ledger=ledger).certificate
        for fnr in (0.05, 0.06, 0.07)
    ]
    assert [one.statement.split(",")[0] for one in found] == [f"With confidence {c} %" for c in (95, 90, 85)]
    assert [one.confidence for one in found] == [0.95] * 3
    assert [one.to_document()["attempts"]["headline_confidence"] for one in found] == [0.95, 0.9, 0.85]
    alone = fit_policy("softmax", calib=calib, risks=TARGET | {"fnr": 0.07}).certificate
    assert found[2].risks == alone.risks


def test_nothing_is_promised_where_nothing_is_left():
    ledger, calib = Ledger(), scores()
    found = [fit_policy("softmax", calib=calib, risks=TARGET, seed=seed, ledger=ledger) for seed in range(20)]
    assert found[18].certified
    assert not found[19].certified
    assert "Nothing is left to promise" in found[19].certificate.statement
    assert not found[19].decide(calib).exit.any()


def test_a_fit_that_fails_is_no_look(tmp_path):
    path = tmp_path / "attempts.json"
    with pytest.raises(ConfigError):
        fit_policy("softmax", calib=scores(), risks={"fnr": 0.05, "fpr": 0.05}, ledger=path)
    assert not path.exists()


def test_two_that_look_at_once_see_each_other(tmp_path):
    """The look is written before it is counted: whoever comes second finds it."""
    one, two = (Ledger(tmp_path / name / "attempts.json", others=[tmp_path / other / "attempts.json"])
                for name, other in (("a", "b"), ("b", "a")))  # fmt: skip
    members = image_set(scores())
    with (
        one.asking(look_of(members, {"target": 1}), WISH, Plan()) as (first, _),
        two.asking(look_of(members, {"target": 2}), WISH, Plan()) as (second, _),
    ):
        assert (first.number, second.number) == (1, 2)


def test_ledgers_of_earlier_versions_count_by_the_digest_of_the_set(tmp_path):
    members = image_set(scores())
    attempt = {"calib_digest": members.digest, "configuration": "c" * 64}
    path = tmp_path / "attempts.json"
    path.write_text(json.dumps({"schema_version": 1, "attempts": [attempt]}))
    ledger = Ledger(path)
    with ledger.asking(look_of(members, {}), WISH, Plan()) as (counted, _):
        assert counted.number == 2
    assert read_ledger(path)[0][0].look == "c" * 64


def test_a_damaged_ledger_of_others_is_said_and_the_own_one_refused(tmp_path):
    own, other = tmp_path / "own" / "attempts.json", tmp_path / "other" / "attempts.json"
    for path in (own, other):
        path.parent.mkdir()
    other.write_text("{")
    said: list[str] = []
    ledger = Ledger(own, others=folders_beside(own.parent), say=said.append)
    with ledger.asking(look_of(image_set(scores()), {}), WISH, Plan()) as (counted, _):
        assert counted.number == 1
    assert "are not counted" in said[0]
    assert str(other) in said[0]
    document = json.loads(own.read_text())
    next(iter(document["images"].values()))["keys"] = "?"
    own.write_text(json.dumps(document))
    with pytest.raises(ledgers.IntegrityError, match="keys of"):
        Ledger(own)


def test_the_file_beside_a_score_file_has_its_name(tmp_path):
    assert file_beside(tmp_path / "mine.parquet").name == "mine.attempts.json"
