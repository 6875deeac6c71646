"""Three classes from pictures to a verified bundle, as a user meets them: an ImageFolder and the command line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from stage1.evaluation.schema import EVALUATION_KIND
from stage1.policy.schema import ATTEMPTS_KIND, CERTIFICATE_KIND, THRESHOLDS_KIND
from stage1.scores import read_role
from stage1.storage.documents import read_document

from ..command_line import stage1
from .conftest import one_line_error

CLASSES = ("cross", "disc", "square")
SETTINGS = (
    "backbone.input_size=64",
    "backbone.fit=squash",
    "head.kind=linear",
    "train.epochs=25",
    "train.learning_rate=0.01",
    "train.batch_size=16",
    "export.parity_images=8",
    "risks={error: 0.25, fnr.disc: 0.3}",
    "confidence=0.9",
    "evaluation.resamples=50",
    "split.method=balanced",
    "data.near_duplicates=false",
    "features.shard_size=64",
)


def write_shapes(folder: Path, per_class: int = 100, side: int = 64, seed: int = 0) -> Path:
    """An ImageFolder of coloured shapes on noise; faint ones are hard."""
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = np.clip(rng.normal(110, 28, (side, side, 3)), 0, 255).astype(np.uint8)
            image = Image.fromarray(pixels)
            draw = ImageDraw.Draw(image)
            half = int(rng.integers(5, 16))
            x, y = (int(value) for value in rng.integers(half, side - half, 2))
            colour = tuple(int(value) for value in np.clip(110 + rng.uniform(0, 60) * rng.choice([-1, 1], 3), 0, 255))
            if name == "disc":
                draw.ellipse((x - half, y - half, x + half, y + half), fill=colour)
            elif name == "square":
                draw.rectangle((x - half, y - half, x + half, y + half), fill=colour)
            else:
                draw.line((x - half, y, x + half, y), fill=colour, width=7)
                draw.line((x, y - half, x, y + half), fill=colour, width=7)
            image.save(folder / name / f"{index:03d}.jpg", quality=92)
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def made(shapes, tmp_path_factory):
    """(run directory, what `run --json` printed); tests that change files work on a copy."""
    pytest.importorskip("timm", reason="the extra train is not installed")
    folder = tmp_path_factory.mktemp("runs") / "shapes"
    result = stage1(
        "run", "--recipe", "baseline", *SETTINGS, f"data.table={shapes}", "--output", folder, "--json", "-q"
    )
    assert result.returncode == 0, result.stderr
    return folder, json.loads(result.stdout)


def test_run_certifies_three_classes_in_english(made):
    folder, _ = made
    certificate = read_document(folder / "certificate.json", CERTIFICATE_KIND)
    assert certificate["certified"]
    assert set(certificate["risks"]) == {"error", "fnr.disc"}
    assert "among images that exit, at most 25 % are answered wrongly" in certificate["statement"]
    assert "among 'disc' images that exit, at most 30 % are answered wrongly" in certificate["statement"]
    policy = read_document(folder / "thresholds.json", THRESHOLDS_KIND)
    assert policy["classes"] == list(CLASSES)
    assert len(policy["thresholds"]) == 3
    assert "lo" not in policy
    evaluation = read_document(folder / "evaluation.json", EVALUATION_KIND)
    assert evaluation["risks"]["fnr.disc"]["target"] == 0.3
    assert {"wrong.disc", "miss_rate.square"} <= set(evaluation["risks"])
    assert 0.2 < certificate["coverage"]["value"] < 1.0


def test_bundle_answers_as_it_was_scored_and_follows_from_its_data(made, shapes):
    folder, _ = made
    verified = stage1("verify", folder / "bundle", "--recompute", "--json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    from stage1.data.table import SampleTable

    table = SampleTable.read(folder / "samples.parquet")
    rows = table.rows("val_test")[:20]
    paths = [str(path) for path in table.paths[rows].tolist()]
    answers = json.loads(stage1("predict", folder / "bundle", *paths, "--json").stdout)["rows"]
    from stage1 import load_policy

    expected = load_policy(folder).decide(read_role(folder, "val_test").take(range(len(rows))))
    assert [answer["exit"] for answer in answers] == expected.exit.tolist()
    assert [answer["label"] for answer in answers] == [CLASSES[label] for label in expected.label]
    assert np.allclose([answer["probability"] for answer in answers], expected.probability, atol=1e-4)
    assert {answer["decision"] for answer in answers} <= {"defer", *(f"exit:{name}" for name in CLASSES)}
    assert any(answer["exit"] for answer in answers)


def test_a_changed_threshold_does_not_verify(made, tmp_path):
    bundle = shutil.copytree(made[0] / "bundle", tmp_path / "bundle")
    document = json.loads((bundle / "thresholds.json").read_text())
    document["thresholds"] = [None if value is None else value - 1.0 for value in document["thresholds"]]
    (bundle / "thresholds.json").write_text(json.dumps(document))
    result = stage1("verify", bundle, "--recompute")
    assert result.returncode == 5
    assert "thresholds.json" in result.stderr + result.stdout


def test_report_speaks_of_three_classes_and_of_no_binary_part(made):
    page = (made[0] / "report.html").read_text()
    assert "fnr.disc" in page
    text = re.sub(r"<script.*?</script>|data:image[^\"]*", "", page, flags=re.S)
    assert "of disc images that exit, the share answered wrongly" in text
    for binary in ("false_exit_rate", "raw score: logit of"):
        assert binary not in text
    assert not (made[0] / "figures" / "threshold_plane.png").exists()
    card = (made[0] / "bundle" / "README.md").read_text()
    assert "`fnr.disc`" in card


def test_scrc_takes_three_classes_from_the_same_scores(made, tmp_path):
    from stage1 import load_policy
    from stage1.config import load_config
    from stage1.stages.calibrate import save_policy
    from stage1.stages.evaluate import certified_targets, write_evaluation
    from stage1.stages.fitting import fit_configured

    overrides = [*SETTINGS, "policy.name=scrc", "coverage=0.5", "risks={miss_rate: 0.4}"]
    config, _ = load_config(recipe="baseline", overrides=overrides, environment={})
    select, calib, test = (read_role(made[0], f"val_{role}") for role in ("select", "calib", "test"))
    policy = fit_configured(config, select=select, calib=calib, classes=CLASSES, say=lambda text: None)
    save_policy(tmp_path, policy)
    assert load_policy(tmp_path) == policy
    assert set(policy.certificate.risks) == {f"miss_rate.{name}" for name in CLASSES}
    _, document = write_evaluation(
        tmp_path, test, policy, targets=certified_targets(policy), paths=None, resamples=20, level=0.95, seed=0
    )
    assert document["risks"]["miss_rate.disc"]["target"] == 0.4


@pytest.mark.slow
def test_smoke_takes_a_table_of_three_classes(shapes, tmp_path):
    rows = [f"{path},{path.parent.name}" for path in sorted(shapes.rglob("*.jpg"))]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    result = stage1(
        "smoke", "--policy", "all", "--data", tmp_path / "labels.csv", "--output", tmp_path / "smoke", "--json"
    )
    checks = json.loads(result.stdout)
    checks = checks["checks"] if isinstance(checks, dict) else checks
    assert {check["policy"] for check in checks} == {"softmax", "scrc"}
    assert [check for check in checks if not check["passed"]] == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["risks={fnr: 0.1}"], ("fnr", "two classes", "fnr.cross")),
        (["risks={error: 0.2, fnr.dics: 0.1}"], ("did you mean fnr.disc", "cross, disc, square")),
        (["risks={error: 0.2}", "target_prior=0.5"], ("target_prior", "3 classes")),
        (["risks={error: 0.2}", "policy.name=gate"], ("gate", "two classes")),
        (["risks={fnr.disc: 0.2}"], ("allow_one_sided", "add error")),
    ],
)
def test_what_is_for_two_classes_is_refused_in_one_line(made, overrides, words):
    from stage1.config import load_config
    from stage1.errors import ConfigError
    from stage1.stages.fitting import fit_configured

    config, _ = load_config(recipe="baseline", overrides=[*SETTINGS, *overrides], environment={})
    with pytest.raises(ConfigError) as error:
        fit_configured(
            config,
            select=read_role(made[0], "val_select"),
            calib=read_role(made[0], "val_calib"),
            classes=CLASSES,
            say=lambda text: None,
        )
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_unknown_risk_kind_is_refused_by_the_config():
    result = stage1("config", "show", "risks={wrnog.disc: 0.1}")
    one_line_error(result, 2, "wrnog.disc")


# ---- nothing is said of the target -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Path:
    """Four folders of small images, each of a colour of its own."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("four")
    for name, colour in {
        "red": (200, 40, 40),
        "green": (40, 180, 40),
        "blue": (40, 40, 200),
        "gray": (120, 120, 120),
    }.items():
        (folder / name).mkdir()
        for index in range(90):
            pixels = np.clip(np.array(colour) + rng.normal(0, 45, (48, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03d}.png")
    return folder


def test_a_default_run_on_four_classes_certifies_the_error(four, tmp_path):
    pytest.importorskip("timm", reason="the extra train is not installed")
    folder = tmp_path / "run"
    result = stage1(
        "run",
        "--recipe",
        "baseline",
        f"data.table={four}",
        "backbone.input_size=64",
        "backbone.fit=squash",
        "head.kind=linear",
        "train.epochs=25",
        "evaluation.resamples=20",
        "--output",
        folder,
    )
    assert result.returncode == 0, result.stderr
    assert "target: error <= 0.05 (the default for 4 classes" in result.stderr + result.stdout
    certificate = read_document(folder / "certificate.json", CERTIFICATE_KIND)
    assert {name: risk["target"] for name, risk in certificate["risks"].items()} == {"error": 0.05}
    assert read_document(folder / "attempts.json", ATTEMPTS_KIND)["looks"][0]["asked"]["risks"] == {"error": 0.05}
    assert stage1("verify", folder / "bundle", "--recompute").returncode == 0


def test_a_target_for_two_classes_is_refused_before_the_first_image_is_split(four, tmp_path):
    result = stage1("run", "--recipe", "baseline", f"data.table={four}", "risks.fnr=0.02", "--output", tmp_path / "run")
    one_line_error(result, 2, "risk 'fnr' is for two classes, there are 4", "risks={error: 0.05}")
    assert not (tmp_path / "run" / "splits.json").exists()


def test_scores_of_four_classes_take_the_default_and_write_it_down(tmp_path):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 3000)
    logits = 6.0 * np.eye(4)[labels] + 2.0 * rng.normal(size=(3000, 4))
    np.savez(tmp_path / "four.npz", logits=logits, labels=labels)
    made = stage1("calibrate", "--scores", tmp_path / "four.npz", "--values", "logits", "--output", tmp_path / "out")
    assert made.returncode == 0, made.stderr
    assert "risks:\n  error: 0.05\n" in (tmp_path / "out" / "options.yaml").read_text()
    audited = stage1(
        "audit", "--scores", tmp_path / "four.npz", "--values", "logits", "--draws", "3", "--json", "--quiet"
    )
    assert json.loads(audited.stdout)["risks"] == {"error": 0.05}
    planned = stage1("plan", "--scores", tmp_path / "four.npz", "--values", "logits", "--draws", "5", "--json")
    assert json.loads(planned.stdout)["risks"] == {"error": 0.05}
