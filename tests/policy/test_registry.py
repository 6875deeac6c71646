"""POLICIES: one row a kind; one from outside the package is fitted, saved, read and fitted anew by its row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pytest

from stage1 import Scores, fit_policy, load_policy
from stage1.config import load_config
from stage1.config.certify import DEFAULT_POLICY
from stage1.errors import ConfigError, IntegrityError
from stage1.policy import POLICIES, POLICY_FILES, Decision, PolicyKind, has_policy_file, policy_file, refit
from stage1.policy.base import PlainPolicy
from stage1.policy.certificate import Certificate
from stage1.policy.certify import certify
from stage1.policy.softmax import plug_in
from stage1.policy.two_thresholds import TwoThresholds
from stage1.storage.documents import Document, DocumentKind

RISKS = {"miss_rate": 0.05, "false_exit_rate": 0.05}


class HalvedDocument(Document):
    policy: Literal["halved"]
    lo: float | None
    hi: float | None
    classes: list[str]
    certified: bool
    factor: float


@dataclass(frozen=True, slots=True)
class HalvedPolicy(PlainPolicy):
    """Two thresholds on a multiple of the margin."""

    lo: float | None
    hi: float | None
    classes: tuple[str, ...]
    certified: bool
    factor: float
    certificate: Certificate | None = None

    name = "halved"
    document_kind = DocumentKind("halved", HalvedDocument)

    @property
    def margin_thresholds(self):
        return tuple(None if cut is None else cut / self.factor for cut in (self.lo, self.hi))

    def refit_options(self):
        return {"factor": self.factor}

    def decide(self, scores):
        score = scores.margin * self.factor
        as_negative = score < (-np.inf if self.lo is None else self.lo)
        as_positive = score > (np.inf if self.hi is None else self.hi)
        return Decision(as_negative | as_positive, (score > 0).astype(np.int64), scores.probabilities[:, 1])

    def to_document(self):
        return {
            "policy": self.name,
            "lo": self.lo,
            "hi": self.hi,
            "classes": list(self.classes),
            "certified": self.certified,
            "factor": self.factor,
        }


@dataclass(frozen=True, slots=True)
class HalvedOptions:
    factor: float = 0.5


def fit(inputs, options):
    family = TwoThresholds("halved", lambda scores: scores.margin * options.factor)
    cuts, certificate = certify(family, inputs.request(), inputs.calib, inputs.select, inputs.counting)
    certified = certificate.certified
    return HalvedPolicy(cuts.lo, cuts.hi, inputs.names(), certified, options.factor, certificate)


def load(document, certificate):
    fields = {name: document[name] for name in ("lo", "hi", "certified", "factor")}
    return HalvedPolicy(classes=tuple(document["classes"]), certificate=certificate, **fields)


KIND = PolicyKind(
    name="halved",
    file="halved.json",
    document=HalvedPolicy.document_kind,
    options=HalvedOptions,
    fit=fit,
    load=load,
    control=plug_in,
    classes="2",
)


@pytest.fixture
def halved(monkeypatch):
    monkeypatch.setitem(POLICIES, KIND.name, KIND)


def drawn(n: int, seed: int) -> Scores:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return Scores(logits=rng.normal(0, 1, (n, 2)) + 2.5 * np.eye(2)[labels], labels=labels)


def test_the_default_of_the_config_is_a_row_and_no_two_rows_share_a_file():
    assert DEFAULT_POLICY in POLICIES
    assert dict(POLICY_FILES) == {name: kind.file for name, kind in POLICIES.items()}
    assert len(set(POLICY_FILES.values())) == len(POLICIES)


def test_a_kind_from_outside_is_fitted_saved_read_and_fitted_anew(halved, tmp_path):
    calib = drawn(1500, 1)
    policy = fit_policy("halved", calib=calib, risks=RISKS, factor=0.25, against_argmax=True)
    plain = fit_policy("softmax", calib=calib, risks=RISKS, against_argmax=True)
    assert policy.certified
    assert policy.margin_thresholds == pytest.approx(plain.margin_thresholds)
    assert policy.certificate.policy == "halved"
    assert policy.certificate.risks == plain.certificate.risks
    assert not has_policy_file(tmp_path)
    policy.save(tmp_path / POLICY_FILES["halved"])
    assert has_policy_file(tmp_path)
    assert policy_file(tmp_path).name == "halved.json"
    assert load_policy(tmp_path) == replace(policy, certificate=None)
    assert refit(policy, calib=calib, select=None) == policy
    (tmp_path / "halved.json").write_text('{"schema_version": 1, "policy": "halved"}')
    with pytest.raises(IntegrityError, match="halved"):
        load_policy(tmp_path)


def test_a_config_may_name_it_and_its_row_says_for_how_many_classes(halved):
    assert load_config(overrides=["policy.name=halved"], environment={})[0].policy.name == "halved"
    three = Scores(logits=np.zeros((20, 3)), labels=np.zeros(20, dtype=int))
    with pytest.raises(ConfigError, match="policy halved: is for two classes, there are 3; use .*softmax or scrc"):
        fit_policy("halved", calib=three)


def test_without_its_row_a_name_is_unknown():
    with pytest.raises(ConfigError, match="policy 'halved' is unknown; policies are softmax, gate, scrc"):
        fit_policy("halved", calib=drawn(30, 1))
    with pytest.raises(ConfigError, match=r"policy\.name: input should be 'softmax', 'gate' or 'scrc'"):
        load_config(overrides=["policy.name=halved"], environment={})


def test_an_option_of_another_policy_is_refused(halved):
    with pytest.raises(ConfigError, match="policy softmax: no option 'factor'; options are confidence_score"):
        fit_policy("softmax", calib=drawn(30, 1), factor=2.0)
