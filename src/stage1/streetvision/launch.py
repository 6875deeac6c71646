"""The command that starts the client's miner with our detector, and the check of the miner's words in it.

The client knows no plugins: a detector for its registry must be imported before the client reads it. So the command
starts the miner's own Python with `stage1.streetvision.miner` as its first act.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from stage1.errors import ConfigError

NAME = "Stage1"
# What the detector imports of the packages that the core requires, by the names under which they are imported.
NEEDED = ("PIL", "numpy", "onnxruntime", "pyarrow", "pydantic", "scipy", "typing_extensions", "yaml")
# Makes this stage1 importable, and nothing beside it: on PYTHONPATH our environment would push its packages before the
# client's pins.
_BOOT = (
    "import importlib.util as u,sys;"
    f"n=[m for m in{NEEDED!r}if not u.find_spec(m)];"
    "e=lambda t:(print('error: '+sys.executable+': '+t,file=sys.stderr),sys.exit(3));"
    "n and e('no '+', '.join(n)+'; install it there, or start the miner with its own Python');"
    "sys.version_info<(3,11)and e('the detector needs Python 3.11');"
    "s=u.spec_from_file_location('stage1',sys.argv[1]+'/__init__.py',submodule_search_locations=[sys.argv[1]]);"
    "m=u.module_from_spec(s);sys.modules['stage1']=m;s.loader.exec_module(m);"
    "from stage1.streetvision.miner import main;main(sys.argv[2:])"
)
_WITH_VALUE = ("-X", "-W")

# The words that choose the client's detector; its parser passes over a word that it does not know.
PREFIX = "--neuron."
DETECTOR, CONFIG = "--neuron.image_detector", "--neuron.image_detector_config"
# Of the miner of natixnetwork/streetvision-subnet v2.0.4.
KNOWN = (
    CONFIG,
    DETECTOR,
    "--neuron.image_detector_device",
    "--neuron.video_detector_config",
    "--neuron.video_detector",
    "--neuron.video_detector_device",
    "--neuron.name",
    "--neuron.epoch_length",
    "--neuron.events_retention_size",
    "--neuron.dont_save_events",
)


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


def checked_words(
    words: Sequence[str], name: str, config: str | None = None, also_known: Iterable[str] = ()
) -> list[str]:
    """The miner's arguments, with the detector's configuration where they name none and `config` is given.

    words: all arguments of the miner. name: under which our detector is registered. also_known: words of a newer
    client.
    Raises ConfigError for a `--neuron.` word that the client does not know (it would be passed over, and the client's
    own model served), for another detector than `name`, and for two configurations.
    """
    known = [*KNOWN, *(word if word.startswith("--") else PREFIX + word for word in also_known)]
    found: dict[str, str | None] = {}
    for place, word in enumerate(words):
        if word.startswith(PREFIX):
            flag, equals, value = word.partition("=")
            if flag not in known:
                raise ConfigError(f"miner command: {_unknown(flag, known, name)}")
            follows = words[place + 1] if place + 1 < len(words) and not words[place + 1].startswith("--") else None
            found[flag] = value if equals else follows
    if DETECTOR in found and found[DETECTOR] != name:
        asked = "nothing" if found[DETECTOR] is None else repr(found[DETECTOR])
        raise ConfigError(
            f"miner command: {DETECTOR} names {asked}, and ours is registered as {name!r}; write {DETECTOR} {name}, or "
            f"in miner.env IMAGE_DETECTOR={name}"
        )
    if CONFIG in found and (found[CONFIG] or "None").lower() == "none":
        raise ConfigError(
            f"miner command: {CONFIG} names nothing, and the miner then loads no detector; give the file, or in"
            " miner.env IMAGE_DETECTOR_CONFIG=FILE"
        )
    if config is None:
        return list(words)
    if CONFIG in found:
        if found[CONFIG] != config:
            raise ConfigError(f"--config: {config}, and {CONFIG} names {found[CONFIG]!r}; give one of the two")
        return list(words)
    # The client always passes a configuration, by default its own roadwork.yaml.
    return [*words, CONFIG, config]


def _unknown(flag: str, known: Sequence[str], name: str) -> str:
    # Nobody who starts an image detector means the words for a video one.
    near = difflib.get_close_matches(flag, [word for word in known if "video" not in word], 1, 0.5) or [DETECTOR]
    example = f"{near[0]} {name}" if near[0] == DETECTOR else near[0]
    return (
        f"{flag} is no word of the client's, which would pass over it and serve its own model; did you mean {example}? "
        f"Known: {', '.join(word.removeprefix(PREFIX) for word in known)}; --also-known WORD for one of a newer client"
    )
