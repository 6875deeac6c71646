"""smoke: the whole line on a tiny problem, then every artifact checked against its schema and against the others."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from stage1.bundle.schema import BUNDLE_KIND
from stage1.config import load_config
from stage1.data.splits import SPLITS_KIND
from stage1.errors import ConfigError, DataError, MissingError, Stage1Error
from stage1.evaluation.schema import EVALUATION_KIND
from stage1.policy import POLICIES, Certificate, policy_file
from stage1.policy.certify import calibration_digest
from stage1.policy.schema import ATTEMPTS_KIND, CERTIFICATE_KIND
from stage1.runs.schema import FEATURES_KIND, PARITY_KIND, STAGES_KIND, TRAIN_KIND
from stage1.runtime.images import IMAGE_COLUMNS
from stage1.scores import read_role
from stage1.storage.documents import DocumentKind, read_document
from stage1.storage.files import digest_file, write_through

Check = dict[str, Any]

_ROWS_PER_CLASS = 60
_ARTIFACTS = (
    "samples.parquet",
    "splits.json",
    "quarantine.csv",
    "features.json",
    "backbone.onnx",
    "checkpoints/last.safetensors",
    "model_best.pth",
    "metrics.csv",
    "log.jsonl",
    "model.onnx",
    "parity.json",
    *(f"val_{role}_{kind}" for role in ("select", "calib", "test") for kind in ("logits.pt", "labels.pt", "ids.json")),
    "certificate.json",
    "evaluation.json",
    "eval_metrics.csv",
    "report.html",
    "bundle/bundle.json",
    "bundle/model.onnx",
    "bundle/certificate.json",
    "bundle/calibration.parquet",
    "bundle/README.md",
)


def smoke(policy: str, output: Path | None, data: Path | None) -> list[Check]:
    """Run the recipe `smoke` with one policy (or all that are built) and check what it made.

    data: a table whose first rows (60 a class, groups ignored) replace the generated scenes; with more than two classes
    the target is the error, or of scrc the miss_rate of each class, and what is for two is left out of `all`.
    Returns the checks, one mapping {policy, check, passed, detail} each. Raises ConfigError for a policy that is not
    there.
    """
    wanted = tuple(POLICIES) if policy == "all" else (policy,)
    if policy != "all" and policy not in POLICIES:
        raise ConfigError(f"--policy {policy}: unknown; use {', '.join(POLICIES)} or all")
    with tempfile.TemporaryDirectory(prefix="stage1-smoke-") as scratch:
        folder = output or Path(scratch)
        if policy == "all" and data is not None and _class_count(_first_rows(data, Path(scratch) / "rows.csv")) > 2:
            wanted = tuple(name for name in wanted if POLICIES[name].classes == "any")
        return [check for name in wanted for check in _smoke_one(name, folder / name, data)]


def _smoke_one(policy: str, folder: Path, data: Path | None) -> list[Check]:
    from stage1.runs.directory import opened
    from stage1.runs.progress import Progress
    from stage1.runs.runner import execute
    from stage1.stages import STAGES

    overrides, n_classes = [f"policy.name={policy}"], 2
    if data is not None:
        table = _first_rows(data, folder / "table.csv")
        overrides += ["data.source=table", f"data.table={table}", "data.near_duplicates=false"]
        n_classes = _class_count(table)
    overrides += POLICIES[policy].smoke(n_classes)
    config, _ = load_config(recipe="smoke", overrides=overrides, environment={})
    with opened(folder, config, allow_change=True) as run:
        execute(run, STAGES, Progress())
    return [_checked(policy, name, check) for name, check in _checks(folder)]


def _checked(policy: str, name: str, check: Callable[[], str]) -> Check:
    try:
        return {"policy": policy, "check": name, "passed": True, "detail": check()}
    except (Stage1Error, OSError, AssertionError) as error:
        return {"policy": policy, "check": name, "passed": False, "detail": str(error)}


def _checks(folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "artifacts are there", lambda: _all_there(folder)
    kinds = {
        "splits.json": SPLITS_KIND,
        "features.json": FEATURES_KIND,
        "parity.json": PARITY_KIND,
        "train.json": TRAIN_KIND,
        "certificate.json": CERTIFICATE_KIND,
        "evaluation.json": EVALUATION_KIND,
        "attempts.json": ATTEMPTS_KIND,
        "stages.json": STAGES_KIND,
        "bundle/bundle.json": BUNDLE_KIND,
    }
    for name, kind in kinds.items():
        yield f"{name} fits its schema", partial(_fits, folder / name, kind)
    path = policy_file(folder)
    of_policy = next(kind.document for kind in POLICIES.values() if kind.file == path.name)
    yield f"{path.name} fits its schema", partial(_fits, path, of_policy)
    yield "one policy", lambda: policy_file(folder).name
    yield "certificate certifies", lambda: _certifies(folder)
    yield "certificate is of these val_calib scores", lambda: _same_calibration(folder)
    yield "parity is of this model and these weights", lambda: _same_model(folder)
    yield "ids agree with samples.parquet", lambda: _same_ids(folder)
    yield "bundle is whole, certificate recomputed", lambda: _verified(folder)
    yield "predict answers from the bundle", lambda: _predicts(folder)


def _fits(path: Path, kind: DocumentKind) -> str:
    return f"schema_version {read_document(path, kind)['schema_version']}"


def _all_there(folder: Path) -> str:
    if missing := [name for name in _ARTIFACTS if not (folder / name).is_file()]:
        raise MissingError(f"{missing[0]} is missing ({len(missing)} in all)")
    return f"{len(_ARTIFACTS)} files"


def _certifies(folder: Path) -> str:
    certificate = Certificate.load(folder / "certificate.json")
    if not certificate.certified:
        raise DataError(str(certificate.reason))
    return f"coverage {certificate.coverage.value:.2f}"


def _same_calibration(folder: Path) -> str:
    digest = calibration_digest(read_role(folder, "val_calib"))
    if Certificate.load(folder / "certificate.json").calib_digest != digest:
        raise DataError("certificate.json has another calib_digest than val_calib_ids.json")
    return digest[:16]


def _same_model(folder: Path) -> str:
    parity = read_document(folder / "parity.json", PARITY_KIND)
    for field, name in (("model", "model.onnx"), ("weights", "model_best.pth"), ("model", "bundle/model.onnx")):
        if digest_file(folder / name) != parity[field]:
            raise DataError(f"{name} is not what parity.json compared")
    return f"largest difference {parity['largest_difference']:.2g}"


def _same_ids(folder: Path) -> str:
    from stage1.data.table import SampleTable

    table = SampleTable.read(folder / "samples.parquet")
    for role in ("val_select", "val_calib", "val_test"):
        scores = read_role(folder, role)
        rows = table.rows(role)
        if (
            scores.ids is None
            or scores.ids.tolist() != table.ids[rows].tolist()
            or scores.known_labels.tolist() != table.labels[rows].tolist()
        ):
            raise DataError(f"{role}: ids or labels differ from samples.parquet")
    return f"{len(table)} images"


def _verified(folder: Path) -> str:
    from stage1.bundle import verify_bundle

    report = verify_bundle(folder / "bundle", recompute=True)
    report.require()
    return f"{report.files} files"


def _predicts(folder: Path) -> str:
    from stage1.data.table import SampleTable
    from stage1.inference import load_bundle

    table = SampleTable.read(folder / "samples.parquet")
    rows = table.rows("val_test")[:8]
    bundle = load_bundle(folder / "bundle")
    scores = read_role(folder, "val_test").take(range(len(rows)))
    answers = bundle.predict([table.read_bytes(row) for row in rows], slices=scores.slices)
    expected = bundle.policy.decide(scores)
    for answer, leaves, probability in zip(answers, expected.exit, expected.probability, strict=True):
        if answer.error or answer.exit != leaves or abs((answer.probability or 0.0) - probability) > 1e-4:
            raise DataError(
                f"predict says {answer}, the scored artifact says exit={leaves}, probability={probability:.6f}"
            )
    return f"{len(answers)} images as scored"


def _class_count(table: Path) -> int:
    import pyarrow.csv

    return len(pyarrow.csv.read_csv(table)["label"].unique())


def _first_rows(data: Path, target: Path) -> Path:
    """The first rows of each class of a table, as a CSV with absolute paths, without groups: no claim is made."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if not data.is_file():
        raise MissingError(f"{data}: no such table")
    try:
        if data.suffix == ".parquet":
            table = pyarrow.parquet.read_table(data)
        else:
            table = pyarrow.csv.read_csv(
                data, parse_options=pyarrow.csv.ParseOptions(delimiter="\t" if data.suffix == ".tsv" else ",")
            )
    except pa.ArrowException as error:
        raise DataError(f"{data}: cannot be read as a table ({error})") from error
    image = next((name for name in IMAGE_COLUMNS if name in table.column_names), None)
    if image is None or "label" not in table.column_names:
        raise DataError(f"{data}: needs the columns image and label; it has {', '.join(table.column_names)}")
    chosen: dict[str, list[str]] = {}
    for path, label in zip(table[image].to_pylist(), table["label"].to_pylist(), strict=True):
        rows = chosen.setdefault(str(label), [])
        if len(rows) < _ROWS_PER_CLASS:
            rows.append(str((data.parent / path).resolve()))
    small = pa.table(
        {
            "image": [path for rows in chosen.values() for path in rows],
            "label": [label for label, rows in chosen.items() for _ in rows],
        }
    )
    write_through(target, lambda temporary: pyarrow.csv.write_csv(small, temporary))
    return target
