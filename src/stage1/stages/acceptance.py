"""Acceptance gates: limits that a run must keep before it is bundled, as data in its config, judged after `evaluate`.

| metric | value | bound |
|---|---|---|
| accuracy, augrc, error, coverage, coverage.CLASS, ... of evaluation.json | on val_test | end of its interval |
| certificate.RISK, certificate.coverage | on val_calib | the joint bound of the certificate |
| gate.gain | AUGRC of softmax minus that of the gate in use, val_test | paired interval |
| gain.METRIC | better than acceptance.reference by so much, val_test | paired interval |

`by: bound` takes the end that counts against the run: the lower one for at_least, the upper one for at_most. On
val_test it moves out with every look at the same images (val_test_looks.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stage1.config import AcceptanceGate, RunConfig
from stage1.errors import ConfigError, Stage1Error
from stage1.evaluation.arms import compare_arms
from stage1.evaluation.comparison import HIGHER_IS_BETTER
from stage1.evaluation.score_selection import accept_gate
from stage1.evaluation.summary import metrics_rows
from stage1.policy import Policy, load_policy, policy_file
from stage1.policy.certificate import shown_bound
from stage1.policy.schema import CERTIFICATE_KIND
from stage1.runs.directory import RunDir
from stage1.runs.finished import FinishedRun, refuse_other_splits
from stage1.runs.schema import ACCEPTANCE_KIND
from stage1.scores import Scores, read_role
from stage1.stages.val_test_looks import Measured, at_look, looks_line, this_look
from stage1.storage.documents import finite_or_none, read_document, write_document
from stage1.storage.files import digest_bytes, digest_file

ACCEPTANCE_FILE = "acceptance.json"
IGNORE = "--ignore-acceptance"


def accept(run: RunDir, evaluation: Mapping[str, Any]) -> list[Path]:
    """Judge the gates of the config into acceptance.json (no gates, no file). Returns the paths written.

    evaluation: the evaluation document of this run. Raises ConfigError for a metric that this run has not, and as the
    comparison with acceptance.reference does (DataError: another split).
    """
    path = run / ACCEPTANCE_FILE
    gates = run.config.acceptance.gates
    if not gates:
        path.unlink(missing_ok=True)
        return []
    known = _measured(run, evaluation)
    for gate in gates:
        if gate.metric not in known:
            raise ConfigError(f"acceptance: {gate.metric!r} is not measured in this run; known: {', '.join(known)}")
    look = this_look(run, [gate.model_dump(mode="json") for gate in gates])
    groups = evaluation["n_groups"] if evaluation["unit"] == "group" else None
    judged = [judge(gate, at_look(known[gate.metric], look, evaluation["level"], groups)) for gate in gates]
    reference = run.config.acceptance.reference
    document = {
        "passed": all(row["passed"] for row in judged),
        "reference": None if reference is None else Path(reference).resolve().name,
        "gates": judged,
        "look": look,
    }
    write_document(path, document, ACCEPTANCE_KIND)
    return [path]


def judge(gate: AcceptanceGate, measured: Measured) -> dict[str, Any]:
    """One row of acceptance.json: what was asked, what was found, passed or not, and the reason in a sentence."""
    floor = gate.at_least is not None
    limit = gate.at_least if gate.at_least is not None else gate.at_most
    assert limit is not None
    bound = measured.low if floor else measured.high
    counted = bound if gate.by == "bound" else measured.value
    end = f"{'lower' if floor else 'upper'} bound" if gate.by == "bound" else "value"
    sign = ">=" if floor else "<="
    if counted is None:
        passed = False
        reason = f"{end} undefined{f' ({measured.why})' if measured.why else ''}; asked {sign} {limit:g}"
    else:
        passed = counted >= limit if floor else counted <= limit
        reason = f"{end} {counted:.5g}, asked {sign} {limit:g}"
    return {
        "phase": gate.phase,
        "metric": gate.metric,
        "by": gate.by,
        "at_least": gate.at_least,
        "at_most": gate.at_most,
        "limit": limit,
        "observed": measured.value,
        "bound": bound,
        "passed": passed,
        "reason": reason,
    }


def acceptance_lines(document: Mapping[str, Any], level: float) -> list[str]:
    """A line for each gate, and how often these images were looked at before."""
    lines = [f"{'ok  ' if row['passed'] else 'FAIL'}  {_named(row)}: {row['reason']}" for row in document["gates"]]
    told = looks_line(document.get("look", 1), level)
    return lines if told is None else [*lines, told]


def require_accepted(run: RunDir, *, ignore: bool) -> list[str]:
    """Lines to say where failed gates are ignored; else Stage1Error naming the first gate that failed."""
    document = read_acceptance(run.path)
    failed = [row for row in document["gates"] if not row["passed"]] if document else []
    if not failed:
        return []
    if ignore:
        return [f"  acceptance ignored: {_named(row)}: {row['reason']}" for row in failed]
    others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    leftover = " bundle/ is of an earlier state of this run." if (run / "bundle").exists() else ""
    raise Stage1Error(
        f"acceptance gate {_named(failed[0])} failed: {failed[0]['reason']}{others}; improve the model, change"
        f" acceptance.gates, or go on with {IGNORE} (the bundle then says so). All gates:"
        f" {run / ACCEPTANCE_FILE}.{leftover}"
    )


def accepted_in_words(folder: Path) -> str | None:
    """For a bundle's card; None where no gates were set. A bundled run that failed had its gates ignored."""
    document = read_acceptance(folder)
    if document is None:
        return None
    failed = [row for row in document["gates"] if not row["passed"]]
    n = len(document["gates"])
    look = document.get("look", 1)
    at = f" at look {look} at the images of val_test" if look > 1 else ""
    if not failed:
        return (f"all {n} acceptance gates passed" if n > 1 else "the acceptance gate passed") + at
    return f"FAILED and ignored, {len(failed)} of {n}{at}: " + "; ".join(
        f"{_named(row)}: {row['reason']}" for row in failed
    )


