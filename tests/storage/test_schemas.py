"""Schema files are made from the types; the types refuse what the schemas written by hand refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NotRequired

import pytest
from jsonschema import Draft202012Validator

from stage1.errors import IntegrityError
from stage1.storage.documents import Document, DocumentKind, schema_kinds, validate
from stage1.storage.fields import Count, Digest, Distinct

from .document_kinds import KINDS, schemas

VERDICTS: dict[str, Any] = json.loads((Path(__file__).parent / "verdicts.json").read_text(encoding="utf-8"))


def test_schema_files_are_made_from_the_types():
    assert schemas.differing() == [], "run `python tools/schemas.py write`"


def test_every_kind_has_a_type():
    assert set(schema_kinds()) == set(KINDS) == set(VERDICTS)


def test_a_change_of_a_type_is_found(tmp_path, monkeypatch, capsys):
    for name in KINDS:
        (tmp_path / f"{name}.schema.json").write_text(schemas.schema_text(KINDS[name]), encoding="utf-8")
    monkeypatch.setattr(schemas, "SCHEMAS", tmp_path)
    monkeypatch.setattr(schemas, "document_kinds", lambda: list(KINDS.values()))
    assert schemas.main(["check"]) == 0

    class ParityDocument(Document):
        images: Count

    changed = KINDS | {"parity": DocumentKind("parity", ParityDocument)}
    monkeypatch.setattr(schemas, "document_kinds", lambda: list(changed.values()))
    assert schemas.main(["check"]) == 1
    assert "parity.schema.json" in capsys.readouterr().out


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_types_are_as_strict_as_the_schemas_written_by_hand(kind):
    """verdicts.json: per kind documents, and for each place in them which of VALUES the former schema took there.

    "x": refused, ".": taken; after the values the place gone, and a key too many in it. The schema file made from the
    type gives the same verdict, but for rules between fields.
    """
    made = Draft202012Validator(json.loads(schemas.schema_text(KINDS[kind])))
    for entry in VERDICTS[kind]:
        assert taken(entry["document"], kind)
        assert made.is_valid(entry["document"])
        for place, verdicts in entry["places"].items():
            for changed, verdict in zip(changes(entry["document"], place.split("/")), verdicts, strict=True):
                shown = f"{place}: {json.dumps(changed)[:500]}"
                assert taken(changed, kind) == (verdict == "."), shown


VALUES: list[Any] = [None, True, 0, 1, -1, 0.5, 1.5, 2**40, "", "x", "a" * 64, [], {}, ["x", "x"], {"a": 1}, [1, 2.5]]


def changes(document: Any, place: list[str]) -> list[Any]:
    """`document` with each of VALUES at `place`, without it, and with a key too many there."""
    made = []
    for value in [*VALUES, "gone", "more"]:
        changed = copy.deepcopy(document)
        held = changed
        for part in place[:-1]:
            held = held[int(part) if isinstance(held, list) else part]
        last: Any = int(place[-1]) if isinstance(held, list) else place[-1]
        if value == "gone":
            del held[last]
        elif value == "more":
            held[last] = {**held[last], "extra": "x"} if isinstance(held[last], dict) else [held[last], "x"]
        else:
            held[last] = value
        made.append(changed)
    return made


def taken(document: Any, kind: str) -> bool:
    try:
        validate(document, KINDS[kind], "here")
    except IntegrityError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        return False
    return True


class Sample(Document):
    n: Count
    digest: Digest
    names: Distinct[str]
    shares: NotRequired[dict[str, float | None]]


@pytest.mark.parametrize(
    "change, says",
    [
        ({"n": -1}, "n: -1 is less than the minimum of 0"),
        ({"n": True}, "n: True is not of type 'integer'"),
        ({"n": 1.0}, "n: 1.0 is not of type 'integer'"),
        ({"digest": "x"}, "digest: 'x' does not match '^[0-9a-f]{64}$'"),
        ({"names": ["a", "a"]}, "names: ['a', 'a'] has non-unique elements"),
        ({"names": [1]}, "names.0: 1 is not of type 'string'"),
        ({"shares": {"a": "x"}}, "shares.a: 'x' is not of type 'number'"),
        ({"shares": None}, "shares: None is not of type 'object'"),
        ({"extra": 1}, "document: Additional properties are not allowed ('extra' was unexpected)"),
        ({"schema_version": True}, "schema_version: True is not of type 'integer'"),
        ({"schema_version": 0}, "schema_version: 1 was expected"),
    ],
)
def test_a_violation_names_field_value_and_rule(change, says):
    document = {"schema_version": 1, "n": 1, "digest": "a" * 64, "names": ["a"]} | change
    with pytest.raises(IntegrityError) as caught:
        validate(document, DocumentKind("sample", Sample), "run/sample.json")
    rest = " (schema sample); rewrite it with the stage that makes it"
    assert str(caught.value) == f"run/sample.json: {says}{rest}"


def test_a_missing_key_is_named_in_what_should_hold_it():
    with pytest.raises(IntegrityError, match=r"here: document: 'n' is a required property \(schema sample\)"):
        validate({"schema_version": 1, "digest": "a" * 64, "names": []}, DocumentKind("sample", Sample), "here")
