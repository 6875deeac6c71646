"""cascade run, evaluate, plan: several stages as one classifier."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stage1.cli.options import USE, AsJson, Output, Quiet, app, show
from stage1.errors import NotCertifiable

cascade_app = typer.Typer(no_args_is_help=True, help="Several stages as one classifier: answer, certify, plan.")
app.add_typer(cascade_app, name="cascade", rich_help_panel=USE)

CascadeFile = Annotated[Path, typer.Argument(help="Cascade file (YAML); see docs/CASCADE.md.", metavar="CASCADE")]


@cascade_app.command("run")
def cascade_run(
    cascade: CascadeFile,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders, a table with an image column, or - for paths on stdin.", metavar="PATHS|TABLE|-"
        ),
    ],
    certified: Annotated[
        Path | None,
        typer.Option("--certified", help="Folder of `cascade evaluate`: its thresholds, and its certificate's."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="JSON lines to append to; images that it holds are not asked again."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Answer every image once, by the first stage that exits; one JSON line each, with the outcome of every call.

    Example: stage1 cascade run cascade.yaml photos/ --output answers.jsonl
    """
    from stage1.commands.cascade import answer_images, tally_lines

    tally, notes = answer_images(
        cascade, images, certified=certified, output=output, stdin=sys.stdin.buffer, stdout=sys.stdout
    )
    if not quiet:
        typer.echo("\n".join([*notes, *tally_lines(tally)]), err=True)
    if lost := tally.by.get("default", 0):
        typer.echo(f"error: {lost} image(s) that no stage could answer; they have the default", err=True)
        raise typer.Exit(1)


@cascade_app.command("evaluate")
def cascade_evaluate(
    cascade: CascadeFile,
    table: Annotated[
        Path, typer.Option("--table", help="Labelled images: a run directory, or a table as `stage1 run` takes it.")
    ],
    answers: Annotated[
        Path | None, typer.Option("--answers", help="Answers recorded before by this command; nothing is asked.")
    ] = None,
    output: Output = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Ask every stage for every labelled image, certify the whole, and draw cost against risk (exit 4: not
    certifiable).

    Example: stage1 cascade evaluate cascade.yaml --table runs/demo --output runs/cascade
    """
    from stage1.commands.cascade import evaluate_cascade, evaluation_lines
    from stage1.runs.progress import Progress

    folder = output or Path("runs") / f"{cascade.stem}-evaluated"
    document = evaluate_cascade(cascade, table, folder, answers=answers, progress=Progress(quiet=quiet))
    show(document, as_json, evaluation_lines)
    certificate: dict[str, Any] = document["certificate"]
    if not certificate["certified"]:
        raise NotCertifiable(f"{certificate['reason']} Needed: {certificate['needed'] or 'see the reason'}.")


@cascade_app.command("plan")
def cascade_plan(
    cascade: CascadeFile,
    rate: Annotated[str, typer.Option("--rate", help="Images that arrive: 120/min, 2/s, 5000/h.")],
    evaluated: Annotated[
        Path | None,
        typer.Option("--evaluated", help="Folder of `cascade evaluate`; else the first bundle's calibration scores."),
    ] = None,
    prior: Annotated[float | None, typer.Option("--prior", help="P(second class) among arriving images.")] = None,
    confidence: Annotated[float, typer.Option("--confidence", help="Of the upper bound of the defer rate.")] = 0.95,
    as_json: AsJson = False,
) -> None:
    """Does what is deferred fit into what each later stage takes (exit 1: it does not)?

    Example: stage1 cascade plan cascade.yaml --rate 120/min
    """
    from stage1.commands.cascade_plan import plan_cascade, plan_lines

    document = plan_cascade(cascade, rate, evaluated=evaluated, prior=prior, confidence=confidence)
    show(document, as_json, plan_lines)
    if document["fits"] is False:
        full = ", ".join(row["stage"] for row in document["stages"] if row["fits"] is False)
        typer.echo(f"error: {full} cannot take what is deferred to it", err=True)
        raise typer.Exit(1)
