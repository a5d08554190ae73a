"""`rwkvctl model grid`: what several models make of the same images (Fig. 5 of the paper)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def grid(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Trainings, evaluations, models:/NAME@ALIAS or folders."),
    ],
    out: Annotated[Path, typer.Option(help="Figure to write: .png, .svg or .pdf.")],
    cases: Annotated[
        list[str] | None, typer.Option("--case", help="Case to show; repeatable [default: some, evenly spread].")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many cases are shown where none is named.")] = 4,
    labels: Annotated[
        list[str] | None, typer.Option("--label", help="What a model is called in the figure; once for each.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder or URI of shards; by default those of the first model's training.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Name of the split; by default that of the training.")] = None,
    part: Annotated[str, typer.Option(help="Part of the split: train, val or test.")] = "test",
) -> None:
    """Draw the same images segmented by several models beside the truth (Fig. 5 of the paper)."""
    from rwkvctl.base.errors import UserError
    from rwkvctl.config import settings
    from rwkvctl.data.store.manifest import Manifest
    from rwkvctl.models import bundle, same_data
    from rwkvctl.models.ensemble import Member
    from rwkvctl.pictures.figures import FORMATS
    from rwkvctl.registry import measured, references
    from rwkvctl.reports import qualitative

    if labels and len(labels) != len(models):
        raise UserError(f"--label: {len(labels)} for {len(models)} models; give one for each, in their order")
    if out.suffix not in FORMATS:
        raise UserError(f"--out {out}: a figure ends in {', '.join(FORMATS)}")
    machine = settings.load()
    found = [references.find_model_folder(model, machine.storage, machine.tracking_uri) for model in models]
    infos = [bundle.read_info(folder) for folder in found]
    for model, info in zip(models, infos, strict=True):
        bundle.require(info, "segmentation", f"model {model}")
    if (path := data or infos[0].extra.get("data")) is None:
        raise UserError(f"model {models[0]}: does not record which data it was trained on; give --data")
    manifest = Manifest.load(path)
    for info in infos:
        same_data.check(manifest, info)
    split = split or measured.split_of(infos[0]) or manifest.default_split
    keys = qualitative.chosen(manifest, split, part, cases or [], count)
    members = [Member(*bundle.load(folder)) for folder in found]
    rows = qualitative.rows(members, manifest, keys)
    qualitative.draw(rows, labels or models, manifest.classes, out)
    for row in rows:
        scores = ", ".join("-" if dsc is None else f"{dsc:.4f}" for dsc in row.dsc)
        print(f"{row.key}{f', {row.place}' if row.place else ''}: DSC {scores}")
    print(out)
