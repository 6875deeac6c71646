"""streetvision reward and card: what the client pays, and the card that it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stage1.cli.options import AsJson, Columns, Values, pairs, show, tell
from stage1.cli.streetvision import streetvision_app


@streetvision_app.command()
def reward(
    source: Annotated[
        Path,
        typer.Argument(
            help="Run directory, folder of calibrate --scores, or labelled scores (with roles).", metavar="RUN|SCORES"
        ),
    ],
    level_column: Annotated[
        str | None,
        typer.Option("--level-column", help="Slice or column with the challenge level; `level` where there is one."),
    ] = None,
    values: Values = None,
    columns: Columns = None,
    prior: Annotated[float, typer.Option("--prior", help="P(class 1) where the client draws.")] = 0.5,
    resamples: Annotated[int, typer.Option("--resamples", help="Bootstrap replicates, over groups.")] = 1000,
    exits: Annotated[
        bool,
        typer.Option(
            "--exits/--no-exits", help="Exits keep their side, as in the detector; or as a stock folder answers."
        ),
    ] = True,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write reward.json there; of a run it is RUN/reward.json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What the client would pay, by level and for their mixture, at 0.5 and at a threshold fitted on val_select.

    Example: stage1 streetvision reward runs/demo
    """
    from stage1.commands.reward import REWARD_FILE, reward_lines, write_reward
    from stage1.commands.reward import reward as rewarded

    document = rewarded(
        source,
        level_column=level_column,
        values=values,
        columns=pairs(columns),
        prior=prior,
        resamples=resamples,
        exits=exits,
        say=tell,
    )
    # RUN/reward.json is what the detector's config names: a threshold for another way to answer stays out of it.
    path = output or (source / REWARD_FILE if source.is_dir() and exits else None)
    if path is not None:
        write_reward(document, path)
    show(document, as_json, reward_lines)


@streetvision_app.command()
def card(
    name: Annotated[str, typer.Option("--name", help="Name of the model.")],
    description: Annotated[str, typer.Option("--description", help="One or two sentences for the reader.")],
    version: Annotated[str, typer.Option("--version", help="X.Y.Z")],
    hotkey: Annotated[str, typer.Option("--hotkey", help="ss58 address of the miner's hotkey.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the model (of export --to), or a .json file.")
    ],
    time: Annotated[
        str | None, typer.Option("--time", help="Submission time, ISO 8601 with its offset; now where not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write model_card.json, which the client wants beside a published model; every field is checked.

    Example: stage1 streetvision card --name roadwork-s --description "Small ViT" --version 1.0.0 --hotkey 5Grw.. -o hf
    """
    from stage1.streetvision.card import FILE, ModelCard, write_card

    given = ModelCard.of(name, description, version, hotkey, time)
    path = output if output.suffix == ".json" else output / FILE
    write_card(given, path)
    show(
        given.to_document(),
        as_json,
        lambda document: [f"{path}", *(f"{key}: {text}" for key, text in document.items())],
    )
