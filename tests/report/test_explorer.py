"""The threshold explorer: in headless Chromium it counts and bounds what Python counts and bounds."""

from __future__ import annotations

import base64
import html
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stage1.report import explorer as explorer_room
from stage1.report import write_report
from stage1.report.explorer import collect, explorer, script
from stage1.report.page import render_page
from stage1.risk import binomial_upper
from stage1.scores import Scores

from .browser import CHROMIUM, chromium

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: the explorer is not run")

# Runs in a copy of the page whose content security policy is taken out: moves, waits for the page, notes every number
# that it shows.
DRIVER = """
const noted = [];
const note = (move) => {
  const row = { move, state: document.getElementById("x-state").textContent };
  document.querySelectorAll("[data-value]").forEach((cell) => { row[cell.id] = cell.dataset.value; });
  document.querySelectorAll("[id$=-verdict]").forEach((cell) => { row[cell.id] = cell.textContent; });
  for (const side of ["lo", "hi"]) {
    row["slider-" + side] = document.getElementById("x-" + side).getAttribute("aria-valuetext");
  }
  noted.push(row);
};
const frame = () => new Promise((done) => setTimeout(done, 0));
(async () => {
  note("start");
  for (const hash of HASHES) {
    const heard = new Promise((done) => addEventListener("hashchange", done, { once: true }));
    location.hash = hash; await heard; await frame(); note("#" + hash);
  }
  document.getElementById("x-reset").click(); note("reset");
  for (const [side, share] of SLIDES) {
    const slider = document.getElementById("x-" + side);
    slider.value = Math.round(share * slider.max);
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    note(side + " " + share);
  }
  document.getElementById("x-reset").click(); note("reset");
  const out = document.createElement("pre");
  out.id = "noted";
  out.textContent = JSON.stringify(noted);
  document.body.append(out);
})();
"""


def page_of(sample) -> str:
    # The figures are not looked at here.
    arguments = {name: value for name, value in sample.arguments().items() if name != "scores"}
    return render_page(**arguments, figures=_Blank())


class _Blank(dict):
    """A figure for every name that the page asks for: one white pixel."""

    def __init__(self):
        from stage1.report.figures.drawing import Drawing

        pixel = base64.b64decode(
            "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8/5+hHgAHggJ/PchI7wAAAABJRU5ErkJggg=="
        )
        names = (
            "risk_coverage",
            "score_histogram",
            "reliability",
            "exit_confusion",
            "exits",
            "units_needed",
            "threshold_plane",
        )
        super().__init__({name: Drawing(pixel, b"") for name in names})


