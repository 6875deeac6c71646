"""The stages of a run, each alone. Their words stand here, so that `--help` loads nothing of what they do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stage1.cli.options import (
    STAGES,
    AsJson,
    Columns,
    Force,
    IgnoreAcceptance,
    Output,
    Overrides,
    Phase,
    Quiet,
    Recipe,
    RunFolder,
    ScoresFile,
    Values,
    app,
    exit_by_certificate,
    given_config,
    pairs,
    run_folder,
    show,
    tell,
)
from stage1.cli.printing import abstaining_lines, argmax_lines, evaluation_lines, shift_lines, slice_lines, verdict_line
from stage1.errors import ConfigError

if TYPE_CHECKING:
    from stage1.scores import Scores


def _stage(
    name: str,
    run: Path,
    overrides: list[str] | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    ignore_acceptance: bool = False,
    config: Any = None,
) -> None:
    from stage1.config import load_config
    from stage1.runs import execute_one, opened
    from stage1.runs.directory import followed, stored_config
    from stage1.runs.progress import Progress
    from stage1.runs.torchrun import is_follower
    from stage1.stages import STAGES as stages

    if config is None and overrides:
        stored = stored_config(run)
        if stored is None:
            raise ConfigError(
                f"{run}: not a run directory; `stage1 run --output {run}` or `stage1 split {run} --recipe NAME`"
                " starts one"
            )
        config, _ = load_config(values=stored.model_dump(mode="json"), overrides=overrides, environment={})
    if is_follower() and any(stage.name == name and stage.distributed for stage in stages):
        with followed(run, config) as directory:
            execute_one(directory, stages, name, Progress(quiet=True), force=force)
        return
    with opened(run, config, allow_change=bool(overrides)) as directory:
        done = execute_one(
            directory, stages, name, Progress(quiet=quiet), force=force, ignore_acceptance=ignore_acceptance
        )
        outputs = sorted(directory.state[name]["outputs"])
    show(
        {"stage": name, "done": done, "outputs": outputs},
        as_json,
        lambda result: [f"{run / item}" for item in result["outputs"]],
    )


def _without_options(name: str, words: str) -> None:
    """The command of a stage that has no options of its own. words: its help, with an example."""

    @app.command(name, help=words, rich_help_panel=STAGES)
    def command(
        run: RunFolder, overrides: Overrides = None, force: Force = False, quiet: Quiet = False, as_json: AsJson = False
    ) -> None:
        _stage(name, run, overrides, force, quiet, as_json)


def _say_verdict(folder: Path, as_json: bool, calib: Scores | None = None) -> None:
    """After calibrate: the last line on stdout. calib: as verdict_of_calibration takes it."""
    if not as_json:
        from stage1.stages.verdicts import verdict_of_calibration

        typer.echo(verdict_line(verdict_of_calibration(folder, calib)))


@app.command(rich_help_panel=STAGES)
def split(
    run: RunFolder,
    overrides: Overrides = None,
    recipe: Recipe = None,
    phase: Phase = None,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Go on with images in two roles; the run is uncertified.")
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Read the sources, quarantine what is broken, give each group a role. Starts a run directory where there is none.

    Example: stage1 split runs/photos --recipe baseline data.table=photos.csv
    """
    from stage1.runs.directory import has_finished, stored_config

    overrides = [*(overrides or []), *(["split.allow_leakage=true"] if allow_leakage else [])]
    config, named = None, recipe is not None or phase is not None
    if named and has_finished(run):
        raise ConfigError(
            f"{run}: has a config already; change it with overrides a.b=value, or use another run directory"
        )
    if named or stored_config(run) is None:
        config, overrides = given_config(None, recipe, phase, overrides), []
    _stage("split", run, overrides, force, quiet, as_json, config=config)
    if not as_json:
        from stage1.stages.split import split_report

        typer.echo("\n".join(split_report(run)))


