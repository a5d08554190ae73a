"""`rwkvctl recipe`: the recipes and sweep spaces that are shipped, and the schema of your own."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.command(name="list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List recipes by job kind, and sweep spaces."""
    from rwkvctl.config.specs import load

    names = {job: load.recipe_names(job) for job in ("pretrain", "finetune")} | {"tune (spaces)": load.space_names()}
    if as_json:
        print(json.dumps(names, indent=2))
        return
    for job, recipes in names.items():
        print(f"{job}: {', '.join(recipes)}")


@app.command()
def show(name: str) -> None:
    """Print a recipe with every field written out; redirect it into a file to make your own."""
    from rwkvctl.config.specs import load

    print(load.dump(load.load_recipe(name)), end="")


@app.command()
def schema(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[JOB]", help="finetune, pretrain, ... for recipes; space; study. Any of them by default."
        ),
    ] = None,
) -> None:
    """Print the JSON schema of recipes, sweep spaces and studies, with which an editor checks and completes them."""
    from rwkvctl.config.specs.schema import schema as of

    print(json.dumps(of(kind), indent=2))
