"""From a user's reference to a model to its folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from rwkvctl.base.errors import NoSuchRunError, UserError
from rwkvctl.config.specs.jobs import FinetuneSpec, JobSpec
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import mirror

OURS = "rwkv_unet_enc_"
"""How the names of our own encoders begin."""
PRETRAINED = "pretrained"
"""As `model.encoder_weights`: the weights that timm publishes for `model.encoder`."""
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".tar")


def is_weights_file(reference: str) -> bool:
    """Whether a reference is a file of weights, by its ending or since there is such a file, and not a run's name."""
    return reference.lower().endswith(WEIGHT_FILES) or Path(reference).expanduser().is_file()


def model_folder(reference: str, spec: JobSpec) -> Path:
    """The model folder of a reference, looked for in the spec's storage and tracking server."""
    assert spec.storage, "the storage is resolved before a job is submitted"
    assert spec.tracking.uri, "so is the tracking server"
    return find_model_folder(reference, spec.storage, spec.tracking.uri)


def folder_or_file(reference: str, spec: JobSpec) -> Path:
    """As `model_folder`; or an exported file, which is looked for on this machine alone."""
    from rwkvctl.models import onnx_model

    if not onnx_model.is_file(reference):
        return model_folder(reference, spec)
    if not Path(reference).is_file():
        raise UserError(f"model {reference}: no such file")
    return Path(reference).absolute()


def find_model_folder(reference: str, storage: str, tracking_uri: str) -> Path:
    """The model folder of a run, of `models:/name@alias` or `models:/name/version`, or of a path.

    Only `models:/` needs MLflow. UserError, with near matches, for what is not there.
    """
    if reference.startswith("models:/"):
        from rwkvctl.registry.download import downloaded

        return downloaded(reference, tracking_uri=tracking_uri)
    if (Path(reference) / "model.json").is_file():
        return Path(reference).absolute()
    try:
        folder = run_folder.find(reference.removesuffix("/model") if mirror.is_uri(reference) else reference, storage)
    except NoSuchRunError as error:  # it might have been a path as well: a wrong argument like any other
        raise UserError(str(error)) from None
    mirror.pull(folder, "model/")
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
    """Check that `model.encoder_weights` exists and fits, as far as that is known without reading the weights."""
    reference = spec.model.encoder_weights
    if reference is None:
        return
    from rwkvctl.models.build import timm_encoder

    encoder = timm_encoder(spec.model)
    if reference == PRETRAINED:
        if encoder is None:
            raise UserError(
                "model.encoder_weights pretrained: means timm's weights, but the encoder is RWKV-UNet's own; "
                "give a run, models:/NAME@ALIAS, a model folder or a file"
            )
    elif is_weights_file(reference):
        if not Path(reference).is_file():
            raise UserError(f"model.encoder_weights {reference}: no such file")
    else:
        check_same_encoder(reference, model_folder(reference, spec), encoder)


def check_same_encoder(reference: str, folder: Path, encoder: str | None) -> None:
    """UserError where a model folder contains another timm classifier than the network's encoder (None for our own)."""
    from rwkvctl.models import bundle

    info = bundle.read_info(folder)
    held = str(info.model.get("name", ""))
    if info.kind != "classifier" or held == encoder or (encoder is None and held.startswith(OURS)):
        return
    wanted = encoder or "RWKV-UNet's own"
    raise UserError(
        f"model.encoder_weights {reference}: contains {held}, but the network's encoder is {wanted}: "
        + (f"set model.encoder={held}" if not held.startswith(OURS) else "give weights of that encoder")
    )
