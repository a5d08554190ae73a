"""Masks for images and volumes.

python -m rwkv_jobs.predict RUN_FOLDER
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rwkv_jobs.worker import pick_device
from rwkv_unet import fuse_for_inference
from rwkvctl.config.specs.jobs import PredictSpec
from rwkvctl.models import bundle
from rwkvctl.models.predict import check_inputs, predict_files
from rwkvctl.registry import references


def check(spec: PredictSpec, run_dir: Path) -> None:
    """Whether the inputs are there, and the model makes masks."""
    check_inputs([Path(path) for path in spec.inputs])
    bundle.require(bundle.read_info(references.model_folder(spec.model, spec)), "segmentation", f"model {spec.model}")


def run(spec: PredictSpec, run_dir: Path) -> dict[str, Any]:
    """One mask file for every input, in the output folder, at the input's own size."""
    folder = references.model_folder(spec.model, spec)
    model, info = bundle.load(folder, device=pick_device())
    fuse_for_inference(model)
    written = predict_files(model, info, [Path(path) for path in spec.inputs], Path(spec.out))
    return {"model": spec.model, "written": [str(path) for path in written]}


if __name__ == "__main__":
    from rwkv_jobs.entry import main

    main("predict")
