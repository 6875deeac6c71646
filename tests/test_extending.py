"""One of each part from outside the package: the examples of docs/EXTENDING.md, taken from the page and used."""

from __future__ import annotations

import ast
import base64
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from stage1.calibration import MAPS, FittedMap, choose_map
from stage1.commands.scores import calibrate_scores, evaluate_scores
from stage1.config import RunConfig, load_config
from stage1.errors import ConfigError, DataError, IntegrityError
from stage1.policy.registry import POLICIES
from stage1.report.figures.registry import FIGURES
from stage1.risk import RISKS
from stage1.runtime.crops import ViewPolicy
from stage1.scores import Scores, read_scores, write_scores
from stage1.sources import SOURCES
from stage1.stages.reporting import report_of_scores
from stage1.views import AGGREGATORS, ViewsDocument, aggregator, choose_aggregator

PAGE = Path(__file__).parents[1] / "docs" / "EXTENDING.md"
TABLES = {
    "POLICIES": POLICIES,
    "RISKS": RISKS,
    "MAPS": MAPS,
    "AGGREGATORS": AGGREGATORS,
    "SOURCES": SOURCES,
    "FIGURES": FIGURES,
}
CLASSES = ["none", "roadwork"]


def examples() -> dict[str, str]:
    """File name -> text of each example; the name is the first word of its docstring."""
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    return {re.match(r'"""(\w+\.py):', text)[1]: text for text in found}


def lines_in_tables(text: str) -> list[str]:
    """The tables that a file adds a line to: `TABLE[name] = ...` or `STAGES = (...)` at the top of the module."""
    targets = [target for node in ast.parse(text).body if isinstance(node, ast.Assign) for target in node.targets]
    named = [target.value if isinstance(target, ast.Subscript) else target for target in targets]
    return [target.id for target in named if isinstance(target, ast.Name) and target.id in (*TABLES, "STAGES")]


@pytest.fixture
def tables() -> Iterator[None]:
    """The tables as they were, afterwards."""
    before = {name: dict(table) for name, table in TABLES.items()}
    yield
    for name, table in TABLES.items():
        table.clear()
        table.update(before[name])


@pytest.fixture
def extend(tables, tmp_path, monkeypatch):
    """Write an example to a folder of its own and import it, as somebody's own file is."""

    def loaded(name: str) -> ModuleType:
        path = tmp_path / "mine" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(examples()[name], encoding="utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, path.stem, module)
        spec.loader.exec_module(module)
        return module

    return loaded


def test_each_example_is_one_file_and_one_line():
    places = {name: [name, *lines_in_tables(text)] for name, text in examples().items()}
    assert places == {
        "coarse.py": ["coarse.py", "POLICIES"],
        "false_discovery.py": ["false_discovery.py", "RISKS"],
        "offset.py": ["offset.py", "MAPS"],
        "median.py": ["median.py", "AGGREGATORS"],
        "jsonl.py": ["jsonl.py", "SOURCES"],
        "census.py": ["census.py", "STAGES"],
        "by_class.py": ["by_class.py", "FIGURES"],
    }


def test_without_its_line_a_name_is_unknown():
    for override, says in (
        ("risks={fnr: 0.1, false_discovery: 0.1}", "unknown risk 'false_discovery'.*; risks are fnr, .*, error"),
        ("policy.name=coarse", "policy.name: input should be 'softmax', 'gate' or 'scrc'"),
        ("calibration.map=offset", "calibration.map: input should be 'auto', 'none', .* or 'dirichlet'"),
        ("views.aggregate=median", "views.aggregate: 'median' is unknown; use whole, .* or learned"),
        ("data.source=jsonl", "data.source: input should be 'auto', .* or 'webdataset'"),
    ):
        with pytest.raises(ConfigError, match=says):
            load_config(overrides=[override], environment={})
    assert "by_class" not in FIGURES


def shifted(n: int, seed: int) -> Scores:
    """Scores whose margin is the true log-odds less 1.5: an offset mends them, no slope is needed."""
    rng = np.random.default_rng(seed)
    true = 3.0 * rng.normal(size=n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-true))).astype(np.int64)
    return Scores(logits=np.stack([np.zeros(n), true - 1.5], axis=1), labels=labels)


def certified(folder: Path, *overrides: str) -> Path:
    """`calibrate --scores` and `evaluate --scores` on 6,000 rows of `shifted`, into `folder`/out."""
    write_scores(folder / "mine.parquet", shifted(6000, 8))
    given = ["risks={fnr: 0.05, false_exit_rate: 0.05}", f"data.classes=[{', '.join(CLASSES)}]"]
    config = load_config(overrides=[*given, "evaluation.resamples=20", *overrides], environment={})[0]
    out = folder / "out"
    calibrate_scores(folder / "mine.parquet", out, config=config, values="logits", columns={}, shares="0.2,0.5,0.3")
    evaluate_scores(out / "scores.parquet", out, out, config=config, values="logits", columns={})
    return out


