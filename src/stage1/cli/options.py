"""The app, its options, and what every command uses: parse, call, show."""

from __future__ import annotations

import json
from copy import copy
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command_name

from stage1.cli.edge import Group
from stage1.errors import ConfigError
from stage1.version import __version__

app = typer.Typer(
    name="stage1",
    cls=Group,
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
    bool,
    typer.Option("--ignore-acceptance", help="Bundle although an acceptance gate failed; the bundle's card says so."),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Where to write.")]
ScoresFile = Annotated[Path | None, typer.Option("--scores", help="Scores of any model: .npz, .parquet or .csv.")]
Values = Annotated[
    str | None,
    typer.Option(
        "--values",
        help=(
            "What the score columns hold: logits or probabilities. Needed unless they are called logit_0.. or prob_0.."
        ),
    ),
]
Columns = Annotated[
    list[str] | None, typer.Option("--columns", help="FIELD=NAME for scores, label, group, id, role; repeatable.")
]


def tell(line: str) -> None:
    """A line on stderr, beside the result."""
    typer.echo(line, err=True)


def show(document: Any, as_json: bool, lines: Any) -> None:
    """One result on stdout: a JSON document, or lines for people."""
    text = json.dumps(document, indent=2, ensure_ascii=False) if as_json else "\n".join(lines(document))
    # A file name need not be valid UTF-8; what is written must be.
    typer.echo(text.encode("utf-8", "backslashreplace").decode())


def chosen_recipe(recipe: str | None, phase: int | None) -> str | None:
    from stage1.config import phase_recipe

    if phase is None:
        return recipe
    if recipe is not None:
        raise ConfigError("--phase and --recipe: give one of them")
    return phase_recipe(phase)


def given_config(file: str | None, recipe: str | None, phase: int | None, overrides: list[str]) -> Any:
    from stage1.config import load_config

    return load_config(file, recipe=chosen_recipe(recipe, phase), overrides=overrides)[0]


def run_folder(given: list[str]) -> Path:
    if not given or "=" in given[0]:
        raise ConfigError("a run directory is needed (stage1 calibrate RUN), or --scores FILE")
    return Path(given.pop(0))


def pairs(columns: list[str] | None) -> dict[str, str]:
    pairs = [item.partition("=") for item in columns or []]
    if bad := [key for key, sign, name in pairs if not sign or not name]:
        raise ConfigError(f"--columns {bad[0]}: looks like FIELD=NAME, e.g. scores=prob")
    return {key: name for key, _, name in pairs}


def split_overrides(given: list[str]) -> tuple[list[Path], list[str]]:
    """(paths, overrides A.B=VALUE) of arguments that may be either; what exists is a path, whatever its name."""
    overrides = [item for item in given if "=" in item and not Path(item).exists()]
    return [Path(item) for item in given if item not in overrides], overrides


def exit_by_certificate(folder: Path) -> None:
    from stage1.errors import NotCertifiable
    from stage1.policy import Certificate

    certificate = Certificate.load(folder / "certificate.json")
    if not certificate.certified:
        raise NotCertifiable(f"{certificate.reason} Needed: {certificate.needed or 'see the reason.'}")


def asked_for(whole: typer.Typer, arguments: list[str]) -> typer.Typer:
    """The app with the one command that these arguments name; the whole app where they name none (help, a group).

    Typer reads the signatures of all commands before it runs one: a quarter of the time of a `stage1 predict`.
    """
    named = [
        command
        for command in whole.registered_commands
        if command.callback is not None
        and arguments[:1] == [command.name or get_command_name(command.callback.__name__)]
    ]
    if not named:
        return whole
    one = copy(whole)
    one.registered_commands, one.registered_groups = named, []
    return one


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
