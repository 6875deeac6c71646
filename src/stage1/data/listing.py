"""What a source says about its images before one is opened: folder, CSV/TSV/Parquet, Hugging Face dataset, tar."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from stage1.config import DataConfig
from stage1.data.given_roles import LEFT_OUT, folder_roles, pools_of, role_kinds
from stage1.data.quarantine import FURTHER_FILE, Quarantined
from stage1.data.shards import KINDS as SHARD_ENDINGS
from stage1.data.shards import part_name, shards
from stage1.data.table import image_column, is_utf8, tar_bytes, tar_members
from stage1.data.webdataset import samples
from stage1.errors import ConfigError, DataError, MissingError
from stage1.extras import load
from stage1.runtime.folders import SYSTEM_FILES, is_ours, named_as_image, starts_as_image
from stage1.scores import ROLES
from stage1.scores.columns import is_blank
from stage1.scores.labels import decoded, label_text, stored_names
from stage1.storage.files import READ_FAILURES, not_utf8, read_failure, read_json, require_text

ROLE_COLUMNS = ("role", "split")
_KNOWN = ("label", "group", "source", "timestamp", *ROLE_COLUMNS)


_COLUMNS = ("paths", "labels", "groups", "sources", "timestamps", "roles", "numbers")


@dataclass(slots=True)
class Listing:
    """Columns of one source, row by row, as given. `where` and `numbers` name a row in messages."""

    where: str
    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    timestamps: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    slices: dict[str, list[str]] = field(default_factory=dict)
    """Further columns that were asked for (data.slices), by name."""
    class_names: tuple[str, ...] | None = None
    """Names in the order in which the source stores them (ClassLabel); the labels are these names."""
    role_name: str = "role"
    """What the roles are called in messages: the column, or the splits of a data set."""
    named: bool = False
    """The labels are names as they stand (class folders), not cells of a table."""
    empty: list[str] = field(default_factory=list)
    """Class folders without a file."""
    quarantine: list[Quarantined] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    """Files whose bytes or state decide the listing (the table itself, the tar, the shards), for the light digest."""

    def add(
        self,
        path: str,
        label: str,
        number: str,
        *,
        group: str = "",
        source: str = "",
        timestamp: str = "",
        role: str = "",
    ) -> None:
        self.paths.append(path)
        self.labels.append(label)
        self.numbers.append(number)
        self.groups.append(group)
        self.sources.append(source)
        self.timestamps.append(timestamp)
        self.roles.append(role)

    def __len__(self) -> int:
        return len(self.paths)

    def only(self, kept: Sequence[bool]) -> Listing:
        """The rows that are kept."""
        if all(kept):
            return self
        columns: dict[str, Any] = {name: list(compress(getattr(self, name), kept)) for name in _COLUMNS}
        return replace(
            self, slices={name: list(compress(cells, kept)) for name, cells in self.slices.items()}, **columns
        )


def list_sources(config: DataConfig, base: Path | None = None) -> list[Listing]:
    """The listing of `config.table`, or one per role of `config.role_tables`. No image is opened.

    base: the folder that relative paths of the config resolve against (default: the working directory).
    Raises ConfigError (nothing to read), MissingError (not there, or an extra is missing), DataError (unreadable, a
    column or a label that makes no sense, no rows).
    """
    if config.role_tables:
        if config.table is not None or config.roles:
            also = "data.table" if config.table is not None else "data.roles"
            raise ConfigError(f"{also} and data.role_tables are both given; give one of them")
        listings = []
        for role in ROLES:
            if role in config.role_tables:
                listing = _list_one(config, config.role_tables[role], base)
                if other := sorted(set(listing.roles) - {"", role}):
                    raise DataError(f"{listing.where}: given as {role}, but its role column says {other[0]!r}")
                listing.roles = [role] * len(listing)
                listings.append(listing)
        return listings
    if config.table is None:
        raise ConfigError("data.table is not set; name a folder, a CSV/TSV/Parquet file, a dataset or a .tar")
    return [_with_roles(_list_one(config, config.table, base), config)]


def _with_roles(listing: Listing, config: DataConfig) -> Listing:
    """The listing with the roles that its folders, splits or column of roles give; what is left out by data.roles
    is gone.
    """
    where = listing.where
    if listing.named:
        found = folder_roles(
            [PurePath(number).parts for number in listing.numbers], config.roles, config.classes or (), where
        )
        if found is None:
            return listing
        listing.roles, listing.labels = found
        listing.empty = []  # a part of the data without images is no class without images
        outside = [
            Quarantined(path, "no class folder", "it lies beside the class folders of its role")
            for path, role, label in zip(listing.paths, listing.roles, listing.labels, strict=True)
            if not label and role != LEFT_OUT
        ]
        listing.quarantine += outside
        return listing.only(
            [bool(label) and role != LEFT_OUT for role, label in zip(listing.roles, listing.labels, strict=True)]
        )
    given = dict.fromkeys(listing.roles)
    if listing.role_name == "split" and not config.roles and not any(role_kinds(given).values()):
        # Splits by year or by site are no roles: pooled, and cut anew by group.
        sources = listing.sources if any(listing.sources) else listing.roles
        return replace(listing, sources=sources, roles=[""] * len(listing))
    if any(given) or config.roles:
        hint = "" if listing.role_name == "split" else ", or rename the column to let stage1 split by group"
        pools = pools_of(given, config.roles, where, listing.role_name, hint)
        listing.roles = [pools[role] for role in listing.roles]
    return listing.only([role != LEFT_OUT for role in listing.roles])


def _list_one(config: DataConfig, given: str, base: Path | None) -> Listing:
    kind = "hf" if config.source == "auto" and given.startswith("hf:") else config.source
    if kind == "hf" and given.startswith("hf:"):
        listing = _list_hub(given.removeprefix("hf:"), config.slices)
    else:
        path = Path(os.path.abspath((base or Path()) / Path(given).expanduser()))
        files = shards(given, path) if kind not in ("hf", "folder") else None
        if files is None and not path.exists():
            raise MissingError(f"{given}: no such file or folder (looked for {path}); set data.table")
        read = [
            _READERS[_kind(file) if kind in ("auto", "roadscenes") else kind](file, config.slices)
            for file in files or [path]
        ]
        listing = read[0] if files is None else _joined(given, read)
    # As in score files: what says that nothing is known (nan, None, null) is no group that images share.
    listing.groups = ["" if is_blank(group) else group for group in listing.groups]
    if not listing.paths and not listing.quarantine:
        raise DataError(f"{given}: holds no images; is it the right file or folder?")
    if missing := [name for name in config.slices if name not in listing.slices]:
        raise DataError(f"{given}: no column {missing[0]!r} (data.slices); add it or leave it out of data.slices")
    return listing


def _joined(given: str, listings: Sequence[Listing]) -> Listing:
    """Several files of one source as one listing, row after row."""
    total = replace(listings[0], where=given)
    for name in ("paths", "labels", "groups", "sources", "timestamps", "roles", "quarantine", "files"):
        setattr(total, name, [item for one in listings for item in getattr(one, name)])
    total.numbers = [f"{Path(one.where).name}: {number}" for one in listings for number in one.numbers]
    if odd := [one.where for one in listings if one.class_names != total.class_names]:
        raise DataError(f"{odd[0]}: stores other class names than {listings[0].where}; read them one by one")
    # train-00000-of-00002.parquet beside test-00000-of-00001.parquet are splits, as a data set has them.
    parts = [part_name(Path(one.where)) for one in listings]
    if len(set(parts)) > 1 and not any(total.roles):
        total.role_name = "split"
        total.roles = [name for name, one in zip(parts, listings, strict=True) for _ in one.paths]
    # A file without rows has no columns either.
    filled = [one for one in listings if len(one)]
    total.slices = {
        name: [cell for one in filled for cell in one.slices[name]]
        for name in (filled[0].slices if filled else {})
        if all(name in one.slices for one in filled)
    }
    return total


def _kind(path: Path) -> str:
    if path.is_dir():
        saved = any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
        return "hf" if saved else "folder"
    if path.suffix.lower() in (".csv", ".tsv", ".parquet"):
        return "table"
    if path.suffix.lower() == ".tar":
        return "webdataset"
    raise DataError(f"{path}: unknown kind of source; use a folder, .csv, .tsv, .parquet, .tar, or set data.source")


# ---- folder ------------------------------------------------------------------------------------------------------


def list_folder(root: Path, slices: Sequence[str] = ()) -> Listing:
    """root/class/**/image. Every visible file below a class counts as an image; what is none is quarantined later.

    Hidden files and folders are skipped, and so are run directories and bundles: their pictures were made from these
    images.
    An image directly in the root has no class: quarantined. `Listing.empty` names class folders without a file.
    Raises DataError for a class whose name is no UTF-8.
    """
    if not root.is_dir():
        raise DataError(f"{root}: not a folder; for a table use data.source=table")
    listing = Listing(str(root), named=True)
    entries = _visible(root)
    for entry in entries:
        if _is_folder(entry):
            ours: list[str] = []
            before = len(listing)
            for path in _walk(entry.path, {_identity(root)}, ours):
                listing.add(path, entry.name, os.path.relpath(path, root))
            if len(listing) == before and not ours:
                listing.empty.append(entry.name)
            if len(listing) > before and not is_utf8(entry.name):
                raise DataError(f"{root}: the class folder {entry.name!r} has a name that is no UTF-8; rename it")
        elif named_as_image(entry.name):
            listing.quarantine.append(Quarantined(entry.path, "no class folder", "it lies beside the class folders"))
    if listing.paths and all(path.lower().endswith(SHARD_ENDINGS) for path in listing.paths):
        raise DataError(
            f"{root}: its folders hold no images but {Path(listing.paths[0]).suffix} files; give the folder of these: "
            f"data.table={Path(listing.paths[0]).parent}"
        )
    if not listing.paths:
        tables = [entry.name for entry in entries if entry.name.lower().endswith((".csv", ".tsv", ".parquet"))]
        hint = f"give the table: data.table={root / tables[0]}" if tables else "root/class/image is expected"
        raise DataError(f"{root}: no class folder with images in it; {hint}")
    return listing


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in SYSTEM_FILES]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error
    return sorted(visible, key=lambda entry: entry.name)


def _walk(folder: str, above: set[tuple[int, int]], ours: list[str]) -> Iterator[str]:
    """Files below, in order; run directories and bundles are not entered but added to `ours`."""
    here = _identity(folder)
    if here in above:  # a link back to a folder above: following it would never end
        return
    if is_ours(folder):
        ours.append(folder)
        return
    for entry in _visible(folder):
        if _is_folder(entry):
            yield from _walk(entry.path, {*above, here}, ours)
        else:
            yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A link that leads back to itself is none: it is read as a file and quarantined by its name."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(folder: str | Path) -> tuple[int, int]:
    state = os.stat(folder)
    return state.st_dev, state.st_ino


# ---- tables ------------------------------------------------------------------------------------------------------


def list_table(path: Path, slices: Sequence[str] = ()) -> Listing:
    """CSV, TSV (with a header line, UTF-8) or Parquet; columns as in `_from_columns`."""
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"{path}: not a file; for a folder of images use data.source=folder")
    if suffix in (".csv", ".tsv"):
        return _list_csv(path, "\t" if suffix == ".tsv" else ",", slices)
    if suffix == ".parquet":
        return _list_parquet(path, slices)
    raise DataError(f"{path}: unknown ending for a table; use .csv, .tsv or .parquet")


def _list_csv(path: Path, delimiter: str, slices: Sequence[str]) -> Listing:
    try:
        require_text(path)
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter)
            header = next(reader, [])
            rows, numbers = [], []
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{path}: line {reader.line_num} has {len(row)} cells, the header {len(header)}; "
                        f"quote cells that hold {'a tab' if delimiter != ',' else 'a comma'}"
                    )
                rows.append(row)
                numbers.append(f"line {reader.line_num}")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {not_utf8(path)}") from error
    except DataError:
        raise
    except (csv.Error, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix} ({error})") from error
    names = [name.strip() for name in header]
    if len(set(names)) != len(names):
        raise DataError(f"{path}: column {max(names, key=names.count)!r} occurs twice in the header; rename one")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(names, ())
    name = image_column(columns, str(path))
    images = [_beside(path, cell) for cell in columns[name]]
    return _from_columns(path, columns, images, numbers, None, slices)


def _list_parquet(path: Path, slices: Sequence[str]) -> Listing:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        name = image_column(schema.names, str(path))
        _require_labels(schema.names, path)
        kind = schema.field(name).type
        embedded = pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        wanted = [column for column in dict.fromkeys((*_KNOWN, *slices)) if column in schema.names]
        # The image bytes stay on disk: only the small columns are read here.
        inner = [f"{name}.path"] if pa.types.is_struct(kind) and "path" in {item.name for item in kind} else []
        table = pq.ParquetFile(path).read(columns=wanted + (inner if embedded else [name]))
        columns = {column: _cells(table, column, path) for column in wanted}
        metadata = schema.metadata or {}
        outer = [None] * table.num_rows
        if not embedded:
            outer = _cells(table, name, path)
        elif inner:
            outer = [None if cell is None else cell.get("path") for cell in _cells(table, name, path)]
        n = table.num_rows
        has_bytes = _has_bytes(path, name, kind) if embedded and any(outer) else [True] * n
        if any(len(cells) != n for cells in (*columns.values(), outer, has_bytes)):
            raise ValueError("its columns have different numbers of rows")
    except DataError:
        raise
    except READ_FAILURES as error:
        raise DataError(f"{path}: cannot be read as Parquet ({read_failure(error)}); write it again") from error
    if embedded:
        images = [
            f"{path}::{row}" if has_bytes[row] or not outer[row] else _beside(path, outer[row]) for row in range(n)
        ]
    else:
        images = [_beside(path, cell) for cell in outer]
    numbers = [f"row {row}" for row in range(n)]
    names = {column: stored_names(metadata, column) for column in wanted}
    return _from_columns(path, _by_name(columns, names, path, numbers), images, numbers, names.get("label"), slices)


def _cells(table: Any, column: str, path: Path) -> list[Any]:
    """A column as values. Raises DataError naming the first row whose value Python cannot hold (a time, a text that
    is no UTF-8).
    """
    try:
        cells: list[Any] = table[column].to_pylist()
        return cells
    except READ_FAILURES as error:
        for row, cell in enumerate(table[column]):
            try:
                cell.as_py()
            except READ_FAILURES as fault:
                raise DataError(
                    f"{path}: row {row}: column {column!r}: {read_failure(fault)}; correct it or drop the column"
                ) from error
        raise


def _has_bytes(path: Path, name: str, kind: Any) -> list[bool]:
    """Per row, whether the struct holds bytes. Read by row group, so that one group is in memory at a time."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if "bytes" not in {item.name for item in kind}:
        return [False] * pq.read_metadata(path).num_rows
    file = pq.ParquetFile(path)
    found: list[bool] = []
    for group in range(file.num_row_groups):
        column = file.read_row_group(group, columns=[f"{name}.bytes"])[name]
        found += pc.is_valid(pc.struct_field(column, "bytes")).to_pylist()
    return found


