"""report.html says what the documents say, all of it, and nothing else."""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from stage1.errors import IntegrityError, MissingError, Stage1Error
from stage1.report import Thumb, draw_figures, write_report
from stage1.report import page as page_room
from stage1.report.explorer import script
from stage1.report.figures.drawing import Drawing
from stage1.report.numbers import percent, upper_percent, whole
from stage1.report.page import render_page
from stage1.storage.documents import schema

from ..drawing import figures_drawn, no_figures_drawn  # noqa: F401 (fixture)


def render(sample, figures=None) -> str:
    if figures is None:
        figures = draw_figures(
            certificate=sample.certificate,
            evaluation=sample.evaluation,
            policy=sample.policy,
            scores=sample.scores,
            calibration=sample.calibration,
        )
    arguments = {name: value for name, value in sample.arguments().items() if name != "scores"}
    return render_page(figures=figures, **arguments)


def text_of(page: str) -> str:
    """What a reader sees: no style, no script, no tags."""
    body = re.sub(r"<(style|script)[^>]*>.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)).replace("\u00a0", " "))


def scripts_of(page: str) -> list[str]:
    """What the browser would run: data blocks are not scripts."""
    found = re.findall(r"<script([^>]*)>(.*?)</script>", page, flags=re.DOTALL)
    assert len(found) == page.count("<script")
    return [text for attributes, text in found if "application/json" not in attributes]


@pytest.fixture(scope="module")
def drawn(_certified) -> dict[str, Drawing]:
    sample = _certified
    with figures_drawn():
        return draw_figures(
            certificate=sample.certificate,
            evaluation=sample.evaluation,
            policy=sample.policy,
            scores=sample.scores,
            calibration=sample.calibration,
        )


# ---- what it says ------------------------------------------------------------------------------------------------


def test_the_sentence_the_bounds_the_targets_and_the_counts_are_there(certified, drawn):
    text = text_of(render(certified, drawn))
    assert certified.certificate["statement"] in text
    for name, risk in certified.certificate["risks"].items():
        assert name in text
        # What is printed large is the promise; the bound beside it is called what it is.
        assert f"at most {percent(risk['target'])}".replace("\u00a0", " ") in text
        assert f"at most {upper_percent(risk['bound'])}".replace("\u00a0", " ") not in text
        assert f"joint bound {upper_percent(risk['bound'])}".replace("\u00a0", " ") in text
        assert f"target {percent(risk['target'])}".replace("\u00a0", " ") in text
        assert f"{whole(risk['errors'])} of {whole(risk['n'])}" in text
    for row in certified.evaluation["risks"].values():
        assert f"{whole(row['errors'])} of {whole(row['n'])}" in text
    for line in [*certified.certificate["assumptions"], *certified.certificate["void_if"]]:
        assert line in text
    for role, row in certified.split["roles"].items():
        assert role in text
        assert whole(row["n_groups"]) in text
    assert "stage1 verify runs/demo/bundle --recompute" in text


@pytest.mark.parametrize(
    "change", [{"bounds": None}, {"method": "SCRC-T, in expectation: conformal risk control"}], ids=str
)
def test_a_bound_of_one_risk_alone_or_of_a_mean_is_not_printed_as_one(certified, drawn, change):
    """Certificates of earlier versions hold bounds read off after choosing; SCRC-T promises a mean."""
    certified.certificate.update(change)
    if "bounds" in change:
        del certified.certificate["bounds"]
    risks = certified.certificate["risks"]
    for risk in risks.values():
        risk["bound"] = risk["target"] * 0.83
    text = text_of(render(certified, drawn))
    for risk in risks.values():
        assert upper_percent(risk["bound"]).replace("\u00a0", " ") not in text
        large = "on average at most" if "method" in change else "at most"
        assert f"{large} {percent(risk['target'])}".replace("\u00a0", " ") in text


def test_the_verdict_comes_before_everything_else(certified, not_certifiable, drawn):
    text = text_of(render(certified, drawn)).split("Stage-1 Pro report", 2)[2]
    assert text.index("Certified") < text.index(certified.certificate["statement"]) < text.index("coverage")
    assert "the independent check on val_test agrees" in text
    text = text_of(render(not_certifiable))
    assert "Not certifiable" in text
    assert "every image defers" in text
    head = text[: text.index(not_certifiable.certificate["statement"])]
    assert not_certifiable.certificate["reason"] in head
    assert not_certifiable.certificate["needed"] in head


def test_nothing_is_called_certified_where_nothing_is(not_certifiable):
    page = render(not_certifiable)
    assert 'class="red"' in page
    assert "agree with the certificate" not in page
    assert "at most <" not in page
    assert "small>at most" not in page


def test_leakage_is_said_twice(make_sample):
    sample = make_sample(n_calib=900, n_test=100, leaked="3 images stand in train and in val_calib.")
    sample.split["leakage"] = [["a", "b"], ["c", "d"], ["e", "f"]]
    text = text_of(render(sample))
    assert "3 images stand in train and in val_calib." in text
    assert "3 found" in text
    assert "Not certifiable" in text


def test_assumed_independence_is_prominent(make_sample, certified, drawn):
    sample = make_sample(n_calib=1200, n_test=200, groups=4, assume_iid=True)
    head = render(sample).split("<main>")[0]
    assert "Independence is assumed, not checked" in head
    assert "Independence is assumed" not in render(certified, drawn)


def test_a_contradiction_turns_the_verdict(certified, drawn):
    certified.evaluation["risks"]["fnr"] |= {"observed": 0.2, "errors": 80, "low": 0.16, "high": 0.24}
    page = render(certified, drawn)
    assert 'class="red"' in page
    text = text_of(page)
    assert "contradicts the certificate on fnr" in text
    assert "the whole interval lies above the target" in text


def test_groups_show_both_intervals(make_sample):
    sample = make_sample(n_calib=4000, n_test=600, groups=3)
    row = sample.evaluation["risks"]["false_exit_rate"]
    assert row["group_low"] is not None
    text = text_of(render(sample))
    assert f"over groups {percent(row['group_low'])} to {percent(row['group_high'])}".replace("\u00a0", " ") in text
    assert "600 images in 200 groups" in text


# ---- every number comes from the documents -----------------------------------------------------------------------


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


# Drawn, not printed (tests/report/test_figures.py changes each of them), or shown through the thumbnails.
DRAWN = {"curve", "reliability", "histogram", "worst", "lo", "hi"}


def test_every_number_of_the_documents_is_on_the_page(certified, drawn):
    before, tried = render(certified, drawn), 0
    for name in ("certificate", "evaluation", "split", "policy", "run"):
        for path in leaves(getattr(certified, name)):
            if name == "evaluation" and path[0] in DRAWN:
                continue
            sample = copy.copy(certified)
            document = copy.deepcopy(getattr(certified, name))
            place = document
            for key in path[:-1]:
                place = place[key]
            old = place[path[-1]]
            place[path[-1]] = old + 17 if isinstance(old, int) else 0.37 * old + 0.013
            setattr(sample, name, document)
            assert render(sample, drawn) != before, f"{name}.{'.'.join(map(str, path))} = {old} is not on the page"
            tried += 1
    assert tried > 120


def test_figures_are_on_the_page_as_data(certified, drawn):
    before = render(certified, drawn)
    for name in set(drawn) - {"exit_confusion"}:
        other = next(drawing for key, drawing in drawn.items() if key != name)
        assert render(certified, drawn | {name: other}) != before, name


def test_undefined_numbers_are_dashes_not_errors(certified, drawn):
    for row in certified.evaluation["metrics"].values():
        row |= {"value": None, "low": None, "high": None}
    certified.evaluation["metrics"]["mcc"] = None
    assert "None" not in text_of(render(certified, drawn))


def test_facts_and_split_are_optional(certified, drawn):
    certified.split, certified.run, certified.thumbnails = None, {}, []
    text = text_of(render(certified, drawn))
    assert "stage1 verify BUNDLE --recompute" in text
    assert "Images by role" not in text
    assert "Worst errors" not in text


# ---- safe, self-contained, whole ---------------------------------------------------------------------------------


def test_hostile_names_are_text(certified, drawn):
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
    certified.thumbnails = [Thumb(certified.thumbnails[0].jpeg, evil, evil, evil, 0.5)]
    certified.certificate["statement"] = certified.certificate["assumptions"][0] = certified.run["name"] = evil
    certified.evaluation["classes"] = [evil, "roadwork"]
    certified.evaluation["exit_confusion"]["rows"] = [evil, "roadwork"]
    certified.split["roles"]["train"]["counts"] = {evil: 3}
    page = render(certified, drawn)
    assert scripts_of(page) == [script()[0]]
    assert "<img src=x" not in page
    assert html.escape(evil, quote=False).replace('"', "&#34;") in page


def test_the_page_needs_nothing_from_outside(certified, drawn):
    page = render(certified, drawn)
    assert "default-src 'none'" in page
    assert scripts_of(page) == [script()[0]]
    assert not re.search(r"fetch\(|XMLHttp|WebSocket|import\(|innerHTML|eval\(|https?:", script()[0])
    assert not re.search(r"@import|url\(", page)
    sources = re.findall(r"""(?:src|href|action|poster|data)\s*=\s*["']([^"']*)""", page)
    assert len(sources) >= 3 + len(certified.thumbnails)
    assert [source for source in sources if not source.startswith("data:")] == []


def test_exactly_the_one_script_may_run(certified, drawn):
    page = render(certified, drawn)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    text = scripts_of(page)[0]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(r"<[^>]+\son\w+\s*=", re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)), (
        "no inline handlers"
    )
    certified.calibration = None
    page = render(certified, drawn)
    assert "script" not in re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "<script" not in page
    assert "The calibration scores were not given to this report." in page


