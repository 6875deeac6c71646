"""What a refusal advises can be typed as it stands, and then certifies: every policy, two classes and ten."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import numpy as np
import pytest

from stage1.config import load_config
from stage1.policy import Certificate, fit_policy
from stage1.scores import Scores

TWO = ("none", "roadwork")
TEN = ("a", "b", "stop sign", "d", "e", "f", "g", "h", "i", "j")
Draw = Callable[[np.random.Generator, int], Scores]


def two(rng: np.random.Generator, n: int, share: float = 0.3, *, gate: bool = False) -> Scores:
    """Margins N(-+ 3.1, 2.5): the log odds of two Gaussians 2.5 apart."""
    labels = (rng.random(n) < share).astype(int)
    margin = (2 * labels - 1) * 3.125 + rng.normal(0, 2.5, n) + np.log(share / (1 - share))
    second = np.abs(margin) + rng.normal(0, 1, n) if gate else None
    return Scores(np.stack([np.zeros(n), margin], axis=1), labels=labels, gate=second)


def rare(rng: np.random.Generator, n: int) -> Scores:
    return two(rng, n, 0.05)


def gated(rng: np.random.Generator, n: int) -> Scores:
    return two(rng, n, gate=True)


def ten(rng: np.random.Generator, n: int) -> Scores:
    """Ten classes, the last one a hundredth of the images."""
    shares = np.array([0.11] * 9 + [0.01])
    labels = rng.choice(10, n, p=shares)
    return Scores(rng.normal(0, 1.2, (n, 10)) + 4.0 * np.eye(10)[labels], labels=labels)


def each(risk: str, target: float) -> str:
    return f"risks={json.dumps({f'{risk}.{name}': target for name in TEN})}"


SCRC_TWO = ("risks={miss_rate: 0.05, false_exit_rate: 0.05}", "coverage=0.7")
SCRC_TEN = ("risks={miss_rate: 0.05}", "coverage=0.7")
# policy, draws, calibration images, overrides
CASES: dict[str, tuple[str, Draw, int, tuple[str, ...]]] = {
    "softmax, few": ("softmax", two, 60, ("risks={fnr: 0.02, false_exit_rate: 0.05}",)),
    "softmax, few positives": ("softmax", rare, 800, ("risks={fnr: 0.02, false_exit_rate: 0.05}",)),
    "softmax, shares of members": ("softmax", two, 150, ("risks={miss_rate: 0.02, false_exit_rate: 0.02}",)),
    "softmax, mirrored": ("softmax", two, 200, ("risks={miss_rate: 0.02, fpr: 0.02}",)),
    "softmax, both ratios": ("softmax", two, 200, ("risks={fnr: 0.02, fpr: 0.02}",)),
    "softmax, error": ("softmax", two, 60, ("risks={error: 0.02}",)),
    "softmax, error at a share": ("softmax", two, 100, ("risks={error: 0.02}", "target_prior=0.5")),
    "softmax, floor": ("softmax", two, 500, ("risks={fnr: 0.05, fpr: 0.05}", "coverage=0.97")),
    "softmax, one side": ("softmax", two, 60, ("risks={fnr: 0.02}", "allow_one_sided=true")),
    "gate": ("gate", gated, 150, ("risks={fnr: 0.02, fpr: 0.02}",)),
    "scrc I": ("scrc", two, 150, SCRC_TWO),
    "scrc I, a gate": ("scrc", gated, 100, SCRC_TWO),
    "scrc T": ("scrc", two, 40, (*SCRC_TWO, "policy.variant=T")),
    "ten, error": ("softmax", ten, 100, ("risks={error: 0.01}",)),
    "ten, wrong of each": ("softmax", ten, 300, (each("wrong", 0.02),)),
    "ten, fnr of each": ("softmax", ten, 300, (each("fnr", 0.005),)),
    "ten, miss_rate of each": ("softmax", ten, 300, (each("miss_rate", 0.005),)),
    "ten, floor": ("softmax", ten, 800, ("risks={error: 0.05}", "coverage=0.995")),
    "ten, scrc I, all short": ("scrc", ten, 300, SCRC_TEN),
    "ten, scrc I, one rare": ("scrc", ten, 2500, SCRC_TEN),
    "ten, scrc T, one rare": ("scrc", ten, 800, (*SCRC_TEN, "policy.variant=T")),
}


def certified(policy: str, overrides: tuple[str, ...], calib: Scores, select: Scores) -> Certificate:
    """As the command line reads these overrides. Raises ConfigError where one of them is none."""
    config, _ = load_config(overrides=(f"policy.name={policy}", *overrides))
    certificate = fit_policy(
        policy,
        calib=calib,
        select=select,
        risks=config.risks_for(calib.n_classes),
        coverage=config.coverage,
        target_prior=config.target_prior,
        allow_one_sided=config.allow_one_sided,
        classes=TWO if calib.n_classes == 2 else TEN,
        variant=config.policy.variant,
    ).certificate
    assert certificate is not None
    return certificate


def settings(needed: str) -> list[tuple[str, ...]]:
    """The alternatives of `needed` that are overrides; single risks are advised together, one for each side."""
    whole = re.findall(r"risks=\{.*?\}|\bcoverage=[0-9.]*[0-9]", needed)
    single = re.findall(r"\brisks\.[\w.]+=[0-9.]*[0-9]", needed)
    assert len(re.findall("risks[.=]", needed)) == len(single) + sum(text.startswith("risks=") for text in whole)
    return [(text,) for text in whole] + ([tuple(single)] if single else [])


SLOW = ("ten, fnr of each", "ten, miss_rate of each")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]
)
def test_what_is_advised_is_taken_and_certifies_on_the_same_images(name):
    policy, draw, n, overrides = CASES[name]
    rng = np.random.default_rng(1)
    calib, select = draw(rng, n), draw(rng, 200)
    certificate = certified(policy, overrides, calib, select)
    assert certificate.needed is not None, "the case is one that is refused, or where a side or class stays shut"
    advised = settings(certificate.needed)
    assert advised
    for given in advised:
        again = certified(policy, (*overrides, *given), calib, select)
        assert again.certified, f"{given}: {again.reason}"
        # What was short is so no longer; another side may be named next.
        assert not certificate.certified or again.reason is None


@pytest.mark.parametrize("variant", ["I", "T"])
@pytest.mark.parametrize("draws", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_the_labels_that_scrc_asks_for_open_the_class_in_most_draws(variant, draws):
    """From the same population, so many images of the class that was short and the others as they are."""
    overrides = (*SCRC_TEN, f"policy.variant={variant}")
    opened = asked = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        calib, select = ten(rng, 2500 if variant == "I" else 800), ten(rng, 60)
        certificate = certified("scrc", overrides, calib, select)
        # Of a class of which no image is selected, only selected images can be asked for.
        if [(found.name, found.n > 0) for found in certificate.unclaimed] != [("j", True)]:
            continue
        (number,) = re.findall(r"about (\d+) j images in val_calib", certificate.needed or "")
        pool = ten(rng, 200 * int(number))
        fresh = pool.take(np.flatnonzero(pool.known_labels == 9)[: int(number)])
        others = calib.take(calib.known_labels != 9)
        more = Scores(
            np.concatenate([others.logits, fresh.logits]),
            labels=np.concatenate([others.known_labels, fresh.known_labels]),
        )
        asked += 1
        opened += certified("scrc", overrides, more, select).reason is None
    print(f"SCRC-{variant}: opened in {opened} of {asked}")
    assert asked >= draws / 4
    assert opened >= 0.7 * asked


# ---- so many calibration images ----------------------------------------------------------------------------------

QUICK, LONG = 8, 40  # refusals asked for advice, each followed twice


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("softmax, shares of members", QUICK),
        ("softmax, one side", QUICK),
        *(
            pytest.param(name, LONG, marks=pytest.mark.slow)
            for name in (
                "softmax, few",
                "softmax, few positives",
                "softmax, shares of members",
                "softmax, both ratios",
                "softmax, error",
                "softmax, error at a share",
                "softmax, one side",
                "gate",
                "ten, error",
            )
        ),
    ],
)
def test_so_many_images_as_a_refusal_names_certify_in_four_of_five_fresh_samples(name, asked):
    """Of the same population, with the same val_select, as many fresh images as it says; half of them fail more."""
    policy, draw, n, overrides = CASES[name]
    followed, halved = [], []
    for seed in range(3 * asked):
        rng = np.random.default_rng(seed)
        calib, select = draw(rng, n), draw(rng, 200)
        needed = certified(policy, overrides, calib, select).needed or ""
        numbers = re.findall(r"about (\d+) calibration images of the same kind instead of (\d+)", needed)
        if not numbers:
            continue
        assert "in four of five such samples they certify it" in needed
        number, present = map(int, numbers[0])
        assert number > present == n
        for share, found in ((1.0, followed), (1.0, followed), (0.5, halved), (0.5, halved)):
            again = certified(policy, overrides, draw(rng, round(share * number)), select)
            found.append(again.certified and again.reason is None)
        if len(followed) >= 2 * asked:
            break
    print(f"{name}: {np.mean(followed):.3f} of {len(followed)}, with half of the images {np.mean(halved):.3f}")
    assert len(followed) >= asked
    # Two samples that follow one advice are not independent of each other: the error is that of `asked`.
    assert np.mean(followed) >= 0.8 - 3 * np.sqrt(0.8 * 0.2 / (len(followed) / 2))
    assert np.mean(halved) < np.mean(followed) - 0.1
