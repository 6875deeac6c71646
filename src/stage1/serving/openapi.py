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
_WHOLE: Schema = {"type": "integer", "minimum": 0}
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
TRAFFIC = _object(
    {
        "images": _WHOLE,
        "exits": _WHOLE,
        "bars": {"type": "array", "items": _object({"exits": _WHOLE, "defers": _WHOLE})},
        "latency_ms": _object({"p50": _or_null("number"), "p99": _or_null("number")}),
        "since": _NUMBER,
    }
)
READY = _object({"ready": _BOOL, "workers": {"type": "integer"}, **MODELS["properties"]})
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


# ---- the store ---------------------------------------------------------------------------------------------------

_LABEL_IN = {
    **_object(
        {"label": _NAME},
        {
            "request_id": _NAME,
            "index": {"type": "integer", "minimum": 0, "maximum": 2147483647},
            "image_digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            "image_id": _NAME,
            "who": {"type": "string", "maxLength": 100},
            "note": {"type": "string", "maxLength": 2000},
        },
    ),
    "additionalProperties": False,
}
FEEDBACK = json_body(_object({"labels": {"type": "array", "items": _LABEL_IN, "minItems": 1, "maxItems": 1000}}))
OUTCOMES = _object(
    {
        "outcomes": {
            "type": "array",
            "items": {
                "type": "string",
                "enum": ["stored", "known", "unknown image", "ambiguous image", "unknown class"],
            },
        },
        "counts": {"type": "object", "additionalProperties": _WHOLE},
    }
)
COUNTS = _object({"counts": {"type": "object", "additionalProperties": _WHOLE}, "trouble": _BOOL})
_STORED = _object(
    {
        "seq": _WHOLE,
        "request_id": _TEXT,
        "index": _WHOLE,
        "image_digest": _TEXT,
        "image_id": _TEXT,
        "model": _TEXT,
        "version": _TEXT,
        "bundle": _TEXT,
        "policy": _TEXT,
        "state": _STATE,
        "reason": _TEXT,
        "label": _TEXT,
        "exit": _BOOL,
        "score": _or_null("number"),
        "probabilities": {"type": "array", "items": _NUMBER},
        "latency_ms": _NUMBER,
        "received_at": _NUMBER,
        "audit": _BOOL,
        "propensity": _NUMBER,
        "labels": {
            "type": "array",
            "items": _object({"label": _TEXT, "who": _TEXT, "at": _NUMBER, "source": _TEXT, "note": _TEXT}),
        },
    }
)
DECISIONS = _object({"decisions": {"type": "array", "items": _STORED}})
_PAGING = [
    _query("after", _WHOLE, "Entry of the chain after which to begin."),
    _query("limit", {"type": "integer", "minimum": 1, "maximum": 1000}, "Most decisions of the answer."),
]
WHICH_AUDITS: Schema = {"parameters": _PAGING}
WHICH_DECISIONS: Schema = {
    "parameters": [
        *_PAGING,
        _query("before", _WHOLE, "Entry of the chain before which to end."),
        _query("exit", _BOOL, "Only exits, or only what deferred."),
        _query("state", _STATE, "Only under this state."),
        _query("model", _NAME, "Only of this model."),
        _query("newest", _BOOL, "From the end backwards."),
    ]
}

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


V2_ERROR = _object({"error": _TEXT, "code": _TEXT, "request_id": _TEXT})


def responses(
    schema: Schema | None, *, error: Schema = ERROR, unready: Schema | None = None
) -> dict[int | str, Schema]:
    """The answer, None: of no one form; and that everything else is an error of one form.

    unready: what is said with 503, where that is no error.
    """
    good = {"description": "The answer."} | ({} if schema is None else _content(schema))
    refused = {"description": "Refused, in one line."} | _content(error)
    found: dict[int | str, Schema] = {200: good, "4XX": refused, "5XX": refused}
    return found if unready is None else found | {503: {"description": "Not ready."} | _content(unready)}


def _content(schema: Schema) -> Schema:
    return {"content": {"application/json": {"schema": schema}}}
