"""Artifacts that version 0.1.0 wrote (tests/fixtures/0.1.0, made by its own command line) still open, answer and
verify.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1 import load_bundle, load_policy
from stage1.bundle import verify_bundle
from stage1.bundle.recomputation import recompute
from stage1.policy.schema import CERTIFICATE_KIND
from stage1.scores import read_scores
from stage1.stages.reporting import report_of_scores
from stage1.storage.documents import read_document

from .drawing import no_figures_drawn  # noqa: F401 (fixture)

OLD = Path(__file__).parent / "fixtures" / "0.1.0"
SCORES = ("softmax", "gate", "scrc", "ratios", "ten")


def test_a_bundle_answers_and_is_noted_and_not_damaged():
    verified = verify_bundle(OLD / "bundle")
    assert not verified.problems
    assert any("each of one risk alone" in note for note in verified.notes)
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)).save(stream, "PNG")
    (row,) = load_bundle(OLD / "bundle").predict([stream.getvalue()])
    assert row.error is None
    assert row.label in ("none", "roadwork")


def test_numbers_of_a_bundle_follow_from_its_data_and_its_sentences_are_not_vouched_for():
    refused = recompute(OLD / "bundle")
    assert len(refused.problems) == 1
    assert "texts not compared and thresholds not found anew: stage1-pro 0.1.0 wrote this bundle" in refused.problems[0]
    accepted = recompute(OLD / "bundle", accept_other_version=True)
    assert accepted.problems == ()
    assert any("texts not compared" in note for note in accepted.notes)


@pytest.mark.parametrize("name", SCORES)
def test_a_policy_decides_as_its_certificate_counted(name):
    policy = load_policy(OLD / name)
    assert policy.certificate is not None
    assert policy.certificate.certified
    scores, roles = read_scores(OLD / name / "scores.parquet")
    calib = scores.take(roles == "val_calib")
    stated = read_document(OLD / name / "certificate.json", CERTIFICATE_KIND)["coverage"]["value"]
    assert float(policy.decide(calib).exit.mean()) == pytest.approx(stated, abs=1e-12)


@pytest.mark.parametrize("name", ["softmax", "gate", "scrc"])
def test_a_page_is_written_from_what_an_older_evaluation_holds(name, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    folder = tmp_path / name
    shutil.copytree(OLD / name, folder)
    path = report_of_scores(folder)[0]
    assert "Stage-1 Pro report" in Path(path).read_text(encoding="utf-8")
