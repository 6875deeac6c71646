"""cascade: labelled images, the role of each, and the answers of every stage to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stage1.bundle.manifest import read_calibration, read_selection
from stage1.cascade.answers import Answer, header, open_log, read_answers, recorded, without
from stage1.cascade.calls import OUTAGES
from stage1.cascade.certificate import Labelled
from stage1.cascade.config import CascadeConfig
from stage1.cascade.runner import run_cascade
from stage1.cascade.stages import Cascade
from stage1.config import DataConfig
from stage1.errors import ConfigError, DataError, MissingError
from stage1.inference.inputs import Input
from stage1.runs.progress import Progress
from stage1.scores import Scores
from stage1.scores.roles import hashed_roles

if TYPE_CHECKING:
    from stage1.data.table import SampleTable

ROLES = ("val_select", "val_calib", "val_test")
_SHARES = (0.3, 0.5, 0.2)


@dataclass(frozen=True, slots=True)
class Roled:
    """Labelled images with the role that each plays for the cascade; left_out: rows without one, by reason."""

    table: SampleTable
    roles: NDArray[np.str_]
    origin: str
    left_out: dict[str, int]


def roled_images(cascade: Cascade, source: Path) -> Roled:
    """Which labelled images serve for what; never one for the certificate that something in the cascade was chosen on.

    source: a run directory, its samples.parquet, or a table or folder as `stage1 run` takes it. Roles: as the source
    gives them; else as the bundles among the stages used the same images; else by hash, where no bundle knows any of
    them.
    """
    table = _table(source, cascade.config)
    selected, calibrated, frozen = _used(cascade)
    ids = table.ids
    in_select, in_calib = np.isin(ids, sorted(selected)), np.isin(ids, sorted(calibrated))
    left_out: dict[str, int] = {}
    if (table.roles != "").any():
        origin, roles = "given", np.where(np.isin(table.roles, ROLES), table.roles, "")
    elif in_select.any() or in_calib.any():
        origin = "bundles"
        roles = np.where(in_select, "val_select", np.where(in_calib, "val_calib", ""))
    else:
        origin = "hash"
        groups = Scores(logits=np.zeros((len(table), 2)), groups=table.groups, ids=None)
        roles = hashed_roles(groups, ROLES, _SHARES, cascade.config.seed)
    left_out["without a role"] = int((roles == "").sum())
    chosen_on = (roles == "val_calib") & in_select
    if chosen_on.any():
        raise DataError(
            f"{source}: {table.paths[int(chosen_on.argmax())]} ({int(chosen_on.sum())} in all) is in val_calib, and a"
            " bundle was chosen on it; give images that no stage has seen"
        )
    # A policy of its own was certified on these images: its thresholds are a function of their labels.
    fitted = (roles == "val_calib") & np.isin(ids, sorted(frozen))
    left_out["in val_calib of a stage with exit: own"] = int(fitted.sum())
    roles = np.where(fitted, "", roles)
    if not (roles == "val_calib").any():
        raise ConfigError(
            f"{source}: no image is left for val_calib"
            + (
                f": {int(fitted.sum())} are those that the first stage's own thresholds were chosen on. Set exit: auto"
                " (thresholds ordered on val_select), or give labelled images that it has not seen"
                if fitted.any()
                else "; give labelled images with that role"
            )
        )
    return Roled(table, roles, origin, {name: count for name, count in left_out.items() if count})


def ask_all(cascade: Cascade, roled: Roled, path: Path, progress: Progress) -> None:
    """Every stage for every image with a role, into a file of answers; what an outage cut off is asked again."""
    head = header(cascade.digest, None, cascade.names)
    if path.is_file():
        stale = [
            answer.image for answer in read_answers(path)[1] if any(call.outcome in OUTAGES for call in answer.calls)
        ]
        if stale:
            without(path, stale)
    rows = np.flatnonzero(roled.roles != "").tolist()
    inputs = [Input(str(roled.table.paths[row]), item) for row, item in zip(rows, roled.table.items(rows), strict=True)]
    with open_log(path, head) as (done, sink), progress.bar("images", len(inputs)) as advance:
        advance(len(done))

        def each(_: Answer) -> None:
            advance()

        run_cascade(cascade, inputs, sink, rules=None, done=[answer.image for answer in done], each=each)


def by_role(cascade: Cascade, roled: Roled, path: Path) -> dict[str, Labelled]:
    head, answers = read_answers(path)
    if head["stages_digest"] != cascade.digest:
        raise ConfigError(
            f"{path}: answers of other stages than those of the cascade file; ask again without --answers"
        )
    by_image = {answer.image: answer for answer in answers}
    by_id = {answer.id: answer for answer in answers if answer.id is not None}
    found = {}
    for role in ROLES:
        rows = np.flatnonzero(roled.roles == role)
        told = [
            by_id.get(str(roled.table.ids[row])) or by_image.get(str(roled.table.paths[row])) for row in rows.tolist()
        ]
        whole = [answer for answer in told if answer is not None]
        if len(whole) < len(rows):
            lacking = roled.table.paths[rows[next(i for i, answer in enumerate(told) if answer is None)]]
            raise DataError(
                f"{path}: no answer for {lacking} ({len(rows) - len(whole)} of {role}); ask again without --answers"
            )
        known = Scores(
            logits=np.zeros((len(rows), 2)),
            labels=roled.table.labels[rows],
            groups=roled.table.groups[rows],
            ids=roled.table.ids[rows],
        )
        found[role] = Labelled(recorded(whole, cascade.names, cascade.config.classes), known)
    return found


# ---- the source ----------------------------------------------------------------------------------------------------


def _table(source: Path, config: CascadeConfig) -> SampleTable:
    from stage1.data.ingest import read_source
    from stage1.data.table import SampleTable

    inside = source / "samples.parquet" if source.is_dir() else source
    if inside.name == "samples.parquet" and inside.is_file():
        table = SampleTable.read(inside)
        if list(table.classes) != config.classes:
            raise ConfigError(
                f"{inside}: classes {', '.join(table.classes)}, the cascade has {', '.join(config.classes)}"
            )
        return table
    if not source.exists():
        raise MissingError(f"{source}: no such table; give a run directory, or a table with image and label")
    return read_source(DataConfig(table=str(source.resolve()), classes=config.classes)).table


def _used(cascade: Cascade) -> tuple[set[str], set[str], set[str]]:
    """Ids that the bundles were chosen on, certified on, and certified on with exit: own."""
    selected: set[str] = set()
    calibrated: set[str] = set()
    frozen: set[str] = set()
    for place, bundle in cascade.bundles.items():
        selection, calibration = read_selection(bundle.folder), read_calibration(bundle.folder)
        assert calibration.ids is not None, "a bundle's calibration has ids"
        calibrated |= set(calibration.ids.tolist())
        if selection is not None and selection.ids is not None:
            selected |= set(selection.ids.tolist())
        if cascade.config.stages[place].exit == "own":
            frozen |= set(calibration.ids.tolist())
    return selected, calibrated, frozen
