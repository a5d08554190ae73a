"""`rwkvctl serve`: a server of masks, here or on a cluster."""

from __future__ import annotations

from typing import Annotated

import typer


def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="models:/NAME@ALIAS, whose alias is followed; a run, or a folder.")
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any that is free.")] = 8000,
    token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="File with the token that callers need, or RWKVCTL_SERVE_TOKEN.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Processes that each hold the model.")] = 1,
    timeout: Annotated[float | None, typer.Option(min=0.1, help="Seconds that a request may take.")] = None,
    max_upload: Annotated[int | None, typer.Option(min=1, metavar="MB", help="Size of an upload.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster: host:port, or http://host:8265 for its job server.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any other field (see: docs/serving.md).")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the server on a cluster.")] = None,
) -> None:
    """Answer POST /predict with the mask of an image or a scan, and a page to drop one on at /."""
    from rwkvctl.cli import serve_steps

    options = {"host": host, "port": port, "replicas": replicas, "name": name}
    limits = {"seconds": timeout, "upload_mb": max_upload}
    spec = serve_steps.serve_spec(model, options, limits, address, assignments or [])
    serve_steps.run(spec, token_file)
