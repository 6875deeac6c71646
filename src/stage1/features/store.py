"""The feature store: `.npy` shards and one index, keyed by image and by everything that decides a feature's value."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError, IntegrityError, MissingError
from stage1.runtime.stream import Item
from stage1.storage.files import atomic_writer, locked, write_through

log = logging.getLogger("stage1")

Failed: TypeAlias = list[tuple[int, Exception]]
# (items, cuts) -> batches of (rows, features [n, D], failed), no batch across a cut: see
# `stage1.runtime.stream.stream`.
Compute: TypeAlias = Callable[[Sequence[Item], Sequence[int]], Iterator[tuple[NDArray[np.int64], NDArray[Any], Failed]]]

_INDEX = "index.parquet"
_COLUMNS = ("key", "id", "shard", "row")


@dataclass(frozen=True, slots=True)
class FeatureKey:
    """What besides the image decides a feature vector. Two keys that differ anywhere never share a feature.

    preprocessing: `Preprocessing.digest`. backbone: `Backbone.fingerprint`. pooling, dtype: as in BackboneConfig.
    engine: what did the arithmetic ("torch:cpu", or "onnx:" with model digest, runtime version and provider).
    views: `ViewPolicy.digest` where a vector holds the features of several views one after the other, else "".
    """

    preprocessing: str
    backbone: str
    pooling: str
    dtype: str
    engine: str
    views: str = ""

    def to_json(self) -> dict[str, str]:
        """The fields; `views` only where there are any, so that entries from before views are still found."""
        return {name: value for name, value in asdict(self).items() if name != "views" or value}

    @property
    def digest(self) -> str:
        """sha256 of all fields."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


