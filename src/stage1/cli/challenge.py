"""challenge: what the StreetVision client sends, as a data set; and a run's answers to it, level by level."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stage1.cli.options import SUPPORT, AsJson, Quiet, RunFolder, app, show

challenge_app = typer.Typer(
    no_args_is_help=True, help="Images as the StreetVision client sends them: four levels of distortion."
)
app.add_typer(challenge_app, name="challenge", rich_help_panel=SUPPORT)


@challenge_app.command("make")
def challenge_make(
    table: Annotated[
        str, typer.Argument(help="Any source: CSV, TSV, Parquet, folder, saved data set, .tar.", metavar="TABLE")
    ],
    output: Annotated[Path, typer.Argument(help="Folder for images/ and labels.csv.", metavar="OUT")],
    level: Annotated[
        str, typer.Option("--level", help="L0, L1, L2, L3 or mixture: the four, equally likely.")
    ] = "mixture",
    copies: Annotated[int, typer.Option("--copies", help="Challenges per image.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same pixels.")] = 0,
    balance: Annotated[
        bool, typer.Option("--balance", help="Equally many images of every class, as the client draws them.")
    ] = False,
    filter_rows: Annotated[
        bool, typer.Option("--filter", help="Only rows whose label agrees with their scene_description.")
    ] = False,
    origin: Annotated[
        str,
        typer.Option(
            "--origin", help="real: JPEGs are saved twice; image_to_image: above 1024 px squashed to a square."
        ),
    ] = "real",
    carry: Annotated[
        list[str] | None, typer.Option("--carry", help="Copy this column too (city, night); repeatable.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--classes", help="Class names in order, by comma; the second is positive.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes; 0: one per core.")] = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a data set of challenges: 224 px JPEGs, quality 75. Groups and roles are kept; run it again to go on after
    a stop.

    Example: stage1 challenge make photos.csv challenges --level mixture --seed 1
    """
    from stage1.runs.progress import Progress
    from stage1.stages.challenge import made_lines, make_challenges

    document = make_challenges(
        table,
        output,
        level=level,
        copies=copies,
        seed=seed,
        balance=balance,
        filter_rows=filter_rows,
        carry=carry or [],
        classes=None if classes is None else [name.strip() for name in classes.split(",")],
        workers=workers,
        progress=Progress(quiet=quiet),
        origin=origin,
    )
    show(document, as_json, made_lines)


@challenge_app.command("report")
def challenge_report(
    run: RunFolder,
    prior: Annotated[float, typer.Option("--prior", help="Share of positives; the client draws labels evenly.")] = 0.5,
    resamples: Annotated[int, typer.Option("--resamples", help="Bootstrap resamples, by group.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """What a run answers on val_test, level by level and for the mixture, at balanced labels; with intervals.

    Example: stage1 challenge report runs/streetview
    """
    from stage1.commands.challenge_report import level_lines, report_levels

    show(report_levels(run, prior=prior, resamples=resamples), as_json, level_lines)
