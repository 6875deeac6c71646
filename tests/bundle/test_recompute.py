"""`verify --recompute`: the certificate follows from calibration.parquet, or the number that does not is named."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from stage1.bundle import read_calibration, recompute, verify_bundle
from stage1.bundle.manifest import sealed
from stage1.bundle.recomputation import TRUSTED
from stage1.calibration import choose_map, fitted_map
from stage1.errors import IntegrityError
from stage1.policy import Certificate, fit_policy, load_policy
from stage1.policy.calibrated import fit_calibrated
from stage1.risk import binomial_upper
from stage1.scores import write_scores

CASES = {
    "walk": {},
    "mirror": {"risks": {"fpr": 0.02, "miss_rate": 0.02}},
    "both sides": {"risks": {"miss_rate": 0.02, "false_exit_rate": 0.03}, "confidence": 0.9},
    "one-sided": {"risks": {"miss_rate": 0.02}, "allow_one_sided": True},
    "groups": {"per_group": 3, "risks": {"fnr": 0.05, "false_exit_rate": 0.05}, "seed": 11},
    "assume_iid": {"per_group": 3, "assume_iid": True},
    "second attempt": {"attempt": 2},
    "too few": {"n": 60},
    "leaked": {"uncertified_because": "12 images stand in train and in val_calib."},
}


@pytest.mark.parametrize("case", CASES)
def test_certificate_follows_from_the_calibration_data(make_parts, tmp_path, case):
    folder = make_parts(**CASES[case]).write(tmp_path / "bundle")
    report = verify_bundle(folder, recompute=True)
    assert report.ok, report.problems
    assert report.recomputed
    certificate = Certificate.load(folder / "certificate.json")
    assert certificate.certified == (case not in ("too few", "leaked"))
    assert certificate.unit == ("group" if case == "groups" else "image")
    assert certificate.assume_iid == (case == "assume_iid")


def test_calibration_holds_what_the_certificate_counted(bundle, parts):
    scores = read_calibration(bundle)
    assert np.array_equal(scores.logits, parts.calibration.logits)
    assert np.array_equal(scores.labels, parts.calibration.labels)
    assert scores.ids.tolist() == parts.calibration.ids.tolist()
    policy = load_policy(bundle)
    wrong = policy.decide(scores).exit & (policy.decide(scores).label == 0) & (scores.labels == 1)
    assert policy.certificate.risks["fnr"].errors == wrong.sum()


@pytest.mark.parametrize(
    "name, change, said",
    [
        (
            "certificate.json",
            lambda d: d["risks"]["fnr"].update(bound=d["risks"]["fnr"]["bound"] * 0.999),
            "risks.fnr.bound is",
        ),
        (
            "certificate.json",
            lambda d: d["risks"]["false_exit_rate"].update(errors=0),
            "risks.false_exit_rate.errors is 0,",
        ),
        ("certificate.json", lambda d: d["coverage"].update(exits=2000), "coverage.exits is 2000,"),
        ("certificate.json", lambda d: d.update(n_units=1), "n_units is 1,"),
        ("certificate.json", lambda d: d.update(statement="Everything is certain."), "statement is 'Everything"),
        ("certificate.json", lambda d: d.update(confidence=0.99), "delta is"),
        ("certificate.json", lambda d: d["risks"]["fnr"].update(target=0.01), "statement is"),
        ("thresholds.json", lambda d: d.update(hi=math.nextafter(d["hi"], -1) - 1e-6), "thresholds.json: hi is"),
        ("thresholds.json", lambda d: d.update(lo=None), "thresholds.json: lo is None"),
    ],
)
def test_a_changed_number_is_found_though_every_digest_is_right(bundle, reseal, edit, name, change, said):
    edit(bundle / name, change)
    reseal(bundle)
    assert verify_bundle(bundle).ok  # the control: without the recomputation nobody would know
    problems = verify_bundle(bundle, recompute=True).problems
    assert any(said in problem for problem in problems), problems
    assert all(problem.endswith("do not rely on this bundle") for problem in problems)


def test_a_changed_label_is_found(bundle, reseal):
    scores = read_calibration(bundle)
    decision = load_policy(bundle).decide(scores)
    missed = np.flatnonzero(decision.exit & (decision.label == 0) & (scores.labels == 1))
    scores.labels[missed] = 0  # the misses are declared to be right
    write_scores(bundle / "calibration.parquet", scores)
    reseal(bundle)
    assert verify_bundle(bundle).ok
    problems = verify_bundle(bundle, recompute=True).problems
    assert any(problem.startswith("thresholds.json: lo is") for problem in problems), problems


def test_a_refusal_cannot_be_turned_into_a_certificate(make_parts, tmp_path, reseal, edit):
    folder = make_parts(uncertified_because="leakage").write(tmp_path / "bundle")
    edit(folder / "certificate.json", lambda d: d.update(certified=True, reason=None))
    edit(folder / "thresholds.json", lambda d: d.update(certified=True))
    reseal(folder, certified=True)
    assert not verify_bundle(folder, recompute=True).ok


def test_another_version_does_not_vouch_for_a_sentence(bundle, reseal, edit):
    """Any stage1_version but ours skipped the texts: a forged sentence was "ok". Now it takes a flag, and our own
    sentence is said.
    """
    true = Certificate.load(bundle / "certificate.json").statement
    edit(bundle / "certificate.json", lambda d: d.update(statement="Everything is certain."))
    reseal(bundle, card=True, stage1_version="0.0.1")
    report = verify_bundle(bundle, recompute=True)
    assert not report.ok
    assert "texts not compared" in report.problems[0]
    accepted = verify_bundle(bundle, recompute=True, accept_other_version=True)
    assert accepted.ok
    note, unledgered = accepted.notes
    assert "texts not compared" in note
    assert "names no ledger" in unledgered
    # Thresholds are not found anew, so no sentence is made: the targets in this version's words.
    assert true.removeprefix("With confidence ").split("; ")[0].split(", ", 1)[1] in note
    edit(bundle / "certificate.json", lambda d: d.update(seed=5, n_images=7))
    reseal(bundle, stage1_version="0.0.1")
    problems = verify_bundle(bundle, recompute=True, accept_other_version=True).problems
    assert [problem.split(" is ")[0] for problem in problems] == ["certificate.json: n_images"]


def test_numbers_of_another_version_are_counted_again_at_its_own_thresholds(bundle, reseal, edit):
    """Another version may find other thresholds, and both be right; what exits at them and how wrong it is, is no
    matter of versions."""
    edit(bundle / "thresholds.json", lambda d: d.update(lo=d["lo"] - 0.5, hi=d["hi"] + 0.5))
    policy, calib = load_policy(bundle), read_calibration(bundle)
    decision, labels = policy.decide(calib), calib.labels
    of = [labels == index for index in (0, 1)]
    wrong = decision.exit & (decision.label != labels)

    def other_thresholds(document):
        document["coverage"].update(exits=int(decision.exit.sum()), value=float(decision.exit.mean()))
        for name, rows in zip(document["classes"], of, strict=True):
            exits = int((decision.exit & rows).sum())
            document["per_class"][name].update(exits=exits, value=exits / int(rows.sum()))
        for name, errors, n in (
            ("fnr", int((wrong & of[1]).sum()), int((decision.exit & of[1]).sum())),
            ("false_exit_rate", int((wrong & of[0]).sum()), int(of[0].sum())),
        ):
            document["risks"][name].update(errors=errors, n=n, observed=errors / n)

    edit(bundle / "certificate.json", other_thresholds)
    reseal(bundle, card=True)
    assert not verify_bundle(bundle, recompute=True).ok  # of this version other thresholds follow
    reseal(bundle, card=True, stage1_version="0.0.1")
    report = verify_bundle(bundle, recompute=True, accept_other_version=True)
    assert report.ok, report.problems
    for change, said in (
        (lambda d: d["risks"]["fnr"].update(errors=d["risks"]["fnr"]["errors"] + 1), "risks.fnr.errors is"),
        (lambda d: d["coverage"].update(exits=d["coverage"]["exits"] + 1), "coverage.exits is"),
        (lambda d: d["risks"]["fnr"].update(target=1e-4, bound=1e-4), "give an upper bound of"),
        (lambda d: d.update(confidence=0.99), "delta is"),
    ):
        before = (bundle / "certificate.json").read_bytes()
        edit(bundle / "certificate.json", change)
        reseal(bundle, card=True, stage1_version="0.0.1")
        problems = verify_bundle(bundle, recompute=True, accept_other_version=True).problems
        assert any(said in problem for problem in problems), (said, problems)
        (bundle / "certificate.json").write_bytes(before)


def test_fields_that_another_version_did_not_have_are_not_compared(bundle, reseal, edit):
    def older(document):
        del document["never_answered"], document["unlimited"]

    edit(bundle / "certificate.json", older)
    reseal(bundle, card=True)
    assert not verify_bundle(bundle, recompute=True).ok
    reseal(bundle, card=True, stage1_version="0.0.1")
    assert verify_bundle(bundle, recompute=True, accept_other_version=True).ok


def test_the_command_says_that_texts_were_not_compared(bundle, reseal):
    from typer.testing import CliRunner

    from stage1.cli import app

    reseal(bundle, card=True, stage1_version="0.0.1")

    def verify(*options):
        return CliRunner().invoke(app, ["verify", str(bundle), *options])

    refused = verify("--recompute")
    assert refused.exit_code == 5
    assert "texts not compared" in refused.stdout
    accepted = verify("--recompute", "--accept-other-version")
    assert accepted.exit_code == 0
    assert "its texts were not compared" in accepted.stdout
    assert verify("--accept-other-version").exit_code != 0
    # Terminals differ in width: words, not lines.
    words = " ".join(CliRunner().invoke(app, ["verify", "--help"]).stdout.replace("│", " ").split())
    assert "takes on trust those scores and labels" in words
    assert "no signature" in words


# ---- every field that a reader would believe ---------------------------------------------------------------------


def leaves(value, path=()):
    """(path, value) of everything in a document that is neither an object nor a list with something in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items or not value:
        yield path, value
        return
    for key, inner in items:
        yield from leaves(inner, (*path, key))