def test_a_policy_is_fitted_certified_written_read_back_and_evaluated(extend, tmp_path):
    from stage1 import load_policy
    from stage1.policy import refit

    coarse = extend("coarse.py")
    out = certified(tmp_path, "policy.name=coarse")
    policy = load_policy(out)
    assert isinstance(policy.base, coarse.CoarsePolicy)
    assert policy.certificate is not None
    assert policy.certificate.policy == "coarse"
    assert policy.certified
    assert "at most 5 % are called 'none'" in policy.certificate.statement
    scores, roles = read_scores(out / "scores.parquet")
    calib, select, test = (scores.take(roles == role) for role in ("val_calib", "val_select", "val_test"))
    again = refit(policy, calib=calib, select=select)
    assert (again.base.lo, again.base.hi) == (policy.base.lo, policy.base.hi)
    assert again.certificate == policy.certificate
    kept = policy.decide(test)
    moved = policy.decide(replace(test, logits=np.round(test.logits, 1)))
    assert (kept.exit == moved.exit).all()  # the logits of class 0 are 0: one decimal is what it looks at
    wrong = kept.exit & (kept.label == 0) & (test.known_labels == 1)
    assert wrong.sum() <= 0.05 * (kept.exit & (test.known_labels == 1)).sum()
    assert json.loads((out / "evaluation.json").read_text())["policy"] == "coarse"
    document = json.loads((out / "coarse.json").read_text())
    (out / "coarse.json").write_text(json.dumps({**document, "lo": "low"}))
    with pytest.raises(IntegrityError, match="lo"):
        load_policy(out)


