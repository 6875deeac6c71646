"""The cascade file: stages in order, how each is asked, when it exits, what it costs, and what is to be certified."""

from __future__ import annotations

import difflib
import json
import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from stage1.config import Rate, Section, Share
from stage1.errors import ConfigError, MissingError
from stage1.storage.files import digest_bytes
from stage1.storage.texts import read_text, read_yaml

Seconds = Annotated[float, Field(gt=0.0, le=3600.0)]
NotNegative = Annotated[float, Field(ge=0.0, le=1e9)]
RISKS = ("miss_rate", "false_exit_rate", "error")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ExitBand(Section):
    """Exit on the stage's probability; a side that is left out never exits."""

    below: Share | None = None
    """Exit as the first class where P(second class) lies below this."""
    above: Share | None = None
    """Exit as the second class where it lies above this."""

    @model_validator(mode="after")
    def _ordered(self) -> ExitBand:
        if self.below is not None and self.above is not None and self.below > self.above:
            raise ValueError(f"below {self.below:g} is larger than above {self.above:g}; an image would exit as both")
        return self


class ChatConfig(Section):
    """An OpenAI-compatible chat endpoint with vision; the answer is held to {"answer": "yes" | "no"} by a JSON
    Schema.
    """

    model: str
    question: str
    """Yes must mean the second class."""
    yes: Share = 0.95
    """P(second class) where the answer is yes and no log-probabilities come with it."""
    no: Share = 0.05
    logprobs: bool = True
    """Ask for log-probabilities of the answer; where they come, the probability is made of them."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 16


class HttpConfig(Section):
    """An endpoint that is asked by POST. Redirects are not followed, proxies of the environment are not used."""

    url: str
    format: Literal["json", "bytes", "chat"] = "json"
    """json: {"image": base64} -> {"probability": p}. bytes: the image file itself -> the same. chat: see `chat`."""
    connect_timeout_s: Seconds = 2.0
    read_timeout_s: Seconds = 10.0
    """From the connection to the last byte of the answer, however slowly it drips."""
    max_response_bytes: Annotated[int, Field(ge=64, le=1 << 24)] = 65536
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Name of the environment variable that holds the API key. The key itself has no place in this file."""
    key_header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] = "Authorization"
    """Authorization sends `Bearer KEY`, any other header the bare key."""
    chat: ChatConfig | None = None

    @model_validator(mode="after")
    def _usable(self) -> HttpConfig:
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise ValueError(f"url: not a URL ({error})") from error
        if parts.scheme not in ("http", "https") or not host or any(ord(char) <= 32 for char in self.url):
            raise ValueError("url: must look like http://host:port/path or https://host/path")
        if parts.username or parts.password:
            raise ValueError("url: holds a user or password; name an environment variable in key_env instead")
        if self.key_env and parts.scheme == "http" and host not in _LOOPBACK:
            raise ValueError(f"url: http would send the key to {host} in clear; use https")
        if (self.format == "chat") != (self.chat is not None):
            raise ValueError("chat: belongs to format chat, and format chat needs it")
        return self


