"""report.html: one page without network, libraries or fonts of others, and the figures beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from stage1.errors import DataError, IntegrityError
from stage1.evaluation.argmax import argmax_lines
from stage1.evaluation.verdict import Check, check_coverage, interval, judge, risk_checks
from stage1.extras import load
from stage1.policy.certificate import on_average, shown_bound
from stage1.policy.unlimited import unlimited_rates
from stage1.report.agreement import refuse_disagreement
from stage1.report.explorer import collect, explorer, script
from stage1.report.figures.drawing import Drawing
from stage1.report.figures.figure import Documents, Place
from stage1.report.figures.registry import FIGURES, draw_figures, words_of_figures
from stage1.report.numbers import number, percent, upper_percent, whole, words
from stage1.risk.risks import is_risk, risk_of
from stage1.scores import Scores
from stage1.scores.columns import words_of
from stage1.storage.files import write_bytes, write_text
from stage1.views.registry import meaning as aggregator_meaning

if TYPE_CHECKING:
    from jinja2 import Template

Document = Mapping[str, Any]

METRIC_MEANINGS = {
    "auroc": "how well the score ranks positives above negatives; higher is better",
    "aurc": "area under the risk-coverage curve; lower is better",
    "e_aurc": "AURC above that of the best possible order; lower is better",
    "e_augrc": "AUGRC above that of the best possible order; lower is better",
    "augrc": "average chance of a silent error over all coverages; lower is better",
    "auroc_f": "how well confidence ranks right above wrong answers; higher is better",
    "accuracy": "share right if every image were answered",
    "mcc": "Matthews correlation if every image were answered; higher is better",
    "nll": "negative log-likelihood; lower is better",
    "brier": "squared error of the probability; lower is better",
    "ece": "calibration error; lower is better",
    "coverage": "share of images that exits",
}


# More entries of a loosely shaped field than this are counted, not listed.
_MOST_ENTRIES = 12


@dataclass(frozen=True, slots=True)
class Thumb:
    """One image to show: JPEG bytes, file name or other caption, true class, what the policy did, probability of class
    1.

    decided: which of several views decided (it is framed in the picture), "" without views.
    """

    jpeg: bytes
    caption: str
    label: str
    decision: str
    probability: float
    decided: str = ""


def write_report(
    folder: Path,
    *,
    certificate: Document,
    evaluation: Document,
    split: Document | None,
    policy: Document,
    scores: Scores,
    thumbnails: Sequence[Thumb],
    run: Document,
    calibration: Scores | None = None,
    views: Document | None = None,
) -> list[Path]:
    """Write `folder/report.html` and `folder/figures/*.png`, `*.svg`; each file whole or not at all. Returns their
    paths, page first.

    certificate, evaluation, split, policy: the documents certificate.json, evaluation.json, splits.json (None where the
    roles come from elsewhere) and thresholds.json. scores: val_test, [N, K] with labels. thumbnails: the worst errors,
    worst first.
    run: facts to print, all optional: name, created, model, n_images, config (mapping or text), seconds (stage -> s),
    bundle (where `stage1 verify` finds it), recompute (the command instead, where there is no bundle); further keys are
    printed as they are.
    calibration: the labelled scores of val_calib that the certificate counted (one image of each group where its unit
    is the group); with them the page has the threshold explorer and the threshold plane, without them it says so.
    views: what views.json says and how it was chosen (asked, ships, description, aggregator, comparison, order,
    expected); None: no views.
    Every number printed comes from these; the same input gives the same bytes.
    Raises MissingError without matplotlib or jinja2, IntegrityError where the documents belong to different runs, or
    are of a version that did not write what the page shows.
    """
    refuse_disagreement(certificate, evaluation, policy, scores)
    try:
        figures = draw_figures(
            certificate=certificate,
            evaluation=evaluation,
            policy=policy,
            scores=scores,
            calibration=calibration,
            views=views,
        )
        page = render_page(
            certificate=certificate,
            evaluation=evaluation,
            split=split,
            policy=policy,
            thumbnails=thumbnails,
            run=run,
            figures=figures,
            calibration=calibration,
            views=views,
        )
    except Exception as error:
        if not isinstance(error, (KeyError, *_undefined())):
            raise
        # The schemas ask for what every version writes; the page for what this one does.
        raise IntegrityError(
            f"{folder}: its documents lack what the page shows ({words_of(error)}); another version wrote them: run"
            " `stage1 evaluate` again, with --force for a run directory, or `stage1 calibrate` where it is the"
            " certificate"
        ) from error
    folder = Path(folder)
    written = [folder / "report.html"]
    for name, drawing in figures.items():
        for kind, data in (("png", drawing.png), ("svg", drawing.svg)):
            written.append(folder / "figures" / f"{name}.{kind}")
            write_bytes(written[-1], data)
    # The page last: where it stands, its figures stand.
    write_text(written[0], page)
    return written


def render_page(
    *,
    certificate: Document,
    evaluation: Document,
    split: Document | None,
    policy: Document,
    thumbnails: Sequence[Thumb],
    run: Document,
    figures: Mapping[str, Drawing],
    calibration: Scores | None = None,
    views: Document | None = None,
) -> str:
    """The page as text; figures: as draw_figures returns them. Other arguments as write_report."""
    template = _template()
    unit = evaluation["unit"]
    checks = risk_checks(certificate, evaluation)
    documents = Documents(certificate=certificate, evaluation=evaluation, policy=policy, views=views)
    figure_words = words_of_figures(documents, figures)
    return template.render(
        certificate=certificate,
        evaluation=evaluation,
        policy=policy,
        run=run,
        verdict=judge(certificate, evaluation),
        on_average=on_average(certificate["method"]),
        bounds={name: shown_bound(certificate, name) for name in certificate["risks"]},
        risks=[_risk_card(check, certificate, evaluation) for check in checks],
        coverage={
            "calibrated": certificate["coverage"],
            "tested": evaluation["coverage"]["overall"],
            "range": interval(evaluation["coverage"]["overall"], unit),
            "check": check_coverage(
                certificate["coverage"], evaluation["coverage"]["overall"], unit, evaluation["level"]
            ),
        },
        unlimited=certificate.get("unlimited", ()),
        not_limited=_not_limited(certificate, evaluation),
        grouped=unit == "group",
        meanings=METRIC_MEANINGS,
        risk_meanings={name: _meaning(name, evaluation) for name in evaluation["risks"]},
        split=_split_table(split),
        confusion=_confusion(evaluation),
        argmax=argmax_lines(evaluation),
        figures={name: _data_uri(drawing.png, "image/png") for name, drawing in figures.items()},
        figure_words=figure_words,
        placed={place: [name for name in figure_words if FIGURES[name].place == place] for place in get_args(Place)},
        figure_sizes={name: _png_size(drawing.png) for name, drawing in figures.items()},
        explorer=explorer(collect(certificate, policy, calibration)),
        explorer_script=script()[0],
        explorer_hash=script()[1],
        thumbnails=[(thumb, _data_uri(thumb.jpeg, "image/jpeg")) for thumb in thumbnails],
        facts=_facts(run),
        views=views,
        aggregator_meaning=aggregator_meaning,
    )


def _undefined() -> tuple[type[Exception], ...]:
    return (load("jinja2", "the report").UndefinedError,)


@cache
def _template() -> Template:
    jinja2 = load("jinja2", "the report")
    # Autoescape without exception: file names and class names come from strangers.
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.PackageLoader("stage1.report"),
    )
    environment.filters |= {"pct": percent, "upper": upper_percent, "num": number, "count": whole, "words": words}
    template: Template = environment.get_template("report.html.j2")
    return template


# ---- the parts of the page ---------------------------------------------------------------------------------------


def _meaning(name: str, evaluation: Document) -> str:
    """A risk in words; with more than two classes the name says of which: fnr.cat."""
    classes = evaluation["classes"]
    if not is_risk(name, classes):
        # A document of a version, or with a registered risk, that this one does not have.
        return "share of answers that are wrong"
    risk, index = risk_of(name, classes)
    return risk.share(classes, index)


def _not_limited(certificate: Document, evaluation: Document) -> list[tuple[str, Any]]:
    """[(name, row)] of the rates of evaluation.json that this certificate leaves without a limit, where they were
    observed.
    """
    if not certificate.get("unlimited"):
        return []
    names = unlimited_rates(certificate["risks"], certificate["classes"], certificate["never_answered"])
    rows = [(name, evaluation["risks"].get(name)) for name in names]
    return [(name, row) for name, row in rows if row is not None and row["observed"] is not None]


def _risk_card(check: Check, certificate: Document, evaluation: Document) -> dict[str, Any]:
    """One certified risk with its gauge: everything on a common scale, positions in per cent of the width."""
    promised, observed = certificate["risks"][check.name], evaluation["risks"].get(check.name)
    meaning = _meaning(check.name, evaluation)
    seen = observed is not None and observed["observed"] is not None
    low, high = interval(observed, evaluation["unit"]) if observed is not None and seen else (None, None)
    # A bound or an interval from a handful of images may reach 1: it runs off the gauge, and the target stays in sight.
    top = min(1.3 * max(promised["target"], promised["bound"] or 0.0, high or 0.0), 2.6 * promised["target"])

    def place(value: float | None) -> float | None:
        return None if value is None else round(min(100.0, 100.0 * value / top), 2)

    bound = shown_bound(certificate, check.name)
    gauge = {
        "target": place(promised["target"]),
        "bound": place(promised["target"] if certificate["certified"] and bound is None else promised["bound"]),
        "calibration": place(promised["observed"]),
        "low": place(low),
        "high": place(high),
        "test": place(observed["observed"]) if observed is not None else None,
    }
    return {
        "check": check,
        "meaning": meaning,
        "promised": promised,
        "bound": bound,
        "observed": observed,
        "range": (low, high),
        "gauge": gauge,
    }


def _split_table(split: Document | None) -> dict[str, Any] | None:
    """The rows of the split table. split: {roles: {role: {counts: {class: n}, n_groups, group_counts?,
    can_certify?}}, ...}.
    """
    if split is None:
        return None
    roles = split["roles"]
    classes = list(dict.fromkeys(name for row in roles.values() for name in row["counts"]))
    rows = []
    for role, row in roles.items():
        groups = row.get("group_counts") or {}
        # Groups are news only where an image is not its own group.
        cells = [(row["counts"].get(name, 0), groups.get(name)) for name in classes]
        cells = [(count, group if group != count else None) for count, group in cells]
        certify = row.get("can_certify")
        rows.append(
            {
                "role": role,
                "cells": cells,
                "total": sum(row["counts"].values()),
                "n_groups": row.get("n_groups"),
                "can_certify": words(certify) if certify else "",
            }
        )
    facts = {key: value for key, value in split.items() if key not in ("roles", "classes", "schema_version", "leakage")}
    return {
        "classes": classes,
        "rows": rows,
        "certify": any(row["can_certify"] for row in rows),
        # A mapping of thousands of entries is for the machine; here it is a count.
        "facts": {
            key.replace("_", " "): f"{len(value):,} entries" if _is_long(value) else words(value)
            for key, value in facts.items()
            if value not in (None, [], {}, "")
        },
        "leakage": split.get("leakage") or None,
        "schema_version": split.get("schema_version"),
    }


def _is_long(value: Any) -> bool:
    return isinstance(value, (Mapping, list, tuple)) and len(value) > _MOST_ENTRIES


def _confusion(evaluation: Document) -> dict[str, Any]:
    table = evaluation["exit_confusion"]
    rows = []
    for name, counts in zip(table["rows"], table["counts"], strict=True):
        total = sum(counts)
        rows.append(
            {"name": name, "total": total, "cells": [(count, count / total if total else None) for count in counts]}
        )
    return {"columns": table["columns"], "rows": rows}


def _facts(run: Document) -> list[tuple[str, str]]:
    named = {"name": "Run", "created": "Created", "model": "Model", "n_images": "Images", "config": "Config"}
    rows = [(text, words(run[key])) for key, text in named.items() if run.get(key) is not None]
    rows += [
        (key, words(value))
        for key, value in run.items()
        if key not in (*named, "seconds", "bundle", "recompute") and value is not None
    ]
    seconds = run.get("seconds")
    if seconds:
        rows.append(("Seconds per stage", ", ".join(f"{stage} {seconds[stage]:,.1f}" for stage in seconds)))
    return rows


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _png_size(png: bytes) -> tuple[int, int]:
    """Width and height from the header, so that the page keeps their room before the image is decoded."""
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise DataError(f"figure: starts with {png[:8]!r}; PNG bytes are needed")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
