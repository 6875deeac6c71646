"""The command line, thin: parse, call, print. Results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stage1 import __version__
from stage1.errors import ConfigError, Stage1Error

app = typer.Typer(
    name="stage1",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train the first stage of an image-classification cascade and certify when it may answer.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(no_args_is_help=True, help="Show the configuration, or its JSON Schema.")
WHOLE, STAGES, USE, SUPPORT = "Whole runs", "Single stages", "Bundles and scores", "Before and around"
app.add_typer(config_app, name="config", rich_help_panel=SUPPORT)

RunFolder = Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Config overrides, a.b=value.", metavar="[A.B=VALUE]...")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Force = Annotated[bool, typer.Option("--force", help="Do it again although nothing changed.")]
Recipe = Annotated[
    str | None, typer.Option("--recipe", help="A named recipe of the package; see `stage1 config recipes`.")
]
Phase = Annotated[int | None, typer.Option("--phase", help="0 to 6: the recipe of that phase.")]
IgnoreAcceptance = Annotated[
    bool, typer.Option("--ignore-acceptance", help="Bundle although an acceptance gate failed; the bundle's card says so.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Where to write.")]


# ---- whole runs --------------------------------------------------------------------------------------------------


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
    from stage1.pipeline import execute, opened, outlook
    from stage1.pipeline.progress import Progress

    given = list(arguments or [])
    file = given.pop(0) if given and "=" not in given[0] else None
    config = _config(file, recipe, phase, [*given, *(["split.allow_leakage=true"] if allow_leakage else [])])
    folder = output or Path("runs") / config.name
    if dry_run:
        show(_dry_run(folder, config, outlook, allow_change), as_json, _dry_run_lines)
        return
    with opened(folder, config, allow_change=allow_change) as directory:
        result = execute(directory, Progress(quiet=quiet), force=force, ignore_acceptance=ignore_acceptance)
    show(_run_summary(result), as_json, _run_lines)


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
    from stage1.pipeline.smoke import smoke as smoked

    checks = smoked(policy, output, data)
    show({"checks": checks, "passed": all(check["passed"] for check in checks)}, as_json, _check_lines)
    if not all(check["passed"] for check in checks):
        raise typer.Exit(1)


# ---- single stages -----------------------------------------------------------------------------------------------


def _stage(
    name: str, run: Path, overrides: list[str] | None, force: bool, quiet: bool, as_json: bool, ignore_acceptance: bool = False
) -> None:
    from stage1.config import load_config, to_yaml
    from stage1.pipeline import execute_one, opened
    from stage1.pipeline.progress import Progress
    from stage1.pipeline.rundir import followed, stored_config
    from stage1.pipeline.tuning_stages import is_follower

    config = None
    if overrides:
        stored = stored_config(run)
        if stored is None:
            raise ConfigError(
                f"{run}: not a run directory; `stage1 run --output {run}` or `stage1 split {run} --recipe NAME` starts one"
            )
        import yaml

        config, _ = load_config(values=yaml.safe_load(to_yaml(stored)), overrides=overrides, environment={})
    if name == "tune" and is_follower():
        with followed(run, config) as directory:
            execute_one(directory, name, Progress(quiet=True), force=force)
        return
    with opened(run, config, allow_change=bool(overrides)) as directory:
        done = execute_one(directory, name, Progress(quiet=quiet), force=force, ignore_acceptance=ignore_acceptance)
        outputs = sorted(directory.state[name]["outputs"])
    show(
        {"stage": name, "done": done, "outputs": outputs},
        as_json,
        lambda result: [f"{run / item}" for item in result["outputs"]],
    )
    if name == "calibrate":
        _exit_by_certificate(run)


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
    from stage1.config import to_yaml
    from stage1.files import write_text
    from stage1.pipeline.rundir import CONFIG_FILE, stored_config

    overrides = [*(overrides or []), *(["split.allow_leakage=true"] if allow_leakage else [])]
    if stored_config(run) is None:
        write_text(run / CONFIG_FILE, to_yaml(_config(None, recipe, phase, overrides)))
        overrides = []
    elif recipe is not None or phase is not None:
        raise ConfigError(
            f"{run}: has a config already; change it with overrides a.b=value, or use another run directory"
        )
    _stage("split", run, overrides, force, quiet, as_json)
    if not as_json:
        from stage1.pipeline.data_stage import split_report

        typer.echo("\n".join(split_report(run)))


@app.command(rich_help_panel=STAGES)
def pretrain(
    run: RunFolder, overrides: Overrides = None, force: Force = False, quiet: Quiet = False, as_json: AsJson = False
) -> None:
    """ExPLoRA: adapt a ViT to unlabelled images of a folder or of train; resumes where it stopped.

    Example: stage1 pretrain runs/photos pretrain.folder=unlabelled
    """
    _stage("pretrain", run, overrides, force, quiet, as_json)


@app.command(rich_help_panel=STAGES)
def tune(
    run: RunFolder, overrides: Overrides = None, force: Force = False, quiet: Quiet = False, as_json: AsJson = False
) -> None:
    """Train the backbone, or an adapter in it, on the images of train; resumes where it stopped. Also under torchrun.

    Example: stage1 tune runs/photos images.unfreeze=last
    """
    _stage("tune", run, overrides, force, quiet, as_json)


@app.command(rich_help_panel=STAGES)
def extract(
    run: RunFolder, overrides: Overrides = None, force: Force = False, quiet: Quiet = False, as_json: AsJson = False
) -> None:
    """Export the backbone (the run's own, where it was pretrained or tuned) and cache its features of train and val_select.

    Example: stage1 extract runs/photos features.engine=onnx
    """
    _stage("extract", run, overrides, force, quiet, as_json)


@app.command(rich_help_panel=STAGES)
def train(
    run: RunFolder, overrides: Overrides = None, force: Force = False, quiet: Quiet = False, as_json: AsJson = False
) -> None:
    """Train the head on the cached features; resumes where it stopped.

    Example: stage1 train runs/photos train.epochs=30 head.kind=mlp
    """
    _stage("train", run, overrides, force, quiet, as_json)


@app.command(rich_help_panel=STAGES)
def export(
    run: RunFolder, overrides: Overrides = None, force: Force = False, quiet: Quiet = False, as_json: AsJson = False
) -> None:
    """Write model.onnx and compare it with the trained model on real images.

    Example: stage1 export runs/photos
    """
    _stage("export", run, overrides, force, quiet, as_json)


@app.command(rich_help_panel=STAGES)
def score(
    run: RunFolder, overrides: Overrides = None, force: Force = False, quiet: Quiet = False, as_json: AsJson = False
) -> None:
    """Score val_select, val_calib and val_test with the exported model, from image bytes.

    Example: stage1 score runs/photos
    """
    _stage("score", run, overrides, force, quiet, as_json)


ScoresFile = Annotated[Path | None, typer.Option("--scores", help="Scores of any model: .npz, .parquet or .csv.")]
Values = Annotated[str, typer.Option("--values", help="What the score columns hold: logits or probabilities.")]
Columns = Annotated[
    list[str] | None, typer.Option("--columns", help="FIELD=NAME for scores, label, group, id, role; repeatable.")
]


@app.command(rich_help_panel=STAGES)
def calibrate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Run directory (not with --scores) and overrides.", metavar="[RUN] [A.B=VALUE]..."),
    ] = None,
    scores: ScoresFile = None,
    values: Values = "logits",
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
        _stage("calibrate", _run_folder(given), given, force, quiet, as_json)
        return
    from stage1.pipeline.score_files import calibrate_scores

    folder = output or Path("runs") / scores.stem
    policy = calibrate_scores(
        scores, folder, config=_config(None, None, None, given), values=values, columns=_pairs(columns), shares=shares,
        say=lambda text: typer.echo(text, err=True),
    )  # fmt: skip
    assert policy.certificate is not None
    show(
        policy.certificate.to_document(),
        as_json,
        lambda document: [document["statement"], f"{folder}: policy file, calibration.json, certificate.json, scores.parquet"],
    )
    _exit_by_certificate(folder)


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
    values: Values = "logits",
    columns: Columns = None,
    target: Annotated[
        Path | None,
        typer.Option(
            "--target",
            help="Unlabelled scores of the same model where the classes have other shares: estimate the shares, restate everything. "
            "In a run they stay as target_scores.parquet.",
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
    """What is true on val_test: metrics with intervals (of a run also figures and the report), or of scores of any model.

    With --target FILE, or target_prior=0.5, also at another class balance.

    Example: stage1 evaluate --scores runs/mine/scores.parquet --policy runs/mine target_prior=0.5
    """
    given = list(arguments or [])
    there = _pairs(columns if target_columns is None else target_columns)
    if scores is None:
        folder = _run_folder(given)
        if target is not None:
            from stage1.pipeline.score_files import checked_values
            from stage1.pipeline.shifting import adopt_target

            adopt_target(folder, target, values=checked_values(target_values or values), columns=there)
        _stage("evaluate", folder, given, force, quiet, as_json)
        if not as_json:
            from stage1.documents import read_document

            typer.echo("\n".join(_shift_lines(read_document(folder / "evaluation.json", "evaluation"))), nl=False)
        return
    from stage1.pipeline.score_files import evaluate_scores

    document = evaluate_scores(
        scores, policy or scores.parent, output or policy or scores.parent, config=_config(None, None, None, given),
        values=values, columns=_pairs(columns), target=target, target_values=target_values, target_columns=there,
    )  # fmt: skip
    show(document, as_json, _evaluation_lines)


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
    _exit_by_certificate(run)
    _stage("bundle", run, overrides, force, quiet, as_json, ignore_acceptance)


@app.command(rich_help_panel=STAGES)
def report(
    folder: Annotated[
        Path, typer.Argument(help="Run directory, or a folder of calibrate and evaluate --scores.", metavar="FOLDER")
    ],
    as_json: AsJson = False,
) -> None:
    """Write report.html and its figures from what the folder holds: of a run, or of scores of any model (without images).

    Example: stage1 report runs/mine
    """
    from stage1.pipeline.reporting import rewrite_report

    written = rewrite_report(folder)
    show(
        {"report": str(written[0]), "figures": sorted(str(path) for path in written[1:])},
        as_json,
        lambda document: [document["report"]],
    )


# ---- bundles -----------------------------------------------------------------------------------------------------


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
    as_json: AsJson = False,
) -> None:
    """Answer or defer, image by image. Broken files are named and the rest answered (exit 1 at the end).

    Example: stage1 predict runs/demo/bundle photos/ --format csv
    """
    from stage1.inference import load_bundle
    from stage1.inference.inputs import iterate_inputs
    from stage1.inference.output import open_writer, predict_to

    loaded = load_bundle(bundle)
    with open_writer("json" if as_json else kind, output or sys.stdout, loaded.about) as writer:  # type: ignore[arg-type]
        failures = predict_to(
            loaded.predictor, iterate_inputs(images, sys.stdin.buffer), writer,
            on_failure=lambda row: typer.echo(f"{row.path}: {row.error}", err=True),
        )  # fmt: skip
    if failures:
        typer.echo(f"error: {failures} image(s) could not be answered; they defer", err=True)
        raise typer.Exit(1)


@app.command(rich_help_panel=USE)
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.", metavar="BUNDLE")],
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Also make the certificate again from calibration.parquet.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find any changed, missing or extra byte (exit 5).

    Example: stage1 verify runs/demo/bundle --recompute
    """
    from stage1.bundle import verify_bundle

    report = verify_bundle(bundle, recompute=recompute)
    document = {"bundle": str(bundle), "ok": report.ok, "digest": report.digest, "files": report.files,
                "recomputed": report.recomputed, "problems": list(report.problems)}  # fmt: skip
    show(document, as_json, _verify_lines)
    if not report.ok:
        raise typer.Exit(5)


@app.command(rich_help_panel=USE)
def compare(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(help="Run directories (two or more, on one split), or two score files.", metavar="RUN RUN..|FILE FILE"),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option("--arm", help="NAME=RUN,RUN,..: the runs of one arm, one for each seed; repeatable, the first is the reference."),
    ] = None,
    on: Annotated[
        str, typer.Option("--on", help="Runs: the role to choose on; the one chosen is then confirmed on val_test.")
    ] = "val_select",
    by: Annotated[
        str, typer.Option("--by", help="Runs: the metric to choose by: augrc, aurc, nll, mcc, accuracy, coverage, exit_error.")
    ] = "augrc",
    values: Values = "logits",
    columns: Columns = None,
    resamples: Annotated[int, typer.Option("--resamples", help="Bootstrap replicates (and, of files, permutations).")] = 1000,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Runs: folder for comparison.json, .md, .png and .svg.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Which arm is better, and is it shown? Paired differences with intervals: runs on one split with their seeds, or two score files.

    Runs whose configs differ in nothing but the seed are one arm.

    Example: stage1 compare runs/frozen runs/lora --output runs/compared
    """
    from stage1.pipeline.comparing import are_runs, arms_given, compare_sources

    given, arms = list(sources or []), arms_given(arm or [])
    if are_runs(given, arms):
        from stage1.pipeline.arms import compare_runs, write_comparison
        from stage1.report.arms_table import arms_lines

        document = compare_runs(given, arms, on=on, by=by, resamples=resamples, level=0.95, seed=0)
        if output is not None:
            write_comparison(document, output)
        show(document, as_json, arms_lines)
        return
    if output is not None:
        raise ConfigError(f"--output {output}: of run directories only; two score files print, or give --json")
    document = compare_sources(given[0], given[1], values=values, columns=_pairs(columns), resamples=resamples, level=0.95, seed=0)
    show(document, as_json, _comparison_lines)


@app.command(rich_help_panel=USE)
def audit(
    scores: Annotated[Path, typer.Option("--scores", help="Labelled scores that stand for the population.")],
    overrides: Overrides = None,
    draws: Annotated[int, typer.Option("--draws", help="How many times to draw, fit and check.")] = 1000,
    select: Annotated[int, typer.Option("--select", help="Images drawn for val_select.")] = 500,
    calib: Annotated[int, typer.Option("--calib", help="Images drawn for val_calib.")] = 2500,
    values: Values = "logits",
    columns: Columns = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Is the promise kept? Draw from real scores, fit, and compare every claim with the truth, which is then known.

    Example: stage1 audit --scores mine.parquet --draws 200 risks.fnr=0.05
    """
    from stage1.pipeline.audit import Sizes
    from stage1.pipeline.audit import audit as audited
    from stage1.pipeline.progress import Progress
    from stage1.pipeline.score_files import checked_values
    from stage1.scores import read_scores

    config = _config(None, None, None, overrides or [])
    population, _ = read_scores(scores, values=checked_values(values), columns=_pairs(columns))
    with Progress(quiet=quiet).bar("draws", draws) as advance:
        found = audited(population, config, draws=draws, sizes=Sizes(select, calib), seed=config.seed, advance=advance)
    show(found, as_json, _audit_lines)
    if not found["kept"]:
        raise Stage1Error(
            f"the promise is broken in {found['violation']:.3f} of the draws, more than {found['delta']:g}; please report this"
        )


# ---- before and around -------------------------------------------------------------------------------------------


@app.command(rich_help_panel=SUPPORT)
def plan(
    overrides: Overrides = None,
    success: Annotated[
        float | None, typer.Option("--success", help="Wanted probability that the certificate passes.")
    ] = None,
    expected_risk: Annotated[
        float, typer.Option("--expected-risk", help="With --success: the true risk, as a share of its target.")
    ] = 0.5,
    prior: Annotated[
        float | None, typer.Option("--prior", help="P(positive) where the images come from; the pilot's, else 0.5.")
    ] = None,
    exit_negative: Annotated[
        float, typer.Option("--exit-negative", help="Expected share of negatives that exit.")
    ] = 0.7,
    exit_positive: Annotated[
        float, typer.Option("--exit-positive", help="Expected share of positives that exit.")
    ] = 0.7,
    scores: Annotated[
        Path | None, typer.Option("--scores", help="Labelled pilot scores: draw from them and certify by the real method.")
    ] = None,
    values: Values = "logits",
    columns: Columns = None,
    draws: Annotated[int, typer.Option("--draws", help="With --scores: draws for each number of labels.")] = 200,
    select_share: Annotated[
        float, typer.Option("--select-share", help="With --scores: share of the labels that is val_select.")
    ] = 0.15,
    figure: Annotated[Path | None, typer.Option("--figure", help="Draw the plan, .png or .svg.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """How many labels a target takes: by the exact tail, for a wanted probability of success, and from pilot scores.

    Example: stage1 plan risks.fnr=0.02 risks.false_exit_rate=0.05 --prior 0.5 --success 0.9
    """
    from stage1.pipeline.planning import Ask, make_plan, plan_lines, read_pilot, write_figure
    from stage1.pipeline.progress import Progress
    from stage1.pipeline.score_files import checked_values

    config = _config(None, None, None, overrides or [])
    pilot = None
    if scores is not None:
        pilot = read_pilot(scores, values=checked_values(values), columns=_pairs(columns), classes=config.data.classes)
    progress = Progress(quiet=quiet)
    document = make_plan(
        config, Ask(success, expected_risk, prior, (exit_negative, exit_positive), draws, select_share), pilot,
        say=lambda trial: progress.say(f"  {trial.n} labels: certified in {trial.certified} of {trial.draws} draws"),
    )  # fmt: skip
    if figure is not None:
        write_figure(document, figure)
    show(document, as_json, plan_lines)


@app.command("audit-labels", rich_help_panel=SUPPORT)
def audit_labels(
    run: RunFolder,
    top: Annotated[int, typer.Option("--top", help="How many suspects to list.")] = 100,
    apply: Annotated[
        Path | None, typer.Option("--apply", help="labels.csv with new_label filled in: write a corrected table from it.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the audit (RUN/label_audit); with --apply the .csv to write.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Labels of train and val_select that look wrong: a CSV to fill in, a page of pictures; and back into a table.

    Nothing is deleted, and the source stays as it is.

    Example: stage1 audit-labels runs/demo --top 50
    """
    from stage1.pipeline.label_audit import FOLDER, applied_lines, apply_labels, audit_lines
    from stage1.pipeline.label_audit import audit_labels as audited

    if apply is not None:
        show(apply_labels(run, apply, output), as_json, applied_lines)
        return
    show(audited(run, output, top=top), as_json, lambda document: audit_lines(document, output or run / FOLDER))


@app.command(rich_help_panel=SUPPORT)
def doctor(as_json: AsJson = False) -> None:
    """Versions, devices, codecs, caches, weights found, and what each missing extra would give.

    Example: stage1 doctor --json
    """
    from stage1.pipeline.doctor import examine

    show(
        examine(),
        as_json,
        lambda found: [f"{key:<28} {value}" for section in found.values() for key, value in section.items()],
    )


@config_app.command("show")
def config_show(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="A config file and overrides.", metavar="[CONFIG] [A.B=VALUE]...")
    ] = None,
    recipe: Recipe = None,
    phase: Phase = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value came from.")] = False,
    as_json: AsJson = False,
) -> None:
    """The whole configuration that a run would use.

    Example: stage1 config show --recipe demo --origin
    """
    from stage1.config import leaves, load_config, to_yaml

    given = list(arguments or [])
    file = given.pop(0) if given and "=" not in given[0] else None
    config, origins = load_config(file, recipe=_recipe(recipe, phase), overrides=given)
    values = dict(leaves(config.model_dump(mode="json")))
    if origin:
        rows = {key: {"value": value, "origin": origins[key]} for key, value in values.items()}
        show(
            rows,
            as_json,
            lambda found: [f"{key} = {json.dumps(row['value'])}  # {row['origin']}" for key, row in found.items()],
        )
    else:
        show(config.model_dump(mode="json"), as_json, lambda _: [to_yaml(config).rstrip()])


@config_app.command("schema")
def config_schema() -> None:
    """JSON Schema of the configuration.

    Example: stage1 config schema
    """
    from stage1.config import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))