class FeatureStore:
    """Feature vectors on disk, float32, in a folder that several processes and runs may share.

    A shard `<name>.npy` holds [n, D]; its name comes from its key and ids, so two processes that make the same shard
    write the same file. `<name>.parquet` beside it lists its rows until they are merged into `index.parquet` (under a
    lock). A shard counts only with both; each appears whole or not at all, so a kill costs at most the shard in work.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._places: dict[str, dict[str, tuple[str, int]]] = {}  # key digest -> id -> (shard, row)
        self._merge()

    def has(self, ids: Sequence[str], key: FeatureKey) -> NDArray[np.bool_]:
        """Which of the ids have a feature under this key, bool [N]."""
        known = self._places.get(key.digest, {})
        return np.array([name in known for name in ids], dtype=bool)

    def read(self, ids: ArrayLike, key: FeatureKey) -> NDArray[np.float32]:
        """Features float32 [N, D] of the ids, in their order; only the rows asked for are read from the shards.

        Raises MissingError (some id has no feature under this key), IntegrityError (a shard is damaged).
        """
        names = np.asarray(ids).astype(np.str_).tolist()
        known = self._places.get(key.digest, {})
        if lacking := [name for name in names if name not in known]:
            raise MissingError(
                f"{self.folder}: no features for {len(lacking)} of {len(names)} images under this key "
                f"(first: {lacking[0][:16]}); run extract"
            )
        by_shard: dict[str, list[tuple[int, int]]] = {}
        for position, name in enumerate(names):
            shard, row = known[name]
            by_shard.setdefault(shard, []).append((row, position))
        result: NDArray[np.float32] | None = None
        for shard, pairs in by_shard.items():
            rows, positions = np.array(sorted(pairs), dtype=np.int64).T
            values = self._open(shard)
            if result is None:
                result = np.empty((len(names), values.shape[1]), dtype=np.float32)
            if values.shape[1] != result.shape[1] or rows[-1] >= len(values):
                raise IntegrityError(f"{self.folder / shard}: shape {values.shape} does not fit the index; delete it")
            result[positions] = values[rows]
        return np.zeros((0, 0), dtype=np.float32) if result is None else result

    def extract(
        self,
        ids: Sequence[str],
        items: Sequence[Item],
        key: FeatureKey,
        compute: Compute,
        *,
        shard_size: int = 512,
        progress: Callable[[int, int], None] | None = None,
    ) -> Failed:
        """Compute and store what is missing; returns (position, error) of the images that could not be read.

        ids, items: parallel, N long. Shards are cut at every `shard_size` positions of `ids`, whatever is missing, and
        written in order as soon as they are full: a run that was killed resumes at the shard it was in and ends with
        the same bytes. Failed images are not remembered: they are tried again next time.
        progress: called with (images done or failed, images to do) after each batch.
        Raises DataError (lengths), Stage1Error (cannot write), and what `compute` raises.
        """
        if len(ids) != len(items) or shard_size < 1:
            raise DataError(f"extract: {len(ids)} ids, {len(items)} items, shard_size {shard_size}; lengths must agree")
        plan = self._missing(ids, key, shard_size)
        positions = [position for part in plan for position in part.positions]
        cuts = np.cumsum([0, *(len(part.positions) for part in plan)])
        done = 0
        failures: Failed = []
        for rows, features, failed in compute([items[p] for p in positions], cuts[:-1].tolist()):
            for row, error in failed:
                plan[_part(cuts, row)].failed += 1
                failures.append((positions[row], error))
            if len(rows):
                part = plan[_part(cuts, int(rows[0]))]
                part.ids += [ids[positions[row]] for row in rows]
                part.features.append(np.asarray(features, dtype=np.float32))
            while done < len(plan) and plan[done].full:
                self._write_shard(plan[done], key, ids)
                plan[done].features.clear()
                done += 1
            if progress is not None:
                progress(sum(len(part.ids) + part.failed for part in plan), len(positions))
        self._merge()
        return failures

    # ---- shards --------------------------------------------------------------------------------------------------

    def _missing(self, ids: Sequence[str], key: FeatureKey, shard_size: int) -> list[_Part]:
        known = set(self._places.get(key.digest, {}))
        plan = []
        for start in range(0, len(ids), shard_size):
            part = _Part()
            for position in range(start, min(start + shard_size, len(ids))):
                if ids[position] not in known:
                    known.add(ids[position])
                    part.positions.append(position)
            if part.positions:
                plan.append(part)
        return plan

    def _write_shard(self, part: _Part, key: FeatureKey, ids: Sequence[str]) -> None:
        if not part.ids:
            return
        asked = "\n".join(ids[position] for position in part.positions)
        name = f"{key.digest[:16]}-{hashlib.sha256(asked.encode()).hexdigest()[:24]}"
        features = np.concatenate(part.features)
        with atomic_writer(self.folder / f"{name}.npy") as stream:
            np.save(stream, features)
        rows: dict[str, list[Any]] = {
            "key": [key.digest] * len(part.ids),
            "id": part.ids,
            "shard": [f"{name}.npy"] * len(part.ids),
            "row": list(range(len(part.ids))),
        }
        _write_table(self.folder / f"{name}.parquet", rows)

    def _open(self, shard: str) -> NDArray[np.float32]:
        path = self.folder / shard
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise IntegrityError(f"{path}: damaged or gone ({error}); run extract again, it is made anew") from error
        if values.ndim != 2 or values.dtype != np.float32:
            raise IntegrityError(f"{path}: {values.dtype} of shape {values.shape}, not float32 [n, D]; delete it")
        return np.asarray(values)

    # ---- index ---------------------------------------------------------------------------------------------------

    def _merge(self) -> None:
        """Take the rows of finished shards into the index, drop rows of missing shards, and keep all places."""
        with locked(self.folder, wait=True):
            index = self.folder / _INDEX
            lists = sorted(path for path in self.folder.glob("*-*.parquet") if not path.name.startswith("."))
            tables = [_read_table(path) for path in ([index] if index.is_file() else []) + lists]
            places: dict[str, dict[str, tuple[str, int]]] = {}
            sound: dict[str, bool] = {}
            dropped = 0
            for table in tables:
                for key, name, shard, row in zip(*(table[column] for column in _COLUMNS), strict=True):
                    if shard not in sound:
                        sound[shard] = self._sound(shard)
                    if sound[shard]:
                        places.setdefault(key, {})[name] = (shard, row)
                    else:
                        dropped += 1
            if dropped:
                log.warning("%s: %d features in damaged or missing shards are left out", self.folder, dropped)
            if lists or dropped or not index.is_file():
                flat = [(key, name, *place) for key, inner in places.items() for name, place in inner.items()]
                columns = map(list, zip(*flat, strict=True)) if flat else ([] for _ in _COLUMNS)
                _write_table(index, dict(zip(_COLUMNS, columns, strict=True)))
                for path in lists:
                    path.unlink()
            self._places = places

    def _sound(self, shard: str) -> bool:
        # Opening checks the header against the file's length: a cut or missing shard is found, at no cost per row.
        try:
            self._open(shard)
        except IntegrityError:
            return False
        return True


@dataclass(slots=True)
class _Part:
    """The missing images of one shard, and what is known of them so far."""

    positions: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    features: list[NDArray[np.float32]] = field(default_factory=list)
    failed: int = 0

    @property
    def full(self) -> bool:
        return len(self.ids) + self.failed == len(self.positions)


def _part(cuts: NDArray[np.int64], row: int) -> int:
    return int(np.searchsorted(cuts, row, side="right")) - 1


def _write_table(path: Path, columns: dict[str, list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema([("key", text), ("id", pa.string()), ("shard", text), ("row", pa.int32())])
    table = pa.table(columns, schema=schema)
    write_through(path, lambda temporary: pq.write_table(table, temporary))


def _read_table(path: Path) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read(columns=list(_COLUMNS))
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())[:120]
        raise IntegrityError(f"{path}: no readable index ({why}); delete the store and run extract") from error
    return {name: table[name].to_pylist() for name in _COLUMNS}
