"""Masks for images and volumes.

python -m rwkv_jobs.predict RUN_FOLDER
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rwkv_jobs.worker import pick_device
from rwkv_unet import fuse_for_inference
from rwkvctl.base.paths import as_text, from_text
from rwkvctl.config.specs.jobs import PredictSpec
from rwkvctl.models import bundle
from rwkvctl.models.predict import Planned, plan, predict_each
from rwkvctl.registry import references


def check(spec: PredictSpec, run_dir: Path) -> None:
    """Whether the model makes masks, the inputs are there, and their masks can be written."""
    planned(spec, references.model_folder(spec.model, spec))


def planned(spec: PredictSpec, folder: Path) -> Planned:
    """The files that are read and written."""
    info = bundle.read_info(folder)
    bundle.require(info, "segmentation", f"model {spec.model}")
    inputs = [from_text(text) for text in spec.inputs]
    return plan(inputs, info, from_text(spec.out), overwrite=spec.overwrite, window=spec.range)


def run(spec: PredictSpec, run_dir: Path) -> dict[str, Any]:
    """One mask file for every input, in the output folder, at the input's own size."""
    folder = references.model_folder(spec.model, spec)
    files = planned(spec, folder)
    model, info = bundle.load(folder, device=pick_device())
    fuse_for_inference(model)
    written = list(predict_each(model, info, files, spec.range))
    return {
        "model": spec.model,
        "written": [as_text(one.mask) for one in written],
        "notes": [f"{as_text(one.input)}: {one.note}" for one in written if one.note],
    }


if __name__ == "__main__":
    from rwkv_jobs.entry import main

    main("predict")
