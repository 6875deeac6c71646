"""serve: bundles behind HTTP."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from stage1.cli.options import USE, app


@app.command(rich_help_panel=USE)
def serve(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle folders, one or several.", metavar="BUNDLE...")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on; beyond loopback --keys is needed.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", help="Port; 0: any that is free.")] = 8000,
    workers: Annotated[int, typer.Option("--workers", help="Processes that decode and run; 0: one per core.")] = 0,
    keys: Annotated[Path | None, typer.Option("--keys", help="File of API keys (sha256, scopes, name).")] = None,
    store: Annotated[
        str, typer.Option("--store", help="Where decisions are kept: a file, postgresql://USER@HOST/NAME, or none.")
    ] = "decisions.sqlite",
    spool: Annotated[
        Path | None, typer.Option("--spool", help="Folder for decisions on their way to PostgreSQL, on a local disk.")
    ] = None,
    images: Annotated[Path | None, typer.Option("--images", help="Folder to keep image files in; without it none.")] = (
        None
    ),
    audit_rate: Annotated[
        float, typer.Option("--audit-rate", help="Probability with which a label is asked for, of every decision.")
    ] = 0.0,
    batch: Annotated[int, typer.Option("--batch", help="Most images of a worker's batch.")] = 8,
    queue: Annotated[int, typer.Option("--queue", help="Most images that wait.")] = 512,
    deadline: Annotated[float, typer.Option("--deadline", help="Seconds of a request that names none.")] = 10.0,
    max_deadline: Annotated[float, typer.Option("--max-deadline", help="Seconds that a request may ask for.")] = 60.0,
    max_bytes: Annotated[int, typer.Option("--max-bytes", help="Of the body of a request.")] = 64 << 20,
    max_images: Annotated[int, typer.Option("--max-images", help="Of a request.")] = 64,
    per_minute: Annotated[int | None, typer.Option("--per-minute", help="Images a minute for each key.")] = None,
    body: Annotated[float, typer.Option("--body", help="Seconds in which a request's body must be there.")] = 30.0,
    valid_until: Annotated[
        datetime | None, typer.Option("--valid-until", help="After this time (local) the certificate is void.")
    ] = None,
    accept_runtime: Annotated[
        bool,
        typer.Option(
            "--accept-runtime", help="Serve on another onnxruntime than the certified one: DEGRADED, not VOID."
        ),
    ] = False,
    load_from: Annotated[
        Path | None, typer.Option("--load-from", help="Folder below which bundles may be loaded while serving.")
    ] = None,
    verify_every: Annotated[
        float, typer.Option("--verify-every", help="Seconds between checks of the bundles' files.")
    ] = 300.0,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N.")] = None,
    log: Annotated[bool, typer.Option("--log", help="A line of JSON per request on stderr.")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="A span of OpenTelemetry per request, by its API.")] = False,
) -> None:
    """Serve bundles over HTTP: answers as `stage1 predict` gives them, with the state of their certificate in each.

    Every decision is in the store before it is answered (`stage1 store`).

    Ends on SIGTERM or Ctrl-C, after everything that was accepted is answered (exit 0).

    Example: stage1 serve runs/demo/bundle --port 8000
    """
    from stage1.extras import require

    require(("fastapi", "uvicorn", "python_multipart", "prometheus_client", "sqlalchemy", "alembic"), "serve")
    from stage1.serving.server import serve as serve_bundles
    from stage1.serving.settings import Settings

    settings = Settings(
        bundles=tuple(bundles),
        host=host,
        port=port,
        workers=workers,
        batch_images=batch,
        queue_images=queue,
        deadline_s=deadline,
        max_deadline_s=max_deadline,
        body_s=body,
        max_bytes=max_bytes,
        max_images=max_images,
        per_minute=per_minute,
        keys=keys,
        store=None if store == "none" else store,
        spool=spool,
        images=images,
        audit_rate=audit_rate,
        valid_until=None if valid_until is None else valid_until.timestamp(),
        accept_runtime=accept_runtime,
        load_from=load_from,
        verify_every_s=verify_every,
        device=device,
        log=log,
        trace=trace,
    )
    serve_bundles(settings, lambda line: typer.echo(line))
