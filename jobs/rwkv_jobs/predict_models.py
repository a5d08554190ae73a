"""The models of a prediction, run by torch or, as exported files, by onnxruntime; torch is imported for the first."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import sha256_file
from rwkvctl.base.suggestions import did_you_mean
from rwkvctl.config.specs.jobs import PredictSpec
from rwkvctl.models import bundle, onnx_model
from rwkvctl.models import members as all_members
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.segmenting import MakesMasks, Options
from rwkvctl.registry import references


class Loaded(NamedTuple):
    """What makes the masks, and what it runs on, for the record."""

    segmenter: MakesMasks
    device: str


def places(spec: PredictSpec) -> list[Path]:
    """The model folders, or the exported files, the first model's first."""
    names = (spec.model, *spec.ensemble)
    onnx_model.backend(names, spec.backend)
    return [references.folder_or_file(name, spec) for name in names]


def info_of(place: Path) -> BundleInfo:
    return onnx_model.open_file(place).info if onnx_model.is_file(place) else bundle.read_info(place)


def sha256_of(place: Path) -> str:
    """Of the weights, or of the whole exported file: masks of the two may differ at a few pixels."""
    return sha256_file(place) if onnx_model.is_file(place) else bundle.read_info(place).weights_sha256


def class_ids(spec: PredictSpec, info: BundleInfo) -> dict[int, float]:
    """Thresholds by class id; UserError for a class that the model does not have."""
    for name in spec.thresholds:
        if name not in info.classes[1:]:
            raise UserError(f"--threshold {name}: no such class; {did_you_mean(name, info.classes[1:])}")
    return {info.classes.index(name): least for name, least in spec.thresholds.items()}


def load(spec: PredictSpec, models: list[Path]) -> Loaded:
    """The models, on this machine's device."""
    options = Options(
        tta=spec.tta,
        tile=spec.tile_overlap if spec.tile else None,
        thresholds=class_ids(spec, info_of(models[0])) or None,
        probabilities=spec.probabilities,
        largest_component=spec.largest_component,
        fill_holes=spec.fill_holes,
    )
    if onnx_model.is_file(models[0]):
        from rwkvctl.models.onnx_segmenter import OnnxSegmenter

        opened = [onnx_model.open_file(path) for path in models]
        return Loaded(OnnxSegmenter(opened, options), opened[0].device)
    from rwkv_jobs.worker import pick_device
    from rwkv_unet import fuse_for_inference
    from rwkvctl.models.ensemble import Member, Segmenter

    device, members = pick_device(), []
    for folder in (member for model in models for member in all_members.folders(model)):
        model, info = bundle.load(folder, device=device)
        members.append(Member(fuse_for_inference(model), info))
    return Loaded(Segmenter(members, options), str(device))