@config_app.command("recipes")
def config_recipes(as_json: AsJson = False) -> None:
    """The named recipes of the package.

    Example: stage1 config recipes
    """
    from stage1.config import recipe_text, recipes

    show({name: recipe_text(name).splitlines()[0].lstrip("# ") for name in recipes()}, as_json,
         lambda found: [f"{name:<12} {text}" for name, text in found.items()])  # fmt: skip


# ---- parsing and printing ----------------------------------------------------------------------------------------


def show(document: Any, as_json: bool, lines: Any) -> None:
    """One result on stdout: a JSON document, or lines for people."""
    if as_json:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join(lines(document)))


def _recipe(recipe: str | None, phase: int | None) -> str | None:
    from stage1.config import phase_recipe

    if phase is None:
        return recipe
    if recipe is not None:
        raise ConfigError("--phase and --recipe: give one of them")
    return phase_recipe(phase)


def _config(file: str | None, recipe: str | None, phase: int | None, overrides: list[str]) -> Any:
    from stage1.config import load_config

    return load_config(file, recipe=_recipe(recipe, phase), overrides=overrides)[0]


def _run_folder(given: list[str]) -> Path:
    if not given or "=" in given[0]:
        raise ConfigError("a run directory is needed (stage1 calibrate RUN), or --scores FILE")
    return Path(given.pop(0))