def test_pictures_have_texts_and_tables_have_headers(certified, drawn):
    page = render(certified, drawn)
    pictures = re.findall(r"<img [^>]*>", page)
    assert pictures
    assert all(re.search(r'alt="[^"]{8,}"', tag) for tag in pictures)
    for table in re.findall(r"<table.*?</table>", page, flags=re.DOTALL):
        assert "<caption>" in table
        assert 'scope="' in table
    assert '<html lang="en">' in page


def test_the_same_input_gives_the_same_files(certified, tmp_path):
    with figures_drawn():
        first = write_report(tmp_path / "a", **certified.arguments())
        second = write_report(tmp_path / "b", **certified.arguments())
    assert [path.relative_to(tmp_path / "a").as_posix() for path in first] == [
        "report.html",
        *(
            f"figures/{name}.{kind}"
            for name in (
                "risk_coverage",
                "score_histogram",
                "reliability",
                "exit_confusion",
                "exits",
                "units_needed",
                "threshold_plane",
            )
            for kind in ("png", "svg")
        ),
    ]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_documents_of_another_run_leave_nothing_behind(certified, tmp_path):
    certified.evaluation["certified"] = False
    with pytest.raises(IntegrityError, match="certified"):
        write_report(tmp_path / "out", **certified.arguments())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["certificate", "evaluation"])