def read_acceptance(folder: Path) -> dict[str, Any] | None:
    """acceptance.json of a run directory, None where there is none."""
    path = folder / ACCEPTANCE_FILE
    return read_document(path, ACCEPTANCE_KIND) if path.is_file() else None


def acceptance_state(run: RunDir) -> str:
    """Digest of acceptance.json, "" where there is none: part of what the stage `bundle` depends on."""
    path = run / ACCEPTANCE_FILE
    return digest_file(path) if path.is_file() else ""


def reference_state(run: RunDir) -> str:
    """Digest of the reference, "" without acceptance.reference: an input of the stage `evaluate`."""
    reference = check_reference(run.config)
    if reference is None:
        return ""
    files = [*sorted(reference.glob("val_test_*")), policy_file(reference), reference / "samples.parquet"]
    return digest_bytes("\n".join(digest_file(path) for path in files).encode())


def check_reference(config: RunConfig) -> Path | None:
    """The run directory to compare with. Raises MissingError where it is none: before a long run, not after it."""
    if config.acceptance.reference is None:
        return None
    reference = Path(config.acceptance.reference)
    FinishedRun.read(reference).scores("val_test")
    return reference


def _named(row: Mapping[str, Any]) -> str:
    phase = "" if row["phase"] is None else f"phase {row['phase']} "
    return f"{phase}{row['metric']}"


# ---- what a run is measured by -----------------------------------------------------------------------------------


def _measured(run: RunDir, evaluation: Mapping[str, Any]) -> dict[str, Measured]:
    known = {}
    for row in metrics_rows(evaluation):
        why = evaluation["metrics"].get(row["metric"], {}).get("note")
        few = "too few groups" if evaluation["unit"] == "group" else "nothing to count"
        counts = None if evaluation["unit"] == "group" else _counts(row, evaluation)
        known[row["metric"]] = Measured(row["value"], row["low"], row["high"], why or few, counts, on_test=True)
    certificate = read_document(run / "certificate.json", CERTIFICATE_KIND)
    for name, risk in certificate["risks"].items():
        shown = shown_bound(certificate, name)
        # What is promised where no joint bound is stated; a refused target keeps the bound that refused it.
        limit = shown if shown is not None else risk["target"] if certificate["certified"] else risk["bound"]
        known[f"certificate.{name}"] = Measured(risk["observed"], None, limit)
    coverage = certificate["coverage"]
    known["certificate.coverage"] = Measured(
        coverage["value"], coverage["bound"], None, "no floor was certified: set coverage in the config"
    )
    wanted = {gate.metric for gate in run.config.acceptance.gates}
    config = run.config
    options = {"n_resamples": config.evaluation.resamples, "level": config.evaluation.level, "seed": config.seed}
    if "gate.gain" in wanted:
        known["gate.gain"] = _gate_gain(load_policy(run.path), read_role(run.path, "val_test"), options)
    if any(name.startswith("gain.") for name in wanted):
        known |= _gains(run, options)
    return known


def _counts(row: Mapping[str, Any], evaluation: Mapping[str, Any]) -> tuple[int, int] | None:
    """(errors or exits, of how many) of a rate whose interval is exact."""
    name = row["metric"]
    if name in evaluation["risks"]:
        return row["errors"], row["n"]
    if name == "coverage":
        return evaluation["coverage"]["overall"]["exits"], row["n"]
    if name.startswith("coverage."):
        return evaluation["coverage"]["per_class"][name.removeprefix("coverage.")]["exits"], row["n"]
    return None


def _gate_gain(policy: Policy, scores: Scores, options: Mapping[str, Any]) -> Measured:
    if policy.decided_by is None:
        return Measured(None, None, None, f"the policy is {policy.name}, which has no gate")
    if policy.decided_by != policy.name:
        return Measured(None, None, None, "the gate was refused on val_select, softmax decides")
    probability = policy.base.decide(scores).probability  # of class 1: g where class 1 is predicted, else 1 - g
    found = accept_gate(scores, np.where(scores.margin > 0, probability, 1.0 - probability), **options)
    return Measured(finite_or_none(found.gain), found.low, found.high, found.reason, on_test=True)


def _gains(run: RunDir, options: Mapping[str, Any]) -> dict[str, Measured]:
    reference = check_reference(run.config)
    assert reference is not None  # the config refuses gain.METRIC without it
    here, there = FinishedRun.read(run.path), FinishedRun.read(reference)
    refuse_other_splits([there, here])
    alike = here.target is not None and here.target == there.target
    both = {"reference": [there.arm_run("val_test", decide=alike)], "run": [here.arm_run("val_test", decide=alike)]}
    found = {}
    for row in compare_arms(both, **options)["differences"]:
        ends = [row["difference"], row["low"], row["high"]]
        if row["metric"] not in HIGHER_IS_BETTER:
            value, low, high = (None if end is None else -end for end in (ends[0], ends[2], ends[1]))
        else:
            value, low, high = ends
        found[f"gain.{row['metric']}"] = Measured(value, low, high, row.get("note", ""), on_test=True)
    return found