def _pairs(columns: list[str] | None) -> dict[str, str]:
    pairs = [item.partition("=") for item in columns or []]
    if bad := [key for key, sign, name in pairs if not sign or not name]:
        raise ConfigError(f"--columns {bad[0]}: looks like FIELD=NAME, e.g. scores=prob")
    return {key: name for key, _, name in pairs}


def _exit_by_certificate(folder: Path) -> None:
    from stage1.errors import NotCertifiable
    from stage1.policy import Certificate

    certificate = Certificate.load(folder / "certificate.json")
    if not certificate.certified:
        raise NotCertifiable(f"{certificate.reason} Needed: {certificate.needed or 'see the reason.'}")


def _dry_run(folder: Path, config: Any, outlook: Any, allow_change: bool) -> dict[str, Any]:
    from stage1.config import differences
    from stage1.pipeline.rundir import RunDir, read_state, stored_config

    stored = stored_config(folder)
    changes = differences(stored, config) if stored is not None else []
    if changes and not allow_change:
        raise ConfigError(
            f"{folder}: made with another config ({'; '.join(changes[:3])}); use another --output, or --allow-change"
        )
    return {"run": str(folder), "stages": outlook(RunDir(folder, config, read_state(folder)))}


def _dry_run_lines(document: dict[str, Any]) -> list[str]:
    return [document["run"], *(
        f"{row['stage']:<10} {'skip' if row['skip'] else 'run ':<5} inputs {(row['inputs_digest'] or 'not known yet')[:16]:<16} "
        f"config: {', '.join(row['config']) or '-'}  reads: {', '.join(row['reads']) or 'sources'}"
        for row in document["stages"]
    )]  # fmt: skip


