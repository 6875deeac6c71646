"""split: from sources to samples.parquet with four roles, splits.json and quarantine.csv."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stage1.config import DataConfig, RunConfig
from stage1.data.splits import SPLITS_KIND
from stage1.errors import ConfigError, SourceChanged
from stage1.policy.certificate import images
from stage1.policy.group_dealing import BY_SIZE, BY_SIZE_REASON
from stage1.policy.image_keys import image_set
from stage1.policy.ledger import LEDGER_FILE, Ledger
from stage1.policy.units import choose_unit, one_per_group
from stage1.risk.risks import closed_forms
from stage1.risk.sample_size import shared_delta
from stage1.risk.targets import default_risks
from stage1.risk.testing import max_errors, minimum_samples
from stage1.runs.artifacts import always
from stage1.runs.directory import RunDir, stored_config
from stage1.runs.stage import Context, Stage
from stage1.scores import Scores
from stage1.stages.acceptance import check_reference
from stage1.stages.challenge import challenged, ingested, source_config
from stage1.stages.checks import check_all, check_config, check_split, check_views
from stage1.storage.documents import read_document, write_document

if TYPE_CHECKING:
    from stage1.data.table import SampleTable


def source_state(run: RunDir) -> str:
    """Digest of the sources without decoding them: table bytes, and path, size and time of every image."""
    from stage1.data.ingest import source_digest

    # What the generator writes follows from the config alone, which is in the stage's digest already.
    return "roadscenes" if run.config.data.source == "roadscenes" else source_digest(source_config(run.config.data))


# ---- what is checked around it -----------------------------------------------------------------------------------


def known_classes(config: RunConfig) -> tuple[str, ...] | None:
    """The classes that the split will find: as stated, else as the source lists them, before an image is read.

    None where there is no telling. Raises as `listing.list_sources`.
    """
    if config.data.classes is not None:
        return tuple(config.data.classes)
    if config.data.source == "roadscenes":
        return ("none", "roadwork")
    if config.data.table is None and not config.data.role_tables:
        return None
    from stage1.data.ingest import listed_classes

    return listed_classes(source_config(config.data))


def _preflight(config: RunConfig) -> None:
    check_reference(config)
    if (classes := known_classes(config)) is not None:
        check_all(config, classes)


def _ready(run: RunDir, context: Context) -> None:
    """Alone there is no preflight, and a target that fits the classes may still be given to `calibrate`."""
    if context.alone and (classes := known_classes(run.config)) is not None:
        check_views(run.config, classes)


def _checked(run: RunDir, context: Context) -> None:
    check_split(run, views_only=context.alone)


def images_stand(run: RunDir) -> bool:
    """Whether every image of samples.parquet still has the bytes of its id, which size and time do not tell.

    For `stage1 split`: who asks for it alone is often told to, by a stage that met other bytes. True where there is no
    table.
    """
    from stage1.data.table import SampleTable

    path = run / "samples.parquet"
    if "split" not in run.state or not path.is_file():
        return True
    table = SampleTable.read(path)

    def stands(row: int) -> bool:
        try:
            table.read_bytes(row)
        except (SourceChanged, OSError):
            return False
        return True

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return all(pool.map(stands, range(len(table))))


def split(run: RunDir, context: Context) -> list[Path]:
    """Read, check and split the sources. Writes quarantine.csv even where too much had to be quarantined."""
    from stage1.data.splits import split_table
    from stage1.sources.quarantine import QuarantineError, write_quarantine

    config = run.config
    if config.data.source == "roadscenes":
        if config.data.table is not None or config.data.role_tables:
            raise ConfigError(
                "data.table and data.source=roadscenes are both given; set data.source=auto, or leave the table out"
            )
        config = config.model_copy(update={"data": _with_generated_images(run, context)})
    elif config.data.table is None and not config.data.role_tables:
        raise ConfigError("data.table: not set; name a table, a folder of class folders, or a saved data set")
    quarantine_file = run / "quarantine.csv"
    try:
        ingest = ingested(config.data)
    except QuarantineError as error:
        write_quarantine(quarantine_file, error.quarantine)
        run.keep_config()  # the sources were read; `stage1 split RUN data.max_quarantine=...` resumes from here
        raise
    result = challenged(split_table(ingest, config, _previous(run)), run, context)
    write_quarantine(quarantine_file, [*ingest.quarantine, *result.quarantine])
    result.table.write(run / "samples.parquet")
    write_document(run / "splits.json", result.document, SPLITS_KIND)
    for line in split_lines(result.document, result.table, config):
        context.progress.say(f"  {line}")
    _begin_ledger(run, result.table)
    return [run / "samples.parquet", run / "splits.json", quarantine_file]


def _begin_ledger(run: RunDir, table: SampleTable) -> None:
    """From here on every look at val_calib is counted; that nothing was before is said where no certificate is there.

    The file is no output of this stage: `calibrate` goes on with it.
    """
    ids = table.ids[table.rows("val_calib")]
    if len(ids):
        images = image_set(Scores(logits=np.zeros((len(ids), 2)), ids=ids))
        Ledger(run / LEDGER_FILE).deal(images, untouched=not (run / "certificate.json").exists())


def _with_generated_images(run: RunDir, context: Context) -> DataConfig:
    from stage1.simulation.scenes import describe_video, write_roadscenes

    scenes = run.config.data.roadscenes
    frames = sum(describe_video(scenes.seed, index).frames for index in range(scenes.videos))
    with context.progress.bar("roadscenes images", frames) as advance:
        drawn = 0

        def report(done: int, total: int) -> None:
            nonlocal drawn
            advance(done - drawn)
            drawn = done

        table = write_roadscenes(
            run / "roadscenes", videos=scenes.videos, size=scenes.size, seed=scenes.seed, progress=report
        )
    return run.config.data.model_copy(
        update={"source": "table", "table": str(table), "classes": run.config.data.classes or ["none", "roadwork"]}
    )


def _previous(run: RunDir) -> dict[str, Any] | None:
    """The earlier split of this run directory, by the same method: its groups stay where they are."""
    path = run / "splits.json"
    if not path.is_file():
        return None
    document, config = read_document(path, SPLITS_KIND), run.config.split
    same = (document["method"], document["seed"], document["fractions"]) == (
        config.method,
        config.seed,
        config.fractions.model_dump(),
    )
    return document if same else None


def split_lines(document: Mapping[str, Any], table: SampleTable, config: RunConfig) -> list[str]:
    """The table that `stage1 split` prints: role x class counts, groups, and what val_calib can certify."""
    from stage1.data.splits import dealing_of

    classes = document["classes"]
    lines = [f"{'role':<11}" + "".join(f"{name:>12}" for name in classes) + f"{'groups':>10}"]
    for role, counts in document["counts"].items():
        lines.append(
            f"{role:<11}" + "".join(f"{counts[name]:>12}" for name in classes) + f"{document['group_counts'][role]:>10}"
        )
    if document["leakage"]:
        lines.append(
            f"WARNING {document['leaks']} pairs of images stand in two roles (allowed): nothing can be certified"
        )
    if dealing_of(document) == BY_SIZE:
        lines.append(f"WARNING {BY_SIZE_REASON} Until then nothing is certified.")
    if config.risks is None:
        target = ", ".join(f"{name} <= {value:g}" for name, value in default_risks(len(classes)).items())
        lines.append(f"target: {target} (the default for {len(classes)} classes; risks={{...}} sets another)")
    return lines + [f"{name}: {text}" for name, text in can_certify(table, config).items()]


def split_report(folder: Path) -> list[str]:
    """split_lines of a run directory that has been split."""
    from stage1.data.table import SampleTable

    config = stored_config(folder)
    assert config is not None, "a run directory that was just split has a config"
    return split_lines(
        read_document(folder / "splits.json", SPLITS_KIND), SampleTable.read(folder / "samples.parquet"), config
    )


def can_certify(table: SampleTable, config: RunConfig) -> dict[str, str]:
    """Per risk of the target: what the units of val_calib can certify at best; a shortfall is said as arithmetic.

    The units are the ones that `calibrate` will count: images, or one image of each group where groups repeat and
    assume_iid is not set. A ratio among exits is counted as if every unit of the class exited: the most to be hoped
    for.
    """
    if len(table.classes) != 2:
        return {}
    calib = table.take(table.rows("val_calib"))
    scores = Scores(logits=np.zeros((len(calib), 2)), labels=calib.labels, groups=calib.groups, ids=calib.ids)
    unit = choose_unit(scores, "auto", config.assume_iid)
    labels = scores.known_labels[one_per_group(scores, config.seed)] if unit == "group" else scores.known_labels
    risks = config.risks_for(2)
    delta = shared_delta(config.confidence, len(risks))
    lines = {}
    for name, target in risks.items():
        risk = closed_forms().get(name)
        if risk is None:
            continue
        index = 1 if risk.side == "positive" else 0
        n, needed = int((labels == index).sum()), minimum_samples(target, delta)
        units = f"{n} {images(table.classes[index], unit)} in val_calib"
        if n < needed:
            lines[name] = (
                f"WARNING {units} cannot certify <= {target:g} ({needed} needed with 0 errors, {needed - n} short)"
            )
        else:
            exits = " if all of them exit" if risk.among == "exits" else ""
            lines[name] = (
                f"{units} certify <= {target:g} with up to {max_errors(n, target, delta)} errors{exits} ({needed}"
                " needed with 0)"
            )
    return lines


STAGE = Stage(
    name="split",
    sections=("data", "split"),
    reads=always(),
    work=split,
    external=source_state,
    consistent=check_config,
    preflight=_preflight,
    ready=_ready,
    checked=_checked,
    holds=images_stand,
    reads_sources=True,
)
