"""Masks for images and volumes.

python -m rwkv_jobs.predict RUN_FOLDER
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rwkv_jobs import predict_models
from rwkv_jobs.predict_models import class_ids, info_of, load, places
from rwkv_jobs.predict_progress import Progress
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.files import remove_leftovers, sha256_file
from rwkvctl.base.paths import as_text, from_text
from rwkvctl.config.specs.jobs import PredictSpec
from rwkvctl.models import bundle, predict_channels, predict_record, predict_sources, tiles
from rwkvctl.models.predict import Planned, Written, plan, read
from rwkvctl.models.predict_form import Form, maker
from rwkvctl.models.predict_record import Made, Record, name_of, sha256_of
from rwkvctl.models.predict_sources import Sources
from rwkvctl.models.predict_store import Outbox, outbox_of
from rwkvctl.models.predict_stream import predict_each
from rwkvctl.models.predict_targets import probabilities_of
from rwkvctl.models.segmenting import check_alike, check_square

NOTHING = np.empty(0, np.uint8)
OF_THE_RESULT = {
    "tta", "tile", "tile_overlap", "thresholds", "probabilities", "largest_component", "fill_holes", "range", "format",
    "keep_empty_frames", "segment_codes",
}  # fmt: skip
"""Options without which masks would be others."""
INPUTS, MASKS = "inputs", "masks-to-send"
"""Folders in the run's: for what is unpacked or fetched and for links to the slices of series, and for masks that are
sent to an object store."""


def check(spec: PredictSpec, run_dir: Path) -> None:
    """Whether the models make masks of the same kind, the inputs are there, and their masks can be written."""
    models = places(spec)
    if is_of_classes(models):
        from rwkv_jobs import predict_classes  # needs torch, which an exported network does not

        predict_classes.check(spec, [info_of(place) for place in models])
        return
    planned(spec, models, run_dir)


def is_of_classes(models: list[Path]) -> bool:
    """Whether classes of images are asked for, not masks."""
    return info_of(models[0]).kind == "classifier"


class Plan(NamedTuple):
    """What is read, where masks go, the files that are read and written, and the record of it, with what an earlier
    prediction has left there."""

    sources: Sources
    outbox: Outbox
    files: Planned
    record: Record


def planned(spec: PredictSpec, models: list[Path], run_dir: Path) -> Plan:
    """UserError for all that can be known to be wrong before the first mask is made."""
    infos = [info_of(place) for place in models]
    for info, reference in zip(infos, (spec.model, *spec.ensemble), strict=True):
        bundle.require(info, "segmentation", f"model {reference}")
    check_alike(infos)
    if spec.tta == "rotations":
        check_square(infos)
    if spec.tile:
        tiles.check_sees_images([info for info in infos if info.volumes is not None])
        tiles.check(models)
    class_ids(spec, infos[0])
    outbox = outbox_of(spec.out, run_dir / MASKS)
    record = Record(
        folder=outbox.folder,
        models=[
            {"reference": reference, "weights_sha256": predict_models.sha256_of(place)}
            for reference, place in zip(spec.named or (spec.model, *spec.ensemble), models, strict=True)
        ],
        options=spec.model_dump(mode="json", include=OF_THE_RESULT),
    )
    if not spec.overwrite:
        record.go_on()
    sources = predict_sources.found(spec.inputs, run_dir / INPUTS)
    if outbox.uri is not None:
        sources.shown[str(outbox.folder)] = outbox.uri
    with sources.in_words():
        files = plan(
            sources.paths,
            infos[0],
            record.folder,
            overwrite=spec.overwrite,
            replaceable=[from_text(name).name for name in record.planned] if spec.resume else (),
            window=spec.range,
            form=form(spec, infos),
        )
    outbox.check(map(name_of, files.targets), overwrite=spec.overwrite, resume=spec.resume)
    record.planned = list(dict.fromkeys([*record.planned, *map(name_of, files.targets)]))
    record.skipped = sources.skipped
    return Plan(sources, outbox, files, record)


def form(spec: PredictSpec, infos: list[bundle.BundleInfo]) -> Form:
    """In which form the masks are written."""
    made_by = maker(infos, spec.named or (spec.model, *spec.ensemble))
    return Form(spec.format, spec.keep_empty_frames, spec.segment_codes, made_by)


def run(spec: PredictSpec, run_dir: Path) -> dict[str, Any]:
    """One mask file for every input, in the output folder, at the input's own size, and `run.json` about them.

    What cannot be segmented does not keep the others from being: JobFailedError at the end names it; UserError where
    nothing could be.
    """
    models = places(spec)
    if is_of_classes(models):
        from rwkv_jobs import predict_classes

        return predict_classes.run(spec, models, run_dir)
    try:
        everything = planned(spec, models, run_dir)
        with everything.sources.in_words():
            return predict_all(spec, models, *everything)
    finally:
        for name in (INPUTS, MASKS):
            shutil.rmtree(run_dir / name, ignore_errors=True)


def predict_all(
    spec: PredictSpec, models: list[Path], sources: Sources, outbox: Outbox, files: Planned, record: Record
) -> dict[str, Any]:
    """Of the files as they were planned; returns what is shown of it."""
    segmenter, record.device = load(spec, models)
    if spec.resume:
        remove_leftovers(record.folder, {predict_record.NAME, *(target.name for target in files.targets)})
    written_as = form(spec, [info_of(place) for place in models])
    if len(files.inputs) > 1:
        record.save(at_once=True)
    info = segmenter.info
    jobs = [job for job in zip(*files, strict=True) if not (spec.resume and is_whole(spec, info, record, *job))]
    written: list[Written] = []
    with Progress(len(jobs)) as progress:
        outcomes = predict_each(
            segmenter,
            jobs,
            partial(read, segmenter.info, window=spec.range, form=written_as),
            partial(made, segmenter.info),
            preview=spec.preview,
            seen=progress.seen,
        )
        for path, outcome in outcomes:
            progress.done()
            if not isinstance(outcome, UserError):
                record.add(replace(outcome.entry, input=sources.say(outcome.entry.input)))
                written.append(outcome.written)
                outbox.send()
            elif len(files.inputs) == 1:
                raise outcome
            else:
                record.fail(sources.say(as_text(path)), sources.say(str(outcome)))
    record.save(at_once=True)
    outbox.send(last=True)
    complain(record, len(files.inputs))
    return {
        "model": spec.model,
        "written": [outbox.shown(one.mask) for one in written],
        "kept": len(files.inputs) - len(jobs),
        "notes": [
            *(f"skipped: {line}" for line in sources.skipped),
            *(f"{sources.say(as_text(one.input))}: {one.note}" for one in written if one.note),
        ],
    }


class Outcome(NamedTuple):
    """A mask that was written, without what is in it, and its entry in the record."""

    written: Written
    entry: Made


def is_whole(spec: PredictSpec, info: bundle.BundleInfo, record: Record, path: Path, target: Path) -> bool:
    """Whether an earlier prediction has made all files of an input as it is now."""
    sources = predict_channels.files_of(path, info)
    return record.is_whole(sources, target, *([probabilities_of(target)] if spec.probabilities else []))


def made(info: bundle.BundleInfo, one: Written, seconds: float) -> Outcome:
    """What the record says of a mask."""
    about: dict[str, Any] = predict_record.content(one.ids, info.classes, one.voxel_ml)
    about |= predict_record.sure(one.sureness, info.classes)
    hashes = sha256_of(*predict_channels.files_of(one.input, info)), sha256_file(one.mask)
    entry = Made(
        as_text(one.input),
        hashes[0],
        name_of(one.mask),
        hashes[1],
        seconds=round(seconds, 3),
        note=one.note,
        **about,
    )
    return Outcome(one._replace(ids=NOTHING), entry)


def complain(record: Record, inputs: int) -> None:
    """Raise what kept inputs from being segmented."""
    if not record.failed:
        return
    reasons = list(record.failed.values())
    if len(reasons) == inputs:
        raise UserError(f"none of {inputs} inputs could be segmented; {reasons[0]}")
    more = f"; {len(reasons) - 1} more in {record.folder / predict_record.NAME}" if len(reasons) > 1 else ""
    raise JobFailedError(f"{len(reasons)} of {inputs} inputs failed, the others are written: {reasons[0]}{more}")


if __name__ == "__main__":
    from rwkv_jobs.entry import main

    main("predict")
