"""What is done with bundles and scores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stage1.cli.options import (
    USE,
    AsJson,
    Columns,
    Output,
    Overrides,
    Quiet,
    Values,
    app,
    given_config,
    pairs,
    show,
    split_overrides,
    tell,
)
from stage1.cli.printing import audit_lines, comparison_lines, verify_lines
from stage1.errors import ConfigError, Stage1Error


@app.command(rich_help_panel=USE)
def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.", metavar="BUNDLE")],
    images: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders, a table with an image column, or - for paths on stdin.", metavar="PATHS|TABLE|-"
        ),
    ],
    kind: Annotated[str, typer.Option("--format", help="table, csv, parquet or json.")] = "table",
    output: Output = None,
    views: Annotated[
        str | None,
        typer.Option(
            "--views", help="The views you expect, e.g. 3x3; refused unless the bundle is certified for them."
        ),
    ] = None,
    slices: Annotated[
        Path | None,
        typer.Option(
            "--slices",
            help="A table with the columns image and the one by which thresholds differ, for folders and lists.",
        ),
    ] = None,
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline",
            min=0.0,
            help="Seconds a batch may take for each of its images before it is given up; 0: no limit.",
        ),
    ] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Answer or defer, image by image. Broken files are named and the rest answered (exit 1 at the end).

    `confidence` is the probability of the printed label, `p_<class>` that of each class. `probability` is P(class 1)
    for two classes and that of the label for more: deprecated, take the others.

    Of a folder every image is taken, at every depth; what is no image by name or content is counted on stderr (no
    error).

    Where thresholds differ by slice (data.slices), the slice of an image is read from the column of that name in a
    table, or from --slices; without it the image defers and its `reason` says so.

    Example: stage1 predict runs/demo/bundle photos/ --format csv
    """
    from stage1.inference import load_bundle
    from stage1.inference.inputs import iterate_inputs, read_slices, with_slices
    from stage1.inference.tables import open_writer, predict_to
    from stage1.runtime.crops import parse_views, small_line

    loaded = load_bundle(bundle, deadline_s=deadline or None)
    if views is not None:
        loaded.require_views(parse_views(views))
    by = loaded.policy.sliced_by
    if slices is not None and by is None:
        raise ConfigError(f"--slices {slices}: this bundle has one pair of thresholds for all images; leave it out")
    inputs = iterate_inputs(
        images,
        sys.stdin.buffer,
        on_left_out=lambda line: typer.echo(line, err=True),
        slices=() if by is None else (by,),
    )
    if slices is not None and by is not None:
        inputs = with_slices(inputs, by, read_slices(slices, by))
    writer_kind: Any = "json" if as_json else kind
    with open_writer(writer_kind, output or sys.stdout, loaded.about) as writer:
        failures = predict_to(
            loaded.predictor,
            inputs,
            writer,
            on_unknown=lambda unknown, of: typer.echo(
                f"note: {unknown} of {of} images defer because their {by} is not known; give a table with a column"
                f" {by}, or --slices FILE with the columns image and {by}",
                err=True,
            ),
            on_failure=lambda row: typer.echo(f"{row.path}: {row.error}", err=True),
            on_small=lambda small, of: typer.echo(small_line(small, of, loaded.predictor.preprocessing.size), err=True),
        )
    if failures:
        typer.echo(f"error: {failures} image(s) could not be answered; they defer", err=True)
        raise typer.Exit(1)


