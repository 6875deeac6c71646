"""`cascade run` and `cascade evaluate`: from paths to recorded answers, from these to the certificate and its frontier.

The document that `evaluate` writes holds both; the lines that people see of either command are made here as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from stage1.cascade.answers import Answer, header, open_log
from stage1.cascade.attempts import cascade_ledger
from stage1.cascade.candidates import candidates
from stage1.cascade.certificate import CascadeCertificate, Labelled, StageClaim, certify_cascade, whole_delta
from stage1.cascade.config import CascadeConfig
from stage1.cascade.cost import deferred_clusters, frontier, rates, stage_costs
from stage1.cascade.rules import Recorded, Rule, final_answers
from stage1.cascade.runner import Tally, run_cascade
from stage1.cascade.schema import CASCADE_KIND
from stage1.cascade.stages import Cascade, fixed_rules, open_cascade
from stage1.commands.cascade_images import ROLES, Roled, ask_all, by_role, roled_images
from stage1.errors import ConfigError, MissingError, NotCertifiable
from stage1.inference.inputs import iterate_inputs
from stage1.policy.attempts import Look, Plan
from stage1.policy.image_keys import image_set
from stage1.policy.units import clustered
from stage1.risk import binomial_lower
from stage1.runs.progress import Progress
from stage1.storage.documents import read_document, write_document
from stage1.storage.files import digest_bytes, write_bytes

DOCUMENT, ANSWERS = "cascade.json", "answers.jsonl"


def evaluate_cascade(
    path: Path, table: Path, output: Path, *, answers: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Ask every stage for every labelled image (or read recorded answers), certify the whole, write it to `output`.

    Writes cascade.json, answers.jsonl (where it asked), frontier.png and frontier.svg (where matplotlib is there), and
    beside the answers which configurations were tried on them. Images that are in answers.jsonl already are not asked
    again, but for those that an outage cut off. Returns cascade.json, with `written` and `notes` for people.
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
    notes: list[str] = []
    ledger = cascade_ledger(answers, output, [answers.parent / DOCUMENT, output / DOCUMENT], notes.append)
    own = Look(_configuration(cascade), image_set(labelled["val_calib"].known), asked=_asked(cascade))
    # The looks are written down when the block ends, before anybody sees what came of this one.
    with ledger.asking(own, 1.0 - whole_delta(cascade.config, claims), Plan()) as (attempts, _):
        certificate, ordered = certify_cascade(
            cascade.config, labelled["val_calib"], labelled["val_select"], stages=claims, attempts=attempts
        )
    document = _document(cascade, certificate, ordered, labelled, roled, [look.look for look in ledger.looks])
    write_document(output / DOCUMENT, document, CASCADE_KIND)
    document["written"] = [str(output / DOCUMENT), *_figure(document, output)]
    document["notes"] = notes
    return document


def certified_rules(folder: Path, cascade: Cascade) -> tuple[tuple[Rule, ...], dict[str, Any]]:
    """The rules that `evaluate` wrote, and its document. Raises ConfigError where they are of other stages,
    NotCertifiable where nothing was certified."""
    document = read_document(folder / DOCUMENT, CASCADE_KIND)
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
    """What is tested: stages, rules and limits; prices are not part of it."""
    stages = [stage.model_dump(mode="json", include={"exit", "answer_above"}) for stage in cascade.config.stages]
    rest = cascade.config.model_dump(mode="json", exclude={"stages", "name", "currency"})
    return digest_bytes(json.dumps([cascade.digest, stages, rest], sort_keys=True).encode())


def _asked(cascade: Cascade) -> dict[str, Any]:
    """The same in words, for people."""
    config = cascade.config
    return {"cascade": config.name, "risks": dict(config.risks), "confidence": config.confidence, "unit": config.unit}


def _document(
    cascade: Cascade,
    certificate: CascadeCertificate,
    ordered: Any,
    labelled: Mapping[str, Labelled],
    roled: Roled,
    history: list[str],
) -> dict[str, Any]:
    config, calib, select = cascade.config, labelled["val_calib"], labelled["val_select"]
    rows = list(ordered)
    varied = bool(config.auto_exits)
    if not varied and len(select):
        # For the figure alone: what other thresholds would cost. None of these is certified.
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
        config,
        [replace(ordered[chosen])],
        calib,
        select,
        unit=certificate.unit,
        delta=certificate.delta,
        passed=[0] if certificate.certified else [],
    )
    everyone = _joined([labelled[role].recorded for role in ROLES if len(labelled[role])])
    # Among how many val_calib chose; what is drawn for the figure alone was not chosen.
    defer = _defer_counts(labelled, certificate, config, len(ordered))
    for row, candidate in zip(found, rows, strict=True):
        row["counted"] = _counted(labelled[defer["role"]], candidate.rules, config)
    own[0]["counted"] = defer["stages"]
    return {
        "name": config.name,
        "classes": config.classes,
        "stages": cascade.names,
        "stages_digest": cascade.digest,
        "currency": config.currency,
        "certificate": certificate.to_document(),
        "history": history,
        "roles": {role: len(labelled[role]) for role in ROLES},
        "roles_from": roled.origin,
        "left_out": roled.left_out,
        "costs": stage_costs(everyone, config),
        "chosen": own[0],
        "frontier": found,
        "test": _tested(labelled["val_test"], certificate, config),
        "defer": defer,
        "fallback_alone": _fallback_alone(calib, certificate, config),
    }


def _joined(parts: list[Recorded]) -> Recorded:
    return Recorded(*(np.concatenate([getattr(part, name) for part in parts]) for name in Recorded.__slots__))


def _tested(test: Labelled, certificate: CascadeCertificate, config: CascadeConfig) -> dict[str, Any] | None:
    """The claim on val_test: rates, counts, and whether they contradict it (exact lower bound at 95 %)."""
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
    """What reaches each later stage, counted on all images of val_test, or of val_calib where there is none.

    choices: configurations among which val_calib chose.
    """
    role = "val_test" if len(labelled["val_test"]) else "val_calib"
    known = labelled[role].known
    return {
        "role": role,
        "choices": choices if role == "val_calib" else 1,
        "units": len(known),
        "positives": int((known.known_labels == 1).sum()),
        "stages": _counted(labelled[role], certificate.rules, config),
    }


def _counted(part: Labelled, rules: tuple[Rule, ...], config: CascadeConfig) -> list[dict[str, Any]]:
    """Of one configuration: the images that reach each later stage. All count, as all of them arrive: a group brings
    as many as it has."""
    known = part.known
    asked = final_answers(part.recorded, rules, config.default_probability).asked
    ones = known.known_labels == 1
    grouped = known.groups if clustered(known) else None
    return [
        {
            "stage": stage.name,
            "deferred": int(asked[:, place].sum()),
            "deferred_positives": int((asked[:, place] & ones).sum()),
            **({} if grouped is None else {"clusters": deferred_clusters(asked[:, place], ones, grouped)}),
        }
        for place, stage in enumerate(config.stages)
        if place
    ]


def _fallback_alone(calib: Labelled, certificate: CascadeCertificate, config: CascadeConfig) -> dict[str, Any]:
    """Rates on val_calib if every call after the first stage failed: what an outage would give."""
    probability = calib.recorded.probability.copy()
    probability[:, 1:] = np.nan
    first_only = Recorded(
        **{**{name: getattr(calib.recorded, name) for name in Recorded.__slots__}, "probability": probability}
    )
    return dict(rates(calib, final_answers(first_only, certificate.rules, config.default_probability).positive))


def _figure(document: Mapping[str, Any], output: Path) -> list[str]:
    from stage1.report.figures.frontier import draw_frontier

    try:
        drawing = draw_frontier(document)
    except MissingError:
        return []  # without the extra `report` the numbers are in cascade.json all the same
    for name, data in (("frontier.png", drawing.png), ("frontier.svg", drawing.svg)):
        write_bytes(output / name, data)
    return [str(output / "frontier.png"), str(output / "frontier.svg")]


class _Printed:
    """Answers as JSON lines on a text stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, answer: Answer) -> None:
        self._stream.write(answer.to_line() + "\n")
        self._stream.flush()