class CallsConfig(Section):
    """How a stage is asked. Every attempt counts towards the budget and the breaker."""

    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Further attempts after a timeout, a lost connection, HTTP 429 or 5xx, or an answer that is none."""
    backoff_s: NotNegative = 0.2
    """Wait before retry k: random up to backoff_s * 2^k, by seed, image and k."""
    backoff_max_s: NotNegative = 5.0
    per_minute: Annotated[int, Field(ge=1)] | None = None
    """Attempts in any 60 seconds; None: no limit."""
    when_over: Literal["wait", "fall_back"] = "wait"
    """Budget spent: wait for it, or answer by the stage before at once."""
    breaker_failures: Annotated[int, Field(ge=1)] = 8
    """So many failed attempts in a row, and the stage is left alone for breaker_pause_s; then one attempt decides."""
    breaker_pause_s: NotNegative = 30.0
    concurrency: Annotated[int, Field(ge=1, le=256)] = 4
    """Images asked for at once."""
    timeout_s: Seconds = 30.0
    """Only for a callable: after that its answer is no longer waited for."""


class CostConfig(Section):
    money: NotNegative = 0.0
    """Per attempt, in `currency`."""
    milliseconds: NotNegative | None = None
    """Per image; None: as measured."""


class StageConfig(Section):
    """One stage: a bundle, a callable, or an endpoint."""

    name: Annotated[str, Field(min_length=1, max_length=60)]
    bundle: str | None = None
    """Bundle folder, relative to the cascade file."""
    callable: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")] | None = None
    """"module:function", image bytes -> P(second class). The module is also looked for beside the cascade file."""
    http: HttpConfig | None = None
    exit: Literal["own", "auto", "always"] | ExitBand | None = None
    """own: the bundle's policy. auto: thresholds on its probability, ordered on val_select. The last: always."""
    answer_above: Share | Literal["auto"] = 0.5
    """Where the stage has to answer without an exit rule (it is the last one, or those after it failed): the second
    class above this probability. auto: chosen on val_select (last stage)."""
    calls: CallsConfig = CallsConfig()
    cost: CostConfig = CostConfig()

    @field_validator("exit", mode="before")
    @classmethod
    def _known_exit(cls, value: Any) -> Any:
        if isinstance(value, dict):
            # Validated here, so that a wrong key is named as such and not as a failed alternative.
            return ExitBand.model_validate(value)
        if value is not None and not isinstance(value, ExitBand) and value not in ("own", "auto", "always"):
            raise ValueError("is unknown; use own, auto, always, or {below: .., above: ..}")
        return value

    @field_validator("answer_above", mode="before")
    @classmethod
    def _known_answer(cls, value: Any) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value != "auto" and not (number and math.isfinite(value) and 0 <= value <= 1):
            raise ValueError("must be a probability, or auto")
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> StageConfig:
        given = [name for name in ("bundle", "callable", "http") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"stage {self.name!r}: one of bundle, callable, http is needed; given: {', '.join(given) or 'none'}"
            )
        return self

    @property
    def kind(self) -> str:
        return next(name for name in ("bundle", "callable", "http") if getattr(self, name) is not None)


class CascadeConfig(Section):
    """The whole file."""

    name: Annotated[str, Field(min_length=1, max_length=80)] = "cascade"
    classes: Annotated[list[str], Field(min_length=2, max_length=2)]
    """The two classes in order; every probability is that of the second."""
    stages: Annotated[list[StageConfig], Field(min_length=2)]
    risks: dict[str, Rate] = Field(default_factory=dict)
    """Limits for the answers of the whole. None: exact upper bounds of miss_rate and false_exit_rate instead."""
    confidence: Rate = 0.95
    target_prior: Rate | None = None
    """P(second class) that `error` is stated for."""
    joint: bool = False
    """The claim about the whole and the certificates of stages with exit: own hold together at `confidence`."""
    unit: Literal["auto", "image", "group", "group_mean"] = "auto"
    assume_iid: bool = False
    default_probability: Share = 0.5
    """Where no stage can answer an image; the second class above one half."""
    currency: str = "USD"
    seed: int = 0

    @field_validator("risks")
    @classmethod
    def _known_risks(cls, risks: dict[str, float]) -> dict[str, float]:
        if unknown := [name for name in risks if name not in RISKS]:
            raise ValueError(f"{unknown[0]!r} is unknown; every image is answered, so risks are {', '.join(RISKS)}")
        return {name: risks[name] for name in RISKS if name in risks}

    @model_validator(mode="after")
    def _consistent(self) -> CascadeConfig:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names) or "default" in names:
            raise ValueError(f"stages: names must differ, and `default` is taken; given: {', '.join(names)}")
        if self.classes[0] == self.classes[1]:
            raise ValueError(f"classes: both are called {self.classes[0]!r}")
        last = self.stages[-1]
        if last.exit not in (None, "always"):
            raise ValueError(f"stage {last.name!r}: is the last one, which always answers; leave exit out")
        for stage in self.stages[:-1]:
            if stage.exit in (None, "always"):
                raise ValueError(
                    f"stage {stage.name!r}: exit is needed (own, auto, or below and above): a stage follows it"
                )
            if stage.exit == "own" and stage.kind != "bundle":
                raise ValueError(
                    f"stage {stage.name!r}: exit own is the policy of a bundle; give below and above, or auto"
                )
            if stage.answer_above == "auto":
                raise ValueError(f"stage {stage.name!r}: answer_above auto is for the last stage")
        if self.auto_exits and not self.risks:
            raise ValueError("risks: exit auto looks for the cheapest thresholds that keep them; name at least one")
        if "error" in self.risks and self.target_prior is None:
            raise ValueError(
                "target_prior: error moves with the class balance; say the share of the second class it is for"
            )
        return self

    @property
    def needs_select(self) -> bool:
        """Whether something is chosen on val_select."""
        return bool(self.auto_exits) or self.stages[-1].answer_above == "auto"

    @property
    def auto_exits(self) -> list[int]:
        """Places of the stages whose thresholds are chosen on val_select."""
        return [place for place, stage in enumerate(self.stages) if stage.exit == "auto"]