def test_documents_of_an_older_version_give_a_page_or_one_line(certified, tmp_path, kind):
    document, required = getattr(certified, kind), set(schema(kind)["required"])
    for key in sorted(set(document) - required):
        kept = document.pop(key)
        try:
            write_report(tmp_path, **certified.arguments())
        except IntegrityError as error:
            said = str(error)
        else:
            said = "another version: nothing is missing"
        assert "another version" in said, key
        document[key] = kept


def test_a_certificate_without_even_odds_has_a_page(certified, drawn):
    certified.certificate.pop("boundary", None)
    assert "even odds lie at a score" not in render(certified, drawn)


def test_what_the_page_shows_and_no_document_holds_is_said(certified, tmp_path):
    certified.evaluation["calibration"] = {"older": "than its numbers"}
    with pytest.raises(IntegrityError, match=r"lack what the page shows.*run `stage1 evaluate` again") as raised:
        write_report(tmp_path / "out", **certified.arguments())
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_page_that_cannot_be_written_is_one_line(certified, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(Stage1Error, match="cannot be written"):
        write_report(tmp_path / "file", **certified.arguments())


def test_without_jinja2_the_extra_is_named_and_nothing_is_written(certified, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setattr(
        page_room, "_template", page_room._template.__wrapped__
    )  # the one compiled before does not count
    with pytest.raises(MissingError, match=r"pip install 'stage1-pro\[report\]'") as caught:
        write_report(tmp_path / "out", **certified.arguments())
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def test_importing_the_room_loads_no_drawing_library():
    code = "import sys, stage1.report; print([m for m in ('matplotlib', 'jinja2', 'torch', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_other_error_is_said_to_have_no_limit_with_what_was_observed(make_sample):
    sample = make_sample(n_calib=1500, n_test=800, targets={"fnr": 0.05}, allow_one_sided=True)
    text = text_of(render(sample))
    (sentence,) = sample.certificate["unlimited"]
    assert text.count(sentence) >= 2
    row = sample.evaluation["risks"]["fpr"]
    assert f"fpr {percent(row['observed'])} ({row['errors']} of {row['n']})".replace("\u00a0", " ") in text
    assert "never exits" not in text.split("Decisions on")[0]
