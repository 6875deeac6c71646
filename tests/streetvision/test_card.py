"""model_card.json: five fields, each checked; the address by its checksum."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1.errors import ConfigError, IntegrityError, MissingError
from stage1.streetvision.card import ModelCard, check_hotkey, read_card, ss58, utc, write_card

# The well-known development keys of substrate chains: public key and address as their documents print them.
KNOWN = {
    "d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d": (
        "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
    ),
    "8eaf04151687736326c9fea17e25fc5287613693c912909cb226aa4794f26a48": (
        "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty"
    ),
}
HOTKEY = KNOWN["d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d"]


def card(**changes):
    fields = {
        "name": "roadwork",
        "description": "A small ViT.",
        "version": "1.0.0",
        "hotkey": HOTKEY,
        "time": "2026-01-31T14:00:00+02:00",
    }
    return ModelCard.of(**{**fields, **changes})


def test_written_with_the_clients_five_fields_and_read_back(tmp_path):
    write_card(card(), tmp_path / "model_card.json")
    assert json.loads((tmp_path / "model_card.json").read_text()) == {
        "model_name": "roadwork",
        "description": "A small ViT.",
        "version": "1.0.0",
        "submitted_by": HOTKEY,
        "submission_time": "2026-01-31T12:00:00Z",
    }
    assert read_card(tmp_path / "model_card.json") == card()


def test_time_is_now_where_none_is_given():
    then = datetime.fromisoformat(card(time=None).submission_time)
    assert abs((datetime.now(UTC) - then).total_seconds()) < 60


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"name": " "}, ["model_name"]),
        ({"description": ""}, ["description"]),
        ({"description": "x" * 5001}, ["description", "5001"]),
        ({"version": "1.0"}, ["version", "X.Y.Z"]),
        ({"version": "v1.0.0"}, ["version"]),
        ({"version": "1.00.0"}, ["version"]),
        ({"hotkey": ""}, ["submitted_by", "empty"]),
        ({"hotkey": HOTKEY[:-1]}, ["submitted_by", "bytes"]),
        ({"hotkey": HOTKEY[:-1] + "Z"}, ["submitted_by", "checksum"]),
        ({"hotkey": HOTKEY.replace("G", "0", 1)}, ["submitted_by", "'0'"]),
        ({"hotkey": ss58(bytes(32), 0)}, ["network 0", "42"]),
        ({"time": "yesterday"}, ["submission_time", "ISO 8601"]),
        ({"time": "2026-01-31T12:00:00"}, ["submission_time", "offset"]),
    ],
)
def test_each_wrong_field_is_one_line_that_names_it(changes, words):
    with pytest.raises(ConfigError) as caught:
        card(**changes)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("key, address", KNOWN.items())
def test_known_addresses(key, address):
    assert ss58(bytes.fromhex(key)) == address
    check_hotkey(address)


@given(st.binary(min_size=32, max_size=32), st.integers(0, 47), st.sampled_from("123456789ABCDEFGHJKLMNPQRSTUVWXYZ"))
def test_every_key_has_a_valid_address_and_a_changed_letter_is_found(key, place, letter):
    address = ss58(key)
    check_hotkey(address)
    changed = address[:place] + letter + address[place + 1 :]
    if changed != address:
        try:
            check_hotkey(changed)
        except ConfigError:
            return
        # two bytes of checksum: one change in 65,536 passes, which no test of a few hundred should meet
        pytest.fail(f"{changed} passed")


def test_read_card_refuses_what_is_none(tmp_path):
    with pytest.raises(MissingError, match="streetvision card"):
        read_card(tmp_path / "none.json")
    for text in ("{", "[]", '{"model_name": "x"}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(IntegrityError):
            read_card(tmp_path / "bad.json")


def test_utc_is_idempotent():
    assert utc(utc("2026-06-30T23:59:59-11:00")) == "2026-07-01T10:59:59Z"