def test_a_risk_is_certified_said_evaluated_and_on_the_page(extend, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    extend("false_discovery.py")
    out = certified(tmp_path, "risks={fnr: 0.15, false_discovery: 0.15}", "calibration.map=none")
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["certified"]
    assert "of the images that exit as 'roadwork', at most 15 % are none" in certificate["statement"]
    assert certificate["risks"]["false_discovery"]["n"] > certificate["risks"]["false_discovery"]["errors"] > 0
    evaluated = json.loads((out / "evaluation.json").read_text())["risks"]["false_discovery"]
    assert evaluated["target"] == 0.15
    assert evaluated["errors"] / evaluated["n"] == evaluated["observed"] < 0.15
    report_of_scores(out)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "of images that exit as roadwork, the share that is none" in page
    assert "at most 15 % are none" in page


@pytest.mark.parametrize("wanted", ["offset", "auto"])
def test_a_map_is_chosen_written_and_read_back(extend, tmp_path, wanted):
    offset = extend("offset.py")
    out = certified(tmp_path, f"calibration.map={wanted}")
    written = json.loads((out / "calibration.json").read_text())
    compared = [row["name"] for row in written["comparison"]["table"]]
    assert compared == (
        ["identity", "offset"] if wanted == "offset" else ["identity", *["temperature", "platt", "beta", "offset"]]
    )
    assert choose_map(shifted(1200, 3)).table[-1].name == "offset"  # among all where none is named
    fitted = FittedMap.load(out / "calibration.json")
    if wanted == "offset":
        assert isinstance(fitted.map, offset.Offset)
        assert fitted.map.offset == pytest.approx(1.5, abs=0.3)
        assert fitted.score == "raw"
        written["parameters"]["offset"] = "much"
        (out / "calibration.json").write_text(json.dumps(written))
        with pytest.raises(IntegrityError, match="offset"):
            FittedMap.load(out / "calibration.json")
    del MAPS["offset"]
    if fitted.map.name == "offset":
        with pytest.raises(IntegrityError, match="'offset' is not one of"):
            FittedMap.load(out / "calibration.json")


def scenes(n: int, seed: int, views: int) -> tuple[np.ndarray, np.ndarray]:
    """View logits [N, V, 2] whose common signal is spoilt in two views of each image, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    margins = 2.0 * (2 * labels[:, None] - 1) + rng.normal(size=(n, views))
    spoilt = rng.random((n, views)).argsort(axis=1) < 2
    margins = np.where(spoilt, 12.0 * rng.normal(size=(n, views)), margins)
    return np.stack([-margins / 2, margins / 2], axis=2), labels


def test_an_aggregator_is_compared_chosen_written_and_read_back(extend, tmp_path):
    median = extend("median.py")
    config = load_config(overrides=["views.grid=2x2", "views.aggregate=[mean, median]"], environment={})[0]
    policy = config.views.policy
    assert policy is not None
    logits, labels = scenes(400, 0, policy.count)
    choice = choose_aggregator(logits, labels, None, policy, names=config.views.names, resamples=100)
    assert choice.name == "median"
    assert "median" in [row.name for row in choose_aggregator(logits, labels, None, policy, resamples=20).table]
    views = ViewsDocument(policy, aggregator("median", policy), None, choice.to_document())
    views.save(tmp_path / "views.json")
    again = ViewsDocument.load(tmp_path / "views.json")
    assert again == views
    assert isinstance(again.aggregator, median.Median)
    made, used, _ = again.aggregate(logits)
    assert (used == policy.count).all()
    margin = np.median(logits[..., 1] - logits[..., 0], axis=1)
    assert made[:, 1] - made[:, 0] == pytest.approx(margin)
    del AGGREGATORS["median"]
    with pytest.raises(IntegrityError, match="'median' is unknown"):
        ViewsDocument.load(tmp_path / "views.json")


def test_an_aggregator_is_in_words_on_the_page(extend):
    from stage1.views.registry import meaning

    extend("median.py")
    assert meaning("median") == "the median of the log-odds"
    with pytest.raises(ConfigError, match="median is for two classes, there are 3; use whole or mean"):
        choose_aggregator(np.zeros((4, 5, 3)), [0, 1, 2, 0], None, ViewPolicy(grid=(2, 2)), names=["median"])


@pytest.mark.parametrize("source", ["auto", "jsonl"])
def test_a_source_is_read_by_the_split(extend, tmp_path, source):
    from stage1.data import read_source, split_table

    extend("jsonl.py")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(60):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png", "label": ("cat", "dog")[index % 2], "group": index // 2, "night": True})
    rows.append({"image": "gone.png", "label": "cat", "group": 99})
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    overrides = [f"data.table={tmp_path / 'mine.jsonl'}", f"data.source={source}", "data.slices=[night]"]
    overrides += ["data.near_duplicates=false", "split.method=balanced", "data.max_quarantine=0.05"]
    config: RunConfig = load_config(overrides=overrides, environment={})[0]
    ingest = read_source(config.data)
    assert ingest.table.classes == ("cat", "dog")
    assert [item.reason for item in ingest.quarantine] == ["missing file"]
    split = split_table(ingest, config)
    assert len(split.table) == 60
    assert set(split.table.roles.tolist()) == {"train", "val_select", "val_calib", "val_test"}
    for group in np.unique(split.table.groups):
        assert len(set(split.table.roles[split.table.groups == group])) == 1
    (tmp_path / "mine.jsonl").write_text('{"label": "cat"}')
    with pytest.raises(DataError, match="line 1 names no image"):
        read_source(config.data)


def test_a_stage_is_done_skipped_and_done_again(extend, tmp_path):
    from stage1.runs.directory import opened
    from stage1.runs.progress import Progress
    from stage1.runs.runner import execute, outlook
    from stage1.stages import STAGES

    mine = extend("census.py")
    assert mine.STAGES[:-1] == STAGES
    rng = np.random.default_rng(1)
    for index in range(80):
        (tmp_path / "photos" / ("day", "night")[index % 2]).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / ("day", "night")[index % 2] / f"{index}.png")
    given = [f"data.table={tmp_path / 'photos'}", "data.near_duplicates=false", "split.method=balanced"]
    given += ["risks={miss_rate: 0.3, false_exit_rate: 0.3}"]
    # The first of all and this one: what lies between needs torch and minutes.
    stages = [stage for stage in mine.STAGES if stage.name in ("split", "census")]

    def run(*overrides: str):
        config = load_config(overrides=[*given, *overrides], environment={})[0]
        with opened(tmp_path / "run", config, allow_change=True) as directory:
            seen = [row["skip"] for row in outlook(directory, stages)]
            return seen, execute(directory, stages, Progress(quiet=True))

    seen, first = run()
    assert (seen, first.done, first.skipped) == ([False, False], ("split", "census"), ())
    lines = (tmp_path / "run" / "census.csv").read_text().splitlines()
    assert sum(int(line.rsplit(",", 1)[1]) for line in lines[1:]) == 80
    assert {line.split(",")[2] for line in lines[1:]} == {"day", "night"}
    seen, second = run()
    assert (seen, second.done, second.skipped) == ([True, True], (), ("split", "census"))
    assert run("split.seed=1")[1].done == ("split", "census")


def test_a_figure_is_drawn_written_and_on_the_page(extend, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    extend("by_class.py")
    out = certified(tmp_path)
    report_of_scores(out)
    drawn = (out / "figures" / "by_class.png").read_bytes()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert base64.b64encode(drawn).decode() in page
    assert "<h3>Coverage by class</h3>" in page
    place = page.index("<h3>Exits by class</h3>"), page.index("<h3>Coverage by class</h3>")
    assert place[0] < place[1] < page.index("<h3>How many images it takes</h3>")
    with Image.open(out / "figures" / "by_class.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 30, "blank"
