"""What goes in and out of /v1, as OpenAPI has it."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {"type": "object", "properties": required | (optional or {}), "required": list(required)}


def _or_null(kind: str) -> Schema:
    return {"type": [kind, "null"]}


_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_BOOL: Schema = {"type": "boolean"}
_STATE: Schema = {"type": "string", "enum": ["VALID", "DEGRADED", "VOID"]}
_NAME: Schema = {"type": "string", "maxLength": 200}
_DEADLINE: Schema = {"type": "number", "exclusiveMinimum": 0}

DECISION = _object(
    {
        "index": {"type": "integer"},
        "id": _or_null("string"),
        "sha256": _TEXT,
        "decision": {"type": "string", "pattern": "^(defer$|exit:)"},
        "exit": _BOOL,
        "label": _or_null("string"),
        "probability": _or_null("number"),
        "confidence": _or_null("number"),
        "probabilities": {"type": ["object", "null"], "additionalProperties": _NUMBER},
        "score": _or_null("number"),
        "reason": _or_null("string"),
        "error": _or_null("string"),
    },
    {
        "views": {"type": "integer"},
        "view": _TEXT,
        "box": {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4},
        "small": _BOOL,
    },
)
ANSWER = _object(
    {
        "request_id": _TEXT,
        "model": _TEXT,
        "version": _TEXT,
        "bundle": _TEXT,
        "policy": _TEXT,
        "state": _STATE,
        "reason": _or_null("string"),
        "answers": {"type": "array", "items": DECISION},
    }
)
ERROR = _object({"error": _object({"code": _TEXT, "message": _TEXT, "request_id": _TEXT})})
_CONDITION = _object({"name": _TEXT, "state": _STATE, "reason": _TEXT, "since": _NUMBER, "by": _TEXT})
MODEL = _object(
    {
        "name": _TEXT,
        "version": _TEXT,
        "latest": _BOOL,
        "bundle": _TEXT,
        "policy": _TEXT,
        "classes": {"type": "array", "items": _TEXT},
        "certified": _BOOL,
        "slices": _or_null("string"),
        "state": _STATE,
        "reason": _or_null("string"),
        "conditions": {"type": "array", "items": _CONDITION},
    }
)
MODELS = _object({"models": {"type": "array", "items": MODEL}})
POLICY = _object(MODEL["properties"] | {"policy_document": {"type": "object"}, "certificate": {"type": "object"}})


def _query(name: str, schema: Schema, what: str) -> Schema:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": what}


_MODEL_QUERY = [
    _query("model", _TEXT, "Name of the model; needed where several are served."),
    _query("version", _TEXT, "First 12 digits of the bundle; without it the latest."),
]
WHICH_MODEL: Schema = {"parameters": _MODEL_QUERY}
PREDICT: Schema = {
    "parameters": [
        *_MODEL_QUERY,
        _query("id", _NAME, "Your name of the image, where the body is one; kept with its decision."),
        _query("slice", _NAME, "Value of the attribute by which thresholds differ."),
        _query("deadline_ms", _DEADLINE, "Milliseconds after which the answer is of no use."),
    ],
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": _object(
                    {"image": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}}
                )
            },
            "application/json": {
                "schema": {
                    **_object(
                        {
                            "images": {
                                "type": "array",
                                "minItems": 1,
                                "items": {
                                    **_object(
                                        {"data": {"type": "string", "format": "byte"}}, {"id": _NAME, "slice": _NAME}
                                    ),
                                    "additionalProperties": False,
                                },
                            }
                        },
                        {"model": _TEXT, "version": _TEXT, "deadline_ms": _DEADLINE},
                    ),
                    "additionalProperties": False,
                }
            },
        },
    },
}


def json_body(schema: Schema) -> Schema:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


LOAD = json_body(_object({"bundle": _TEXT}))
CONDITION = json_body(
    _object({"name": _TEXT, "state": {"type": "string", "enum": ["DEGRADED", "VOID"]}, "reason": _TEXT})
)


# ---- /v2 ---------------------------------------------------------------------------------------------------------

_SHAPE: Schema = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_TENSOR = _object({"name": _TEXT, "datatype": _TEXT, "shape": _SHAPE})
V2_SERVER = _object({"name": _TEXT, "version": _TEXT, "extensions": {"type": "array", "items": _TEXT}})
V2_LIVE = _object({"live": _BOOL})
V2_READY = _object({"ready": _BOOL}, {"name": _TEXT})
V2_MODEL = _object(
    {
        "name": _TEXT,
        "versions": {"type": "array", "items": _TEXT},
        "platform": _TEXT,
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {"type": "array", "items": _TENSOR},
        "parameters": {"type": "object"},
    }
)
V2_ANSWER = _object(
    {
        "model_name": _TEXT,
        "model_version": _TEXT,
        "parameters": {"type": "object"},
        "outputs": {"type": "array", "items": _TENSOR},
    },
    {"id": _TEXT},
)
V2_REQUEST = json_body(
    _object(
        {
            "inputs": {
                "type": "array",
                "minItems": 1,
                "items": _object(
                    {
                        "name": {"type": "string", "enum": ["image", "tensor", "id", "slice"]},
                        "datatype": {"type": "string", "enum": ["BYTES", "FP32"]},
                        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1},
                        "data": {"type": "array"},
                    },
                    {"parameters": {"type": "object"}},
                ),
            }
        },
        {"id": _TEXT, "parameters": {"type": "object"}, "outputs": {"type": "array", "items": {"type": "object"}}},
    )
)


def responses(schema: Schema | None, media: str = "application/json") -> dict[int | str, Schema]:
    """The answer, and that everything else is an error of one form."""
    good = {"description": "The answer."} | ({} if schema is None else {"content": {media: {"schema": schema}}})
    refused = {"description": "Refused, in one line.", "content": {"application/json": {"schema": ERROR}}}
    return {200: good, "4XX": refused, "5XX": refused}
