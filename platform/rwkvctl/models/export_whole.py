"""A trained model as one file with its pre- and post-processing: raw values in, class ids out, both at their own size;
of a network over three axes the network alone, see `export_volumes`.

Beside the file stand `NAME.json`, what it takes and gives, and `NAME.parity.json`, how far its masks are from those of
`predict`; a file whose masks are not those is not left.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rwkv_unet import fuse_for_inference
from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.base.files import sha256_file, write_json
from rwkvctl.models import export_parity, export_volumes
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.export import WRITERS, Graph, exporting
from rwkvctl.models.export_contract import contract, metadata
from rwkvctl.models.export_parity import Parity
from rwkvctl.models.export_pipeline import Pipeline
from rwkvctl.models.onnx_model import numbers


@dataclass(frozen=True)
class ExportedWhole:
    """What was written."""

    path: str
    format: str
    bytes: int
    parity: Parity


def export(model: nn.Module, info: BundleInfo, out: Path, form: str, inputs: list[Path] | None = None) -> ExportedWhole:
    """Write `model` with its processing to `out`; UserError where its kind cannot be exported, JobFailedError where the
    file's masks are not those of `predict`.

    inputs: files and folders that the masks are compared on too; images that are made up are always.
    """
    if form not in WRITERS:
        raise UserError(f"--format {form}: choose onnx or pt2")
    compared = export_parity.compared_files(inputs or [], info)
    model = fuse_for_inference(model)
    with files.atomic_path(out) as temporary, torch.no_grad():
        of_volumes = info.volumes is not None
        with exporting(model, form):
            WRITERS[form][0]((export_volumes.graph if of_volumes else graph)(model, info, form), temporary)
        exported = export_parity.opened(temporary, info, form)
        made_up = (export_volumes.compared if of_volumes else export_parity.compared_images)(model, info, exported)
        of_files = export_parity.of_files(model, info, exported, compared)
        parity = export_parity.judged(chain(made_up, of_files), shown=out)
    write_json(beside(out, "json"), contract(info, form) | {"file": out.name, "sha256": sha256_file(out)})
    write_json(beside(out, "parity.json"), parity.as_fields() | {"file": out.name, "sha256": sha256_file(out)})
    return ExportedWhole(str(out), form, out.stat().st_size, parity)


def beside(out: Path, ending: str) -> Path:
    """`model.onnx.json`; a plain `model.json` is what a model folder has."""
    return out.with_name(f"{out.name}.{ending}")


def graph(model: nn.Module, info: BundleInfo, form: str) -> Graph:
    """The module and its inputs, of any number and size."""
    shapes: list[Any] = [{place: torch.export.Dim(name, min=1) for place, name in enumerate(("n", "height", "width"))}]
    names = ["image"]
    if info.image_kind == "rgb8":
        examples = [torch.zeros((3, 61, 77, 3), dtype=torch.uint8)]
    else:
        several = (info.channels,) if info.channels > 1 else ()
        examples = [torch.rand(3, 61, 77, *several, generator=torch.Generator().manual_seed(0))]
        for name, own in numbers(info, raw=True).items():
            names.append(name)
            examples.append(torch.from_numpy(own))
            shapes.append(None)
    return Graph(
        Pipeline(model, info), tuple(examples), tuple(shapes), tuple(names), ("ids", "logits"), metadata(info, form)
    )
