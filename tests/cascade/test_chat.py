"""The chat format against a real server: what it may say, each with its outcome, and a whole cascade that ends in
it.
"""

from __future__ import annotations

import base64
import json
import math

import pytest
import yaml

from stage1.cascade import fixed_rules, header, open_cascade, open_log, read_answers, run_cascade
from stage1.cascade.calls import CallFailed, checked_probability
from stage1.cascade.config import ChatConfig, HttpConfig
from stage1.cascade.endpoint import Endpoint
from stage1.inference import Input

from .server import serving

YES = '{"answer": "yes"}'


def message(content: object, tokens: object = None, **others: object) -> str:
    choice: dict = {"index": 0, "message": {"role": "assistant", "content": content, **others}, "finish_reason": "stop"}
    return json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "choices": [choice | ({"logprobs": {"content": tokens}} if tokens else {})],
        }
    )


def token(text: str, logprob: object, *top: tuple[str, object]) -> dict:
    return {
        "token": text,
        "logprob": logprob,
        "top_logprobs": [{"token": name, "logprob": value} for name, value in top],
    }


GOOD = {
    "yes": (message(YES), 0.9),
    "no": (message('{"answer": "no"}'), 0.2),
    "no refusal": (message(YES, refusal=None), 0.9),
    "spaces": (message(' {"answer":\n"yes"} '), 0.9),
    "log-probabilities": (
        message(YES, [token("yes", math.log(0.6), ("yes", math.log(0.6)), ("no", math.log(0.2)))]),
        0.75,
    ),
    "rounded up": (message(YES, [token("yes", 1e-6)]), 1.0),
    "logprob above 0": (message(YES, [token("yes", 5.0)]), 0.9),
    "logprob no number": (message(YES, [token("yes", "high")]), 0.9),
    "logprob NaN": (message(YES, [token("yes", math.nan)]), 0.9),
    "logprob of 400 digits": (message(YES, [token("yes", -(10**400))]), 0.9),
    "masses above 1": (message(YES, [token("yes", 0.0, ("yes", 0.0), (" yes", 0.0))]), 0.9),
    "tokens no list": (message(YES, 7), 0.9),
}  # fmt: skip
BAD = {
    "extra text": message(f"Sure! {YES}"),
    "fenced": message(f"```json\n{YES}\n```"),
    "prose": message("Yes, there is roadwork."),
    "cut": message('{"answer": "ye'),
    "no JSON": "<html>busy</html>",
    "another document": '{"probability": 0.9}',
    "error": '{"error": {"message": "model not found"}}',
    "no choices": '{"choices": []}',
    "refusal": message(None, refusal="I cannot help with that."),
    "refusal beside an answer": message(YES, refusal="I cannot help with that."),
    "message no object": '{"choices": [{"message": "yes"}]}',
    "maybe": message('{"answer": "maybe"}'),
    "another case": message('{"answer": "YES"}'),
    "true": message('{"answer": true}'),
    "twice": message('{"answer": "no", "answer": "yes"}'),
    "confidence out of range": message('{"answer": "yes", "confidence": 1.7}'),
    "bare number": message("0.7"),
}


@pytest.fixture(scope="module")
def server():
    replies = {f"/{place}": text for place, text in enumerate([text for text, _ in GOOD.values()] + list(BAD.values()))}
    with serving(lambda handler, _: handler.say(replies[handler.path])) as running:
        yield running


def endpoint(url: str) -> Endpoint:
    chat = ChatConfig(model="m", question="Is there roadwork?", yes=0.9, no=0.2)
    return Endpoint(HttpConfig(url=url, format="chat", chat=chat, read_timeout_s=5.0))


@pytest.mark.parametrize("place, case", enumerate(GOOD))
def test_what_an_answer_is_worth(server, place, case):
    assert checked_probability(endpoint(server.url(f"/{place}")).ask(b"image")) == pytest.approx(GOOD[case][1])


@pytest.mark.parametrize("place, case", enumerate(BAD, len(GOOD)))
def test_what_is_no_answer(server, place, case):
    with pytest.raises(CallFailed) as caught:
        endpoint(server.url(f"/{place}")).ask(b"image")
    assert (caught.value.kind, caught.value.retry) == ("invalid", True)
    assert "\n" not in caught.value.detail


def test_a_cascade_that_ends_in_a_chat_endpoint(tmp_path):
    """The image decides what the endpoint says; every image is answered once, by it or by the stage before it."""
    said = {
        b"yes": message(YES),
        b"no": message('{"answer": "no"}'),
        b"sorry": message(None, refusal="no"),
        b"text": BAD["extra text"],
    }
    (tmp_path / "first_of_chat.py").write_text("def unsure(data):\n    return 0.6\n")
    bodies = []

    def reply(handler, body):
        bodies.append(json.loads(body))
        url = bodies[-1]["messages"][0]["content"][1]["image_url"]["url"]
        handler.say(said[base64.b64decode(url.partition("base64,")[2])])

    with serving(reply) as server:
        document = {
            "classes": ["none", "roadwork"],
            "stages": [
                {"name": "first", "callable": "first_of_chat:unsure", "exit": {"above": 0.9}},
                {
                    "name": "chat",
                    "http": {
                        "url": server.url("/v1/chat/completions"),
                        "format": "chat",
                        "chat": {"model": "vision", "question": "Roadwork?", "logprobs": False},
                    },
                    "calls": {"retries": 1, "backoff_s": 0.0},
                },
            ],
        }
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(document))
        cascade = open_cascade(tmp_path / "c.yaml")
        rules, path = fixed_rules(cascade.config), tmp_path / "a.jsonl"
        with open_log(path, header(cascade.digest, [rule.to_document() for rule in rules], cascade.names)) as (_, sink):
            run_cascade(cascade, [Input(data.decode(), data) for data in said], sink, rules=rules)
    found = {answer.image: answer for answer in read_answers(path)[1]}
    assert {name: (one.label, one.probability, one.answered_by, one.fallback) for name, one in found.items()} == {
        "yes": ("roadwork", 0.95, "chat", False),
        "no": ("none", 0.05, "chat", False),
        "sorry": ("roadwork", 0.6, "first", True),
        "text": ("roadwork", 0.6, "first", True),
    }
    assert {name: (one.calls[1].outcome, one.calls[1].attempts) for name, one in found.items()} == {
        "yes": ("answered", 1),
        "no": ("answered", 1),
        "sorry": ("invalid", 2),
        "text": ("invalid", 2),
    }
    assert len(bodies) == 6
    schema = bodies[0]["response_format"]["json_schema"]
    assert (schema["strict"], schema["schema"]["additionalProperties"]) == (True, False)
    assert (bodies[0]["model"], bodies[0]["messages"][0]["content"][0]["text"]) == ("vision", "Roadwork?")
    assert "logprobs" not in bodies[0]
