"""Inside the miner's process: our detector into the client's registry, and which detector the miner really built.

The registry says what could be; the first detector whose constructor runs is what answers.
"""

from __future__ import annotations

import argparse
import functools
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from stage1.errors import ConfigError, Stage1Error
from stage1.runtime.attributes import load_attribute
from stage1.streetvision.detector import Stage1Detector
from stage1.streetvision.launch import CONFIG, DETECTOR, NAME
from stage1.streetvision.settings import CONFIG_VARIABLE

ATTRIBUTE = "DETECTOR_REGISTRY"


def register(registry: Any, name: str = NAME, base: type | None = None) -> type:
    """Put the detector into the client's registry under `name`; returns the class that is registered.

    registry: an object with `register_module(module_name=..)`, the client's DETECTOR_REGISTRY. base: the client's
    FeatureDetector, where it insists on the ancestry; its constructor is not called.

    Example: register(DETECTOR_REGISTRY)
    """
    kind: type = Stage1Detector if base is None else type("Stage1Detector", (Stage1Detector, base), {})
    if not hasattr(registry, "register_module"):
        raise ConfigError(
            f"registry: {type(registry).__name__} has no `register_module`; give the client's {ATTRIBUTE}"
        )
    if left := sorted(getattr(kind, "__abstractmethods__", ())):
        raise ConfigError(
            f"base: {base} also asks for `{left[0]}`, which the detector does not have; register it without a base"
        )
    registry.register_module(module_name=name)(kind)
    return kind


def main(arguments: Sequence[str]) -> None:
    """Inside the miner's Python: register, become the miner, and say which detector it built.

    Where that cannot be, the process ends with one line and the error's exit code.
    """
    parser = argparse.ArgumentParser(prog="stage1 streetvision run")
    parser.add_argument("--registry", required=True)
    parser.add_argument("--name", default=NAME)
    parser.add_argument("--base")
    parser.add_argument("--config")
    parser.add_argument("target", nargs=argparse.REMAINDER)
    given = parser.parse_args(list(arguments))
    target = given.target[1:] if given.target[:1] == ["--"] else given.target
    script = target[0] != "-m"
    # What Python itself does for a script; for a module the current folder stays in front.
    sys.path[0] = str(Path(target[0]).resolve().parent) if script else os.getcwd()
    if given.config:
        os.environ[CONFIG_VARIABLE] = given.config
    watch = DetectorWatch(given.name)
    try:
        where = given.registry if ":" in given.registry else f"{given.registry}:{ATTRIBUTE}"
        base = load_attribute(given.base, "--base") if given.base else None
        registry = load_attribute(where, "--registry")
        watch.start(registry, register(registry, given.name, base))
    except Stage1Error as error:
        stop(error)
    say(f"detector {given.name!r} is registered; starting {' '.join(target)}")
    sys.argv = list(target if script else target[1:])
    try:
        if script:
            runpy.run_path(target[0], run_name="__main__")
        else:
            runpy.run_module(target[1], run_name="__main__", alter_sys=True)
    finally:
        watch.finished()


class DetectorWatch:
    """Watches a registry in the miner's process. name: under which ours is registered.

    Says on stderr which detector was built. Where the first one is not ours the process ends with one line and exit
    code 2 before it serves; where ours cannot load, with its line and its exit code.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.first: str | None = None

    def start(self, registry: Any, ours: type) -> None:
        """Watch the classes that `registry` holds, and those that are registered from now on."""
        self._on_construction(ours, self.name, self._ours)
        if not hasattr(registry, "__dict__"):
            return  # of another making than the client's: ours still says that it was built
        for held in list(vars(registry).values()):
            for name, kind in held.items() if isinstance(held, dict) else ():
                if isinstance(kind, type) and kind is not ours:
                    self._on_construction(kind, str(name), self._another)
        register = registry.register_module

        def register_module(*given: Any, **more: Any) -> Callable[[type], type]:
            put = register(*given, **more)

            def watched(kind: type) -> type:
                name = next(iter((*given, *more.values())), None) or getattr(kind, "__name__", "a detector")
                if name == self.name and kind is not ours:
                    stop(ConfigError(f"--name {self.name}: the client registers its own under it; choose another name"))
                if isinstance(kind, type):
                    self._on_construction(kind, str(name), self._another)
                found: type = put(kind)
                return found

            return watched

        registry.register_module = register_module

    def finished(self) -> None:
        """The miner has ended: say so where it never built a detector."""
        if self.first is None:
            say(f"warning: the miner ended without building a detector; its words for it: {DETECTOR} {self.name}")

    @staticmethod
    def _on_construction(kind: type, name: str, then: Callable[[str, Callable[[], None], Any], None]) -> None:
        own: Callable[..., None] = kind.__init__  # type: ignore[misc]

        @functools.wraps(own)
        def constructed(self: Any, *given: Any, **more: Any) -> None:
            # A class below this one calls it too; it has said what it is.
            if type(self) is not kind:
                own(self, *given, **more)
            else:
                then(name, lambda: own(self, *given, **more), self)

        kind.__init__ = constructed  # type: ignore[misc]

    def _ours(self, name: str, construct: Callable[[], None], detector: Any) -> None:
        self.first = self.first or name
        try:
            construct()
        except Stage1Error as error:
            stop(error)
        say(
            f"the miner built our detector {name!r}: bundle {detector.bundle}, digest {detector.bundle_digest[:12]}, on"
            f" {detector.provider}, configuration {detector.config_name}"
        )

    def _another(self, name: str, construct: Callable[[], None], detector: Any) -> None:
        # One that ours asks for (a stage 2 of the client's) is built after it, and answers behind it.
        if self.first is None:
            self.first = name
            kind = type(detector)
            stop(
                ConfigError(
                    f"the miner builds its own detector {name!r} ({kind.__module__}.{kind.__qualname__}), not ours;"
                    f" write {DETECTOR} {self.name} {CONFIG} FILE behind the miner's script, or in miner.env"
                    f" IMAGE_DETECTOR={self.name}"
                )
            )
        construct()


def say(text: str) -> None:
    """One line on stderr, beside the miner's own."""
    print(f"stage1: {text}", file=sys.stderr, flush=True)


def stop(error: Stage1Error) -> NoReturn:
    """End the process with the error's line and exit code. SystemExit: the miner catches Exception at many places."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    raise SystemExit(error.exit_code)
