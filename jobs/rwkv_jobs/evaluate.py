"""Scores per class and case (or top-1 and top-5) of a trained model on one part of a data set.

python -m rwkv_jobs.evaluate RUN_FOLDER
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rwkv_jobs.gallery import Gallery
from rwkv_jobs.launch import launch
from rwkv_jobs.recorder import Recorder
from rwkv_jobs.scoring import Probabilities, Scores, count_accuracy, score_cases, write_cases
from rwkv_jobs.worker import worker
from rwkv_unet import fuse_for_inference
from rwkvctl.base.errors import UserError
from rwkvctl.base.files import write_json
from rwkvctl.base.lineage import code_version
from rwkvctl.config.specs.jobs import EvaluateSpec
from rwkvctl.config.specs.parts import DataSpec
from rwkvctl.data.convert import formats
from rwkvctl.data.store import overlap
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.shard_check import check_shards
from rwkvctl.models import bundle, same_data
from rwkvctl.registry import measured, references
from rwkvctl.registry.cases import TABLE
from rwkvctl.registry.release import SUMMARY, note_scores
from rwkvctl.reports import evaluation_page
from rwkvctl.runs import sync
from rwkvctl.runs.journal import say
from rwkvctl.training.metrics import Choices, tracked

KINDS: dict[str, bundle.Kind] = {"segmentation": "segmentation", "classification": "classifier"}
"""The kind of model that the task of a data set needs."""


def check(spec: EvaluateSpec, run_dir: Path) -> None:
    """Whether the model exists and is undamaged, and the data fits it."""
    model = references.model_folder(spec.model, spec)
    _, _, info = data_of(spec, model)
    bundle.read_weights(model, info)


def run(spec: EvaluateSpec, run_dir: Path) -> dict[str, Any]:
    """Copy the model into the run, score it on all workers, and hand back the summary."""
    references.copy_model(spec.model, run_dir / "model", spec)
    launch(score, spec, run_dir)
    summary = json.loads((run_dir / SUMMARY).read_text())
    say_overlap(run_dir, measured.Measured.model_validate(summary["measured"]))
    note_on_versions(spec, run_dir)
    return {"model": spec.model, "part": spec.part, **summary}


def note_on_versions(spec: EvaluateSpec, run_dir: Path) -> None:
    """Put the scores on the registered versions with these weights, where promotion gates look for them."""
    syncer = sync.running(run_dir)
    assert syncer is not None, "the driver sends the journal while a job runs"
    if not syncer.do("noted_on", partial(note_scores, run_dir, spec.tracking.uri or "")):
        text = f"scores not noted in the registry yet ({syncer.reason}); note them later with: rwkvctl sync"
        say(run_dir, f"{text} {run_dir.name}")
    for uri in syncer.outcomes.get("noted_on", []):
        say(run_dir, f"scores noted on {uri}")


def say_overlap(run_dir: Path, where: measured.Measured) -> None:
    """A line where scores are not a valid test of the model."""
    if (text := overlap_in_words(where)) is not None:
        say(run_dir, text + (", and no gate uses them" if where.trained_on else ""))


def overlap_in_words(where: measured.Measured) -> str | None:
    """Why scores are not a valid test of the model; None where they are."""
    if where.trained_on is None:
        return "it is not known whether these cases were trained on: the model's training data is no longer at its path"
    if where.trained_on:
        return (
            f"{where.trained_on} of {where.cases} {where.part} cases were trained on: these are not valid test scores"
        )
    return None


def data_of(spec: EvaluateSpec, model: Path) -> tuple[Manifest, DataSpec, bundle.BundleInfo]:
    """The data to score on: as asked for, or those that the model was trained on."""
    info = bundle.read_info(model)
    path = spec.data or info.extra.get("data")
    if path is None:
        raise UserError(f"model {spec.model}: does not record which data it was trained on; give --data")
    manifest = Manifest.load(path)
    bundle.require(info, KINDS[manifest.task], f"data {path} is for {manifest.task}, and model {spec.model}")
    same_data.check(manifest, info)
    split = spec.split or split_for(manifest, info)
    check_shards(manifest, manifest.ids(split, spec.part))
    data = DataSpec(
        dataset=manifest.dataset,
        path=str(path),
        split=split,
        image_size=info.image_size,
        workers=spec.loader_workers,
    )
    return manifest, data, info


def precision_of(info: bundle.BundleInfo, device: torch.device) -> str:
    """On a GPU the precision that the model was trained in; fp32 for a model from elsewhere and on a CPU."""
    return str(info.extra.get("precision", "fp32")) if device.type == "cuda" else "fp32"


def choices_of(spec: EvaluateSpec, manifest: Manifest) -> Choices:
    """How the figures that leave a choice are computed; lesions are counted where the data set is one of lesions."""
    lesions = formats.has_lesions(manifest.content.source.format) if spec.lesions is None else spec.lesions
    return Choices(spec.nsd_tolerance_mm, spec.nsd_tolerance_vox, lesions)


def split_for(manifest: Manifest, info: bundle.BundleInfo) -> str:
    """The split that the model was trained on; of other data, where there is none of that name, the default."""
    own = measured.split_of(info)
    return (
        own if own and (own in manifest.splits or manifest.fingerprint == info.fingerprint) else manifest.default_split
    )


def measured_on(spec: EvaluateSpec, manifest: Manifest, split: str, info: bundle.BundleInfo) -> measured.Measured:
    """What is scored, and how much of it the model was trained on."""
    ids = manifest.ids(split, spec.part)
    trained = training_part(manifest, info)
    return measured.Measured(
        dataset=manifest.dataset,
        fingerprint=manifest.fingerprint,
        split=split,
        part=spec.part,
        cases=len(ids),
        trained_on=None if trained is None else len(overlap.trained_on(*trained, manifest, ids)),
        code=code_version(),
    )


def training_part(manifest: Manifest, info: bundle.BundleInfo) -> tuple[Manifest, list[str]] | None:
    """The data set that a model was trained on and the ids that it saw; None where they are no longer available."""
    split, path = measured.split_of(info), info.extra.get("data")
    try:
        own = manifest if manifest.fingerprint == info.fingerprint else Manifest.load(str(path or ""))
        if own.fingerprint != info.fingerprint:
            return None
        return own, own.ids(split or None, "train")
    except UserError:
        return None


def score(spec: EvaluateSpec, run_dir: Path) -> None:
    """What every worker runs."""
    with worker(spec.cluster) as me, Recorder(me, run_dir) as recorder:
        manifest, data, info = data_of(spec, run_dir / "model")
        recorder.reads(manifest, data.split, spec.part)
        model = fuse_for_inference(bundle.load(run_dir / "model", device=me.device)[0])
        precision = precision_of(info, me.device)
        where = measured_on(spec, manifest, data.split or manifest.default_split, info)
        if manifest.task == "classification":
            summary: dict[str, Any] = count_accuracy(
                model, manifest, data, spec.part, me, batch=64, precision=precision
            )
        else:
            folder = run_dir / "artifacts" / spec.part
            gallery = Gallery(folder / "overlays", spec.overlays)
            scores = score_cases(
                model,
                manifest,
                data,
                spec.part,
                me,
                hd95=True,
                gallery=gallery,
                precision=precision,
                choices=choices_of(spec, manifest),
                probabilities=Probabilities(info.temperature),
            )
            summary = scores.summary
            if me.is_main:
                write_cases(folder, scores)
                recorder.artifact(folder / TABLE, spec.part)  # sent before the scores are noted, for their intervals
                page = page_of(spec, run_dir, manifest, info, where, scores, gallery)
                evaluation_page.write(folder / evaluation_page.PAGE, page)
        if me.is_main:
            recorder.metrics(tracked(summary, spec.part), 0)
            write_json(run_dir / SUMMARY, summary | {"measured": measured.as_fields(where)})
            recorder.artifact(run_dir / SUMMARY, spec.part)


def page_of(
    spec: EvaluateSpec,
    run_dir: Path,
    manifest: Manifest,
    info: bundle.BundleInfo,
    where: measured.Measured,
    scores: Scores,
    gallery: Gallery,
) -> evaluation_page.Evaluation:
    """What the page says."""
    leaks = manifest.splits[where.split].leak_groups_shared if where.split in manifest.splits else 0
    warnings = [
        overlap_in_words(where),
        f"split {where.split}: {leaks} groups (patients, sequences, duplicates) are in several of its parts"
        if leaks
        else None,
    ]
    facts = {
        "model": spec.model,
        "network": info.model.get("name", ""),
        "weights": info.weights_sha256[:12],
        "data": f"{where.dataset}, fingerprint {where.fingerprint[:12]}",
        "split": f"{where.split}, part {where.part}",
        "cases": where.cases,
        "trained on": "unknown" if where.trained_on is None else f"{where.trained_on} of these cases",
        "image size": info.image_size,
        "run": run_dir.name,
        "program": where.code,
    }
    return evaluation_page.Evaluation(
        title=f"{where.dataset}, {where.part}: {spec.model}",
        facts=facts,
        warnings=[text for text in warnings if text],
        classes=scores.classes,
        summary=scores.summary,
        cases=scores.cases,
        choices=scores.choices,
        groups=scores.groups,
        sureness=scores.sureness,
        worst=gallery.worst,
        median=gallery.median,
        volume=gallery.stack,
        part=where.part,
    )


if __name__ == "__main__":
    from rwkv_jobs.entry import main

    main("evaluate")