def _by_name(
    columns: dict[str, list[Any]], names: Mapping[str, Sequence[str] | None], where: Path | str, numbers: Sequence[str]
) -> dict[str, list[Any]]:
    """The columns with the integers of each ClassLabel one as the names that are stored for them.

    Always: such an integer is an index into its own names, whatever order `data.classes` gives, and whatever they look
    like.
    """
    return {
        column: values if (known := names.get(column)) is None else decoded(values, known, str(where), numbers)
        for column, values in columns.items()
    }


def _beside(table: Path, cell: Any) -> str:
    text = str(cell or "").strip()
    return os.path.abspath(os.path.join(table.parent, os.path.expanduser(text))) if text else ""


def _from_columns(
    where: Path | str,
    columns: Any,
    images: list[str],
    numbers: list[str],
    classes: tuple[str, ...] | None,
    slices: Sequence[str] = (),
) -> Listing:
    """Columns label (needed), group, source, timestamp, role or split -> a listing; others are possible slices."""
    _require_labels(columns, where)
    listing = Listing(str(where), paths=images, numbers=numbers, class_names=classes, files=[str(where)])
    n = len(images)
    listing.labels = [_label(value, where, numbers[row]) for row, value in enumerate(columns["label"])]
    for name, target in (("group", "groups"), ("source", "sources"), ("timestamp", "timestamps")):
        setattr(listing, target, [_cell_text(value) for value in columns[name]] if name in columns else [""] * n)
    listing.slices = {name: [_cell_text(value) for value in columns[name]] for name in slices if name in columns}
    given = [name for name in ROLE_COLUMNS if name in columns]
    listing.roles = [_cell_text(value) for value in columns[given[0]]] if given else [""] * n
    listing.role_name = f"{given[0]} column" if given else "role column"
    return listing


