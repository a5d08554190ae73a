"""DSC and HD95 (or top-1 and top-5) of a trained model on one part of a data set.

python -m rwkv_jobs.evaluate RUN_FOLDER
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from rwkv_jobs.launch import launch
from rwkv_jobs.recorder import Recorder
from rwkv_jobs.scoring import Gallery, count_accuracy, named, score_cases, write_scores
from rwkv_jobs.worker import worker
from rwkv_unet import fuse_for_inference
from rwkvctl.base.errors import UserError
from rwkvctl.base.files import write_json
from rwkvctl.config.specs.jobs import EvaluateSpec
from rwkvctl.config.specs.parts import DataSpec
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.shard_check import check_shards
from rwkvctl.models import bundle
from rwkvctl.registry import references
from rwkvctl.runs.journal import say
from rwkvctl.training.metrics import flat_metrics

KINDS: dict[str, bundle.Kind] = {"segmentation": "segmentation", "classification": "classifier"}
"""The kind of model that the task of a data set needs."""


def check(spec: EvaluateSpec, run_dir: Path) -> None:
    """Whether there is such a model, undamaged, and data that it fits."""
    model = references.model_folder(spec.model, spec)
    _, _, info = data_of(spec, model)
    bundle.read_weights(model, info)


def run(spec: EvaluateSpec, run_dir: Path) -> dict[str, Any]:
    """Copy the model into the run, score it on all workers, and hand back the summary."""
    references.copy_model(spec.model, run_dir / "model", spec)
    launch(score, spec, run_dir)
    summary = json.loads((run_dir / "summary.json").read_text())
    note_on_versions(spec, run_dir, summary)
    return {"model": spec.model, "part": spec.part, **summary}


def note_on_versions(spec: EvaluateSpec, run_dir: Path, summary: dict[str, Any]) -> None:
    """Put the scores on the registered versions with these weights, where promotion gates look for them."""
    values = flat_metrics(summary, spec.part) if "classes" in summary else named(summary, spec.part)
    with contextlib.suppress(Exception):  # the scores are on disk: a tracking server must not fail the evaluation
        from rwkvctl.registry.register import record_metrics

        for uri in record_metrics(run_dir / "model", values, tracking_uri=spec.tracking.uri or ""):
            say(run_dir, f"scores noted on {uri}")


def data_of(spec: EvaluateSpec, model: Path) -> tuple[Manifest, DataSpec, bundle.BundleInfo]:
    """The data to score on: as asked for, or those that the model was trained on."""
    info = bundle.read_info(model)
    path = spec.data or info.extra.get("data")
    if path is None:
        raise UserError(f"model {spec.model}: does not say which data it was trained on; give --data")
    manifest = Manifest.load(path)
    bundle.require(info, KINDS[manifest.task], f"data {path} is for {manifest.task}, and model {spec.model}")
    if manifest.classes != info.classes:
        raise UserError(
            f"data {path}: has the classes {', '.join(manifest.classes)}, "
            f"the model has {', '.join(info.classes)}; give other --data"
        )
    split = spec.split or info.extra.get("split") or manifest.default_split
    check_shards(manifest, manifest.ids(split, spec.part))
    data = DataSpec(dataset=manifest.dataset, path=str(path), split=split, image_size=info.image_size, workers=0)
    return manifest, data, info


def score(spec: EvaluateSpec, run_dir: Path) -> None:
    """What every worker runs."""
    with worker(spec.cluster) as me, Recorder(me, run_dir) as recorder:
        manifest, data, _ = data_of(spec, run_dir / "model")
        model = fuse_for_inference(bundle.load(run_dir / "model", device=me.device)[0])
        if manifest.task == "classification":
            summary: dict[str, Any] = count_accuracy(model, manifest, data, spec.part, me, batch=64)
            values = named(summary, spec.part)
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


if __name__ == "__main__":
    from rwkv_jobs.entry import main

    main("evaluate")
