"""Events for tests."""

from __future__ import annotations

import hashlib
from typing import Any

from stage1.store import DecisionEvent, LabelEvent


def image(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()


def decision(request_id: str = "r1", index: int = 0, **changed: Any) -> DecisionEvent:
    values: dict[str, Any] = {
        "request_id": request_id,
        "index": index,
        "image_digest": image(f"{request_id}/{index}"),
        "image_id": f"photo-{request_id}-{index}",
        "model": "roadwork",
        "version": "1",
        "bundle_digest": image("bundle"),
        "policy_id": "softmax-1",
        "state": "VALID",
        "label": "none",
        "exit": True,
        "score": 0.125,
        "probabilities": (0.9, 0.1),
        "latency_ms": 3.5,
        "received_at": 1.75e9,
    }
    return DecisionEvent(**(values | changed))


def label(name: str = "roadwork", who: str = "ana", at: float = 1.76e9, **named: Any) -> LabelEvent:
    return LabelEvent(label=name, who=who, at=at, **(named or {"request_id": "r1"}))
