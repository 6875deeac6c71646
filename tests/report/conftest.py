"""Documents of a run made from simulated scores, in the shapes of certificate.json, evaluation.json and splits.json."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stage1.evaluation import evaluate
from stage1.policy import fit_policy
from stage1.policy.units import one_per_group
from stage1.report import Thumb
from stage1.scores import Scores
from stage1.storage.documents import validate

from ..storage.document_kinds import KINDS

CLASSES = ["none", "roadwork"]


@dataclass
class Sample:
    certificate: dict[str, Any]
    evaluation: dict[str, Any]
    split: dict[str, Any] | None
    policy: dict[str, Any]
    scores: Scores
    thumbnails: list[Thumb]
    run: dict[str, Any]
    calibration: Scores | None

    def arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def draw(n: int, positives: float, seed: int, per_group: int | None = None) -> Scores:
    """Beta(3.5, 1) for the positives, Beta(1, 3.5) for the negatives, as logits."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < positives).astype(np.int64)
    p = np.clip(np.where(labels == 1, rng.beta(3.5, 1, n), rng.beta(1, 3.5, n)), 1e-6, 1 - 1e-6)
    margin = np.log(p / (1 - p))
    groups = None if per_group is None else [f"video {seed} {i // per_group}" for i in range(n)]
    ids = [f"{seed:032x}{i:032x}" for i in range(n)]
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels, groups=groups, ids=ids)


def build(
    *,
    n_calib: int = 3000,
    n_test: int = 1500,
    positives: float = 0.3,
    targets: dict[str, float] | None = None,
    groups: int | None = None,
    assume_iid: bool = False,
    leaked: str | None = None,
    seed: int = 3,
    **fit: Any,
) -> Sample:
    """A run whose calibration and test images come from the same simulated population, certified and evaluated in
    earnest.

    groups: images per group of both sets; None = no groups. leaked: the reason why nothing may be certified. fit: of
    fit_policy.
    """
    targets = targets or {"fnr": 0.02, "false_exit_rate": 0.05}
    calib, test = (draw(n, positives, seed + i, groups) for i, n in enumerate((n_calib, n_test)))
    policy = fit_policy(
        "softmax",
        calib=calib,
        risks=targets,
        assume_iid=assume_iid,
        classes=CLASSES,
        seed=seed,
        uncertified_because=leaked,
        **fit,
    )
    decision = policy.decide(test)
    evaluation = evaluate(
        test,
        decision.exit,
        decision.label,
        lo=policy.lo,
        hi=policy.hi,
        classes=CLASSES,
        targets=targets,
        policy="softmax",
        certified=policy.certificate.certified,
        resamples=20,
        paths=[f"images/{i}.jpg" for i in range(n_test)],
    )
    documents = {
        "certificate": policy.certificate.to_document(),
        "evaluation": evaluation,
        "thresholds": {
            "policy": "softmax",
            "lo": policy.lo,
            "hi": policy.hi,
            "classes": CLASSES,
            "certified": policy.certificate.certified,
        },
    }
    for kind, document in documents.items():
        document["schema_version"] = 1
        validate(document, KINDS[kind], kind)
    run = {
        "name": "demo",
        "created": "2025-06-01 12:00 UTC",
        "model": "embedded (efficientnet-lite0) + linear head",
        "n_images": 12345,
        "config": {"recipe": "demo", "seed": 7},
        "seconds": {"extract": 81.5, "train": 12.25, "calibrate": 0.6},
        "bundle": "runs/demo/bundle",
    }
    counted = calib.take(one_per_group(calib, seed)) if documents["certificate"]["unit"] == "group" else calib
    return Sample(
        documents["certificate"], evaluation, _split(), documents["thresholds"], test, _thumbs(evaluation), run, counted
    )


def _split() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "method": "hash",
        "seed": 5,
        "classes": CLASSES,
        "roles": {
            role: {"counts": {"none": a, "roadwork": b}, "n_groups": g, "can_certify": can}
            for role, a, b, g, can in (
                ("train", 2801, 1203, 901, None),
                ("val_select", 702, 298, 222, None),
                ("val_calib", 2103, 897, 688, {"fnr": 0.0034, "false_exit_rate": 0.0014}),
                ("val_test", 1048, 452, 333, None),
            )
        },
    }


def jpeg(seed: int, size: tuple[int, int] = (160, 120)) -> bytes:
    rng = np.random.default_rng(seed)
    small = rng.integers(60, 220, (6, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _thumbs(evaluation: dict[str, Any]) -> list[Thumb]:
    return [
        Thumb(jpeg(i), row["path"], row["label"], row["decision"], row["probability"])
        for i, row in enumerate(evaluation["worst"])
    ]


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., Sample]:
    return build


@pytest.fixture(scope="session")
def _certified() -> Sample:
    sample = build()
    assert sample.certificate["certified"], "the simulated run of this fixture must certify"
    return sample


@pytest.fixture(scope="session")
def _not_certifiable() -> Sample:
    sample = build(n_calib=80, n_test=400)
    assert not sample.certificate["certified"]
    return sample


@pytest.fixture
def certified(_certified: Sample) -> Sample:
    return copy.deepcopy(_certified)


@pytest.fixture
def not_certifiable(_not_certifiable: Sample) -> Sample:
    return copy.deepcopy(_not_certifiable)
