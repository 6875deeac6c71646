"""report.html of a run, with its images; and of scores of any model, without."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stage1.config import RunConfig, leaves, text_keys, validated
from stage1.data.splits import SPLITS_KIND
from stage1.errors import ConfigError, IntegrityError, MissingError
from stage1.evaluation.schema import EVALUATION_KIND
from stage1.policy import Policy, decided_on, load_policy
from stage1.policy.schema import CERTIFICATE_KIND
from stage1.policy.units import one_per_group
from stage1.runs.directory import CONFIG_FILE, RunDir, opened
from stage1.runs.schema import FEATURES_KIND
from stage1.runtime.images import decode, thumbnail
from stage1.scores import ROLES, Scores, read_role, read_scores
from stage1.stages.chosen_head import head_in_words
from stage1.stages.own_backbone import fit_in_words
from stage1.stages.split import can_certify
from stage1.stages.view_trace import RoleTrace, read_trace
from stage1.stages.views import views_shown
from stage1.storage.documents import SCHEMA_VERSION, read_document
from stage1.storage.files import locked
from stage1.storage.texts import read_text, read_yaml

if TYPE_CHECKING:
    from stage1.data.table import SampleTable
    from stage1.report import Thumb

SCORES_FILE = "scores.parquet"
OPTIONS_FILE = "options.yaml"
_MAPPINGS = ("risks", "class_coverage")
_THUMBNAIL_SIDE = 240


def rewrite_report(folder: Path) -> list[Path]:
    """report.html and figures/ from the documents of `folder`: a run directory, or that of `calibrate --scores`.

    Only what the page shows is recomputed. Returns the paths written, page first. Raises MissingError where a
    document is missing (the message names the command that makes it), IntegrityError where they do not belong together.
    """
    if (folder / CONFIG_FILE).is_file():
        with opened(folder, None) as run:
            return _of_run_again(run)
    if not (folder / SCORES_FILE).is_file():
        raise MissingError(
            f"{folder}: neither a run directory nor a folder of `stage1 calibrate --scores` (no {CONFIG_FILE}, no"
            f" {SCORES_FILE})"
        )
    with locked(folder):
        return report_of_scores(folder)


# ---- scores of any model -----------------------------------------------------------------------------------------


def report_of_scores(folder: Path) -> list[Path]:
    """The report of a folder with scores.parquet (roles in it), a policy file, certificate.json and evaluation.json."""
    from stage1.report import write_report

    scores, roles = read_scores(folder / SCORES_FILE)
    if roles is None:
        raise IntegrityError(f"{folder / SCORES_FILE}: has no roles; run `stage1 calibrate --scores` again")
    if not (folder / "evaluation.json").is_file():
        raise MissingError(
            f"{folder / 'evaluation.json'}: no such file; run `stage1 evaluate --scores {folder / SCORES_FILE} --policy"
            f" {folder}` first"
        )
    policy = load_policy(folder)
    if policy.certificate is None:
        raise MissingError(f"{folder / 'certificate.json'}: no such file; run `stage1 calibrate --scores` again")
    evaluation = read_document(folder / "evaluation.json", EVALUATION_KIND)
    test = scores.take(roles == evaluation["role"])
    _check_evaluation(folder, evaluation, policy, test)
    return write_report(
        folder,
        certificate=read_document(folder / "certificate.json", CERTIFICATE_KIND),
        evaluation=evaluation,
        split=_roles_shown(scores, roles.tolist(), policy.classes),
        policy=policy_shown(policy),
        scores=decided_on(policy, test),
        thumbnails=[],
        run={
            "name": folder.resolve().name,
            "n_images": len(scores),
            "Scores": f"{SCORES_FILE}; the model and its images are not here",
            "recompute": recompute_command(_options(folder)),
        },
        calibration=_counted(scores.take(roles == "val_calib"), policy),
    )


def recompute_command(config: RunConfig) -> str:
    """The command that makes the same certificate again, in the folder of scores.parquet, which fixes the roles.

    config: as `calibrate --scores` stored it; every value that is not the default is an override.
    """
    given, default = config.model_dump(mode="json"), RunConfig().model_dump(mode="json")
    changed = [
        f"{key}={json.dumps(value)}"
        for name in given
        if given[name] != default[name]
        # A mapping of risks or floors is one value: written leaf by leaf it would be merged with the default.
        for key, value in ([(name, given[name])] if name in _MAPPINGS else leaves({name: given[name]}))
        if name in _MAPPINGS or value != dict(leaves({name: default[name]})).get(key)
    ]
    return shlex.join(["stage1", "calibrate", "--scores", SCORES_FILE, "--output", "again", *changed])


def _options(folder: Path) -> RunConfig:
    path = folder / OPTIONS_FILE
    if not path.is_file():
        raise MissingError(f"{path}: no such file; run `stage1 calibrate --scores` again")
    try:
        return validated(read_yaml(read_text(path), text_keys()))
    except (OSError, ValueError, ConfigError) as error:
        raise IntegrityError(f"{path}: cannot be used ({' '.join(str(error).split())[:160]}); restore it") from error


def _check_evaluation(folder: Path, evaluation: dict[str, Any], policy: Policy, test: Scores) -> None:
    """evaluation.json must be of these scores under this policy: a report over two files would lie."""
    exits = int(policy.decide(test).exit.sum()) if len(test) else 0
    reported = evaluation["coverage"]["overall"]
    if (len(test), exits) != (evaluation["n"], reported["exits"]):
        raise IntegrityError(
            f"{folder / 'evaluation.json'}: is of {evaluation['n']} rows with {reported['exits']} exits, {SCORES_FILE}"
            f" has {len(test)} with {exits}; run `stage1 evaluate --scores {folder / SCORES_FILE} --policy {folder}`"
            " again"
        )


def _roles_shown(scores: Scores, roles: list[str], classes: tuple[str, ...]) -> dict[str, Any]:
    """Rows of each role and class, in the shape of splits.json's summary."""
    role_of = np.asarray(roles)
    shown: dict[str, Any] = {}
    for role in ROLES:
        rows = role_of == role
        if not rows.any():
            continue
        labels = scores.known_labels[rows]
        shown[role] = {
            "counts": {name: int((labels == index).sum()) for index, name in enumerate(classes)},
            "n_groups": int(rows.sum()) if scores.groups is None else len(np.unique(scores.groups[rows])),
        }
    return {"roles": shown}


