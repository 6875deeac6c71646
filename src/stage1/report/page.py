"""report.html: one page without network, libraries or fonts of others, and the figures beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from stage1.errors import DataError, IntegrityError
from stage1.evaluation.argmax import argmax_lines, largest
from stage1.evaluation.verdict import check_coverage, interval, judge, risk_checks
from stage1.extras import load
from stage1.policy.certificate import shown_bound
from stage1.report.agreement import refuse_disagreement
from stage1.report.explorer import collect, explorer, script
from stage1.report.figures.drawing import Drawing
from stage1.report.figures.figure import Documents, Place
from stage1.report.figures.registry import FIGURES, draw_figures, words_of_figures
from stage1.report.numbers import number, percent, upper_percent, whole, words
from stage1.report.sections import (
    METRIC_MEANINGS,
    confusion_table,
    not_limited,
    risk_card,
    risk_meaning,
    run_facts,
    split_table,
)
from stage1.risk.definition import on_average
from stage1.scores import Scores
from stage1.scores.columns import words_of
from stage1.storage.files import write_bytes, write_text

if TYPE_CHECKING:
    from jinja2 import Template

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Thumb:
    """One image to show: JPEG bytes, file name or caption, true class, what the policy did, probability of class 1.

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
    """Write `folder/report.html` and `figures/*.png`, `*.svg`, each whole or not at all. Returns paths, page first.

    certificate, evaluation, split, policy: the documents certificate.json, evaluation.json, splits.json (None where the
    roles come from elsewhere) and thresholds.json. scores: val_test, [N, K] with labels. thumbnails: the worst errors,
    worst first.
    run: facts to print, all optional: name, created, model, n_images, config (mapping or text), seconds (stage -> s),
    bundle (where `stage1 verify` finds it), recompute (the command instead, where there is no bundle); further keys are
    printed unchanged.
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
    # The page last: where it is, its figures are.
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
    from stage1.views.registry import meaning as aggregator_meaning  # late: it loads the library that decodes pictures

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
        risks=[risk_card(check, certificate, evaluation) for check in checks],
        coverage={
            "calibrated": certificate["coverage"],
            "tested": evaluation["coverage"]["overall"],
            "range": interval(evaluation["coverage"]["overall"], unit),
            "check": check_coverage(
                certificate["coverage"], evaluation["coverage"]["overall"], unit, evaluation["level"]
            ),
        },
        unlimited=certificate.get("unlimited", ()),
        not_limited=not_limited(certificate, evaluation),
        grouped=unit == "group",
        meanings=METRIC_MEANINGS,
        risk_meanings={name: risk_meaning(name, evaluation) for name in evaluation["risks"]},
        split=split_table(split),
        confusion=confusion_table(evaluation),
        argmax=argmax_lines(evaluation),
        largest=largest(len(evaluation["classes"])),
        figures={name: _data_uri(drawing.png, "image/png") for name, drawing in figures.items()},
        figure_words=figure_words,
        placed={place: [name for name in figure_words if FIGURES[name].place == place] for place in get_args(Place)},
        figure_sizes={name: _png_size(drawing.png) for name, drawing in figures.items()},
        explorer=explorer(collect(certificate, policy, calibration)),
        explorer_script=script()[0],
        explorer_hash=script()[1],
        thumbnails=[(thumb, _data_uri(thumb.jpeg, "image/jpeg")) for thumb in thumbnails],
        facts=run_facts(run),
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


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _png_size(png: bytes) -> tuple[int, int]:
    """Width and height from the header, so that the page keeps their room before the image is decoded."""
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise DataError(f"figure: starts with {png[:8]!r}; PNG bytes are needed")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
