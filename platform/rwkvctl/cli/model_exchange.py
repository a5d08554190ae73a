"""`rwkvctl model push | pull`: models go to others, and come from them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Annotated

import typer

from rwkvctl.base.errors import UserError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the model that is there.")]


def push(
    model: Annotated[str, typer.Argument(help="A run, models:/NAME@ALIAS, models:/NAME/VERSION, or a model folder.")],
    target: Annotated[str, typer.Argument(help="A folder, s3://BUCKET/PREFIX, or hf://OWNER/NAME.")],
    licence: Annotated[
        str, typer.Option("--license", help="Of the weights, as the hub names it: apache-2.0, cc-by-nc-4.0, ...")
    ] = "",
    public: Annotated[bool, typer.Option("--public", help="Make a new repository of the hub public.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a trained model in the form of the Hugging Face hub, with its card."""
    if licence and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise UserError(f"--license {licence[:40]}: write it as the hub does, apache-2.0 for instance")
    from rwkvctl.config import settings
    from rwkvctl.registry import exchange, references

    machine = settings.load()
    folder = references.find_model_folder(model, machine.storage, machine.tracking_uri)
    done = exchange.push(
        model,
        folder,
        target,
        tracking_uri=machine.tracking_uri,
        licence=licence,
        overwrite=overwrite,
        public=public,
    )
    if as_json:
        print(json.dumps(asdict(done), indent=2))
        return
    print(f"{done.address}  weights {done.weights[:12]}")
    if done.note:
        print(f"note: {done.note}")
    if not licence:
        print("note: no licence is stated (--license)")


def pull(
    source: Annotated[str, typer.Argument(help="A folder, s3://BUCKET/PREFIX, or hf://OWNER/NAME[@REVISION].")],
    register_as: Annotated[
        str | None, typer.Option("--register-as", metavar="NAME", help="Make it a version of this registered model.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Write a model folder instead.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fetch a model that `model push` has written, check it, and register it or write it into a folder."""
    if (register_as is None) == (out is None):
        raise UserError("model pull: give either --register-as NAME or --out FOLDER")
    from rwkvctl.config import settings
    from rwkvctl.registry import exchange

    uri = settings.load().tracking_uri
    done = exchange.pull(source, register_as=register_as, out=out, tracking_uri=uri, overwrite=overwrite)
    if as_json:
        print(json.dumps(asdict(done), indent=2))
        return
    print(f"{done.model}  {done.kind}  weights {done.weights[:12]}  from {done.source} {done.revision[:12]}".rstrip())