def drive(page: str, folder: Path, hashes: list[str], slides: list[tuple[str, float]]) -> list[dict[str, Any]]:
    code = f"const HASHES = {json.dumps(hashes)}, SLIDES = {json.dumps(slides)};{DRIVER}"
    free = re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", f"<script>{code}</script></body>")
    path = folder / "driven.html"
    path.write_text(free, encoding="utf-8")
    done = chromium(path, folder / "profile", "--virtual-time-budget=60000", "--dump-dom")
    found = re.search(r'<pre id="noted">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def threshold(text: str) -> float | None:
    return None if text == "none" else float(text)


def expected(sample, lo: float | None, hi: float | None) -> dict[str, float]:
    """What the page must show, by plain numpy from the calibration scores."""
    s, y = sample.calibration.margin, sample.calibration.known_labels
    neg = np.zeros(len(s), bool) if lo is None else s < lo
    pos = np.zeros(len(s), bool) if hi is None else s > hi
    values: dict[str, float] = {"x-coverage": float((neg | pos).mean())}
    for k in (0, 1):
        own = y == k
        for side, inside in enumerate((neg, ~neg & ~pos, pos)):
            values[f"x-count-{k}-{side}"] = int((own & inside).sum())
    for name, row in sample.certificate["risks"].items():
        members = {"fnr": y == 1, "miss_rate": y == 1, "fpr": y == 0, "false_exit_rate": y == 0, "error": y >= 0}[name]
        wrong = members & ((neg & (y == 1)) | (pos & (y == 0)))
        among = members & (neg | pos) if name in ("fnr", "fpr", "error") else members
        errors, n = int(wrong.sum()), int(among.sum())
        shut = {"fnr": lo is None, "miss_rate": lo is None, "error": lo is None and hi is None}.get(name, hi is None)
        bound = 0.0 if shut else float(binomial_upper(errors, n, row["delta"]))
        values |= {f"x-{name}-errors": errors, f"x-{name}-n": n, f"x-{name}-bound": bound}
    return values


def with_all_risks(sample) -> None:
    """All five risks in the certificate, the further ones with what they measure at its thresholds."""
    rows = sample.certificate["risks"]
    for name, target in (("fpr", 0.1), ("miss_rate", 0.02), ("error", 0.06)):
        rows[name] = rows["fnr"] | {"target": target}
    found = expected(sample, sample.policy["lo"], sample.policy["hi"])
    for name, row in rows.items():
        row |= {field: found[f"x-{name}-{field}"] for field in ("errors", "n", "bound")}


def check(sample, row: dict[str, Any]) -> tuple[float | None, float | None]:
    lo, hi = threshold(row["x-lo-value"]), threshold(row["x-hi-value"])
    for name, value in expected(sample, lo, hi).items():
        shown = float(row[name])
        assert abs(shown - value) <= (0 if isinstance(value, int) else 1e-6), (
            f"{row['move']}: {name} {shown}, Python {value}"
        )
    at = (lo, hi) == (sample.policy["lo"], sample.policy["hi"])
    assert row["state"] == ("certified" if at and sample.certificate["certified"] else "not certified"), row["move"]
    for name, risk in sample.certificate["risks"].items():
        within = float(row[f"x-{name}-bound"]) <= risk["target"]
        shut = {"fnr": lo is None, "miss_rate": lo is None, "error": lo is None and hi is None}.get(name, hi is None)
        verdict = "never given" if shut else "within target" if within else "above target"
        verdict = "certified" if row["state"] == "certified" else verdict
        assert row[f"x-{name}-verdict"] == verdict
    return lo, hi


@needs_browser
def test_twenty_addresses_and_forty_slides_show_what_python_counts(certified, tmp_path):
    with_all_risks(certified)
    rng = np.random.default_rng(11)
    s = certified.calibration.margin
    # Scores themselves (ties at a threshold must defer), places between scores, outside all, shut sides.
    pairs = [tuple(sorted(rng.choice(s, 2))) for _ in range(10)] + [
        tuple(np.sort(rng.normal(0, 3, 2))) for _ in range(6)
    ]
    pairs += [(None, 0.5), (-1.0, None), (None, None), (-99.0, 99.0)]
    assert len(pairs) == 20
    hashes = [
        "&".join(f"{k}={'none' if v is None else repr(float(v))}" for k, v in zip(("lo", "hi"), pair, strict=True))
        for pair in pairs
    ]
    slides = [(side, float(share)) for share in rng.random(18) for side in ("lo", "hi")]
    slides += [("lo", 0.0), ("hi", 1.0), ("lo", 1.0), ("hi", 0.0)]
    rows = drive(page_of(certified), tmp_path, hashes, slides)
    assert [row["move"] for row in rows] == [
        "start",
        *(f"#{text}" for text in hashes),
        "reset",
        *(f"{a} {b:g}" if b in (0, 1) else f"{a} {b}" for a, b in slides),
        "reset",
    ]
    reached = [check(certified, row) for row in rows]
    assert reached[1:21] == [tuple(None if v is None else float(v) for v in pair) for pair in pairs], (
        "an address is taken as it is"
    )
    home = (certified.policy["lo"], certified.policy["hi"])
    assert reached[0] == reached[21] == reached[-1] == home
    assert rows[0]["state"] == "certified"
    assert all(f"x-{name}-bound" in rows[0] for name in ("fnr", "fpr", "miss_rate", "false_exit_rate", "error"))
    assert len(set(reached[22:-1])) > 25, "the sliders move"
    assert all(lo is None or hi is None or lo <= hi for lo, hi in reached)
    assert {row["slider-lo"] for row in rows} > {"never exits"}


@needs_browser
def test_the_page_itself_reads_its_address_under_its_own_policy(certified, tmp_path):
    page = write_report(tmp_path / "run", **certified.arguments())[0]
    done = chromium(page, tmp_path / "profile", "--enable-logging=stderr", "--dump-dom", fragment="lo=-1.25&hi=2.5")
    row = dict(re.findall(r'id="(x-[^"]*)"[^>]*data-value="([^"]*)"', done.stdout))
    row |= dict(re.findall(r'id="(x-[^"]*-verdict)"[^>]*>([^<]*)<', done.stdout))
    row |= {"move": "address", "state": re.search(r'id="x-state"[^>]*>([^<]*)<', done.stdout)[1]}
    assert check(certified, row) == (-1.25, 2.5)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert 'id="x-controls" hidden' not in done.stdout


@needs_browser
def test_an_address_that_makes_no_sense_shows_the_certified_point(certified, tmp_path):
    senseless = ["lo=5&hi=1", "lo=x&hi=1", "lo=&hi=1", "lo=Infinity&hi=Infinity", "nothing"]
    rows = drive(page_of(certified), tmp_path, [text for bad in senseless for text in ("lo=-1&hi=1", bad)], [])
    assert [check(certified, row) for row in rows[1:11:2]] == [(-1.0, 1.0)] * 5
    assert [check(certified, row) for row in rows[2:12:2]] == [(certified.policy["lo"], certified.policy["hi"])] * 5


@needs_browser
def test_a_refused_run_is_never_called_certified(not_certifiable, make_sample, tmp_path):
    rows = drive(page_of(not_certifiable), tmp_path, ["lo=-2&hi=2"], [("lo", 0.4), ("hi", 0.6)])
    assert {row["state"] for row in rows} == {"not certified"}
    for row in rows:
        check(not_certifiable, row)
    one = make_sample(n_calib=200, n_test=60)
    assert one.policy["lo"] is None
    rows = drive(page_of(one), tmp_path, ["lo=-2&hi=3"], [("lo", 0.3)])
    assert check(one, rows[0])[0] is None
    check(one, rows[1])
    assert rows[0]["state"] == "certified"
    assert rows[1]["state"] == "not certified"


@needs_browser
def test_tied_groups_and_forty_thousand_units(make_sample, tmp_path):
    sample = make_sample(n_calib=1200, n_test=60, groups=4)
    assert sample.certificate["unit"] == "group"
    assert len(sample.calibration) == 300
    tied = Scores(logits=np.round(sample.calibration.logits), labels=sample.calibration.labels)
    sample.calibration = tied
    sample.certificate["certified"] = False  # of these rounded scores nothing was certified
    for row in drive(page_of(sample), tmp_path, ["lo=-1&hi=1", "lo=0&hi=0"], [("lo", 0.5), ("hi", 0.2)]):
        check(sample, row)
    many = make_sample(n_calib=40_000, n_test=60)
    assert many.certificate["certified"]
    for row in drive(page_of(many), tmp_path, ["lo=-1&hi=1", "lo=0.1&hi=0.1"], [("lo", 0.3), ("hi", 0.5)]):
        check(many, row)


@needs_browser
def test_the_bound_in_the_browser_is_the_bound_of_python(tmp_path):
    source = script()[0]
    functions = source[source.index("  // log Gamma(x)") : source.index("  // ---- numbers as text")]
    cases = [
        (errors, n, delta)
        for n, delta in itertools.product(
            (1, 2, 7, 59, 149, 1000, 20_000, 100_000), (0.5, 0.1, 0.05, 0.025320565519103666, 1e-4)
        )
        for errors in sorted({0, 1, 2, n // 50, n // 3, n - 1, n})
        if errors <= n
    ]
    code = (
        f"{functions}; document.title = JSON.stringify({json.dumps(cases)}.map(([k, n, d]) => binomialUpper(k, n, d)));"
    )
    page = tmp_path / "bound.html"
    page.write_text(f"<title></title><script>{code}</script>")
    found = json.loads(
        html.unescape(re.search(r"<title>(.*?)</title>", chromium(page, tmp_path / "p", "--dump-dom").stdout)[1])
    )
    right = [float(binomial_upper(*case)) for case in cases]
    assert len(cases) > 200
    assert np.abs(np.array(found) - right).max() < 1e-9
    # ALGORITHMS 2.2
    assert found[cases.index((0, 59, 0.05))] == pytest.approx(0.049508, abs=1e-6)


# ---- without a browser -------------------------------------------------------------------------------------------


def test_without_script_the_page_shows_the_certificate(certified):
    page = page_of(certified)
    shown = dict(re.findall(r'id="(x-[^"]*)" data-value="([^"]*)"', page))
    for name, value in expected(certified, certified.policy["lo"], certified.policy["hi"]).items():
        assert float(shown[name]) == value
    for name, row in certified.certificate["risks"].items():
        assert float(shown[f"x-{name}-bound"]) == pytest.approx(row["bound"], abs=1e-12)
        assert (int(shown[f"x-{name}-errors"]), int(shown[f"x-{name}-n"])) == (row["errors"], row["n"])
    assert '<div id="x-controls" hidden>' in page
    assert re.search(r"<noscript>.*needs JavaScript", page)
    for side in ("lo", "hi"):
        assert f'<label for="x-{side}">' in page
        assert f'<input type="range" id="x-{side}"' in page


def test_the_scores_travel_unrounded(certified):
    data = explorer(collect(certified.certificate, certified.policy, certified.calibration))["data"]
    for k, text in enumerate(data["scores"]):
        own = certified.calibration.margin[certified.calibration.known_labels == k]
        assert np.array_equal(np.frombuffer(base64.b64decode(text), "<f8"), np.sort(own))
    assert (data["lo"], data["hi"]) == (certified.policy["lo"], certified.policy["hi"])


def test_other_scores_than_those_of_the_certificate_are_not_explored(certified):
    """Nothing is shown that does not give back the certificate; the page says why."""
    documents = certified.certificate, certified.policy
    assert "not given" in collect(*documents, None)
    assert "3,000 units, the scores at hand are 2,999" in collect(
        *documents, certified.calibration.take(np.arange(2999))
    )
    other = Scores(logits=certified.calibration.logits * 1.1, labels=certified.calibration.labels)
    assert "are not those of wrong answers" in collect(*documents, other)
    three = Scores(logits=np.zeros((3000, 3)), labels=np.zeros(3000, int))
    assert "two classes" in collect(*documents, three)
    unlabelled = Scores(logits=certified.calibration.logits)
    assert "labelled" in collect(*documents, unlabelled)
    certified.calibration = other
    page = page_of(certified)
    assert "No threshold explorer in this report." in page
    assert "<script" not in page


def test_a_risk_that_cannot_be_counted_here_is_named(certified):
    certified.certificate["risks"]["error"] = certified.certificate["risks"]["fnr"] | {"bound": 0.019}
    evidence = collect(certified.certificate, certified.policy, certified.calibration)
    assert evidence.left_out == ("error",)
    assert set(evidence.targets) == {"fnr", "false_exit_rate"}


def test_too_many_units_are_said(certified, monkeypatch):
    monkeypatch.setattr(explorer_room, "MOST_UNITS", 2999)
    evidence = collect(certified.certificate, certified.policy, certified.calibration)
    assert "3,000 units are too many" in explorer(evidence)
    assert "3,000 units are too many" in page_of(certified)


def test_the_strip_holds_everyone_once(certified):
    evidence = collect(certified.certificate, certified.policy, certified.calibration)
    bars = explorer(evidence)["strip"]
    assert sum(width for _, width, _ in bars) == pytest.approx(100, abs=0.1)
    assert all(0 <= share <= 1 for *_, share in bars)
    assert bars[0][2] < 0.1 < 0.9 < bars[-1][2], "low scores are negatives, high ones positives"