@app.command(rich_help_panel=USE)
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.", metavar="BUNDLE")],
    recompute: Annotated[
        bool,
        typer.Option("--recompute", help="Also make certificate, thresholds, map and model card again from its data."),
    ] = False,
    accept_other_version: Annotated[
        bool,
        typer.Option(
            "--accept-other-version",
            help="With --recompute, of a bundle that another version wrote: compare the numbers alone, no sentence.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find any changed, missing or extra byte; with --recompute also any number or sentence that does not follow from
    the data (exit 5).

    It proves that the bundle is the one with the digest it prints, and that thresholds, certificate and card follow
    from the scores and labels in it; it counts the looks at its calibration images that attempts.json lists. It takes
    on trust those scores and labels, that no look is missing (it says where the list is younger than the images),
    everything about training data, licence and val_test, and who made it: there is no signature. Compare the digest
    with the one its maker published.

    Example: stage1 verify runs/demo/bundle --recompute
    """
    if accept_other_version and not recompute:
        raise ConfigError("--accept-other-version: belongs to --recompute; give both")
    from stage1.bundle import verify_bundle

    report = verify_bundle(bundle, recompute=recompute, accept_other_version=accept_other_version)
    document = {
        "bundle": str(bundle),
        "ok": report.ok,
        "digest": report.digest,
        "files": report.files,
        "recomputed": report.recomputed,
        "problems": list(report.problems),
        "notes": list(report.notes),
    }
    show(document, as_json, verify_lines)
    if not report.ok:
        raise typer.Exit(5)


@app.command(rich_help_panel=USE)
def compare(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help=(
                "Run directories (two or more, on one split), or two score files; of files, data.classes=[..] names the"
                " classes."
            ),
            metavar="RUN RUN..|FILE FILE",
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            "--arm",
            help="NAME=RUN,RUN,..: the runs of one arm, one for each seed; repeatable, the first is the reference.",
        ),
    ] = None,
    on: Annotated[
        str, typer.Option("--on", help="Runs: the role to choose on; the one chosen is then confirmed on val_test.")
    ] = "val_select",
    by: Annotated[
        str,
        typer.Option(
            "--by", help="Runs: the metric to choose by: augrc, aurc, nll, mcc, accuracy, coverage, exit_error."
        ),
    ] = "augrc",
    values: Values = None,
    columns: Columns = None,
    resamples: Annotated[
        int, typer.Option("--resamples", help="Bootstrap replicates (and, of files, permutations).")
    ] = 1000,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Runs: folder for comparison.json, .md, .png and .svg.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Which arm is better, and is it shown? Paired differences with intervals: runs on one split with their seeds, or
    two score files.

    Runs whose configs differ in nothing but the seed are one arm.

    Example: stage1 compare runs/frozen runs/lora --output runs/compared
    """
    from stage1.commands.compare import are_runs, arms_given, class_order, compare_sources

    given, overrides = split_overrides(sources or [])
    arms = arms_given(arm or [])
    if are_runs(given, arms):
        if overrides:
            raise ConfigError(f"{overrides[0]}: of score files only; run directories know their classes")
        from stage1.commands.arms import compare_runs, write_comparison
        from stage1.report.arms_table import arms_lines

        document = compare_runs(given, arms, on=on, by=by, resamples=resamples, level=0.95, seed=0)
        if output is not None:
            write_comparison(document, output)
        show(document, as_json, arms_lines)
        return
    if output is not None:
        raise ConfigError(f"--output {output}: of run directories only; two score files print, or give --json")
    document = compare_sources(
        given[0],
        given[1],
        values=values,
        columns=pairs(columns),
        resamples=resamples,
        level=0.95,
        seed=0,
        classes=class_order(overrides),
        say=tell,
    )
    show(document, as_json, comparison_lines)


@app.command(rich_help_panel=USE)
def audit(
    scores: Annotated[Path, typer.Option("--scores", help="Labelled scores that stand for the population.")],
    overrides: Overrides = None,
    draws: Annotated[int, typer.Option("--draws", help="How many times to draw, fit and check.")] = 1000,
    select: Annotated[int, typer.Option("--select", help="Images drawn for val_select.")] = 500,
    calib: Annotated[int, typer.Option("--calib", help="Images drawn for val_calib.")] = 2500,
    values: Values = None,
    columns: Columns = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Is the promise kept? Draw from real scores, fit, and compare every claim with the truth, which is then known.

    Example: stage1 audit --scores mine.parquet --draws 200 risks.fnr=0.05
    """
    from stage1.commands.audit import Sizes
    from stage1.commands.audit import audit as audited
    from stage1.commands.scores import checked_values
    from stage1.runs.progress import Progress
    from stage1.scores import read_scores

    config = given_config(None, None, None, overrides or [])
    population, _ = read_scores(
        scores, values=checked_values(values), columns=pairs(columns), classes=config.data.classes, say=tell
    )
    with Progress(quiet=quiet).bar("draws", draws) as advance:
        found = audited(population, config, draws=draws, sizes=Sizes(select, calib), seed=config.seed, advance=advance)
    show(found, as_json, audit_lines)
    if not found["kept"]:
        raise Stage1Error(
            f"the promise is broken in {found['violation']:.3f} of the draws, more than {found['delta']:g}; please"
            " report this"
        )


@app.command(rich_help_panel=USE)
def attempts(
    source: Annotated[
        Path,
        typer.Argument(
            help="Run directory, folder of `calibrate --scores`, bundle, score file, or attempts.json.",
            metavar="RUN|FILE|BUNDLE",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Which certificates the calibration images were looked at for, and the confidence that was left after each.

    Another target, model, policy, seed, unit, slices, thresholds, views or more images is another look; the same asked
    again is not.

    Example: stage1 attempts runs/demo
    """
    from stage1.commands.looks import looks_known, looks_lines

    show(looks_known(source), as_json, looks_lines)
