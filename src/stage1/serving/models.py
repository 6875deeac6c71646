"""The models of a server by name and version, each with the standing of its certificate."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stage1.bundle.manifest import CERTIFICATE, read_manifest
from stage1.bundle.verify import verify_bundle
from stage1.errors import ConfigError, IntegrityError, Stage1Error
from stage1.inference.predictor import one_line
from stage1.monitoring import Condition, Standing, State
from stage1.policy import load_policy
from stage1.runtime.preprocessing import Preprocessing
from stage1.serving.refusal import Refusal
from stage1.serving.settings import Settings
from stage1.store.events import require_name

VERIFICATION, RUNTIME, EXPIRED, UNCERTIFIED = "verification", "runtime", "expired", "certificate"
"""Conditions that the server raises itself."""


@dataclass(frozen=True, slots=True)
class Model:
    """A verified bundle, as clients see it. version: the first 12 digits of the bundle's digest.

    policy_id: the policy's name with the first 12 digits of its file's digest. sliced_by: the attribute by which
    thresholds differ, None: none. size: side of the model's input. preprocessing: digest of the spec. whole: answers
    are made of the whole image alone, so preprocessed tensors can be taken.
    """

    name: str
    folder: Path
    digest: str
    policy: str
    policy_id: str
    classes: tuple[str, ...]
    certified: bool
    sliced_by: str | None
    size: int
    preprocessing: str
    whole: bool
    certificate: Mapping[str, Any] = field(repr=False)
    policy_document: Mapping[str, Any] = field(repr=False)

    @property
    def version(self) -> str:
        return self.digest[:12]

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.version


def opened(folder: Path, settings: Settings) -> tuple[Model, Standing]:
    """A bundle, every byte of it verified, and the standing that it begins with.

    Raises MissingError, IntegrityError; ConfigError for a name that stands in no URL, DataError for one that no store
    keeps.
    """
    if folder.suffix in (".yaml", ".yml"):
        raise ConfigError(
            f"{folder}: a cascade is not served; serve the bundle of its first stage, and ask the next"
            " one for what defers"
        )
    verify_bundle(folder, scores=False).require()
    manifest = read_manifest(folder)
    policy = load_policy(folder / manifest["policy_file"])
    if policy.certificate is None:
        raise IntegrityError(f"{folder}: {CERTIFICATE} is missing; restore the bundle")
    name = str(manifest["name"])
    if "/" in name or name in (".", ".."):
        raise ConfigError(f"{folder}: its name {name!r} can stand in no address; bundle it under another name")
    for text in (name, *manifest["classes"]):
        require_name(f"{folder}: name or class", text)
    model = Model(
        name=name,
        folder=folder.resolve(),
        digest=manifest["digest"],
        policy=manifest["policy"],
        policy_id=f"{manifest['policy']}-{manifest['created_from']['policy'][:12]}",
        classes=tuple(manifest["classes"]),
        certified=policy.certificate.certified,
        sliced_by=policy.sliced_by,
        size=int(manifest["preprocessing"]["size"]),
        preprocessing=Preprocessing.from_json(manifest["preprocessing"]).digest,
        whole=policy.certificate.views is None,
        certificate=policy.certificate.to_document(),
        policy_document=policy.to_document(),
    )
    standing = Standing()
    for condition in _known_at_once(model, manifest, settings):
        standing = standing.with_condition(condition)
    return model, standing


def _known_at_once(model: Model, manifest: Mapping[str, Any], settings: Settings) -> Iterable[Condition]:
    now = time.time()
    if not model.certified:
        yield Condition(UNCERTIFIED, State.VOID, "nothing is certified: every image defers", now)
    certified, here = manifest["created_from"]["versions"].get("onnxruntime"), version("onnxruntime")
    if certified is not None and certified != here:
        what = f"runtime changed: onnxruntime {here}, certified with {certified}"
        if settings.accept_runtime:
            yield Condition(RUNTIME, State.DEGRADED, f"{what}; accepted by the operator", now)
        else:
            yield Condition(RUNTIME, State.VOID, f"{what}; install that one, or certify again", now)


class Models:
    """The models that are served, and their standings; several versions of a name, of which the latest is asked.

    on_change: called with (model, standing) after every change. Thread-safe.
    """

    def __init__(self, settings: Settings, on_change: Callable[[Model, Standing], None]) -> None:
        self._settings, self._on_change = settings, on_change
        self._lock = threading.Lock()
        self._models: dict[tuple[str, str], Model] = {}
        self._latest: dict[str, Model] = {}
        self._standings: dict[str, Standing] = {}

    def add(self, model: Model, standing: Standing) -> None:
        with self._lock:
            self._models[model.key] = model
            self._latest[model.name] = model
            self._standings[model.digest] = standing
        self._on_change(model, standing)

    def replace(self, model: Model, standing: Standing) -> None:
        """As `add`, and no other version of its name is served any more."""
        with self._lock:
            for key in [key for key in self._models if key[0] == model.name and key != model.key]:
                del self._models[key]
        self.add(model, standing)

    def find(self, name: str | None = None, version: str | None = None) -> Model:
        """Raises Refusal (404), or 400 where several models are served and none is named."""
        with self._lock:
            if name is None:
                if len(self._latest) == 1 and version is None:
                    return next(iter(self._latest.values()))
                raise Refusal(400, "which_model", f"name one of the models: {', '.join(sorted(self._latest))}")
            found = self._latest.get(name) if version is None else self._models.get((name, version))
        if found is None:
            raise Refusal(404, "no_such_model", "no model of this name and version is served; see /v1/models")
        return found

    def all(self) -> list[Model]:
        with self._lock:
            return [self._models[key] for key in sorted(self._models)]

    def is_latest(self, model: Model) -> bool:
        with self._lock:
            return self._latest.get(model.name) is model

    def standing(self, model: Model) -> Standing:
        """Of this moment."""
        until = self._settings.valid_until
        with self._lock:
            standing = self._standings.get(model.digest, Standing())
        if until is not None and time.time() > until:
            expired = "the certificate's time is over (--valid-until); certify again"
            if all(condition.name != EXPIRED for condition in standing.conditions):
                self.raise_condition(model, Condition(EXPIRED, State.VOID, expired, time.time()))
                return self.standing(model)
        return standing

    def raise_condition(self, model: Model, condition: Condition) -> Standing:
        return self._changed(model, lambda standing: standing.with_condition(condition))

    def clear_condition(self, model: Model, name: str) -> Standing:
        """Raises ConfigError where there is none of this name, or where it voids."""
        return self._changed(model, lambda standing: standing.without(name))

    def unusable(self, model: Model) -> bool:
        """Whether its files are not what was verified: it is asked nothing any more."""
        return any(condition.name == VERIFICATION for condition in self.standing(model).conditions)

    def verify_again(self) -> None:
        """Every bundle's files once more; what was changed voids its certificate."""
        for model in self.all():
            if self.unusable(model):
                continue
            try:
                verify_bundle(model.folder, scores=False).require()
                if (now := read_manifest(model.folder)["digest"]) != model.digest:
                    raise IntegrityError(f"{model.folder}: is bundle {now[:12]} now, {model.version} was loaded")
            except (Stage1Error, OSError) as error:
                self.gone(model.digest, one_line(error))

    def gone(self, digest: str, why: str) -> None:
        """The files of this bundle are not what was verified. why: with the folder, which no client is shown."""
        for model in self.all():
            if model.digest == digest:
                shown = why.replace(f"{os.fspath(model.folder)}: ", "").replace(os.fspath(model.folder), "its folder")
                reason = f"verification failed: {shown}"[:300]
                self.raise_condition(model, Condition(VERIFICATION, State.VOID, reason, time.time()))

    def _changed(self, model: Model, change: Callable[[Standing], Standing]) -> Standing:
        with self._lock:
            before = self._standings.get(model.digest, Standing())
            after = self._standings[model.digest] = change(before)
        if after != before:
            self._on_change(model, after)
        return after
