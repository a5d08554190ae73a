"""Masks for images and volumes.

python -m rwkv_jobs.predict RUN_FOLDER
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rwkv_jobs.worker import pick_device
from rwkv_unet import fuse_for_inference
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.files import sha256_file
from rwkvctl.base.paths import as_text, from_text
from rwkvctl.base.suggestions import did_you_mean
from rwkvctl.config.specs.jobs import PredictSpec
from rwkvctl.models import bundle, predict_record
from rwkvctl.models.ensemble import Member, Options, Segmenter, check_alike, check_square
from rwkvctl.models.predict import Planned, plan, predict_one
from rwkvctl.models.predict_form import Form, maker
from rwkvctl.models.predict_record import Made, Record, name_of, sha256_of
from rwkvctl.models.predict_targets import probabilities_of
from rwkvctl.registry import references

OF_THE_RESULT = {
    "tta", "thresholds", "probabilities", "largest_component", "fill_holes", "range", "format", "keep_empty_frames",
    "segment_codes",
}  # fmt: skip
"""Options without which masks would be others."""


def check(spec: PredictSpec, run_dir: Path) -> None:
    """Whether the models make masks of the same kind, the inputs are there, and their masks can be written."""
    planned(spec, folders(spec))


def folders(spec: PredictSpec) -> list[Path]:
    """The model folders, the first model's first."""
    return [references.model_folder(reference, spec) for reference in (spec.model, *spec.ensemble)]


def planned(spec: PredictSpec, models: list[Path]) -> tuple[Planned, Record]:
    """The files that are read and written, and the record of it, with what an earlier prediction has left there."""
    infos = [bundle.read_info(folder) for folder in models]
    for info, reference in zip(infos, (spec.model, *spec.ensemble), strict=True):
        bundle.require(info, "segmentation", f"model {reference}")
    check_alike(infos)
    if spec.tta == "rotations":
        check_square(infos)
    class_ids(spec, infos[0])
    record = Record(
        folder=from_text(spec.out),
        models=[
            {"reference": reference, "weights_sha256": info.weights_sha256}
            for reference, info in zip(spec.named or (spec.model, *spec.ensemble), infos, strict=True)
        ],
        options=spec.model_dump(mode="json", include=OF_THE_RESULT),
    )
    if not spec.overwrite:
        record.go_on()
    files = plan(
        [from_text(text) for text in spec.inputs],
        infos[0],
        record.folder,
        overwrite=spec.overwrite,
        replaceable=[from_text(name).name for name in record.planned] if spec.resume else (),
        window=spec.range,
        form=form(spec, infos),
    )
    record.planned = list(dict.fromkeys([*record.planned, *map(name_of, files.targets)]))
    return files, record


def form(spec: PredictSpec, infos: list[bundle.BundleInfo]) -> Form:
    """In which form the masks are written."""
    made_by = maker(infos, spec.named or (spec.model, *spec.ensemble))
    return Form(spec.format, spec.keep_empty_frames, spec.segment_codes, made_by)


def class_ids(spec: PredictSpec, info: bundle.BundleInfo) -> dict[int, float]:
    """Thresholds by class id; UserError for a class that the model does not have."""
    for name in spec.thresholds:
        if name not in info.classes[1:]:
            raise UserError(f"--threshold {name}: no such class; {did_you_mean(name, info.classes[1:])}")
    return {info.classes.index(name): least for name, least in spec.thresholds.items()}


def run(spec: PredictSpec, run_dir: Path) -> dict[str, Any]:
    """One mask file for every input, in the output folder, at the input's own size, and `run.json` about them.

    What cannot be segmented does not keep the others from being: JobFailedError at the end names it; UserError where
    nothing could be.
    """
    models = folders(spec)
    files, record = planned(spec, models)
    segmenter = load(spec, models)
    written_as = form(spec, [member.info for member in segmenter.members])
    record.device = str(next(segmenter.members[0].model.parameters()).device)
    if len(files.inputs) > 1:
        record.save(at_once=True)
    written, kept = [], 0
    for path, target in zip(*files, strict=True):
        if spec.resume and record.is_whole(path, target, *([probabilities_of(target)] if spec.probabilities else [])):
            kept += 1
            continue
        started = time.monotonic()
        try:
            one = predict_one(segmenter, path, target, spec.range, preview=spec.preview, form=written_as)
        except UserError as error:
            if len(files.inputs) == 1:
                raise
            record.fail(path, str(error))
            continue
        about = predict_record.content(one.ids, segmenter.info.classes, one.voxel_ml)
        seconds = round(time.monotonic() - started, 3)
        hashes = sha256_of(path), sha256_file(one.mask)
        record.add(
            Made(as_text(path), hashes[0], name_of(one.mask), hashes[1], seconds=seconds, note=one.note, **about)
        )
        written.append(one)
    record.save(at_once=True)
    complain(record, len(files.inputs))
    return {
        "model": spec.model,
        "written": [as_text(one.mask) for one in written],
        "kept": kept,
        "notes": [f"{as_text(one.input)}: {one.note}" for one in written if one.note],
    }


def load(spec: PredictSpec, models: list[Path]) -> Segmenter:
    """The models, on this machine's device."""
    members = []
    for folder in models:
        model, info = bundle.load(folder, device=pick_device())
        members.append(Member(fuse_for_inference(model), info))
    options = Options(
        tta=spec.tta,
        thresholds=class_ids(spec, members[0].info) or None,
        probabilities=spec.probabilities,
        largest_component=spec.largest_component,
        fill_holes=spec.fill_holes,
    )
    return Segmenter(members, options)


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
