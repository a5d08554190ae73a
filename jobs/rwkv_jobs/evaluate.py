"""DSC and HD95 (or top-1 and top-5) of a trained model on one part of a data set.

python -m rwkv_jobs.evaluate RUN_FOLDER
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rwkv_jobs.launch import launch
from rwkv_jobs.scoring import Gallery, count_accuracy, score_cases, write_scores
from rwkv_jobs.training import Recorder
from rwkv_jobs.worker import worker
from rwkvctl import bundle, models
from rwkvctl.data.manifest import Manifest
from rwkvctl.errors import UserError
from rwkvctl.files import write_json
from rwkvctl.specs.jobs import EvaluateSpec
from rwkvctl.specs.parts import DataSpec


def run(spec: EvaluateSpec, run_dir: Path) -> dict[str, Any]:
    """Lay the model ready, score it on all workers, and hand back the summary."""
    models.copy_into(spec.model, run_dir / "model", spec)
    data_of(spec, run_dir)
    launch(score, spec, run_dir)
    summary = json.loads((run_dir / "summary.json").read_text())
    return {"model": spec.model, "part": spec.part, **summary}


def data_of(spec: EvaluateSpec, run_dir: Path) -> tuple[Manifest, DataSpec, bundle.BundleInfo]:
    """The data to score on: as asked for, or those that the model was trained on."""
    info = bundle.read_info(run_dir / "model")
    path = spec.data or info.extra.get("data")
    if path is None:
        raise UserError(f"model {spec.model}: does not say which data it was trained on; give --data")
    manifest = Manifest.load(path)
    if manifest.classes != info.classes:
        raise UserError(
            f"data {path}: has the classes {', '.join(manifest.classes)}, "
            f"the model has {', '.join(info.classes)}; give other --data"
        )
    split = spec.split or info.extra.get("split") or manifest.default_split
    manifest.ids(split, spec.part)
    data = DataSpec(dataset=manifest.dataset, path=str(path), split=split, image_size=info.image_size, workers=0)
    return manifest, data, info


def score(spec: EvaluateSpec, run_dir: Path) -> None:
    """What every worker runs."""
    with worker(spec.cluster) as me:
        manifest, data, _ = data_of(spec, run_dir)
        model, _ = bundle.load(run_dir / "model", device=me.device)
        recorder = Recorder(me, run_dir)
        if manifest.task == "classification":
            summary = count_accuracy(model, manifest, data, spec.part, me, batch=64)
            values = {f"{spec.part}/{name}": value for name, value in summary.items()}
        else:
            folder = run_dir / "artifacts" / spec.part
            scores = score_cases(
                model, manifest, data, spec.part, me, hd95=True, gallery=Gallery(folder / "overlays", spec.overlays)
            )
            values = scores.metrics(spec.part)
            summary = write_scores(folder, scores) if me.is_main else {}
        if me.is_main:
            recorder.metrics(values, 0)
            write_json(run_dir / "summary.json", summary)
        recorder.close()


if __name__ == "__main__":
    from rwkv_jobs.entry import main

    main("evaluate")