# ---- runs --------------------------------------------------------------------------------------------------------


def report_of_run(
    run: RunDir, table: SampleTable, scores: Scores, policy: Policy, evaluation: dict[str, Any]
) -> list[Path]:
    """The report of a run directory; scores: of val_test."""
    from stage1.report import write_report

    split = read_document(run / "splits.json", SPLITS_KIND)
    views = views_shown(run)
    certifiable = "; ".join(f"{name}: {text}" for name, text in can_certify(table, run.config).items())
    shown = {
        "roles": {
            role: {
                "counts": counts,
                "n_groups": split["group_counts"][role],
                "can_certify": certifiable if role == "val_calib" else None,
            }
            for role, counts in split["counts"].items()
        },
        # The mapping of thousands of groups to roles is for the machine.
        **{key: split[key] for key in ("method", "seed", "fractions", "near_duplicates", "leakage")},
    }
    features = read_document(run / "features.json", FEATURES_KIND)
    config = run.config
    facts = {
        "name": config.name,
        "model": (
            f"{features['backbone']} ({features['pooling']} pooling, {features['dim']} features), {head_in_words(run)}"
        ),
        "n_images": len(table),
        "source": Path(config.data.table or "").name or config.data.source,  # no path of this machine
        **fit_in_words(run),
        **({"views": views["description"]} if views is not None and views["ships"] else {}),
        # Of the stages before this page: what comes after it must not change it.
        "seconds": {name: entry["seconds"] for name, entry in run.state.items() if name not in ("evaluate", "bundle")},
    }
    return write_report(
        run.path,
        certificate=read_document(run / "certificate.json", CERTIFICATE_KIND),
        evaluation=evaluation,
        split=shown,
        policy=policy_shown(policy),
        scores=decided_on(policy, scores),
        run=facts,
        thumbnails=_thumbs(table, scores, evaluation["worst"], read_trace(run, len(scores))),
        calibration=_counted(read_role(run.path, "val_calib"), policy),
        views=views,
    )


def _thumbs(table: SampleTable, scores: Scores, worst: list[dict[str, Any]], trace: RoleTrace | None) -> list[Thumb]:
    """The pictures of the worst errors, the view that decided framed and named where there are several."""
    from stage1.report import Thumb

    assert scores.ids is not None, "scores of a run carry ids"
    row_of, score_of = ({name: row for row, name in enumerate(ids.tolist())} for ids in (table.ids, scores.ids))
    made = []
    for item in worst:
        picture, row = table.read_bytes(row_of[item["id"]]), score_of[item["id"]]
        box, decided = None, ""
        if trace is not None:
            box = trace.box(row, *decode(picture).shape[:2])
            decided = trace.words(row, exits=item["decision"] != "defer")
        made.append(
            Thumb(
                jpeg=thumbnail(picture, _THUMBNAIL_SIDE, box),
                caption=Path(item["path"]).name,
                label=item["label"],
                decision=item["decision"],
                probability=item["probability"],
                decided=decided,
            )
        )
    return made


def _of_run_again(run: RunDir) -> list[Path]:
    from stage1.data.table import SampleTable

    evaluation = read_document(run / "evaluation.json", EVALUATION_KIND)
    entry = run.state.get("evaluate")
    if entry is None:
        raise MissingError(f"{run.path}: `evaluate` has not finished; run `stage1 evaluate {run.path}` first")
    written = report_of_run(
        run,
        SampleTable.read(run / "samples.parquet"),
        read_role(run.path, evaluation["role"]),
        load_policy(run.path),
        evaluation,
    )
    # The new page belongs to the stage that makes it: the next `stage1 run` must not take it for damage and start over.
    outputs = {run.path / name for name in entry["outputs"]} | set(written)
    run.record("evaluate", entry["inputs"], iter(outputs), entry["seconds"], entry.get("peak_mib"))
    return written


def policy_shown(policy: Policy) -> dict[str, Any]:
    """What the report draws: thresholds on the score that decides (`decided_on`), where the policy has any."""
    lo, hi = policy.margin_thresholds
    return {
        **policy.shown(),
        "schema_version": SCHEMA_VERSION,
        "policy": policy.name,
        "lo": lo,
        "hi": hi,
        "classes": list(policy.classes),
        "certified": policy.certified,
    }


def _counted(calib: Scores, policy: Policy) -> Scores:
    """The units of val_calib that the certificate counted, with the scores on which the thresholds lie."""
    assert policy.certificate is not None
    calib = decided_on(policy, calib)
    return calib.take(one_per_group(calib, policy.certificate.seed)) if policy.certificate.unit == "group" else calib