_without_options(
    "preprocess",
    """Choose how images are fitted to the model's square, and its side, on images of train and val_select.

    Example: stage1 preprocess runs/photos backbone.fit=auto
    """,
)
_without_options(
    "pretrain",
    """ExPLoRA: adapt a ViT to unlabelled images of a folder or of train; resumes where it stopped.

    Example: stage1 pretrain runs/photos pretrain.folder=unlabelled
    """,
)
_without_options(
    "tune",
    """Train the backbone, or an adapter in it, on the images of train; resumes where it stopped. Also under
    torchrun.

    Example: stage1 tune runs/photos images.unfreeze=last
    """,
)
_without_options(
    "extract",
    """Export the backbone (the run's own, where it was pretrained or tuned) and cache its features of train and
    val_select.

    Example: stage1 extract runs/photos features.engine=onnx
    """,
)
_without_options(
    "train",
    """Train the head on the cached features; resumes where it stopped.

    Example: stage1 train runs/photos train.epochs=30 head.kind=mlp
    """,
)


@app.command(rich_help_panel=STAGES)
def export(
    run: RunFolder,
    overrides: Overrides = None,
    to: Annotated[
        tuple[str, Path] | None,
        typer.Option("--to", help="hf: also a folder that stock transformers load, checked.", metavar="hf DIR"),
    ] = None,
    keep_names: Annotated[
        bool, typer.Option("--keep-names", help="With --to hf: the run's class names, not None and Roadwork.")
    ] = False,
    positive: Annotated[
        str | None,
        typer.Option("--positive", help="With --to hf: the class that is Roadwork, where the names do not tell."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="With --to hf: the stated P(class 1) that becomes the stock 0.5."),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write model.onnx and compare it with the trained model on real images; --to hf DIR: of an exported run, a stock
    folder.

    Example: stage1 export runs/photos
    """
    if to is None:
        if keep_names or positive is not None or threshold is not None:
            raise ConfigError("--keep-names, --positive, --threshold: belong to --to hf DIR; give it")
        _stage("export", run, overrides, force, quiet, as_json)
        return
    if to[0] != "hf" or overrides or force:
        raise ConfigError(f"--to {to[0]} {to[1]}: hf is what there is, without overrides or --force")
    from stage1.commands.export_hf import export_hf, hf_lines

    facts = export_hf(run, to[1], keep_names=keep_names, positive=positive, threshold=threshold)
    show(facts, as_json, lambda document: hf_lines(document, to[1]))


_without_options(
    "score",
    """Score val_select, val_calib and val_test with the exported model, from image bytes.

    Example: stage1 score runs/photos
    """,
)


@app.command(rich_help_panel=STAGES)
def calibrate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Run directory (not with --scores) and overrides.", metavar="[RUN] [A.B=VALUE]..."),
    ] = None,
    scores: ScoresFile = None,
    values: Values = None,
    columns: Columns = None,
    shares: Annotated[
        str, typer.Option("--shares", help="val_select,val_calib,val_test, where the file has no role column.")
    ] = "0.1,0.6,0.3",
    output: Output = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Choose the exit thresholds and certify them on val_calib; of a run, or of scores of any model.

    Example: stage1 calibrate --scores mine.parquet --output runs/mine risks.fnr=0.02
    """
    given = list(arguments or [])
    if scores is None:
        folder = run_folder(given)
        _stage("calibrate", folder, given, force, quiet, as_json)
        if not as_json:
            from stage1.policy.schema import CERTIFICATE_KIND
            from stage1.storage.documents import read_document

            certificate = read_document(folder / "certificate.json", CERTIFICATE_KIND)
            typer.echo("\n".join([certificate["statement"], *slice_lines(certificate), *abstaining_lines(certificate)]))
        _say_verdict(folder, as_json)
        exit_by_certificate(folder)
        return
    from stage1.commands.scores import calibrate_scores

    folder = output or Path("runs") / scores.stem
    policy, calib = calibrate_scores(
        scores,
        folder,
        config=given_config(None, None, None, given),
        values=values,
        columns=pairs(columns),
        shares=shares,
        say=tell,
    )
    assert policy.certificate is not None
    show(
        policy.certificate.to_document(),
        as_json,
        lambda document: [
            document["statement"],
            *slice_lines(document),
            *abstaining_lines(document),
            f"{folder}: policy file, calibration.json, certificate.json, scores.parquet",
        ],
    )
    _say_verdict(folder, as_json, calib)
    exit_by_certificate(folder)


@app.command(rich_help_panel=STAGES)
def evaluate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Run directory (not with --scores) and overrides.", metavar="[RUN] [A.B=VALUE]..."),
    ] = None,
    scores: ScoresFile = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="With --scores: folder with a policy file and certificate.json.")
    ] = None,
    values: Values = None,
    columns: Columns = None,
    target: Annotated[
        Path | None,
        typer.Option(
            "--target",
            help=(
                "Unlabelled scores of the same model where the classes have other shares: estimate the shares, restate"
                " everything. "
                "In a run they stay as target_scores.parquet."
            ),
        ),
    ] = None,
    target_values: Annotated[
        str | None, typer.Option("--target-values", help="What --target holds, if not the same as --values.")
    ] = None,
    target_columns: Annotated[
        list[str] | None, typer.Option("--target-columns", help="FIELD=NAME for --target, if not as --columns.")
    ] = None,
    output: Output = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """What is true on val_test: metrics with intervals (of a run also figures and the report), or of scores of any
    model.

    With --target FILE, or target_prior=0.5, also at another class balance.

    Example: stage1 evaluate --scores runs/mine/scores.parquet --policy runs/mine target_prior=0.5
    """
    from stage1.stages.verdicts import verdict_of_evaluation

    given = list(arguments or [])
    there = pairs(columns if target_columns is None else target_columns)
    if scores is None:
        folder = run_folder(given)
        if target is not None:
            from stage1.commands.scores import checked_values
            from stage1.stages.label_shift import adopt_target

            adopt_target(folder, target, values=checked_values(target_values or values), columns=there, say=tell)
        _stage("evaluate", folder, given, force, quiet, as_json)
        if not as_json:
            from stage1.evaluation.schema import EVALUATION_KIND
            from stage1.storage.documents import read_document

            document = read_document(folder / "evaluation.json", EVALUATION_KIND)
            typer.echo(
                "\n".join(
                    [
                        *argmax_lines(document),
                        *shift_lines(document),
                        verdict_line(verdict_of_evaluation(folder, document)),
                    ]
                )
            )
        return
    from stage1.commands.scores import evaluate_scores

    document = evaluate_scores(
        scores,
        policy or scores.parent,
        output or policy or scores.parent,
        config=given_config(None, None, None, given),
        values=values,
        columns=pairs(columns),
        target=target,
        target_values=target_values,
        target_columns=there,
        say=tell,
    )
    verdict = verdict_of_evaluation(policy or scores.parent, document)
    show(document, as_json, lambda found: [*evaluation_lines(found), verdict_line(verdict)])


@app.command(rich_help_panel=STAGES)
def bundle(
    run: RunFolder,
    overrides: Overrides = None,
    ignore_acceptance: IgnoreAcceptance = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write the folder that ships: model, thresholds, certificate, calibration data, model card.

    Example: stage1 bundle runs/photos
    """
    exit_by_certificate(run)
    _stage("bundle", run, overrides, force, quiet, as_json, ignore_acceptance)


@app.command(rich_help_panel=STAGES)
def report(
    folder: Annotated[
        Path, typer.Argument(help="Run directory, or a folder of calibrate and evaluate --scores.", metavar="FOLDER")
    ],
    as_json: AsJson = False,
) -> None:
    """Write report.html and its figures from what the folder holds: of a run, or of scores of any model (without
    images).

    Example: stage1 report runs/mine
    """
    from stage1.stages.reporting import rewrite_report

    written = rewrite_report(folder)
    show(
        {"report": str(written[0]), "figures": sorted(str(path) for path in written[1:])},
        as_json,
        lambda document: [document["report"]],
    )
