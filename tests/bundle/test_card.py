"""The model card says what the documents say."""

from __future__ import annotations

import json
import re

import yaml

from stage1.bundle.card import _evaluation
from stage1.policy import Certificate


def parted(text: str) -> tuple[dict, str]:
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def section(body: str, title: str) -> str:
    return re.split(r"^## ", body.split(f"## {title}\n", 1)[1], maxsplit=1, flags=re.M)[0]


def test_sections_and_header(bundle):
    header, body = parted((bundle / "README.md").read_text())
    assert header == {
        "license": "apache-2.0",
        "library_name": "stage1-pro",
        "pipeline_tag": "image-classification",
        "tags": ["selective-classification", "cascade", "onnx", "certified"],
        "datasets": ["colours"],
    }
    titles = re.findall(r"^## (.+)$", body, flags=re.M)
    assert titles == ["Guarantee", "Intended use", "Data", "Evaluation", "How to verify", "Limits"]
    assert "No held-out evaluation was made" in section(body, "Evaluation")


def test_guarantee_is_the_certificate(bundle):
    certificate = Certificate.load(bundle / "certificate.json")
    guarantee = section(parted((bundle / "README.md").read_text())[1], "Guarantee")
    assert certificate.statement in guarantee
    for name, risk in certificate.risks.items():
        (row,) = [line for line in guarantee.splitlines() if line.startswith(f"| `{name}`")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == f"<= {risk.target:g}"
        assert float(cells[3]) <= risk.target
        assert [int(cell) for cell in (cells[4], cells[5], cells[7])] == [risk.errors, risk.n, risk.needed]
        assert abs(float(cells[6]) - risk.delta) < 1e-6
    assert certificate.calib_digest in guarantee
    for line in (*certificate.assumptions, *certificate.void_if):
        assert line in guarantee


def test_evaluation_numbers_have_their_intervals(with_evaluation, tmp_path):
    folder = with_evaluation.write(tmp_path / "bundle")
    header, body = parted((folder / "README.md").read_text())
    text = section(body, "Evaluation")
    evaluation = with_evaluation.evaluation
    assert "accuracy" in header["metrics"]
    accuracy, fnr, overall = (
        evaluation["metrics"]["accuracy"],
        evaluation["risks"]["fnr"],
        evaluation["coverage"]["overall"],
    )
    assert f"| accuracy | {accuracy['value']:.4g} | {accuracy['low']:.4g} to {accuracy['high']:.4g} |" in text
    assert (
        f"| `fnr` | {fnr['observed']:.4g} | {fnr['low']:.4g} to {fnr['high']:.4g} | {fnr['errors']} of {fnr['n']} |"
        in text
    )
    assert f"| all images | {overall['value']:.4g} |" in text
    for name, counts in zip(evaluation["exit_confusion"]["rows"], evaluation["exit_confusion"]["counts"], strict=True):
        assert f"| {name} | {counts[0]} | {counts[1]} | {counts[2]} |" in text
    assert json.loads((folder / "bundle.json").read_text())["created_from"]["evaluation"] is not None


def test_the_card_says_that_so_many_images_were_not_drawn(with_evaluation):
    few = dict(with_evaluation.evaluation)
    many = {**few, "n_groups": 20_000}
    assert f"bootstrap ({few['resamples']} resamples)" in _evaluation(few)
    assert "t from what each image moves a metric by" in _evaluation(many)
    assert "resamples)" not in _evaluation(many)


def test_refusal_says_why_and_what_it_takes(make_parts, tmp_path):
    folder = make_parts(n=60).write(tmp_path / "bundle")
    certificate = Certificate.load(folder / "certificate.json")
    header, body = parted((folder / "README.md").read_text())
    assert header["tags"][-1] == "not-certified"
    assert "**Not certified: every image defers.**" in body
    assert f"- why not: {certificate.reason}" in body
    assert f"- needed: {certificate.needed}" in body
    assert "**Certified.**" not in body


def test_a_licence_of_its_own_and_a_base_model(parts, tmp_path):
    facts = parts.facts | {"backbone_licence": "DINOv3 License", "base_model": "facebook/dinov3"}
    folder = parts.write(tmp_path / "bundle", facts=facts, licences={"DINOv3": "terms"})
    header, _ = parted((folder / "README.md").read_text())
    assert header["license"] == "other"
    assert header["license_name"] == "dinov3-license"
    assert header["base_model"] == "facebook/dinov3"
    assert (folder / "LICENSES" / "DINOv3.txt").read_text() == "terms"


def test_names_cannot_break_the_page(parts, tmp_path):
    facts = parts.facts | {
        "name": "a\n## Guarantee\nnone",
        "data": {"source": "x\n---\ny: [", "by | role": {"a|b": {"c": 1}}},
    }
    header, body = parted((parts.write(tmp_path / "bundle", facts=facts) / "README.md").read_text())
    assert header["datasets"] == ["x --- y: ["]
    assert body.count("\n## Guarantee\n") == 1
    assert "| a\\|b | 1 |" in body


def test_privacy_of_group_names_is_mentioned(bundle):
    assert "Group names are kept" in (bundle / "README.md").read_text()


def test_the_card_never_says_that_a_side_is_shut_while_every_image_exits(make_parts, tmp_path):
    """risks={fnr: .05}: the card said "the other side never exits", and every image exited."""
    folder = make_parts(risks={"fnr": 0.05}, allow_one_sided=True).write(tmp_path / "bundle")
    certificate = Certificate.load(folder / "certificate.json")
    _, body = parted((folder / "README.md").read_text())
    assert certificate.coverage.exits == certificate.coverage.n
    assert "never exits" not in body
    (sentence,) = certificate.unlimited
    assert "fpr" in sentence
    assert sentence in section(body, "Limits")
    assert sentence in section(body, "Guarantee")


def test_the_card_says_which_answer_is_never_given(make_parts, tmp_path):
    folder = make_parts(risks={"miss_rate": 0.02}, allow_one_sided=True).write(tmp_path / "bundle")
    limits = section(parted((folder / "README.md").read_text())[1], "Limits")
    assert "No image exits as `roadwork`" in limits
    assert "no limit" not in limits


def test_error_alone_is_said_to_be_over_all_classes(make_parts, draw_scores, tmp_path):
    folder = make_parts(risks={"error": 0.05}, select=draw_scores(600, 5)).write(tmp_path / "bundle")
    assert "among the images of one class" in section(parted((folder / "README.md").read_text())[1], "Limits")


def test_the_card_opens_with_the_verdict(with_evaluation, parts, make_parts, tmp_path):
    def opening(folder):
        return parted((folder / "README.md").read_text())[1].split("\n- classes")[0]

    assert "**Certified** (verdict: **green**)" in opening(with_evaluation.write(tmp_path / "checked"))
    unchecked = opening(parts.write(tmp_path / "unchecked"))
    assert "**Certified, with care** (verdict: **amber**)" in unchecked
    assert "- no independent check was made" in unchecked
    refused = opening(make_parts(n=60).write(tmp_path / "refused"))
    assert "**Not certifiable** (verdict: **red**)" in refused
