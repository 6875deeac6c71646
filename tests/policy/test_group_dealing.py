"""How groups came to val_calib: the certificate assumes that and no more; what was dealt by size is not certified."""

from __future__ import annotations

import numpy as np
import pytest

from stage1 import Scores, fit_policy
from stage1.config import RunConfig
from stage1.policy import Certificate, dealt, refit
from stage1.policy.group_dealing import BY_SIZE, BY_SIZE_REASON
from stage1.policy.schema import CERTIFICATE_KIND
from stage1.stages.fitting import fit_configured
from stage1.storage.documents import read_document


def videos(n: int = 900, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n), rng.integers(1, 4, n)).astype(np.str_)
    labels = (groups.astype(int) % 3 == 0).astype(np.int64)
    margin = rng.normal(np.where(labels == 1, 2.5, -2.5))
    return Scores(
        logits=np.stack([np.zeros(len(labels)), margin], axis=1),
        labels=labels,
        groups=groups,
        ids=[f"{seed} {row}" for row in range(len(labels))],
    )


@pytest.mark.parametrize(
    ("dealing", "words"),
    [
        ("stratified-random", "within strata of label mix and size, every group with the same chance"),
        ("stratified-redrawn", "groups that hold the same classes with the same chance"),
        ("hash", "The calibration groups are an independent random sample"),
        ("given", "The calibration groups are an independent random sample"),
        (None, "The calibration groups are an independent random sample"),
    ],
)
def test_the_certificate_says_what_was_done(dealing, words, tmp_path):
    calib = videos()
    policy = dealt(fit_policy("softmax", calib=calib, risks={"fnr": 0.1, "false_exit_rate": 0.1}), dealing)
    certificate = policy.certificate
    assert certificate.certified
    assert words in certificate.assumptions[0]
    assert ("independent random sample of the groups" in certificate.assumptions[0]) == (certificate.unit == "group")
    certificate.save(tmp_path / "certificate.json")
    assert ("dealing" in read_document(tmp_path / "certificate.json", CERTIFICATE_KIND)) == (dealing is not None)
    assert Certificate.load(tmp_path / "certificate.json") == certificate
    assert refit(policy, calib=calib, select=None).certificate == certificate


def test_what_was_dealt_by_size_is_not_certified():
    config = RunConfig.model_validate({"risks": {"fnr": 0.1, "false_exit_rate": 0.1}})
    made = {
        dealing: (
            fit_configured(
                config,
                select=videos(200, 1),
                calib=videos(),
                classes=("none", "roadwork"),
                say=lambda text: None,
                dealing=dealing,
            ).certificate
        )
        for dealing in ("stratified-random", BY_SIZE)
    }
    assert made["stratified-random"].certified
    assert not made[BY_SIZE].certified
    assert made[BY_SIZE].reason == BY_SIZE_REASON
    assert "split.seed" in made[BY_SIZE].statement
