"""The cascade file: what is refused, in one line that names file, key and way out."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from stage1.cascade import load_cascade
from stage1.cascade.config import stages_digest
from stage1.errors import ConfigError, MissingError

GOOD = {
    "classes": ["none", "roadwork"],
    "stages": [
        {"name": "first", "bundle": "b", "exit": "auto"},
        {"name": "second", "http": {"url": "http://127.0.0.1:1/x"}, "cost": {"money": 0.01}},
    ],
    "risks": {"miss_rate": 0.05, "false_exit_rate": 0.05},
}


def write(folder: Path, document: object) -> Path:
    path = folder / "cascade.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def changed(**changes: object) -> dict:
    """GOOD with keys set by a dotted path, `__` for a dot; None takes a key away."""
    document = deepcopy(GOOD)
    for dotted, value in changes.items():
        place: object = document
        *path, last = [int(part) if part.isdecimal() else part for part in dotted.split("__")]
        for part in path:
            place = place[part]  # type: ignore[index]
        if value is None:
            del place[last]  # type: ignore[attr-defined]
        else:
            place[last] = value  # type: ignore[index]
    return document


def test_a_good_file(tmp_path):
    config = load_cascade(write(tmp_path, GOOD))
    assert [stage.kind for stage in config.stages] == ["bundle", "http"]
    assert config.stages[1].calls.retries == 2
    assert config.needs_select


@pytest.mark.parametrize(
    "document, words",
    [
        ("stages: [", ["not valid YAML"]),
        ("- 1", ["a mapping"]),
        ("classes: [a, b]\nstages: []\nclasses: [c, d]", ["'classes' stands twice"]),
        ("stages: [{exit: {below: 0.1, below: 0.4}}]", ["'below' stands twice", "line 1"]),
        ("stages: &all [*all]", ["alias of itself"]),
        (changed(stages__1__calls={"backoff_s": float("inf")}), ["calls.backoff_s"]),
        (changed(stages__1__calls={"breaker_pause_s": float("nan")}), ["calls.breaker_pause_s"]),
        (changed(stages__1__cost={"money": float("inf")}), ["cost.money"]),
        (changed(stages__1__retires=3), ["stages.1.retires", "unknown key", "did you mean stages.1.calls.retries?"]),
        (
            changed(stages__1__http__retries=3),
            ["stages.1.http.retries: unknown key; it belongs in stages.1.calls.retries"],
        ),
        (changed(stages__1__http__retrys=3), ["did you mean stages.1.calls.retries?"]),
        (changed(stages__1__http__model="m"), ["it belongs in stages.1.http.chat.model"]),
        (changed(stages__1__http__timeout=3), ["did you mean read_timeout_s?"]),
        (changed(stages__1__money=3), ["it belongs in stages.1.cost.money"]),
        (changed(stages__1__calls={"exit": "auto"}), ["it belongs in stages.1.exit"]),
        (changed(stages__0__risks={"miss_rate": 0.1}), ["risks belongs at the top of the file"]),
        (changed(per_minute=3), ["per_minute: unknown key; it belongs in stages.N.calls.per_minute"]),
        (changed(confidenc=0.9), ["confidenc: unknown key; did you mean confidence?"]),
        (changed(xyz=0.9), ["xyz: unknown key"]),
        (changed(stages__1__http__urll="x"), ["stages.1.http.urll", "did you mean url"]),
        (changed(stages__0__exit="sometimes"), ["stages.0.exit", "own, auto, always"]),
        (changed(stages__0__exit={"bellow": 0.1}), ["bellow", "did you mean below"]),
        (changed(stages__0__exit={"below": 0.9, "above": 0.1}), ["below 0.9", "above 0.1"]),
        (changed(stages__0__exit=None), ["'first'", "exit is needed"]),
        (changed(stages__1__exit="own"), ["'second'", "last one"]),
        (changed(stages__1__name="first"), ["names must differ"]),
        (changed(stages__1__name="default"), ["default"]),
        (changed(stages__1__bundle="b"), ["'second'", "bundle, http"]),
        (changed(stages__0__bundle=None), ["'first'", "given: none"]),
        (changed(stages__0__bundle=None, stages__0__callable="no colon"), ["stages.0.callable"]),
        (changed(stages__1__http__url="ftp://x/y"), ["http://host"]),
        (changed(stages__1__http__url="http://me:pw@host/"), ["key_env"]),
        (changed(stages__1__http__url="http://host:port/"), ["not a URL"]),
        (changed(stages__1__http__url="https://host/a\r\nX: y"), ["http://host"]),
        (changed(stages__1__http={"url": "http://example.org/", "key_env": "KEY"}), ["in clear"]),
        (changed(stages__1__http__key_env="sk-123"), ["key_env"]),
        (changed(stages__1__http__format="chat"), ["chat"]),
        (changed(stages__1__http__read_timeout_s=0), ["read_timeout_s"]),
        (changed(stages__1__calls={"per_minute": 0}), ["per_minute"]),
        (changed(stages__1__answer_above=1.7), ["answer_above"]),
        (changed(stages__1__answer_above=True), ["answer_above"]),
        (changed(stages__0__answer_above="auto"), ["'first'", "last stage"]),
        (changed(risks={"fnr": 0.1}), ["'fnr'", "miss_rate"]),
        (changed(risks={"miss_rate": 0}), ["risks.miss_rate"]),
        (changed(risks={"error": 0.1}), ["target_prior"]),
        (changed(risks={}), ["exit auto", "risks"]),
        (changed(classes=["a"]), ["classes"]),
        (changed(classes=["a", "a"]), ["classes"]),
        (changed(stages=GOOD["stages"][:1]), ["stages"]),
        (changed(confidence=1), ["confidence"]),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, document, words):
    with pytest.raises(ConfigError) as caught:
        load_cascade(write(tmp_path, document))
    text = str(caught.value)
    assert "\n" not in text
    for word in ["cascade.yaml", *words]:
        assert word in text, text


def test_what_a_mapping_takes_over_may_be_set_anew(tmp_path):
    text = (
        "base: &base {name: x, callable: 'a:b'}\nclasses: [a, b]\nstages: [{<<: *base, exit: {above: 0.9}}, {<<: *base,"
        " name: y}]\n"
    )
    with pytest.raises(ConfigError, match="base: unknown key"):
        load_cascade(write(tmp_path, text))
    inline = (
        "classes: [a, b]\nstages: [&first {name: x, callable: 'a:b', exit: {above: 0.9}}, {<<: *first, name: y, exit:"
        " always}]\n"
    )
    assert [stage.name for stage in load_cascade(write(tmp_path, inline)).stages] == ["x", "y"]


def test_a_url_with_a_password_is_not_repeated(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_cascade(write(tmp_path, changed(stages__1__http__url="http://me:hunter2@host/")))
    assert "hunter2" not in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(MissingError, match=r"no\.yaml"):
        load_cascade(tmp_path / "no.yaml")


def test_the_digest_is_of_who_is_asked_and_how(tmp_path):
    def digest(document: dict, bundle: str = "d") -> str:
        return stages_digest(load_cascade(write(tmp_path, document)), [bundle, None])

    same = digest(GOOD)
    assert digest(changed(stages__1__cost={"money": 9.0}, stages__0__exit={"below": 0.1}, confidence=0.9)) == same
    assert digest(changed(stages__0__bundle="moved")) == same
    assert digest(GOOD, "another") != same
    assert digest(changed(stages__1__http__url="http://127.0.0.1:2/x")) != same
    assert digest(changed(stages__1__calls={"retries": 0})) != same


def test_class_names_are_the_text_that_was_written(tmp_path):
    text = yaml.safe_dump(GOOD).replace("- none\n- roadwork", "- no\n- 1.0")
    assert list(load_cascade(write(tmp_path, text)).classes) == ["no", "1.0"]
