"""The detector's configuration: a YAML (or JSON) file of the client's kind, every key of it known and checked.

The stage 2 that it names ("module:function", a callable image -> probability) is loaded here, and its answers checked.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from PIL import Image

from stage1.errors import ConfigError, DataError, MissingError
from stage1.runtime.attributes import load_function
from stage1.storage.texts import read_json, read_text, read_yaml

# Where a miner names no configuration; `stage1 streetvision run --config` sets it.
CONFIG_VARIABLE = "STAGE1_STREETVISION_CONFIG"
_LONGEST = 8.0  # of the client's 9 s, what its network and its own work need is left out
_ALIKE = 0.02
# What a cascade says itself, and its certificate is of: each stage's answer_above, and default_probability.
RULED = ("decision_threshold", "stage2", "stage2_threshold", "fallback_answer")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the file may say.

    bundle: folder of the bundle, relative to the file. decision_threshold: P(roadwork) above which the answer is
    roadwork, in (0, 1), or a JSON file with that key (`stage1 streetvision reward` writes one). stage2:
    "module:function" that answers what stage 1 defers, None: stage 1's own probability. stage2_threshold: the same for
    its probability.
    cascade: the file that `stage1 streetvision cascade` wrote, relative to this one; its stages and rules take the
    place of the four keys in RULED. deadline_s: for the whole answer. fallback_answer: what is said of an image that
    cannot be answered; 0.5 counts as none. threads: of the model within one image.
    """

    bundle: str
    decision_threshold: float = 0.5
    stage2: str | None = None
    stage2_threshold: float = 0.5
    cascade: str | None = None
    deadline_s: float = 4.0
    fallback_answer: float = 0.5
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("decision_threshold", "stage2_threshold"):
            _require(name, getattr(self, name), 0.0, 1.0, closed=False)
        _require("fallback_answer", self.fallback_answer, 0.0, 1.0, closed=True)
        _require("deadline_s", self.deadline_s, 0.01, _LONGEST, closed=True)
        if isinstance(self.threads, bool) or not isinstance(self.threads, int) or self.threads < 1:
            raise ConfigError(f"threads: {self.threads!r}; a whole number from 1 is needed")
        if not isinstance(self.bundle, str) or not self.bundle:
            raise ConfigError(f"bundle: {self.bundle!r}; the path of a bundle folder is needed")
        if self.stage2 is not None and not isinstance(self.stage2, str):
            raise ConfigError(f"stage2: {self.stage2!r}; write it as module:function")
        if self.cascade is not None and (not isinstance(self.cascade, str) or not self.cascade):
            raise ConfigError(f"cascade: {self.cascade!r}; the file that `stage1 streetvision cascade` wrote is needed")


def load_settings(config_name: str | os.PathLike[str] | None) -> Settings:
    """Settings from a file, or all defaults around a bundle where `config_name` is the folder of one.

    None: what the environment variable STAGE1_STREETVISION_CONFIG names. A name without suffix is tried with .yaml too.
    Raises ConfigError (none given, unknown key, bad value), MissingError (no such file).
    """
    name = config_name or os.environ.get(CONFIG_VARIABLE)
    if not name:
        raise ConfigError(
            f"config_name: none; give a YAML with the key `bundle`, a bundle folder, or set {CONFIG_VARIABLE}"
        )
    path = Path(name)
    if path.is_dir():
        return Settings(bundle=str(path))
    if not path.exists() and Path(f"{path}.yaml").is_file():
        path = Path(f"{path}.yaml")
    if not path.is_file():
        raise MissingError(f"config_name: {path}: no such file; give its path from {Path.cwd()}, or an absolute one")
    return _from_mapping(_parsed(path), path)


def _from_mapping(values: Mapping[str, Any], path: Path) -> Settings:
    known = [field.name for field in fields(Settings)]
    for key in values:
        if key not in known:
            near = " or ".join(repr(name) for name in _nearest(str(key), known))
            raise ConfigError(f"{path}: unknown key {key!r}; did you mean {near}? Known: {', '.join(known)}")
    if "bundle" not in values:
        raise ConfigError(f"{path}: key `bundle` is missing; give the folder that `stage1 bundle` wrote")
    if values.get("cascade") is not None and (ruled := [name for name in RULED if values.get(name) is not None]):
        raise ConfigError(
            f"{path}: {ruled[0]}: {values[ruled[0]]!r} beside `cascade`, which has its own stages, answer_above and "
            "default_probability; leave one of the two keys out"
        )
    given = dict(values)
    if isinstance(threshold := given.get("decision_threshold"), str):
        given["decision_threshold"] = _threshold_of(path.parent / threshold)
    try:
        settings = Settings(**given)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    # As in other configuration files: what it names is beside it.
    cascade = None if settings.cascade is None else str(path.parent / settings.cascade)
    return replace(settings, bundle=str(path.parent / settings.bundle), cascade=cascade)


def _nearest(key: str, known: list[str]) -> list[str]:
    """The keys that look most like it, as a whole or by one of their words; all that look about the same."""

    def likeness(name: str) -> float:
        whole = difflib.SequenceMatcher(None, key, name).ratio()
        return max(whole, *(difflib.SequenceMatcher(None, key, word).ratio() for word in name.split("_")))

    best = max(likeness(name) for name in known)
    return [name for name in known if likeness(name) >= best - _ALIKE]


def _threshold_of(path: Path) -> Any:
    try:
        return read_json(path.read_bytes())["decision_threshold"]
    except FileNotFoundError as error:
        raise MissingError(
            f"decision_threshold: {path}: no such file; give a number, or the file of `stage1 streetvision reward`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"decision_threshold: {path} holds none; give a number in (0, 1), or a JSON file with that key"
        ) from error


def _parsed(path: Path) -> Mapping[str, Any]:
    try:
        text = read_text(path)
        values = read_json(text) if path.suffix == ".json" else read_yaml(text)
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8 is a ValueError
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())[:160]}); fix the file") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: {type(values).__name__}; a mapping of keys is expected")
    return values


def _require(name: str, value: Any, low: float, high: float, *, closed: bool) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not (low <= value <= high if closed else low < value < high):
        raise ConfigError(
            f"{name}: {value!r}; a number in {'[' if closed else '('}{low:g}, {high:g}{']' if closed else ')'} is"
            " needed"
        )


Stage2 = Callable[[Image.Image], float]


def load_stage2(name: str) -> Stage2:
    """The callable that `name` names, behind a check of what it answers. Raises ConfigError."""
    function = load_function(name, "stage2")
    return lambda image: checked_probability(function(image))


def checked_probability(answer: Any) -> float:
    """The answer as a float in [0, 1]. Raises DataError for anything else: text, True, NaN, 1.7."""
    # One number of numpy's or torch's, as Python's: their True is none of Python's, and none is a probability.
    plain = answer.item() if hasattr(answer, "item") and getattr(answer, "ndim", 1) == 0 else answer
    if isinstance(plain, (str, bytes, bool)):
        shown = plain if isinstance(plain, bool) else plain[:40]
        raise DataError(f"answered {shown!r}; a number in [0, 1] is needed")
    try:
        value = float(answer)
    except (TypeError, ValueError) as error:
        raise DataError(f"answered {type(answer).__name__}; a number in [0, 1] is needed") from error
    if not (math.isfinite(value) and 0.0 <= value <= 1.0):
        raise DataError(f"answered {value}; a number in [0, 1] is needed")
    return value
