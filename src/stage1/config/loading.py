"""From recipe, file, environment and command line to a RunConfig, with where each value came from.

A recipe is a file of the package, a phase names one of them. Between a file and a RunConfig a config is dotted
keys and values: which keys there are, how they are written as YAML, and in which of them two configs differ.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from stage1.config.base import nearest
from stage1.config.run import RunConfig
from stage1.errors import ConfigError, MissingError
from stage1.risk.targets import default_risks
from stage1.storage.texts import read_text, read_yaml

PHASES = {
    0: "data",
    1: "baseline",
    2: "selective-metrics",
    3: "gate",
    4: "explora",
    5: "risk-training",
    6: "continuous-learning",
}


def recipes() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files("stage1").joinpath("recipes")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """The YAML of a recipe. Raises ConfigError naming the nearest one."""
    if name not in recipes():
        raise ConfigError(f"recipe {name!r} is not there{nearest(name, recipes())}; recipes: {', '.join(recipes())}")
    return resources.files("stage1").joinpath(f"recipes/{name}.yaml").read_text(encoding="utf-8")


def phase_recipe(phase: int) -> str:
    """The recipe that `--phase` names. Raises ConfigError where there is none yet."""
    if phase not in PHASES:
        raise ConfigError(f"--phase {phase}: phases are 0 to 6")
    if PHASES[phase] not in recipes():
        raise ConfigError(
            f"--phase {phase}: its recipe {PHASES[phase]!r} is not built yet; recipes: {', '.join(recipes())}"
        )
    return PHASES[phase]


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
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in [*before, *(k for k in after if k not in before)]
        if before.get(key) != after.get(key)
    ]


# In a file, a mapping of risks is the whole target: it replaces the one of the recipe, it is not merged into it.
_WHOLE = ("risks", "class_coverage")
_LAYERS = ("default", "recipe", "file", "env", "command")
_SHOWN = 160  # characters of what was given, in a message
_NO_KEYS = ("STAGE1_TRACEBACK",)  # of the command line


def load_config(
    path: str | os.PathLike[str] | None = None,
    *,
    values: Mapping[str, Any] | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> tuple[RunConfig, dict[str, str]]:
    """Defaults < values (of a run directory) < recipe < file < environment (STAGE1_A__B=value) < overrides (a.b=value).

    A table (data.table, data.role_tables) that is given later than a generator of images takes its place, and the other
    way round; with the table of one's own the recipes of generated scenes split as those for photos do.

    Returns the config and the origin of every leaf ("default", "recipe demo", "file run.yaml", "env STAGE1_SEED",
    "command line").
    Raises MissingError (no such file) and ConfigError (one line: where, key, value, what is allowed; also a table and a
    generator given together).
    """
    values = {} if values is None else copy.deepcopy(dict(values))
    origin: dict[str, str] = {}
    if recipe is not None:
        _merge(values, _yaml(recipe_text(recipe), f"recipe {recipe}"), origin, f"recipe {recipe}")
    if path is not None:
        if not Path(path).is_file():
            sections = {key.split(".")[0] for key in known_keys()}
            if (
                not Path(path).exists()
                and str(path).split(".")[0] in sections
                and Path(path).suffix not in (".yaml", ".yml")
            ):
                raise ConfigError(f"{path}: no such config file; if it is a key, give it a value: {path}=VALUE")
            raise MissingError(f"{path}: no such config file; for a recipe use --recipe NAME ({', '.join(recipes())})")
        try:
            text = read_text(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
        _merge(values, _yaml(text, str(path)), origin, f"file {path}")
    for name, text in sorted((os.environ if environment is None else environment).items()):
        if name.startswith("STAGE1_") and name not in _NO_KEYS:
            _put(values, name.removeprefix("STAGE1_").lower().replace("__", "."), text, origin, f"env {name}")
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign:
            raise ConfigError(f"{_cut(repr(override))}: overrides look like a.b=value")
        _put(values, key.strip(), text, origin, "command line")
    _one_source(values, origin, "" if recipe is None else f"recipe {recipe}")
    config = validated(values)
    return config, {
        key: origin.get(key, _prefix_origin(key, origin)) for key, _ in leaves(config.model_dump(mode="json"))
    }


def validated(values: Mapping[str, Any]) -> RunConfig:
    """RunConfig from nested values; pydantic's report becomes one line. Raises ConfigError."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"config: {type(values).__name__}; a mapping of keys is expected")
    _refuse_no_text(values)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = _cut(".".join(str(part) for part in first["loc"]) or "config")
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{where}: unknown key{nearest(where, known_keys())}") from error
        message = first["msg"].removeprefix("Value error, ")
        given = "" if isinstance(first["input"], dict) else f" (given: {_cut(repr(first['input']))})"
        raise ConfigError(f"{where}: {message[0].lower()}{message[1:]}{given}") from error


