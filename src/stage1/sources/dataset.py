"""Hugging Face datasets: of the hub, and saved by `save_to_disk`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stage1.errors import DataError, MissingError
from stage1.extras import load
from stage1.sources.listing import COLUMNS, KNOWN_COLUMNS, ROLE_COLUMNS, Listing, by_name, from_columns
from stage1.sources.locators import image_column


def is_saved(folder: Path) -> bool:
    """Whether a folder was made by `save_to_disk`."""
    return any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def _datasets() -> Any:
    return load("datasets", "Hugging Face data sets")


def list_hub(name: str, slices: Sequence[str]) -> Listing:
    datasets = _datasets()
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # network, cache, name, licence gate: the library raises its own kinds for each
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise MissingError(f"hf:{name}: cannot be loaded ({why}); check the name and the network") from error
    return _from_dataset(f"hf:{name}", loaded, slices)


def list_saved(path: Path, slices: Sequence[str] = ()) -> Listing:
    """A directory made by `Dataset.save_to_disk`: columns image and label (and those of a table)."""
    datasets = _datasets()
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged directory may fail anywhere in the library
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{path}: not a whole saved dataset ({why})") from error
    return _from_dataset(str(path), loaded, slices)


def _from_dataset(where: str, loaded: Any, slices: Sequence[str]) -> Listing:
    """Rows of a Dataset, or of every split of a DatasetDict.

    Several splits are roles where their names say so, mapped by data.roles (train and test, as is common, leave nothing
    to calibrate on). Splits with other names (years, sites) and a single one are pooled for a new split by group; the
    name becomes their source.
    """
    parts = dict(loaded) if hasattr(loaded, "keys") else {"": loaded}
    total = Listing(where)
    for name, part in parts.items():
        if getattr(part, "_indices", None) is not None:
            part = part.flatten_indices()  # a selection or a shuffle: rows would no longer be in the order of the files
        image = image_column(part.column_names, where)
        names = {column: _class_names(feature) for column, feature in part.features.items()}
        classes = names.get("label")
        if total.paths and classes != total.class_names:
            raise DataError(f"{where}: split {name!r} has other class names than the splits before it")
        total.class_names = classes
        locators = _dataset_locators(where, part, image)
        small = [column for column in dict.fromkeys((*KNOWN_COLUMNS, *slices)) if column in part.column_names]
        columns = {column: part.data.column(column).to_pylist() for column in small}
        prefix = f"{name} row" if name else "row"
        numbers = [f"{prefix} {row}" for row in range(len(locators))]
        one = from_columns(where, by_name(columns, names, where, numbers), locators, numbers, classes, slices)
        total.role_name = one.role_name
        if len(parts) > 1 and not any(column in columns for column in ROLE_COLUMNS):
            one.roles, total.role_name = [name] * len(one), "split"
        elif name and "source" not in columns:
            one.sources = [name] * len(one)
        for column in COLUMNS:
            getattr(total, column).extend(getattr(one, column))
        for column in slices:
            if column not in one.slices:
                raise DataError(f"{where}: data.slices: split {name!r} has no column {column!r}")
            total.slices.setdefault(column, []).extend(one.slices[column])
        total.files += [file["filename"] for file in part.cache_files]
    return total


def _class_names(feature: Any) -> tuple[str, ...] | None:
    names = getattr(feature, "names", None)
    return None if names is None else tuple(str(name) for name in names)


def _dataset_locators(where: str, part: Any, image: str) -> list[str]:
    """ "shard.arrow::row" for each row, or the path where the dataset only points to a file."""
    column = part.data.column(image)
    cells = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    if str(cells.type) == "string":
        return [os.path.abspath(cell) if cell else "" for cell in cells.to_pylist()]
    fields = (
        {item.name for item in cells.type} if hasattr(cells.type, "num_fields") and cells.type.num_fields else set()
    )
    if "bytes" not in fields:
        raise DataError(f"{where}: column {image!r} is {cells.type}; an image column with bytes or paths is expected")
    import pyarrow.compute as pc
    import pyarrow.ipc

    has_bytes = pc.is_valid(pc.struct_field(column, "bytes")).to_pylist()
    outer = pc.struct_field(column, "path").to_pylist() if "path" in fields else [None] * len(has_bytes)
    shards: list[str] = []
    for file in part.cache_files:
        with pyarrow.memory_map(file["filename"]) as source, pyarrow.ipc.open_stream(source) as reader:
            shards += [f"{file['filename']}::{row}" for row in range(sum(batch.num_rows for batch in reader))]
    if len(shards) != len(has_bytes):
        raise DataError(f"{where}: {len(has_bytes)} rows, {len(shards)} in its files; save it again with save_to_disk")
    return [shards[row] if has_bytes[row] or not outer[row] else str(outer[row]) for row in range(len(shards))]