def _run_summary(result: Any) -> dict[str, Any]:
    certificate = result.certificate
    return {
        "run": str(result.folder), "certified": certificate.certified, "statement": certificate.statement,
        "coverage": certificate.coverage.value, "report": str(result.folder / "report.html"), "bundle": str(result.bundle),
        "done": list(result.done), "skipped": list(result.skipped), "seconds": round(result.seconds, 1),
    }  # fmt: skip


def _run_lines(summary: dict[str, Any]) -> list[str]:
    return [
        "",
        f"CERTIFIED  {summary['statement']}",
        "",
        f"report  {summary['report']}",
        f"bundle  {summary['bundle']}",
    ]


def _check_lines(result: dict[str, Any]) -> list[str]:
    return [
        f"{'ok  ' if check['passed'] else 'FAIL'}  {check['policy']:<8} {check['check']:<44} {check['detail']}"
        for check in result["checks"]
    ]


def _evaluation_lines(document: dict[str, Any]) -> list[str]:
    from stage1.evaluation.summary import metrics_rows

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    return [f"{'metric':<20}{'value':>9}{'low':>9}{'high':>9}", *(
        f"{row['metric']:<20}{number(row['value']):>9}{number(row['low']):>9}{number(row['high']):>9}" for row in metrics_rows(document)
    ), *_shift_lines(document)]  # fmt: skip


