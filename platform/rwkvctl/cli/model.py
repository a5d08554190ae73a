"""`rwkvctl model`: the registered models."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def tracking_uri() -> str:
    from rwkvctl import settings

    return settings.load().tracking_uri


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List registered models, their newest version and their aliases."""
    from rwkvctl.tracking import registry

    models = registry.list_models(tracking_uri())
    if as_json:
        print(json.dumps([asdict(model) for model in models], indent=2))
        return
    for model in models:
        aliases = ", ".join(f"{alias} -> {version}" for alias, version in model.aliases.items())
        print(f"{model.name}  versions {model.versions}  latest {model.latest}  {aliases}")
    if not models:
        print("no registered models: rwkvctl finetune registers one")


@app.command()
def show(name: str, as_json: Json = False) -> None:
    """Show every version of a model: where it comes from and what it scored."""
    from rwkvctl.tracking import registry

    versions = registry.show(name, tracking_uri())
    if as_json:
        print(json.dumps([asdict(version) for version in versions], indent=2))
        return
    for version in versions:
        print(f"{name}/{version.version}  aliases: {', '.join(version.aliases) or '-'}  run {version.run_id}")
        for key, value in sorted((version.tags | {k: str(v) for k, v in version.metrics.items()}).items()):
            print(f"  {key}: {value}")


@app.command()
def promote(
    name: str,
    version: int,
    alias: Annotated[str, typer.Option(help="Alias to set, for example champion.")],
    gates: Annotated[
        list[str] | None,
        typer.Option("--gate", help="Condition that must hold, for example dsc_strict>=0.8 (of the test part)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Point an alias at a version, if every gate holds."""
    from rwkvctl.tracking import registry

    passed = registry.promote(name, version, alias, gates=gates or [], tracking_uri=tracking_uri())
    if as_json:
        print(json.dumps({"name": name, "version": version, "alias": alias, "gates": passed}, indent=2))
        return
    for line in passed:
        print(line)
    print(f"models:/{name}@{alias} is now version {version}")