def load_cascade(path: str | os.PathLike[str]) -> CascadeConfig:
    """Read a cascade file. Raises MissingError (not there), ConfigError (one line: file, key, value, the way out)."""
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"{path}: no such cascade file")
    try:
        values = read_yaml(read_text(path), texts=("classes",))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())[:160]})") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a mapping with the keys classes and stages is expected at the top")
    try:
        return CascadeConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error


def stages_digest(config: CascadeConfig, bundles: list[str | None]) -> str:
    """Who is asked, and how: answers recorded under one digest may be used under another only where they are equal.

    bundles: digest of each stage's bundle, None for the others. Exit rules and costs are not part of it.
    """
    stages = [
        stage.model_dump(mode="json", exclude={"exit", "answer_above", "cost", "bundle"}) | {"bundle_digest": digest}
        for stage, digest in zip(config.stages, bundles, strict=True)
    ]
    return digest_bytes(json.dumps([config.classes, stages], sort_keys=True).encode())


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "cascade"
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key{_nearest(first['loc'])}"
    message = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    # Not where a mapping was given: it is long, and might hold what does not belong on a screen.
    shown = f" (given: {given!r})"[:120] if isinstance(given, (str, int, float)) and not where.endswith("url") else ""
    return f"{where}: {message[0].lower()}{message[1:]}{shown}"


# Keys by section; {stage} is stages.0 and so on. Sections of a stage first: there most mistakes are made.
_SECTIONS: dict[str, type[Section]] = {
    "{stage}.": StageConfig,
    "{stage}.http.": HttpConfig,
    "{stage}.http.chat.": ChatConfig,
    "{stage}.calls.": CallsConfig,
    "{stage}.cost.": CostConfig,
    "{stage}.exit.": ExitBand,
    "": CascadeConfig,
}


def _nearest(where: tuple[int | str, ...]) -> str:
    """Where the unknown key at `where` belongs, if it is a key of another section; else the one that it looks like."""
    *path, name = (str(part) for part in where)
    inside = len(path) > 1 and path[0] == "stages"
    stage = ".".join(path[:2]) if inside else "stages.N"
    here = ".".join([*path, ""]) if path else ""
    places = {section.format(stage=stage): list(keys.model_fields) for section, keys in _SECTIONS.items()}
    for section, keys in places.items():
        if name in keys and section != here:
            return f"; it belongs in {section}{name}" if section else f"; {name} belongs at the top of the file"
    if near := difflib.get_close_matches(name, places.get(here, []), n=1, cutoff=0.6):
        return f"; did you mean {near[0]}?"
    elsewhere = {key: f"{section}{key}" for section, keys in reversed(places.items()) for key in keys}
    near = difflib.get_close_matches(name, sorted(elsewhere), n=1, cutoff=0.6)
    return f"; did you mean {elsewhere[near[0]]}?" if near else ""