def _require_labels(names: Collection[str], where: Path | str) -> None:
    if "label" not in names:
        have = ", ".join(names) or "none"
        raise DataError(f"{where}: no column 'label'; it has {have}. Rename the column that holds the class")


def _label(value: Any, where: Path | str, number: str) -> str:
    if isinstance(value, (list, dict)):
        raise DataError(f"{where}: {number}: label is {str(value)[:40]}; one label for each image is expected")
    return label_text(value)


def _cell_text(value: Any) -> str:
    """A cell other than the label as text: None and NaN are "", whole numbers lose their ".0", true and false
    become 1 and 0.
    """
    if value is None or value != value:  # NaN is the one value that differs from itself
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else str(value).strip()


# ---- Hugging Face ------------------------------------------------------------------------------------------------


def _datasets() -> Any:
    return load("datasets", "Hugging Face data sets")


def _list_hub(name: str, slices: Sequence[str]) -> Listing:
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
            part = part.flatten_indices()  # a selection or a shuffle: rows would no longer stand as in the files
        image = image_column(part.column_names, where)
        names = {column: _class_names(feature) for column, feature in part.features.items()}
        classes = names.get("label")
        if total.paths and classes != total.class_names:
            raise DataError(f"{where}: split {name!r} has other class names than the splits before it")
        total.class_names = classes
        locators = _dataset_locators(where, part, image)
        small = [column for column in dict.fromkeys((*_KNOWN, *slices)) if column in part.column_names]
        columns = {column: part.data.column(column).to_pylist() for column in small}
        prefix = f"{name} row" if name else "row"
        numbers = [f"{prefix} {row}" for row in range(len(locators))]
        one = _from_columns(where, _by_name(columns, names, where, numbers), locators, numbers, classes, slices)
        total.role_name = one.role_name
        if len(parts) > 1 and not any(column in columns for column in ROLE_COLUMNS):
            one.roles, total.role_name = [name] * len(one), "split"
        elif name and "source" not in columns:
            one.sources = [name] * len(one)
        for column in _COLUMNS:
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


