"""cascade evaluate: from recorded answers to the certificate of the whole, its frontier and the document that holds both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stage1.documents import read_document, write_document
from stage1.errors import ConfigError, MissingError, NotCertifiable
from stage1.files import digest_bytes, write_bytes
from stage1.inference.cascade.candidates import candidates
from stage1.inference.cascade.config import CascadeConfig
from stage1.inference.cascade.frontier import frontier, rates, stage_costs
from stage1.inference.cascade.rules import Recorded, Rule, final_answers
from stage1.inference.cascade.stages import Cascade, open_cascade
from stage1.inference.cascade.whole import CascadeCertificate, Labelled, StageClaim, certify_cascade
from stage1.pipeline.cascade_attempts import earlier_attempts, note_attempts
from stage1.pipeline.cascade_images import ROLES, Roled, ask_all, by_role, roled_images
from stage1.pipeline.progress import Progress
from stage1.policy.certify import calibration_digest
from stage1.policy.units import one_per_group
from stage1.risk import binomial_lower

DOCUMENT, ANSWERS = "cascade.json", "answers.jsonl"


def evaluate_cascade(
    path: Path, table: Path, output: Path, *, answers: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Ask every stage for every labelled image (or read recorded answers), certify the whole, write it to `output`.

    Writes cascade.json, answers.jsonl (where it asked), frontier.png and frontier.svg (where matplotlib is there), and beside
    the answers which configurations were tried on them. Images that are in answers.jsonl already are not asked again, but
    for those that an outage cut off. Returns cascade.json, with `written` and `notes` for people.
    Raises ConfigError, DataError, MissingError, IntegrityError.
    """
    progress = progress or Progress()
    cascade = open_cascade(path)
    roled = roled_images(cascade, table)
    if answers is None:
        answers = output / ANSWERS
        ask_all(cascade, roled, answers, progress)
    labelled = by_role(cascade, roled, answers)
    claims = _own_claims(cascade)
    own, calib_digest = _configuration(cascade), calibration_digest(labelled["val_calib"].known)
    history = earlier_attempts(answers, [answers.parent / DOCUMENT, output / DOCUMENT], calib_digest)
    history = history if own in history else [*history, own]
    certificate, ordered = certify_cascade(
        cascade.config, labelled["val_calib"], labelled["val_select"], stages=claims, attempt=history.index(own) + 1
    )
    document = _document(cascade, certificate, ordered, labelled, roled, history)
    # Before anybody sees what came of it.
    note = note_attempts(answers, calib_digest, history)
    write_document(output / DOCUMENT, document, "cascade")
    document["written"] = [str(output / DOCUMENT), *_figure(document, output)]
    document["notes"] = [note] if note else []
    return document


def certified_rules(folder: Path, cascade: Cascade) -> tuple[tuple[Rule, ...], dict[str, Any]]:
    """The rules that `evaluate` wrote, and its document. Raises ConfigError where they are of other stages, NotCertifiable
    where nothing was certified."""
    document = read_document(folder / DOCUMENT, "cascade")
    if document["stages_digest"] != cascade.digest or document["classes"] != cascade.config.classes:
        raise ConfigError(f"{folder / DOCUMENT}: was made for other stages; run `stage1 cascade evaluate` again")
    certificate = document["certificate"]
    if not certificate["certified"]:
        raise NotCertifiable(
            f"{folder / DOCUMENT}: {certificate['statement']} Needed: {certificate['needed'] or 'see the reason'}."
        )
    return tuple(Rule(**rule) for rule in certificate["rules"]), document


def _own_claims(cascade: Cascade) -> tuple[StageClaim, ...]:
    return tuple(
        StageClaim(
            cascade.names[place], bundle.certificate.certified, bundle.certificate.delta, bundle.certificate.statement
        )
        for place, bundle in cascade.bundles.items()
        if cascade.config.stages[place].exit == "own"
    )


# ---- the document ------------------------------------------------------------------------------------------------


def _configuration(cascade: Cascade) -> str:
    """What is put to the test: stages, rules and limits; prices are not part of it."""
    stages = [stage.model_dump(mode="json", include={"exit", "answer_above"}) for stage in cascade.config.stages]
    rest = cascade.config.model_dump(mode="json", exclude={"stages", "name", "currency"})
    return digest_bytes(json.dumps([cascade.digest, stages, rest], sort_keys=True).encode())