def answer_images(
    path: Path,
    images: Sequence[str],
    *,
    certified: Path | None,
    output: Path | None,
    stdin: BinaryIO | None,
    stdout: TextIO,
) -> tuple[Tally, list[str]]:
    """Answer images by a cascade; into `output` where given, else to `stdout`. Returns the tally and notes for people.

    Raises ConfigError where thresholds are open (auto) and no evaluation is given, and as open_cascade and open_log do.
    """
    cascade = open_cascade(path)
    notes = ["no certificate: thresholds of the file (give --certified FOLDER of `stage1 cascade evaluate`)"]
    if certified is None:
        rules = fixed_rules(cascade.config)
    else:
        if not certified.is_dir():
            raise MissingError(f"--certified {certified}: no such folder; make it with `stage1 cascade evaluate`")
        rules, document = certified_rules(certified, cascade)
        notes = [document["certificate"]["statement"]]
    inputs = iterate_inputs(images, stdin, on_left_out=notes.append)
    if output is None:
        return run_cascade(cascade, inputs, _Printed(stdout), rules=rules), notes
    head = header(cascade.digest, [rule.to_document() for rule in rules], cascade.names)
    with open_log(output, head) as (done, sink):
        return run_cascade(cascade, inputs, sink, rules=rules, done=[answer.image for answer in done]), notes


