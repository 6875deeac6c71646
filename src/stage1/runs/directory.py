"""The run directory: its config, its lock, and what each stage has made from what."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stage1.config import RunConfig, differences, text_keys, to_yaml, validated
from stage1.errors import ConfigError, DataError, IntegrityError, MissingError
from stage1.runs.anchoring import anchored
from stage1.runs.schema import STAGES_KIND
from stage1.storage.documents import read_document, write_document
from stage1.storage.files import digest_bytes, digest_file, leaving_no_trace, locked, write_text
from stage1.storage.texts import read_text, read_yaml
from stage1.version import __version__

CONFIG_FILE = "config.yaml"
STATE_FILE = "stages.json"


@dataclass
class RunDir:
    """One run directory. `state` says per finished stage: the digest of its inputs and the fingerprint of its outputs.

    writes: False for a process that helps another one which holds the lock: its state is never written.
    stored: the config that config.yaml holds, None where there is no file: `config` goes there when a stage is known to
    run.
    """

    path: Path
    config: RunConfig
    state: dict[str, Any] = field(default_factory=dict)
    writes: bool = True
    stored: RunConfig | None = None

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def save_state(self) -> None:
        if not self.writes:
            return
        write_document(self / STATE_FILE, {"stage1_version": __version__, "stages": self.state}, STAGES_KIND)

    def keep_config(self) -> None:
        """Write `config` to config.yaml, where it is not there already."""
        if self.writes and self.stored != self.config:
            write_text(self / CONFIG_FILE, to_yaml(self.config))
            self.stored = self.config

    def put_back(self, stored: RunConfig | None, stage: str, entry: dict[str, Any] | None) -> None:
        """After `stage` was refused: config.yaml as before, and its earlier outputs count again if unchanged."""
        if not self.writes:
            return
        if self.stored != stored:
            if stored is None:
                (self / CONFIG_FILE).unlink(missing_ok=True)
            else:
                write_text(self / CONFIG_FILE, to_yaml(stored))
            self.stored = stored
        if entry is not None and all(_same_stat(self / name, stamp) for name, stamp in entry["outputs"].items()):
            self.state[stage] = entry
            self.save_state()

    def record(
        self, stage: str, inputs: str, outputs: Iterator[Path], seconds: float, peak_mib: float | None = None
    ) -> None:
        """Remember that `stage` made `outputs` from inputs with this digest, and what it took."""
        self.state[stage] = {
            "inputs": inputs,
            "outputs": {str(path.relative_to(self.path)): _stamp(path) for path in sorted(outputs)},
            "seconds": round(seconds, 3),
            "peak_mib": peak_mib,
        }
        self.save_state()

    def forget(self, stage: str) -> None:
        """Before a stage runs: what it made so far no longer counts, should it be interrupted half-way."""
        if self.state.pop(stage, None) is not None:
            self.save_state()

    def is_current(self, stage: str, inputs: str) -> bool:
        """True where `stage` ran on these inputs and its outputs are as it left them."""
        entry = self.state.get(stage)
        return (
            entry is not None
            and entry["inputs"] == inputs
            and all(_unchanged(self / name, stamp) for name, stamp in entry["outputs"].items())
        )

    def digest_of(self, name: str) -> str:
        """sha256 of a file of this run: from the state where the file is as its stage left it, else read again."""
        path = self / name
        for entry in self.state.values():
            stamp = entry["outputs"].get(name)
            if stamp is not None and _same_stat(path, stamp):
                return str(stamp["sha256"])
        if not path.is_file():
            raise MissingError(f"{path}: no such file; run the stages before this one (`stage1 run` does all)")
        return digest_file(path)


def _stamp(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"sha256": digest_file(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _same_stat(path: Path, stamp: Mapping[str, Any]) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    return bool(stat.st_size == stamp["size"] and stat.st_mtime_ns == stamp["mtime_ns"])


def _unchanged(path: Path, stamp: Mapping[str, Any]) -> bool:
    # The time stamp alone decides nothing: a copied run directory has new ones and the same bytes.
    return _same_stat(path, stamp) or (path.is_file() and digest_file(path) == stamp["sha256"])


def config_digest(config: RunConfig, keys: tuple[str, ...]) -> str:
    """Digest of the named sections of a config."""
    values = config.model_dump(mode="json")
    return digest_bytes(json.dumps({key: values[key] for key in keys}, sort_keys=True).encode())


@contextmanager
def opened(path: str | os.PathLike[str], config: RunConfig | None, *, allow_change: bool = False) -> Iterator[RunDir]:
    """The run directory under its lock. `config` is written by the first stage that runs with it, not here.

    config None: the one stored there; relative paths of either become absolute, from the working directory of the run
    that stored them. Raises ConfigError where the stored config differs, a stage is finished, and
    allow_change is not set; MissingError where there is none to read, Stage1Error where another process holds the lock.
    A block that fails before it wrote anything leaves neither a folder nor a lock that was not there before.
    """
    folder = Path(path)
    if config is None and not (folder / CONFIG_FILE).is_file():
        raise MissingError(
            f"{folder}: not a run directory (no {CONFIG_FILE}); `stage1 run --output {folder}` starts one"
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; a run directory is needed")
    with leaving_no_trace(folder), locked(folder):
        _sweep(folder)
        stored = stored_config(folder) if config is None else kept_config(folder)
        if config is None:
            assert stored is not None
            config = stored
        elif stored is not None and not allow_change:
            refuse_change(folder, stored, config)
        yield RunDir(folder, anchored(config), read_state(folder), stored=stored)


def refuse_change(folder: Path, stored: RunConfig, config: RunConfig) -> None:
    """Raises ConfigError where the content of `folder` was made with another config than `config`."""
    if changes := differences(anchored(stored), anchored(config)):
        raise ConfigError(
            f"{folder}: made with another config ({'; '.join(changes[:3])}{' ..' if len(changes) > 3 else ''}); "
            "use another --output, or --allow-change to redo what depends on it"
        )


def kept_config(folder: Path) -> RunConfig | None:
    """The stored config, where a stage finished under it; else None: a failed start binds nothing."""
    return stored_config(folder) if has_finished(folder) else None


def has_finished(folder: Path) -> bool:
    """Whether stages.json names a finished stage, of whatever version."""
    path = folder / STATE_FILE
    return path.is_file() and bool(read_document(path, STAGES_KIND)["stages"])


@contextmanager
def followed(path: str | os.PathLike[str], config: RunConfig | None) -> Iterator[RunDir]:
    """The run directory as a second process sees it beside the one that has `opened` it: no lock, no writes.

    Raises MissingError where it is no run directory.
    """
    folder = Path(path)
    config = config or stored_config(folder)
    if config is None:
        raise MissingError(f"{folder}: not a run directory (no {CONFIG_FILE}); `stage1 split {folder}` starts one")
    yield RunDir(folder, anchored(config), read_state(folder), writes=False)


def _sweep(folder: Path) -> None:
    """Remove what a killed process left half-written; under the lock no other process can be writing here."""
    written = ("", "figures/", "checkpoints/", "preprocess/", "tune/", "tune/adapter/", "tune/checkpoints/")
    for leftover in [file for place in written for file in folder.glob(f"{place}.*.tmp*")]:
        if leftover.is_file():
            leftover.unlink()


def stored_config(folder: Path) -> RunConfig | None:
    """The config of a run directory, or None where there is none. Raises IntegrityError where it cannot be read."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        return validated(read_yaml(read_text(path), text_keys()))
    except (OSError, ValueError, ConfigError) as error:
        raise IntegrityError(f"{path}: cannot be used ({' '.join(str(error).split())[:160]}); restore it") from error


def read_state(folder: Path) -> dict[str, Any]:
    """What each stage has made, as stages.json says; empty for a new run directory or another version."""
    path = folder / STATE_FILE
    if not path.is_file():
        return {}
    document = read_document(path, STAGES_KIND)
    if document["stage1_version"] != __version__:
        return {}  # another version may compute something else from the same inputs
    stages = document["stages"]
    if not isinstance(stages, dict):
        raise DataError(f"{path}: stages must be a mapping")
    return stages