def _shift_lines(document: dict[str, Any]) -> list[str]:
    from stage1.pipeline.shifting import shift_lines

    return ["", *shift_lines(document["label_shift"]), ""] if "label_shift" in document else []


def _verify_lines(document: dict[str, Any]) -> list[str]:
    if not document["ok"]:
        return [f"CHANGED  {document['bundle']}", *document["problems"]]
    recomputed = "; the certificate follows from calibration.parquet" if document["recomputed"] else ""
    return [f"ok  {document['bundle']}  {document['digest']}  {document['files']} files{recomputed}"]


def _comparison_lines(document: dict[str, Any]) -> list[str]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    return [f"{'metric':<14}{'a':>9}{'b':>9}{'a - b':>9}{'low':>9}{'high':>9}{'p':>9}  verdict", *(
        f"{row['metric']:<14}" + "".join(f"{number(row[key]):>9}" for key in ("a", "b", "difference", "low", "high", "p_value")) + f"  {row['verdict']}"
        for row in document["rows"]
    )]  # fmt: skip


def _audit_lines(found: dict[str, Any]) -> list[str]:
    low, high = found["violation_low"], found["violation_high"]
    return [
        f"{found['policy']}, {', '.join(f'{name} <= {target:g}' for name, target in found['risks'].items())} at {found['confidence']:g}, "
        f"{found['draws']} draws of {found['n_select']} + {found['n_calib']}",
        f"certified   violation {found['violation']:.4f} [{low:.4f}, {high:.4f}]  coverage {found['coverage']:.4f}  (certified in {found['certified']:.3f})",
        f"plug-in     violation {found['plug_in_violation']:.4f}                    coverage {found['plug_in_coverage']:.4f}",
    ]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stage1-pro {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train the first stage of an image-classification cascade and certify when it may answer."""


def main() -> None:
    """Entry point: errors that a user can cause become one line on stderr and the exit code of DESIGN.md."""
    try:
        app()
    except Stage1Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; run the same command to go on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of stdout went away (`| head`): not an error; stop Python from complaining at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (OSError, MemoryError) as error:
        print(
            f"error: {getattr(error, 'filename', None) or 'system'}: {getattr(error, 'strerror', None) or error or 'out of memory'}",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
