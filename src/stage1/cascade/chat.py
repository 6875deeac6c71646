"""The OpenAI-compatible chat format: a question about one image, answered yes or no under a fixed JSON Schema."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from stage1.cascade.calls import CallFailed, strict_json

if TYPE_CHECKING:
    from stage1.cascade.config import ChatConfig

_ROUNDING = 1e-4
_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}


def chat_request(config: ChatConfig, image_url: str) -> dict[str, Any]:
    """The body of one request. image_url: a data URL."""
    content = [{"type": "text", "text": config.question}, {"type": "image_url", "image_url": {"url": image_url}}]
    body: dict[str, Any] = {
        "model": config.model,
        "temperature": 0,
        "max_tokens": config.max_tokens,
        "messages": [{"role": "user", "content": content}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": _SCHEMA},
        },
    }
    return body | ({"logprobs": True, "top_logprobs": 5} if config.logprobs else {})


def chat_probability(config: ChatConfig, document: Any) -> float:
    """P(yes): from the log-probabilities of the answer's token where they came, else `yes` or `no` of the config.

    Raises CallFailed("invalid") for a refusal, another answer, or another document.
    """
    try:
        choice = document["choices"][0]
        if choice["message"].get("refusal"):
            raise CallFailed("invalid", "a refusal")
        said = strict_json(choice["message"]["content"])
        answer = said["answer"]
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise CallFailed("invalid", "no {answer: yes | no} in choices[0].message.content") from error
    if answer not in ("yes", "no"):
        raise CallFailed("invalid", "an answer other than yes and no")
    if len(said) > 1:
        # The schema that was sent allows no other key: an endpoint that does not keep it may mean anything by `answer`.
        raise CallFailed("invalid", "keys beside `answer`, which the schema does not allow")
    offered = _from_logprobs(choice, answer) if config.logprobs else None
    return (config.yes if answer == "yes" else config.no) if offered is None else offered


def _from_logprobs(choice: dict[str, Any], answer: str) -> float | None:
    """P(yes) at the token that carries the answer; None where the endpoint gives none that can be read."""
    try:
        tokens = choice["logprobs"]["content"]
        # The last: the key "answer" comes before its value.
        token = next(token for token in reversed(tokens) if _word(token["token"]) == answer)
        mass = {"yes": 0.0, "no": 0.0}
        for other in token.get("top_logprobs") or [token]:
            if _word(other["token"]) in mass:
                mass[_word(other["token"])] += math.exp(_logprob(other["logprob"]))
        own = mass[answer]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, StopIteration):
        return None
    if not 0 < own <= 1 + 1e-6:
        return None
    other_mass = mass["no" if answer == "yes" else "yes"]
    # The other answer not among the likeliest tokens: what is left is an upper bound of its mass.
    share = own / (own + other_mass) if other_mass > 0 else min(own, 1.0)
    return share if answer == "yes" else 1.0 - share


def _logprob(value: Any) -> float:
    """Raises ValueError for NaN and for what would be a probability above 1 by more than rounding."""
    number = float(value)
    if not number <= _ROUNDING:
        raise ValueError(f"log-probability {number:g}")
    return min(number, 0.0)


def _word(token: str) -> str:
    return token.strip(" \t\r\n\"'").lower()
