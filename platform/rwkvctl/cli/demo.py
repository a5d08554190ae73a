"""`rwkvctl demo`: the whole path on procedural data, from raw files to a promoted model and its masks."""

from __future__ import annotations

from typing import Annotated

import typer


def demo(
    out: Annotated[str, typer.Option(help="Folder for the demo's data, runs and tracking database.")] = ".demo",
    seed: Annotated[int, typer.Option(help="Seed of the phantom and of the training.")] = 42,
) -> None:
    """Prepare, pretrain, finetune, evaluate, register, promote and predict on a phantom, in minutes on a laptop."""
    from rwkvctl.cli.demo_steps import run

    run(out, seed)
