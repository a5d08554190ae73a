"""`rwkvctl data export`: prepared data sets for other programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rwkvctl.base.errors import UserError
from rwkvctl.cli.progress import AsJson, progress_bar

app = typer.Typer(help="Write a data set for another program.", no_args_is_help=True)


@app.callback()
def export() -> None:
    """Write a data set for another program."""


@app.command()
def nnunet(
    path: Annotated[str, typer.Argument(metavar="DATA", help="Folder or URI of a data set.")],
    out: Annotated[str, typer.Option(help="Folder of nnU-Net's raw data sets; DatasetNNN_NAME is made in it.")],
    number: Annotated[int, typer.Option("--id", metavar="NNN", help="nnU-Net's number of it, 1 to 999.")] = 500,
    split: Annotated[
        str | None, typer.Option(help="Split, or the name of folds without _foldN [default: the default split]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a raw folder of nnU-Net v2: train and val become imagesTr and splits_final.json, test becomes imagesTs."""
    from rwkvctl.data.convert import nnunet_folder

    if "://" in out:
        raise UserError(f"--out {out}: give a folder of this machine, and copy it from there")
    with progress_bar(quiet=as_json) as progress:
        done = nnunet_folder.export(path, Path(out), number, split=split, progress=progress)
    if as_json:
        print(json.dumps(asdict(done), indent=2))
        return
    print(f"{done.folder}: cases {done.training} train and val, {done.test} test; {done.values}")
    if done.without_spacing:
        print(f"note: {done.without_spacing} volumes have no spacing on record; it is written as 1 mm")
    if done.test_in_training:
        print(f"note: {done.test_in_training} cases of {done.split} are both val and test, and lie in both folders")
    if done.folds:
        folds = "1 fold" if done.folds == 1 else f"{done.folds} folds"
        place = f"nnUNet_preprocessed/{Path(done.folder).name}"
        print(
            f"splits_final.json: {folds}, {done.split}; nnU-Net 2.8 copies it when it plans, else copy it into {place}"
        )
    else:
        print(f"note: {done.split} has no val samples, so nnU-Net will make folds of its own")
    print(f"next: nnUNet_raw={out} nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity")
