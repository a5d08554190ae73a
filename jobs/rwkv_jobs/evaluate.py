"""Scores per class and case (or top-1 and top-5) of a trained model on one part of a data set.

python -m rwkv_jobs.evaluate RUN_FOLDER
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rwkv_jobs import networks
from rwkv_jobs.asked import asked, measured_on
from rwkv_jobs.class_scores import answers_of, write_table
from rwkv_jobs.gallery import Gallery
from rwkv_jobs.launch import launch
from rwkv_jobs.recorder import Recorder
from rwkv_jobs.scoring import Probabilities, Scores, score_cases, write_cases
from rwkv_jobs.worker import worker
from rwkvctl.base.errors import UserError
from rwkvctl.base.files import write_json
from rwkvctl.config.specs.jobs import EvaluateSpec
from rwkvctl.config.specs.parts import DataSpec
from rwkvctl.data.convert import formats
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.shard_check import check_shards
from rwkvctl.data.store.splits import folds_of
from rwkvctl.models import bundle, members, same_data
from rwkvctl.registry import measured, references
from rwkvctl.registry.cases import TABLE
from rwkvctl.registry.release import SUMMARY, note_scores
from rwkvctl.reports import classification_page, evaluation_page
from rwkvctl.runs import sync
from rwkvctl.runs.journal import say
from rwkvctl.training import classification
from rwkvctl.training.metrics import Choices, tracked

BY_FOLD = ", every case by the model of the fold that it was held out of"
KINDS: dict[str, bundle.Kind] = {"segmentation": "segmentation", "classification": "classifier"}
"""The kind of model that the task of a data set needs."""


def check(spec: EvaluateSpec, run_dir: Path) -> None:
    """Whether the model exists and is undamaged, and the data fits it."""
    model = references.model_folder(spec.model, spec)
    manifest, _ = data_of(spec, model)
    check_shards(manifest, asked(spec, manifest, model).ids)
    members.check(model)


def run(spec: EvaluateSpec, run_dir: Path) -> dict[str, Any]:
    """Copy the model into the run, score it on all workers, and hand back the summary."""
    references.copy_model(spec.model, run_dir / "model", spec)
    launch(score, spec, run_dir)
    summary = json.loads((run_dir / SUMMARY).read_text())
    where = measured.Measured.model_validate(summary["measured"])
    if spec.part is None and where.part == "val":
        say(run_dir, f"split {where.split} has no test part: these are scores of its validation cases")
    say_overlap(run_dir, where)
    if (text := chosen_by_in_words(data_of(spec, run_dir / "model")[0], where)) is not None:
        say(run_dir, text)
    note_on_versions(spec, run_dir)
    return {"model": spec.model, "part": where.part, **summary}


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


def data_of(spec: EvaluateSpec, model: Path) -> tuple[Manifest, bundle.BundleInfo]:
    """The data to score on: as asked for, or those that the model was trained on."""
    info = bundle.read_info(model)
    path = spec.data or info.extra.get("data")
    if path is None:
        raise UserError(f"model {spec.model}: does not record which data it was trained on; give --data")
    manifest = Manifest.load(path)
    bundle.require(info, KINDS[manifest.task], f"data {path} is for {manifest.task}, and model {spec.model}")
    same_data.check(manifest, info)
    if not manifest.has_volumes and members.sees_volumes(model):
        raise UserError(f"data {path}: holds images, and model {spec.model} takes whole volumes; give other --data")
    if info.volumes is None and isinstance(info.image_size, tuple):
        raise UserError(
            f"model {spec.model}: takes images of {' x '.join(map(str, info.image_size))}, and only models of square "
            "images (image_size is one number) can be evaluated; predict takes it"
        )
    return manifest, info


def precision_of(info: bundle.BundleInfo, device: torch.device) -> str:
    """On a GPU the precision that the model was trained in; fp32 for a model from elsewhere and on a CPU."""
    return str(info.extra.get("precision", "fp32")) if device.type == "cuda" else "fp32"


def choices_of(spec: EvaluateSpec, manifest: Manifest) -> Choices:
    """How the figures that leave a choice are computed; lesions are counted where the data set is one of lesions."""
    lesions = formats.has_lesions(manifest.content.source.format) if spec.lesions is None else spec.lesions
    return Choices(spec.nsd_tolerance_mm, spec.nsd_tolerance_vox, lesions)


def score(spec: EvaluateSpec, run_dir: Path) -> None:
    """What every worker runs."""
    with worker(spec.cluster) as me, Recorder(me, run_dir) as recorder:
        manifest, info = data_of(spec, run_dir / "model")
        found = asked(spec, manifest, run_dir / "model")
        where = measured_on(found, manifest, run_dir / "model")
        recorder.reads_ids(manifest, where.split, where.part, found.ids)
        model = networks.load(run_dir / "model", me.device, found.fold_of)
        precision = precision_of(info, me.device)
        if manifest.task == "classification":
            data = data_spec(spec, manifest, info, where.split)
            answers = answers_of(model, manifest, data, found.ids, me, precision=precision)
            summary: dict[str, Any] = classification.summarise(answers, manifest.classes)
            if found.fold_of:
                summary["folds"] = classification.by_fold(answers, found.fold_of)
            if me.is_main:
                folder = run_dir / "artifacts" / where.part
                write_table(folder, answers, manifest.classes, found.fold_of)
                recorder.artifact(folder / TABLE, where.part)
                title, facts, warnings = about(spec, run_dir, manifest, info, where)
                facts["split"] += BY_FOLD if found.fold_of else ""
                page_file = folder / evaluation_page.PAGE
                classification_page.write(page_file, title, facts, warnings, summary, answers, manifest.classes)
        else:
            folder = run_dir / "artifacts" / where.part
            gallery = Gallery(folder / "overlays", spec.overlays)
            scores = score_cases(
                model,
                manifest,
                data_spec(spec, manifest, info, where.split),
                where.part,
                me,
                hd95=True,
                gallery=gallery,
                precision=precision,
                choices=choices_of(spec, manifest),
                probabilities=Probabilities(info.temperature),
                ids=found.ids,
            ).by_fold(found.fold_of)
            summary = scores.summary
            if me.is_main:
                write_cases(folder, scores)
                recorder.artifact(folder / TABLE, where.part)  # sent before the scores are noted, for their intervals
                page = page_of(spec, run_dir, manifest, info, where, scores, gallery)
                evaluation_page.write(folder / evaluation_page.PAGE, page)
        if me.is_main:
            recorder.metrics(tracked(summary, where.part), 0)
            write_json(run_dir / SUMMARY, summary | {"measured": measured.as_fields(where)})
            recorder.artifact(run_dir / SUMMARY, where.part)


def data_spec(spec: EvaluateSpec, manifest: Manifest, info: bundle.BundleInfo, split: str) -> DataSpec:
    """At which size slices are read, by how many processes."""
    return DataSpec(
        dataset=manifest.dataset,
        path=manifest.location,
        split=split,
        **({} if info.volumes else {"image_size": info.image_size}),
        workers=spec.loader_workers,
    )


def page_of(
    spec: EvaluateSpec,
    run_dir: Path,
    manifest: Manifest,
    info: bundle.BundleInfo,
    where: measured.Measured,
    scores: Scores,
    gallery: Gallery,
) -> evaluation_page.Evaluation:
    """What the page says of masks."""
    title, facts, warnings = about(spec, run_dir, manifest, info, where)
    if scores.fold_of:
        facts["split"] += BY_FOLD
    return evaluation_page.Evaluation(
        title=title,
        facts=facts,
        warnings=warnings,
        classes=scores.classes,
        summary=scores.summary,
        cases=scores.cases,
        choices=scores.choices,
        groups=scores.groups,
        fold_of=scores.fold_of or {},
        by_region=scores.by_region,
        sureness=scores.sureness,
        worst=gallery.worst,
        median=gallery.median,
        volume=gallery.stack,
        part=where.part,
    )


def about(
    spec: EvaluateSpec, run_dir: Path, manifest: Manifest, info: bundle.BundleInfo, where: measured.Measured
) -> tuple[str, dict[str, Any], list[str]]:
    """The title of a page, what was evaluated, and what speaks against the figures."""
    names = bundle.member_names(info)
    facts = {
        "model": spec.model,
        "network": info.model.get("name", "") + (f", an ensemble of {len(names)}" if names else ""),
        "weights": info.weights_sha256[:12],
        "data": f"{where.dataset}, fingerprint {where.fingerprint[:12]}",
        "split": f"{where.split}, part {where.part}",
        "cases": where.cases,
        "trained on": "unknown" if where.trained_on is None else f"{where.trained_on} of these cases",
        **seen_in_words([bundle.read_info(member) for member in members.folders(run_dir / "model")]),
        "run": run_dir.name,
        "program": where.code,
    }
    splits = [where.split] if where.split in manifest.splits else folds_of(where.split, manifest.splits)
    leaks = max((manifest.splits[split].leak_groups_shared for split in splits), default=0)
    warnings = [
        overlap_in_words(where),
        f"split {where.split}: {leaks} groups (patients, sequences, duplicates) are in several of its parts"
        if leaks
        else None,
        chosen_by_in_words(manifest, where),
    ]
    return f"{where.dataset}, {where.part}: {spec.model}", facts, [text for text in warnings if text]


def seen_in_words(infos: Sequence[bundle.BundleInfo]) -> dict[str, Any]:
    """Of the facts, what the networks see."""
    sizes = dict.fromkeys(str(info.image_size) for info in infos if info.volumes is None)
    volumes = dict.fromkeys(info.volumes.in_words() for info in infos if info.volumes is not None)
    found = {"image size": "; ".join(sizes), "volumes": "; ".join(volumes)}
    return {name: text for name, text in found.items() if text}


def chosen_by_in_words(manifest: Manifest, where: measured.Measured) -> str | None:
    """Why scores of a test part are too good where its cases have chosen the weights; None where they have not."""
    if where.part != "test" or where.split not in manifest.splits:
        return None
    ids = manifest.split_ids(where.split)
    if both := len(set(ids["val"]) & set(ids["test"])):
        return (
            f"{both} of {where.cases} test cases of split {where.split} are its validation cases too: where a training "
            "validates, they have chosen its weights, and these scores are too good"
        )
    return None


if __name__ == "__main__":
    from rwkv_jobs.entry import main

    main("evaluate")
