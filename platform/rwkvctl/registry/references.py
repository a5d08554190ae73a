"""From what a user calls a model to the folder that holds it."""

from __future__ import annotations

import shutil
from pathlib import Path

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import FinetuneSpec, JobSpec
from rwkvctl.runs import folder as run_folder

PRETRAINED = "pretrained"
"""As `model.encoder_weights`: the weights that timm publishes for `model.encoder`."""
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")


def model_folder(reference: str, spec: JobSpec) -> Path:
    """The model folder of a reference, looked for in the spec's storage and tracking server."""
    assert spec.storage, "the storage is resolved before a job is submitted"
    assert spec.tracking.uri, "so is the tracking server"
    return find_model_folder(reference, spec.storage, spec.tracking.uri)


def find_model_folder(reference: str, storage: str, tracking_uri: str) -> Path:
    """The model folder of a run, of `models:/name@alias` or `models:/name/version`, or of a path.

    Only `models:/` needs MLflow. UserError, with near matches, for what is not there.
    """
    if reference.startswith("models:/"):
        from rwkvctl.registry.download import downloaded

        return downloaded(reference, tracking_uri=tracking_uri)
    if (Path(reference) / "model.json").is_file():
        return Path(reference).absolute()
    folder = run_folder.find(reference, storage)
    if not (folder / "model" / "model.json").is_file():
        raise UserError(f"run {folder.name} has no model yet: finish it first (--resume {folder.name})")
    return folder / "model"


def copy_model(reference: str, target: Path, spec: JobSpec) -> Path:
    """Copy a model into a run's folder, where every worker sees it; kept when the run is continued."""
    if not (target / "model.json").is_file():
        source = model_folder(reference, spec)
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        temporary.replace(target)
    return target


def check_encoder(spec: FinetuneSpec) -> None:
    """Whether `model.encoder_weights` can be had, as far as that is known without reading weights."""
    reference = spec.model.encoder_weights
    if reference is None:
        return
    from rwkvctl.models.build import timm_encoder

    encoder = timm_encoder(spec.model)
    if reference == PRETRAINED:
        if encoder is None:
            raise UserError(
                "model.encoder_weights pretrained: means timm's weights, but model.encoder is our own; give a run, "
                "models:/NAME@ALIAS, a model folder or a file"
            )
    elif Path(reference).suffix in WEIGHT_FILES:
        if not Path(reference).is_file():
            raise UserError(f"model.encoder_weights {reference}: no such file")
    elif encoder is not None:
        raise UserError(f"model.encoder_weights {reference}: for timm's {encoder} give `pretrained` or a weights file")
    else:
        model_folder(reference, spec)
