"""run, demo, smoke: from images to a bundle in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stage1.cli.options import (
    WHOLE,
    AsJson,
    Force,
    IgnoreAcceptance,
    Output,
    Phase,
    Quiet,
    Recipe,
    app,
    given_config,
    show,
)
from stage1.cli.printing import check_lines, dry_run_lines, outlined, run_lines, run_summary, verdict_line


@app.command(rich_help_panel=WHOLE)
def run(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="A config file (YAML) and overrides a.b=value.", metavar="[CONFIG] [A.B=VALUE]..."),
    ] = None,
    recipe: Recipe = None,
    phase: Phase = None,
    output: Output = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print stages, inputs and digests, and what would be skipped.")
    ] = False,
    allow_change: Annotated[
        bool, typer.Option("--allow-change", help="Use the run directory although its config differs.")
    ] = False,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Go on with images in two roles; the run is uncertified.")
    ] = False,
    ignore_acceptance: IgnoreAcceptance = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """From images to a bundle: every stage in order, each skipped where its inputs are unchanged.

    Example: stage1 run --recipe baseline data.table=photos.csv --output runs/photos
    """
    from stage1.runs import execute, opened
    from stage1.runs.progress import Progress
    from stage1.stages import STAGES
    from stage1.stages.verdicts import verdict_of_evaluation

    given = list(arguments or [])
    file = given.pop(0) if given and "=" not in given[0] else None
    config = given_config(file, recipe, phase, [*given, *(["split.allow_leakage=true"] if allow_leakage else [])])
    folder = output or Path("runs") / config.name
    if dry_run:
        show(outlined(folder, config, allow_change), as_json, dry_run_lines)
        return
    with opened(folder, config, allow_change=allow_change) as directory:
        result = execute(directory, STAGES, Progress(quiet=quiet), force=force, ignore_acceptance=ignore_acceptance)
    verdict = verdict_of_evaluation(result.folder)
    show(run_summary(result, verdict), as_json, lambda summary: [*run_lines(summary), verdict_line(verdict)])


@app.command(rich_help_panel=WHOLE)
def demo(output: Output = None, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """The demo run: generated street scenes, the embedded backbone, a certificate, a report, a bundle.

    Example: stage1 demo --output runs/demo
    """
    run([], recipe="demo", output=output or Path("runs/demo"), quiet=quiet, as_json=as_json)


@app.command(rich_help_panel=WHOLE)
def smoke(
    policy: Annotated[str, typer.Option("--policy", help="softmax, gate, scrc or all.")] = "softmax",
    output: Output = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Use the first rows of this table instead of generated scenes.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The whole line on a tiny problem in under a minute, then a check of every artifact.

    Example: stage1 smoke --policy softmax
    """
    from stage1.commands.smoke import smoke as smoked

    checks = smoked(policy, output, data)
    show({"checks": checks, "passed": all(check["passed"] for check in checks)}, as_json, check_lines)
    if not all(check["passed"] for check in checks):
        raise typer.Exit(1)
