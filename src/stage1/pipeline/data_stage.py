"""split: from sources to samples.parquet with four roles, splits.json and quarantine.csv."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage1.config import DataConfig, RunConfig
from stage1.documents import read_document, write_document
from stage1.errors import ConfigError
from stage1.pipeline.rundir import RunDir
from stage1.risk.planning import SIDES, shared_delta
from stage1.risk.testing import max_errors, minimum_samples

if TYPE_CHECKING:
    from stage1.pipeline.runner import Context


def source_state(run: RunDir) -> str:
    """Digest of the sources without decoding them: table bytes, and path, size and time of every image."""
    from stage1.data.sources import source_digest

    # What the generator writes follows from the config alone, which is in the stage's digest already.
    return "roadscenes" if run.config.data.source == "roadscenes" else source_digest(run.config.data)


def split(run: RunDir, context: Context) -> list[Path]:
    """Read, check and split the sources. Writes quarantine.csv even where too much had to be quarantined."""
    from stage1.data.sources import QuarantineError, read_source, write_quarantine
    from stage1.data.splits import split_table

    config = run.config
    source = _with_generated_images(run, context) if config.data.source == "roadscenes" else config.data
    if source.table is None and not source.role_tables:
        raise ConfigError("data.table: not set; name a table, a folder of class folders, or a saved data set")
    previous = _previous_roles(run)
    quarantine_file = run / "quarantine.csv"
    try:
        ingest = read_source(source)
    except QuarantineError as error:
        write_quarantine(quarantine_file, error.quarantine)
        raise
    result = split_table(
        ingest,
        config.split,
        previous,
        near_duplicate_distance=source.near_duplicate_distance if source.near_duplicates else None,
    )
    write_quarantine(quarantine_file, [*ingest.quarantine, *result.quarantine])
    result.table.write(run / "samples.parquet")
    write_document(run / "splits.json", result.document, "splits")
    for line in split_lines(result.document, config):
        context.progress.say(f"  {line}")
    return [run / "samples.parquet", run / "splits.json", quarantine_file]


def _with_generated_images(run: RunDir, context: Context) -> DataConfig:
    from stage1.data.roadscenes import write_roadscenes

    scenes = run.config.data.roadscenes
    with context.progress.bar("roadscenes videos", scenes.videos) as advance:
        table = write_roadscenes(
            run / "roadscenes", videos=scenes.videos, size=scenes.size, seed=scenes.seed, progress=advance
        )
    return run.config.data.model_copy(
        update={"source": "table", "table": str(table), "classes": run.config.data.classes or ["none", "roadwork"]}
    )


def _previous_roles(run: RunDir) -> dict[str, str] | None:
    """Roles of the groups of an earlier split of this run directory: old groups stay where they are."""
    path = run / "splits.json"
    if not path.is_file():
        return None
    document = read_document(path, "splits")
    same = document["method"] == run.config.split.method and document["seed"] == run.config.split.seed
    same = same and document["fractions"] == run.config.split.fractions.model_dump()
    return dict(document["groups"]) if same else None


def split_lines(document: Mapping[str, Any], config: RunConfig) -> list[str]:
    """The table that `stage1 split` prints: role x class counts, groups, and what val_calib can certify."""
    classes = document["classes"]
    lines = [f"{'role':<11}" + "".join(f"{name:>12}" for name in classes) + f"{'groups':>10}"]
    for role, row in document["roles"].items():
        lines.append(
            f"{role:<11}" + "".join(f"{row['counts'].get(name, 0):>12}" for name in classes) + f"{row['n_groups']:>10}"
        )
    lines += [f"{name}: {text}" for name, text in can_certify(document, config).items()]
    return lines


def can_certify(document: Mapping[str, Any], config: RunConfig) -> dict[str, str]:
    """Per risk of the target: what the units of val_calib can certify at best; a shortfall is said as arithmetic.

    The unit is the image, or the group where groups repeat and assume_iid is not set. A ratio among exits is counted as if
    every unit of the class exited: the most that can be hoped for.
    """
    if len(document["classes"]) != 2:
        return {}
    row = document["roles"]["val_calib"]
    grouped = sum(row["counts"].values()) > row["n_groups"] and not config.assume_iid
    counts = row["group_counts"] if grouped else row["counts"]
    unit = "group" if grouped else "image"
    delta = shared_delta(config.confidence, len(config.risks))
    lines = {}
    for name, target in config.risks.items():
        if name not in SIDES:
            continue
        side, only_exits = SIDES[name]
        class_name = document["classes"][1 if side == "positive" else 0]
        n, needed = int(counts.get(class_name, 0)), minimum_samples(target, delta)
        units = f"{n} {class_name} {unit}s in val_calib"
        if n < needed:
            lines[name] = (
                f"WARNING {units} cannot certify <= {target:g} ({needed} needed with 0 errors, {needed - n} short)"
            )
        else:
            exits = " if all exit" if only_exits else ""
            lines[name] = (
                f"{units} certify <= {target:g} with up to {max_errors(n, target, delta)} errors{exits} ({needed} needed with 0)"
            )
    return lines
