"""`rwkvctl model calibrate`: the temperature of a model that was trained without one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    model: Annotated[str, typer.Argument(help="A run, models:/NAME@ALIAS, models:/NAME/VERSION, or a model folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write: the same model with its temperature.")],
    data: Annotated[str | None, typer.Option(help="Folder or URI of shards; by default those of the training.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Split whose validation part it is fitted to; by default that of the training.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fit the temperature that makes a model's probabilities true, on its validation cases; masks stay as they are."""
    from rwkvctl.base.errors import UserError
    from rwkvctl.config import settings
    from rwkvctl.data.store.manifest import Manifest
    from rwkvctl.models import bundle, calibrate, same_data
    from rwkvctl.registry import measured, references

    machine = settings.load()
    folder = references.find_model_folder(model, machine.storage, machine.tracking_uri)
    if out.exists():
        raise UserError(f"--out {out}: exists already; give a new folder")
    network, info = bundle.load(folder, kind="segmentation")
    if (path := data or info.extra.get("data")) is None:
        raise UserError(f"model {model}: does not record which data it was trained on; give --data")
    manifest = Manifest.load(path)
    same_data.check(manifest, info)
    found = calibrate.calibrate(network, info, manifest, split or measured.split_of(info) or manifest.default_split)
    bundle.save(out, bundle.read_weights(folder, info), found)
    assert found.calibration is not None
    if as_json:
        print(found.calibration.model_dump_json(indent=2))
        return
    said = found.calibration
    print(f"temperature {said.temperature:g}, fitted to {said.pixels:,} pixels of split {said.split}, part {said.part}")
    if said.ece is not None and said.likelihood is not None:
        print(
            f"ECE {said.ece[0]:.4f} -> {said.ece[1]:.4f}; log-loss {said.likelihood[0]:.4f} -> {said.likelihood[1]:.4f}"
        )
    print(out)