# ---- WebDataset --------------------------------------------------------------------------------------------------

# A label is a few bytes; what claims more is not read to its end.
_NOTE_BYTES = 1 << 20


def list_tar(path: Path, slices: Sequence[str] = ()) -> Listing:
    """key.jpg + key.cls | key.txt | key.json, in the order of the archive; keys as in `webdataset.samples`.

    A .json may hold label, group, source, timestamp, role or split. Two images under one key: DataError.
    """
    if path.suffix.lower() != ".tar":
        raise DataError(f"{path}: an uncompressed .tar is expected; unpack or re-pack it")
    try:
        members = tar_members(str(path), os.stat(path).st_mtime_ns)
    except OSError as error:
        raise DataError(f"{error}; pack it again with tar -cf") from error
    listing = Listing(str(path), files=[str(path)], role_name="role")
    notes: dict[str, dict[str, Any]] = {}
    with open(path, "rb") as stream:

        def starts(name: str) -> bool:
            return starts_as_image(os.pread(stream.fileno(), 16, members[name][0]))

        found = samples(members, starts, str(path))
        for key, name in found.notes:
            offset, size = members[name]
            try:
                data = tar_bytes(str(path), name, (offset, size), at_most=_NOTE_BYTES)
            except OSError as error:
                raise DataError(f"{error}; pack it again with tar -cf") from error
            notes.setdefault(key, {}).update(_tar_note(path, name, PurePosixPath(name).suffix.lower(), data, slices))
    for key, name in found.images.items():
        note = {
            column: _label(value, path, name) if column == "label" else _cell_text(value)
            for column, value in notes.get(key, {}).items()
        }
        role = note.get("role") or note.get("split") or ""
        listing.add(
            f"{path}::{name}",
            note.get("label", ""),
            name,
            group=note.get("group", ""),
            source=note.get("source", ""),
            timestamp=note.get("timestamp", ""),
            role=role,
        )
        for column in slices:
            listing.slices.setdefault(column, []).append(note.get(column, ""))
    for key in found.alone:
        listing.quarantine.append(Quarantined(f"{path}::{key}", "missing file", "a label without an image"))
    for name, why in found.further:
        listing.quarantine.append(Quarantined(f"{path}::{name}", FURTHER_FILE, why))
    return listing


def _tar_note(path: Path, name: str, ending: str, data: bytes, slices: Sequence[str]) -> dict[str, Any]:
    try:
        text = data.decode("utf-8").strip()
        if ending != ".json":
            return {"label": text}
        note = read_json(text)
    except ValueError as error:
        raise DataError(f"{path}: {name} is no readable {ending} ({error}); pack it again") from error
    if not isinstance(note, dict):
        return {"label": note}
    return {key: value for key, value in note.items() if key in _KNOWN or key in slices}


_READERS: dict[str, Callable[[Path, Sequence[str]], Listing]] = {
    "folder": list_folder,
    "table": list_table,
    "hf": list_saved,
    "webdataset": list_tar,
}
