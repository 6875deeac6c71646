"""The words of the client's miner that choose its detector; its parser passes over a word that it does not know."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from stage1.errors import ConfigError

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
    # The client always passes a configuration, roadwork.yaml of its own where it is told of none.
    return [*words, CONFIG, config]


def _unknown(flag: str, known: Sequence[str], name: str) -> str:
    # Nobody who starts an image detector means the words for a video one.
    near = difflib.get_close_matches(flag, [word for word in known if "video" not in word], 1, 0.5) or [DETECTOR]
    example = f"{near[0]} {name}" if near[0] == DETECTOR else near[0]
    return (
        f"{flag} is no word of the client's, which would pass over it and serve its own model; did you mean {example}? "
        f"Known: {', '.join(word.removeprefix(PREFIX) for word in known)}; --also-known WORD for one of a newer client"
    )