def _document(
    cascade: Cascade, certificate: CascadeCertificate, ordered: Any, labelled: Mapping[str, Labelled], roled: Roled,
    history: list[str],
) -> dict[str, Any]:  # fmt: skip
    config, calib, select = cascade.config, labelled["val_calib"], labelled["val_select"]
    rows = list(ordered)
    varied = bool(config.auto_exits)
    if not varied and len(select):
        # For the picture alone: what other thresholds would cost. None of these is certified.
        rows = candidates(
            select.recorded,
            select.known.known_labels,
            config,
            n_calib=len(calib),
            delta=certificate.delta,
            varied=[0],
        )
    chosen = [candidate.rules for candidate in ordered].index(certificate.rules)
    passed = range(chosen - certificate.tested + 1, chosen + 1) if certificate.certified and varied else ()
    found = frontier(config, rows, calib, select, unit=certificate.unit, delta=certificate.delta, passed=list(passed))
    own = frontier(
        config, [replace(ordered[chosen])], calib, select, unit=certificate.unit, delta=certificate.delta,
        passed=[0] if certificate.certified else [],
    )  # fmt: skip
    everyone = _joined([labelled[role].recorded for role in ROLES if len(labelled[role])])
    # Among how many val_calib chose; what is drawn for the picture alone was chosen by nothing.
    defer = _defer_counts(labelled, certificate, config, len(ordered))
    for row, candidate in zip(found, rows, strict=True):
        row["counted"] = _counted(labelled[defer["role"]], candidate.rules, config)
    own[0]["counted"] = defer["stages"]
    return {
        "name": config.name, "classes": config.classes, "stages": cascade.names, "stages_digest": cascade.digest,
        "currency": config.currency, "certificate": certificate.to_document(), "history": history,
        "roles": {role: len(labelled[role]) for role in ROLES}, "roles_from": roled.origin, "left_out": roled.left_out,
        "costs": stage_costs(everyone, config), "chosen": own[0], "frontier": found,
        "test": _tested(labelled["val_test"], certificate, config), "defer": defer,
        "fallback_alone": _fallback_alone(calib, certificate, config),
    }  # fmt: skip


def _joined(parts: list[Recorded]) -> Recorded:
    return Recorded(*(np.concatenate([getattr(part, name) for part in parts]) for name in Recorded.__slots__))


def _tested(test: Labelled, certificate: CascadeCertificate, config: CascadeConfig) -> dict[str, Any] | None:
    """The claim on val_test: rates, counts, and whether they contradict it (exact lower bound at 95 % above the limit)."""
    if not len(test):
        return None
    positive = final_answers(test.recorded, certificate.rules, config.default_probability).positive
    found: dict[str, Any] = dict(rates(test, positive))
    contradicted = []
    for name, wrong, of in (("miss_rate", "misses", "positives"), ("false_exit_rate", "false_exits", "negatives")):
        risk = certificate.risks.get(name)
        limit = None if risk is None else risk.bound if risk.target is None else risk.target
        if limit is not None and found[of] and float(binomial_lower(found[wrong], found[of], 0.05)) > limit:
            contradicted.append(name)
    return found | {"contradicted": contradicted}


def _defer_counts(
    labelled: Mapping[str, Labelled], certificate: CascadeCertificate, config: CascadeConfig, choices: int
) -> dict[str, Any]:
    """What reaches each later stage, counted on independent units of val_test, or of val_calib where there is none.

    choices: configurations among which val_calib chose.
    """
    role = "val_test" if len(labelled["val_test"]) else "val_calib"
    known = labelled[role].known
    rows = one_per_group(known, config.seed)
    return {
        "role": role, "choices": choices if role == "val_calib" else 1, "units": len(rows),
        "positives": int((known.known_labels[rows] == 1).sum()), "stages": _counted(labelled[role], certificate.rules, config),
    }  # fmt: skip


def _counted(part: Labelled, rules: tuple[Rule, ...], config: CascadeConfig) -> list[dict[str, Any]]:
    """Of one configuration: what reaches each later stage, counted on independent units."""
    rows = one_per_group(part.known, config.seed)
    asked = final_answers(part.recorded.take(rows), rules, config.default_probability).asked
    ones = part.known.known_labels[rows] == 1
    return [
        {"stage": stage.name, "deferred": int(asked[:, place].sum()), "deferred_positives": int((asked[:, place] & ones).sum())}
        for place, stage in enumerate(config.stages) if place
    ]  # fmt: skip


def _fallback_alone(calib: Labelled, certificate: CascadeCertificate, config: CascadeConfig) -> dict[str, Any]:
    """Rates on val_calib if every call after the first stage failed: what an outage would give."""
    probability = calib.recorded.probability.copy()
    probability[:, 1:] = np.nan
    first_only = Recorded(
        **{**{name: getattr(calib.recorded, name) for name in Recorded.__slots__}, "probability": probability}
    )
    return dict(rates(calib, final_answers(first_only, certificate.rules, config.default_probability).positive))


def _figure(document: Mapping[str, Any], output: Path) -> list[str]:
    from stage1.report.frontier_figure import draw_frontier

    try:
        drawing = draw_frontier(document)
    except MissingError:
        return []  # without the extra `report` the numbers are in cascade.json all the same
    for name, data in (("frontier.png", drawing.png), ("frontier.svg", drawing.svg)):
        write_bytes(output / name, data)
    return [str(output / "frontier.png"), str(output / "frontier.svg")]
