"""`rwkvctl config`: show and change the settings of this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.command()
def show(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print the settings in force and where each comes from."""
    import os

    from rwkvctl.base.paths import config_file
    from rwkvctl.config import settings

    values = settings.load().model_dump()
    if as_json:
        print(json.dumps(values, indent=2))
        return
    in_file = settings.read_file()
    print(f"# {config_file()}")
    for key, value in values.items():
        variable = settings.ENVIRONMENT.get(key)
        source = f"${variable}" if variable and os.environ.get(variable) else "file" if key in in_file else "default"
        print(f"{key}: {value if value is not None else 'null'}  ({source})")


@app.command(name="set")
def set_(key: str, value: str) -> None:
    """Set one key, for example: rwkvctl config set address ray-head:6379."""
    from rwkvctl.config import settings

    settings.save(key, value)
    show()


@app.command()
def unset(key: str) -> None:
    """Return one key to its default."""
    from rwkvctl.config import settings

    settings.save(key, None)
    show()
