"""store verify, info, export, delete, prune: look after an event store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stage1.cli.options import USE, AsJson, app, show

store_app = typer.Typer(no_args_is_help=True, help="The event store: verify, look, export, erase, prune.")
app.add_typer(store_app, name="store", rich_help_panel=USE)

Place = Annotated[str, typer.Argument(help="File of a SQLite store, or postgresql://USER@HOST/NAME.", metavar="STORE")]


@store_app.command("verify")
def store_verify(
    place: Place,
    head: Annotated[
        str, typer.Option("--head", help="Digest of a head that was noted elsewhere: it has to be in the chain.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Find any changed, missing, added or moved row (exit 5, with the first fault).

    Without --head the store is compared with itself: whoever may write to the database can cut entries off at the end,
    or make the whole chain anew, unseen. Note the head that `stage1 store info` prints somewhere else, and give it
    here.

    Example: stage1 store verify events.db
    """
    from stage1.commands.store import verify_store

    document, lines = verify_store(place, head)
    show(document, as_json, lines)
    if not document["ok"]:
        raise typer.Exit(5)


@store_app.command("info")
def store_info(place: Place, as_json: AsJson = False) -> None:
    """What is in the store, and the head of its chain: note that elsewhere, for `stage1 store verify --head`.

    Example: stage1 store info events.db
    """
    from stage1.commands.store import info_lines, store_document

    show(store_document(place), as_json, info_lines)


@store_app.command("export")
def store_export(
    place: Place,
    output: Annotated[Path, typer.Option("--output", "-o", help="The Parquet file.")],
    what: Annotated[str, typer.Option("--what", help="decisions or labels.")] = "decisions",
) -> None:
    """Write decisions or labels to a Parquet file.

    Example: stage1 store export events.db --output decisions.parquet
    """
    from stage1.commands.store import export_store

    typer.echo(export_store(place, output, what))


@store_app.command("delete")
def store_delete(
    place: Place,
    who: Annotated[str, typer.Option("--who", help="Who erases.")],
    why: Annotated[str, typer.Option("--why", help="Why; it stays in the store.")],
    request: Annotated[str, typer.Option("--request", help="Id of a request: its decisions and labels.")] = "",
    image: Annotated[str, typer.Option("--image", help="sha256 of an image: all decisions about it.")] = "",
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of kept images: the erased ones go there too.")
    ] = None,
) -> None:
    """Erase what is known of a request or an image; the chain stays verifiable and says who, when and why.

    Example: stage1 store delete events.db --request 7f3a --who ana --why "asked for by the owner"
    """
    from stage1.commands.store import delete_from_store

    typer.echo(delete_from_store(place, request, image, who, why, images))


@store_app.command("prune")
def store_prune(
    images: Annotated[Path, typer.Argument(help="Folder of kept images.", metavar="IMAGES")],
    older_than: Annotated[
        str | None, typer.Option("--older-than", help="Remove images kept longer: 30d, 12h, 90min, 60s.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option("--keep", help="Then the oldest until so much is left: 10GB, 500MB.")
    ] = None,
) -> None:
    """Remove kept images by age and size. Decisions and labels stay.

    Example: stage1 store prune kept/ --older-than 30d --keep 10GB
    """
    from stage1.commands.store import prune_images

    typer.echo(prune_images(images, older_than, keep))
