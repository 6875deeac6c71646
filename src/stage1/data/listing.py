"""The sources of a config, listed: which there are, and the roles that folders, splits or columns give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePath

from stage1.config import DataConfig
from stage1.data.given_roles import LEFT_OUT, folder_roles, pools_of, role_kinds
from stage1.errors import ConfigError, DataError
from stage1.scores import ROLES
from stage1.sources.listing import Listing
from stage1.sources.quarantine import Quarantined
from stage1.sources.registry import list_source


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
                listing = list_source(config.role_tables[role], config.source, config.slices, base)
                if other := sorted(set(listing.roles) - {"", role}):
                    raise DataError(f"{listing.where}: given as {role}, but its role column says {other[0]!r}")
                listing.roles = [role] * len(listing)
                listings.append(listing)
        return listings
    if config.table is None:
        raise ConfigError("data.table is not set; name a folder, a CSV/TSV/Parquet file, a dataset or a .tar")
    return [_with_roles(list_source(config.table, config.source, config.slices, base), config)]


def _with_roles(listing: Listing, config: DataConfig) -> Listing:
    """The listing with roles from folders, splits or a column; what data.roles leaves out is gone."""
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
        # Splits by year or by site are no roles: pooled, and split again by group.
        sources = listing.sources if any(listing.sources) else listing.roles
        return replace(listing, sources=sources, roles=[""] * len(listing))
    if any(given) or config.roles:
        hint = "" if listing.role_name == "split" else ", or rename the column to let stage1 split by group"
        pools = pools_of(given, config.roles, where, listing.role_name, hint)
        listing.roles = [pools[role] for role in listing.roles]
    return listing.only([role != LEFT_OUT for role in listing.roles])