def _one_source(values: dict[str, Any], origin: dict[str, str], own: str) -> None:
    """A table and the generator exclude each other: what was given later stays. own: the origin that is the recipe.

    Beside a table of one's own the recipe's split is that of photos: so runs of all recipes on it can be compared.
    """
    data = values.get("data")
    keys = [key for key in ("table", "role_tables") if isinstance(data, dict) and data.get(key)]
    if not isinstance(data, dict) or not keys:
        return
    if data.get("source") == "roadscenes":
        given, made = _origin(f"data.{keys[0]}", origin), _origin("data.source", origin)
        place = [_LAYERS.index(found.partition(" ")[0]) for found in (given, made)]
        if place[0] == place[1] > 0:
            raise ConfigError(
                f"data.{keys[0]}={data[keys[0]]} with data.source=roadscenes ({given}): generated scenes have no table;"
                " leave one out"
            )
        if place[0] < place[1]:
            for key in keys:
                data.pop(key)
            return
        if place[0] > place[1]:
            data["source"], origin["data.source"] = "auto", given
    split = values.setdefault("split", {})
    if own and isinstance(split, dict) and _origin("split.method", origin) in ("default", own):
        split["method"], origin["split.method"] = "balanced", f"data.{keys[0]}"


def _origin(key: str, origin: Mapping[str, str]) -> str:
    """Where a key was given: itself, a key below it, or a section above it."""
    below = [found for name, found in origin.items() if name.startswith(f"{key}.")]
    return origin.get(key) or next(iter(below), None) or _prefix_origin(key, origin)


def _refuse_no_text(values: Mapping[str, Any]) -> None:
    """No name, path or column holds a NUL or a lone surrogate; what would trip over one lies deep in the work."""
    waiting: list[tuple[str, Any]] = [("", values)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{where}.{key}" if where else str(key), part) for key, part in value.items()]
            value = "".join(key for key in value if isinstance(key, str))
        elif isinstance(value, list):
            waiting += [(where, part) for part in value]
        if isinstance(value, str) and ("\0" in value or (not value.isprintable() and _half(value))):
            raise ConfigError(f"{_cut(where) or 'config'}: holds a NUL or half a character; take it out")


def _half(text: str) -> bool:
    """Whether it has lone surrogates: `"\\ud800"` in YAML, which no file could hold."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}.."


def _yaml(text: str, where: str) -> dict[str, Any]:
    try:
        values = read_yaml(text, text_keys())
    except ValueError as error:
        raise ConfigError(f"{where}: not valid YAML ({' '.join(str(error).split())[:160]})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: a mapping of keys is expected at the top")
    return values


def _merge(
    values: dict[str, Any], new: Mapping[str, Any], origin: dict[str, str], source: str, prefix: str = ""
) -> None:
    for key, value in new.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and dotted not in _WHOLE:
            inner = values.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{dotted}: a mapping here, a single value before ({source})")
            _merge(inner, value, origin, source, f"{dotted}.")
        else:
            values[key] = value
            origin[dotted] = source


def _put(values: dict[str, Any], dotted: str, text: str, origin: dict[str, str], source: str) -> None:
    try:
        value = read_yaml(text, text_keys(), dotted) if text else None
    except ValueError as error:
        raise ConfigError(
            f"{_cut(dotted)}: {_cut(repr(text))} is not a valid value ({_cut(str(error))}; {source})"
        ) from error
    *path, last = dotted.split(".")
    if path and path[0] in _WHOLE:
        # What follows is one name, dots and all: fnr.cat is a risk, not a section.
        path, last = path[:1], ".".join([*path[1:], last])
    known = known_keys()
    if dotted not in known and not (path and path[0] in (*_WHOLE, "data") and ".".join(path) in known):
        raise ConfigError(f"{_cut(dotted)}: unknown key{nearest(dotted, known)} ({source})")
    if path == ["risks"] and values.get("risks") is None:
        # One risk given alone changes the target, it does not replace it; `risks.fnr=null` takes it away. A risk of a
        # class is for more than two classes, which have another default.
        values["risks"] = default_risks(_class_count(values, last))
    place = values
    for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise ConfigError(f"{dotted}: {part!r} is a single value, not a section ({source})")
    if path == ["risks"] and value is None:
        place.pop(last, None)
    else:
        place[last] = value
    for name in [name for name in origin if name.startswith(f"{dotted}.")]:
        del origin[name]  # a section that is given whole replaces the one before
    origin[dotted] = source


def _class_count(values: Mapping[str, Any], risk: str) -> int:
    """How many classes the target is for, as far as the config says: 3 means more than two."""
    classes = values.get("data", {}).get("classes")
    return len(classes) if isinstance(classes, list) else 3 if "." in risk else 2


def _prefix_origin(key: str, origin: Mapping[str, str]) -> str:
    parts = key.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if found := origin.get(".".join(parts[:end])):
            return found
    return "default"