def tally_lines(tally: Tally) -> list[str]:
    """What a run did, for people."""
    by = ", ".join(f"{name} {count}" for name, count in tally.by.items()) or "none"
    lines = [f"{tally.answered} answered ({by}), {tally.fallbacks} by a fallback, {tally.skipped} were answered before"]
    for stage, outcomes in tally.failed.items():
        lines.append(f"  {stage}: {', '.join(f'{count} {kind}' for kind, count in sorted(outcomes.items()))}")
    return lines


def evaluation_lines(document: dict[str, Any]) -> list[str]:
    """An evaluation for people: the sentence, the risks, val_test, costs, files."""
    certificate = document["certificate"]
    lines = ["", f"{'CERTIFIED' if certificate['certified'] else 'NOT CERTIFIED'}  {certificate['statement']}", ""]
    for name, risk in certificate["risks"].items():
        limit = "" if risk["target"] is None else f"  limit {risk['target']:.4g}"
        seen = "-" if risk["observed"] is None else f"{risk['observed']:.4f}"
        lines.append(
            f"{name:<16} {seen}  upper bound {risk['bound']:.4f}{limit}  ({risk['errors']} of {risk['n']} on val_calib)"
        )
    if (test := document["test"]) is not None:
        lines.append(
            f"on val_test: {test['misses']} of {test['positives']} missed, {test['false_exits']} of {test['negatives']}"
            " raised falsely"
            + (f"; CONTRADICTS {', '.join(test['contradicted'])}" if test["contradicted"] else "; no contradiction")
        )
    chosen = document["chosen"]
    lines.append(
        f"{chosen['deferred']:.1%} deferred, {1000 * chosen['money']:.4g} {document['currency']} for 1,000 images,"
        f" {chosen['milliseconds']:.4g} ms an image"
    )
    for cost in document["costs"]:
        median = "-" if cost["median_milliseconds"] is None else f"{cost['median_milliseconds']:.4g}"
        waited = cost["waited_milliseconds"]
        budget = f", and {waited:.4g} ms of waiting for its budget on average, which is no cost" if waited >= 1 else ""
        lines.append(
            f"  {cost['stage']}: {cost['calls']} calls, {cost['failed']:.1%} failed, median {median} ms{budget}"
        )
    return [*lines, "", *document["written"], *document["notes"]]
