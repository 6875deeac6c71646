"""A config as dotted keys and values: which there are, as YAML, and what differs between two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from stage1.config.run import RunConfig


def known_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of the config."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys


@cache
def text_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> frozenset[str]:
    """The dotted keys whose values are texts, lists of texts or texts by name: class names, columns, paths."""
    keys: set[str] = set()
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys |= text_keys(field.annotation, f"{prefix}{name}.")
        elif _is_text(field.annotation):
            keys.add(prefix + name)
    return frozenset(keys)


def _is_text(annotation: Any) -> bool:
    parts = [part for part in get_args(annotation) if part is not NoneType]
    kind = get_origin(annotation)
    if kind is dict:
        return _is_text(parts[1])
    if kind in (list, tuple, Union, UnionType):
        return all(_is_text(part) for part in parts if part is not ...)
    return annotation is str or (kind is Literal and all(isinstance(part, str) for part in parts))


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of nested values; an empty mapping is a leaf."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def to_yaml(config: RunConfig) -> str:
    """The whole config as YAML, in the order of its definition."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Lines "key: old -> new" of every leaf that differs."""
    before, after = (dict(leaves(config.model_dump(mode="json"))) for config in (old, new))
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in [*before, *(k for k in after if k not in before)]
            if before.get(key) != after.get(key)]  # fmt: skip
