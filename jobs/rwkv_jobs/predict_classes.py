"""The classes of images: one table for all inputs of a prediction with classifiers."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.files import write_bytes
from rwkvctl.base.paths import as_text, from_text
from rwkvctl.config.specs.jobs import PredictSpec
from rwkvctl.data.feed.model_input import to_input
from rwkvctl.data.feed.samples import size_of
from rwkvctl.data.feed.transforms import eval_pixels
from rwkvctl.models import bundle, members, predict_sources, predict_store
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.predict_inputs import input_files, read_input
from rwkvctl.models.predict_sources import Sources
from rwkvctl.models.segmenting import check_alike

TABLE = "classes.csv"
BATCH = 16
INPUTS = "inputs"
OF_MASKS = (
    "tta", "tile", "thresholds", "probabilities", "largest_component", "fill_holes", "preview", "format", "resume",
    "keep_empty_frames", "segment_codes",
)  # fmt: skip
"""Options that say how masks are made."""


def check(spec: PredictSpec, infos: list[BundleInfo]) -> None:
    """UserError for models of different classes, for options of masks, and for a table that is there already."""
    names = spec.named or (spec.model, *spec.ensemble)
    for info, reference in zip(infos, names, strict=True):
        bundle.require(info, "classifier", f"model {reference}")
    check_alike(infos)
    for name in OF_MASKS:
        if getattr(spec, name) != type(spec).model_fields[name].get_default(call_default_factory=True):
            raise UserError(f"--{name.replace('_', '-')}: is for masks, and {names[0]} is a classifier; leave it out")
    if predict_store.is_uri(spec.out):
        raise UserError(f"--out {spec.out}: the table of classes is written on a disk; give a folder of this machine")
    table = from_text(spec.out) / TABLE
    if table.exists() and not spec.overwrite:
        raise UserError(f"{table}: exists; give another --out or --overwrite")


def run(spec: PredictSpec, models: list[Path], run_dir: Path) -> dict[str, Any]:
    """Write the table; what cannot be read does not keep the others from it, and is named in the error at the end."""
    from rwkv_jobs.worker import pick_device

    device = pick_device()
    folders = [member for folder in models for member in members.folders(folder)]
    loaded = [bundle.load(folder, device=device, kind="classifier") for folder in folders]
    sources = predict_sources.found(spec.inputs, run_dir / INPUTS)
    try:
        with sources.in_words():
            files = input_files(sources.paths)
            notes, failed, rows = [*sources.skipped], list[str](), list[list[str]]()
            for names, images in batches(spec, sources, files, loaded[0][1], notes, failed):
                means = mean_probabilities(loaded, images, device)
                for name, row in zip(names, means.tolist(), strict=True):
                    best = int(np.argmax(row))
                    each = [f"{value:.6f}" for value in row]
                    rows.append([name, loaded[0][1].classes[best], each[best], *each])
    finally:
        shutil.rmtree(run_dir / INPUTS, ignore_errors=True)
    if not rows:
        raise UserError(f"none of {len(files)} inputs could be read; {failed[0]}")
    table = from_text(spec.out) / TABLE
    write(table, loaded[0][1].classes, rows)
    if failed:
        raise JobFailedError(f"{len(failed)} of {len(files)} inputs failed, the others are in {table}: {failed[0]}")
    return {"model": spec.model, "written": [as_text(table)], "kept": 0, "notes": notes}


def batches(
    spec: PredictSpec, sources: Sources, files: list[Path], info: BundleInfo, notes: list[str], failed: list[str]
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """The names of some inputs, and their pixels uint8 (B, 3, H, W) as an evaluation sees them."""
    names, images = list[str](), list[torch.Tensor]()
    for path in files:
        try:
            pixels = photo(path, info, spec.range, sources, notes)
        except UserError as error:
            failed.append(sources.say(str(error)))
            continue
        names.append(sources.say(as_text(path)))
        images.append(eval_pixels(pixels, size_of(info.image_size)))
        if len(images) == BATCH:
            yield names, torch.stack(images)
            names, images = [], []
    if images:
        yield names, torch.stack(images)


def photo(
    path: Path, info: BundleInfo, window: tuple[float, float] | None, sources: Sources, notes: list[str]
) -> NDArray[np.uint8]:
    """uint8 (H, W, 3); UserError for what is no picture."""
    given = read_input(path, info, window)
    if given.values.ndim != 3 or given.values.dtype != np.uint8:
        raise UserError(f"input {path}: is not one picture, and a classifier takes no more")
    if given.note:
        notes.append(f"{sources.say(as_text(path))}: {given.note}")
    return given.values


@torch.inference_mode()
def mean_probabilities(
    loaded: list[tuple[torch.nn.Module, BundleInfo]], images: torch.Tensor, device: torch.device
) -> NDArray[np.float64]:
    """(B, classes), over all models."""
    total = sum(torch.softmax(model(to_input(images, device)).double(), dim=1) for model, _ in loaded)
    assert isinstance(total, torch.Tensor)
    return (total / len(loaded)).cpu().numpy()


def write(table: Path, classes: list[str], rows: list[list[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["input", "class", "probability", *(f"p_{name}" for name in classes)])
    writer.writerows(rows)
    try:
        table.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(table, text.getvalue().encode())
    except OSError as error:
        raise UserError(f"--out {table.parent}: cannot be written ({error.strerror})") from None
