"""Registering the detector with the client, and starting the client's miner with it.

`stage1 streetvision run` starts the miner's own Python with this module as its first act: the client knows no plugins,
so whoever wants to be in its registry has to be imported before it looks.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stage1.errors import ConfigError, Stage1Error
from stage1.streetvision.built import Built, say, stop
from stage1.streetvision.detector import Stage1Detector
from stage1.streetvision.settings import CONFIG_VARIABLE, load_attribute
from stage1.streetvision.words import checked_words

ATTRIBUTE = "DETECTOR_REGISTRY"
NAME = "Stage1"
# Makes this stage1 importable, and nothing beside it: on PYTHONPATH our environment would push its packages before the
# client's pins.
_BOOT = (
    "import importlib.util as u,sys;"
    "n=[m for m in('PIL','numpy','onnxruntime')if not u.find_spec(m)];"
    "e=lambda t:(print('error: '+sys.executable+': '+t,file=sys.stderr),sys.exit(3));"
    "n and e('no '+', '.join(n)+'; install it there, or start the miner with its own Python');"
    "sys.version_info<(3,11)and e('the detector needs Python 3.11');"
    "s=u.spec_from_file_location('stage1',sys.argv[1]+'/__init__.py',submodule_search_locations=[sys.argv[1]]);"
    "m=u.module_from_spec(s);sys.modules['stage1']=m;s.loader.exec_module(m);"
    "from stage1.streetvision.launch import main;main(sys.argv[2:])"
)
_WITH_VALUE = ("-X", "-W")


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


def miner_command(
    command: Sequence[str],
    *,
    registry: str,
    name: str = NAME,
    base: str | None = None,
    config: str | None = None,
    also_known: Iterable[str] = (),
) -> list[str]:
    """The command that registers the detector and then runs `command` in the same process.

    command: [anything ..] python [options] script.py|-m module [arguments ..]; without a python in it, ours runs it.
    config: for the detector, where the miner's arguments name no configuration. also_known: words of a newer client.
    Raises ConfigError where there is no script or module to run, and for words that would not serve ours
    (`checked_words`).
    """
    before, options, target = _parts(command)
    config = config and os.path.abspath(config)
    script = target[: 2 if target[0] == "-m" else 1]
    target = [*script, *checked_words(target[len(script) :], name, config, also_known)]
    own = [str(Path(__file__).parents[1]), "--registry", registry, "--name", name]
    for flag, value in (("--base", base), ("--config", config)):
        own += [flag, value] if value else []
    return [*before, *options, "-c", _BOOT, *own, "--", *target]


def _parts(command: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    words = list(command)
    # A python further back is an argument of the miner's.
    script = next((i for i, word in enumerate(words) if word == "-m" or word.endswith(".py")), len(words))
    pythons = [i for i, word in enumerate(words[:script]) if re.fullmatch(r"python[\d.]*(\.exe)?", Path(word).name)]
    start = pythons[0] + 1 if pythons else 0
    before = words[:start] or [sys.executable]
    end = start
    while end < len(words) and words[end].startswith("-") and words[end] != "-m":
        end += 2 if words[end] in _WITH_VALUE else 1
    target = words[end:]
    runnable = (
        len(target) > 1 if target[:1] == ["-m"] else bool(target) and (bool(pythons) or target[0].endswith(".py"))
    )
    if not runnable:
        shown = " ".join(words) or "nothing"
        raise ConfigError(
            f"miner command: {shown!r} runs no Python script; write it as: -- python neurons/miner.py [options]"
        )
    return before, words[start:end], target


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
    built = Built(given.name)
    try:
        where = given.registry if ":" in given.registry else f"{given.registry}:{ATTRIBUTE}"
        base = load_attribute(given.base, "--base") if given.base else None
        registry = load_attribute(where, "--registry")
        built.watch(registry, register(registry, given.name, base))
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
        built.finished()