def forged(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.99 if value else 0.5
    if isinstance(value, str):
        # A digest stays one.
        return ("0" if value[0] != "0" else "1") + value[1:] if len(value) == 64 else value + " (forged)"
    return ["forged"] if isinstance(value, list) else {"forged": 1} if isinstance(value, dict) else 0.5


def put(document, path, value):
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value


MADE_ANEW = [("created_from", name) for name in ("model", "policy", "certificate")]


def unseen_forgeries(folder, name, reseal, edit):
    """Names of the leaves of one document that can be changed, with every digest and the card made to fit, and pass."""
    original = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    passed = []
    for path, value in leaves(json.loads((folder / name).read_text())):
        if path[0] in ("files", "digest", "schema_version") or path in MADE_ANEW:
            continue  # made anew by whoever seals the bundle; a constant
        edit(folder / name, lambda d, path=path, value=value: put(d, path, forged(value)))
        try:
            reseal(folder, card=True)
            report = verify_bundle(folder, recompute=True)
        except (IntegrityError, OSError, KeyError, ValueError, TypeError, AttributeError):
            continue  # such a document cannot even be sealed
        finally:
            for file, data in original.items():
                (folder / file).write_bytes(data)
        if report.ok:
            passed.append(".".join(str(part) for part in path))
    return passed


@pytest.mark.parametrize("case", ["walk", "one-sided", "groups", "too few"])
def test_every_leaf_of_the_certificate_follows_from_the_data(make_parts, tmp_path, reseal, edit, case):
    folder = make_parts(**({"n": 600} | CASES[case] | ({"n": 60} if case == "too few" else {}))).write(
        tmp_path / "bundle"
    )
    # Parts of the question that have no bearing on this answer: the seed draws one image of each group, the prior
    # weighs `error` and coverage floors, and a refusal does not say which attempt it was.
    idle = {"target_prior", "seed", *(["attempt"] if case == "too few" else [])} - (
        {"seed"} if case == "groups" else set()
    )
    assert set(unseen_forgeries(folder, "certificate.json", reseal, edit)) - idle == set()
    assert unseen_forgeries(folder, "thresholds.json", reseal, edit) == []


def test_every_leaf_of_the_manifest_follows_or_is_named_as_taken_on_trust(with_evaluation, tmp_path, reseal, edit):
    folder = with_evaluation.write(tmp_path / "bundle")
    passed = unseen_forgeries(folder, "bundle.json", reseal, edit)
    assert [name for name in passed if not name.startswith(TRUSTED)] == []
    assert "name" in passed  # the control: a forger who writes everything anew passes where nothing can be known


def test_every_line_of_the_card_follows(with_evaluation, tmp_path, reseal):
    folder = with_evaluation.write(tmp_path / "bundle")
    card = folder / "README.md"
    lines = card.read_text().split("\n")
    for number in range(0, len(lines), 7):
        changed = [*lines]
        changed[number] += " Guaranteed."
        card.write_text("\n".join(changed))
        reseal(folder)
        problems = verify_bundle(folder, recompute=True).problems
        assert [problem.split(" is ")[0] for problem in problems] == [f"README.md: line {number + 1}"]


def test_digests_of_what_a_bundle_is_made_from_are_those_of_its_files(bundle):
    original = (bundle / "bundle.json").read_text()
    for *_, name in MADE_ANEW:
        document = json.loads(original)
        document["created_from"][name] = "0" * 64
        (bundle / "bundle.json").write_text(json.dumps(sealed(document), indent=2, ensure_ascii=False) + "\n")
        (problem,) = verify_bundle(bundle).problems
        assert f"created_from.{name}" in problem


def test_the_positive_class_is_checked(bundle, reseal):
    reseal(bundle, card=True, positive_class="none")
    assert "positive_class" in verify_bundle(bundle).problems[0]


@pytest.mark.parametrize("field", [("parameters",), ("comparison", "reason"), ("comparison", "table", 1, "nll")])
def test_the_calibration_map_follows_from_val_select(make_parts, draw_scores, tmp_path, reseal, edit, field):
    """Any map passed that claimed to be fitted on val_select: it makes every stated probability."""
    select = draw_scores(500, 77)
    parts = make_parts(n=900)
    chosen = fitted_map(choose_map(select, candidates=("temperature", "platt"), keep_order=True, seed=0), select)
    asked = {"risks": {"fnr": 0.05, "false_exit_rate": 0.05}, "classes": list(parts.arguments()["classes"])}
    policy = fit_calibrated(
        chosen,
        lambda rows, units, found: fit_policy("softmax", select=rows, calib=units, calibration=found, **asked),
        select=select,
        calib=parts.calibration,
    )
    policy.save(parts.run / "thresholds.json")
    policy.certificate.save(parts.run / "certificate.json")
    chosen.save(parts.run / "calibration.json")
    folder = parts.write(tmp_path / "bundle", selection=select, map_file=parts.run / "calibration.json")
    assert verify_bundle(folder, recompute=True).ok

    def forge(document):
        *path, last = field
        for key in path:
            document = document[key]
        value = document[last]
        document[last] = (
            {name: item * 1.01 for name, item in value.items()}
            if isinstance(value, dict)
            else f"{value} (forged)"
            if isinstance(value, str)
            else value * 0.99
        )

    edit(folder / "calibration.json", forge)
    said = json.loads((folder / "bundle.json").read_text())["probability"]
    reason = json.loads((folder / "calibration.json").read_text())["comparison"]["reason"]
    reseal(folder, card=True, probability=said | {"reason": reason})
    problems = verify_bundle(folder, recompute=True).problems
    assert any(problem.startswith("calibration.json: ") for problem in problems), problems


def test_calibration_without_labels_is_refused(bundle, parts):
    from dataclasses import replace

    write_scores(bundle / "calibration.parquet", replace(parts.calibration, labels=None))
    with pytest.raises(IntegrityError, match="no column 'label'"):
        recompute(bundle)


def test_a_certificate_of_an_earlier_version_is_compared_with_what_that_stated(
    make_parts, draw_scores, tmp_path, reseal, edit
):
    """Its bounds are each of one risk alone: they verify, with a note; a forged one among them does not."""
    parts = make_parts(risks={"fnr": 0.05, "fpr": 0.05}, select=draw_scores(300, 5), n=2000)
    made = Certificate.load(parts.run / "certificate.json")
    assert made.certified
    assert made.bounds == "joint"
    folder = parts.write(tmp_path / "bundle", selection=draw_scores(300, 5))
    (unledgered,) = verify_bundle(folder, recompute=True).notes
    assert "names no ledger" in unledgered

    def earlier(document):
        del document["bounds"]
        for risk in document["risks"].values():
            risk["bound"] = float(binomial_upper(risk["errors"], risk["n"], risk["delta"]))

    edit(parts.run / "certificate.json", earlier)
    folder = parts.write(tmp_path / "bundle", selection=draw_scores(300, 5))
    report = verify_bundle(folder, recompute=True)
    assert report.ok, report.problems
    assert "of one risk alone" in report.notes[0]
    edit(folder / "certificate.json", lambda document: document["risks"]["fnr"].update(bound=0.001))
    reseal(folder)
    assert any("risks.fnr.bound is" in problem for problem in verify_bundle(folder, recompute=True).problems)
