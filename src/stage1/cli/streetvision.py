"""streetvision: our bundle as a detector of the client: run a miner with it, check it, and what it earns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stage1.cli.options import USE, AsJson, Quiet, app, show

streetvision_app = typer.Typer(no_args_is_help=True, help="A bundle as a detector of the StreetVision client.")
app.add_typer(streetvision_app, name="streetvision", rich_help_panel=USE)


@streetvision_app.command("run")
def streetvision_run(
    command: Annotated[
        list[str],
        typer.Argument(help="After --: [python] script.py or -m module, with its options.", metavar="MINER-COMMAND"),
    ],
    registry: Annotated[
        str,
        typer.Option("--registry", help="MODULE[:ATTRIBUTE] of the client's registry; attribute DETECTOR_REGISTRY."),
    ],
    name: Annotated[str, typer.Option("--name", help="Name under which the detector is registered.")] = "Stage1",
    config: Annotated[
        Path | None, typer.Option("--config", help="Detector YAML, or bundle folder, where the miner names none.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="MODULE:CLASS of the client that the detector must derive from.")
    ] = None,
    also_known: Annotated[
        list[str] | None,
        typer.Option("--also-known", help="A --neuron. word of a newer client; those of v2.0.4 are known. Repeatable."),
    ] = None,
    show_only: Annotated[bool, typer.Option("--print", help="Print the command instead of running it.")] = False,
) -> None:
    """Register the detector with the client, then become the miner, in the miner's own Python, and say which detector
    it built.

    Example: stage1 streetvision run --registry base_miner.registry -- python neurons/miner.py --neuron.image_detector
    Stage1 --neuron.image_detector_config /abs/stage1.yaml
    """
    import os
    import shlex

    from stage1.errors import MissingError
    from stage1.streetvision.launch import miner_command

    words = miner_command(
        command,
        registry=registry,
        name=name,
        base=base,
        config=None if config is None else str(config),
        also_known=also_known or (),
    )
    if show_only:
        typer.echo(shlex.join(words))
        return
    try:
        os.execvp(words[0], words)
    except OSError as error:
        raise MissingError(
            f"miner command: {words[0]}: {error.strerror}; give the path of the miner's Python"
        ) from error


@streetvision_app.command("check")
def streetvision_check(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, or a detector YAML.", metavar="BUNDLE|YAML")],
    images: Annotated[
        str | None,
        typer.Option("--images", help="Labelled images (any source); generated road scenes where not given."),
    ] = None,
    count: Annotated[int, typer.Option("--count", help="Challenges of each level.")] = 200,
    seed: Annotated[int, typer.Option("--seed", help="Of the challenges.")] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda, as the client gives it.")] = "cpu",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Play challenges of every level through the detector: latency, failures, and what the client would pay (exit 1 if
    any fails).

    Example: stage1 streetvision check runs/demo/bundle --images photos.csv
    """
    from stage1.runs.progress import Progress
    from stage1.streetvision import Stage1Detector
    from stage1.streetvision.check import check, check_lines, frames_of, require_count, scenes

    require_count(count)  # before scenes are drawn for it
    detector = Stage1Detector(model_name="stage1", config_name=str(bundle), device=device)
    frames = scenes() if images is None else frames_of(images, detector.classes)
    with Progress(quiet=quiet).bar("challenges", 4 * count) as advance:
        document = check(detector, frames, count=count, seed=seed, advance=advance)
    show(document, as_json, check_lines)
    if document["failures"]:
        raise typer.Exit(1)


@streetvision_app.command("cascade")
def streetvision_cascade(
    cascade: Annotated[Path, typer.Argument(help="Cascade file (YAML); see docs/CASCADE.md.", metavar="CASCADE")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The file for the detector's key `cascade` (JSON); paths start from it."),
    ],
    certified: Annotated[
        Path | None,
        typer.Option("--certified", help="Folder of `cascade evaluate`: its thresholds, and its certificate's."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Check a cascade file and write its stages and rules as one sealed file for the detector.

    Example: stage1 streetvision cascade cascade.yaml --certified runs/cascade --output stages.json
    """
    from stage1.cascade import fixed_rules, open_cascade
    from stage1.commands.cascade import certified_rules
    from stage1.streetvision.sealed_cascade import seal_cascade

    opened = open_cascade(cascade)
    certificate = None
    if certified is None:
        rules = fixed_rules(opened.config)
    else:
        rules, document = certified_rules(certified, opened)
        certificate = document["certificate"]
    seal_cascade(opened, cascade, rules, output, certificate)
    if not quiet:
        said = "no certificate: thresholds of the file (give --certified FOLDER of `stage1 cascade evaluate`)"
        typer.echo(said if certificate is None else certificate["statement"])
        typer.echo(str(output))
