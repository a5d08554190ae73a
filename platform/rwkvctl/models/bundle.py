"""A model folder: `weights.safetensors`, and in `model.json` all that it takes to use them. No pickle.

It holds a segmentation model, or a classifier: a pretrained encoder with its head. `kind` says which, and who asks for
one of them refuses the other in one line (`require`).
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import fsync_directory, sha256_file, write_json
from rwkvctl.config.specs.base import Spec

if TYPE_CHECKING:  # what a folder says of its model is read without torch
    import torch
    from torch import Tensor, nn

WEIGHTS_NAME = "weights.safetensors"
INFO_NAME = "model.json"
HUB_WEIGHTS_NAME = "model.safetensors"
"""What the weights are called in the Hugging Face hub's form of a model folder, see `registry.hub_form`."""

Kind = Literal["segmentation", "classifier"]
MEMBERS = "members"
"""In `extra` of an ensemble: the folders of its members, see `models.members`."""
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Calibrated(Spec):
    """The temperature that a model's logits are divided by to give probabilities, and what it was fitted to, see
    `training.calibration`."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    dataset: str = ""
    fingerprint: str = ""
    split: str = ""
    part: str = "val"
    pixels: int = 0
    """How many it was fitted to."""
    ece: tuple[float, float] | None = None
    """Of those pixels, before and after."""
    likelihood: tuple[float, float] | None = None
    """The mean negative log-likelihood, before and after."""


class VolumeInput(Spec):
    """What a network over three axes sees of a volume: patches, after it is brought to one spacing."""

    patch: tuple[int, int, int]
    """(D, H, W) voxels."""
    spacing: tuple[float, float, float] | None = None
    """mm along z, y, x; null where the training data had none, and volumes are taken as they are."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Of neighbouring patches of a prediction, as a share of their sides."""

    @property
    def spacing_in_words(self) -> str:
        """`at 2 x 1 x 1 mm (z, y, x)`."""
        if self.spacing is None:
            return "as they are"
        return f"at {' x '.join(f'{step:.4g}' for step in self.spacing)} mm (z, y, x)"

    def in_words(self) -> str:
        """`at 2 x 1 x 1 mm (z, y, x), in patches of 16 x 128 x 128 voxels`."""
        return f"{self.spacing_in_words}, in patches of {' x '.join(map(str, self.patch))} voxels"


class BundleInfo(Spec):
    """What `model.json` says."""

    schema_version: Literal["rwkv-model/1"] = Field("rwkv-model/1", alias="schema")
    kind: Kind
    """What the logits are: (B, C, H, W) of a mask, or (B, C) of an image's class. Folders written before there was
    this field lack it; then the model's name decides."""
    library: Literal["rwkv_unet", "timm"]
    """Whose `create_model` builds it; by default `timm` for a classifier, `rwkv_unet` for all others."""
    model: dict[str, Any]
    """`name` and the other arguments of the library's `create_model`."""
    classes: list[str]
    """Names by class id; for segmentation the background is first."""
    image_size: int | tuple[int, int]
    """Side, or height and width, of what the model sees; with `volumes` the latter of its patches."""
    volumes: VolumeInput | None = None
    """Null for a network that sees images and slices."""
    image_kind: Literal["rgb8", "float"]
    channels: int
    intensity: dict[str, Any] | None = None
    """How a scanner's values become those that the model sees, see `data.images.normalise`; null for photographs."""
    channel_names: list[str] | None = None
    """In their order, where the training data's source names them: an input is then a file a channel, as nnU-Net's."""
    channel_files: list[int] | None = None
    """How many channels each file of an input has, in order; null for one each."""
    orientation: str | None = None
    """How the model's slices lie in a scan, see `data.images.nifti`."""
    dataset: str = ""
    fingerprint: str = ""
    """Of the manifest of the data that it was trained on."""
    weights_sha256: str = ""
    """Filled in by `save`."""
    calibration: Calibrated | None = None
    """Null for a model whose temperature was never fitted."""
    extra: dict[str, Any] = Field(default_factory=dict)

    @property
    def temperature(self) -> float:
        """What logits are divided by before they become probabilities."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or not isinstance(fields.get("model"), dict):
            return fields
        kind = fields.get("kind") or kind_of(str(fields["model"].get("name", "")))
        library = "timm" if kind == "classifier" else "rwkv_unet"
        return {"library": library} | fields | {"kind": kind}


def kind_of(name: str) -> Kind:
    """The kind of a model by its name: classifiers are those that timm knows, our encoders among them."""
    import timm

    import rwkv_unet  # noqa: F401  (registers the encoders)

    return "classifier" if timm.is_model(name) else "segmentation"


def require(info: BundleInfo, kind: Kind, what: str) -> None:
    """UserError, with the way on, unless a model is of the kind that is needed. `what` names it, `model RUN` say."""
    if info.kind == kind:
        return
    name = info.model.get("name", "")
    if kind == "segmentation":
        raise UserError(
            f"{what}: {name} is a pretrained classifier, which makes no masks; "
            "train a segmentation model from it first: rwkvctl finetune RECIPE --encoder MODEL"
        )
    raise UserError(f"{what}: {name} is a segmentation model, not a classifier; give one that `rwkvctl pretrain` made")


def save(folder: str | os.PathLike[str], state_dict: Mapping[str, Tensor], info: BundleInfo) -> BundleInfo:
    """Write a model folder, or replace one; returns `info` with the hash of the weights.

    The folder appears whole under its name. A crash while an old one is being replaced can leave neither.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    new, old = (folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.{what}") for what in ("new", "old"))
    new.mkdir(parents=True)
    try:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
        save_file(tensors, new / WEIGHTS_NAME, metadata={"format": "pt"})
        info = info.model_copy(update={"weights_sha256": sha256_file(new / WEIGHTS_NAME)})
        write_info(new, info)
        with (new / WEIGHTS_NAME).open("rb") as file:
            os.fsync(file.fileno())
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        fsync_directory(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return info


def write_info(folder: Path, info: BundleInfo) -> None:
    write_json(folder / INFO_NAME, info.model_dump(mode="json", by_alias=True))


def read_info(folder: str | os.PathLike[str]) -> BundleInfo:
    """The `model.json` of a model folder; UserError where there is none or it is not valid."""
    path = Path(folder) / INFO_NAME
    try:
        return BundleInfo.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file: name a model folder, which has {INFO_NAME} in it") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise UserError(f"{path}: {where}: {first['msg']}: export the model again") from None


def member_names(info: BundleInfo) -> list[str]:
    """The folders of an ensemble's members, below its own; none for a single model."""
    names = info.extra.get(MEMBERS) or []
    if not isinstance(names, list) or not all(isinstance(name, str) and PLAIN.fullmatch(name) for name in names):
        raise UserError(f"{INFO_NAME}: extra.{MEMBERS}: must be names of folders beside it: get the model again")
    return names


def refuse_ensemble(folder: str | os.PathLike[str], info: BundleInfo) -> None:
    """UserError for a model of several networks, where one is needed."""
    if names := member_names(info):
        raise UserError(
            f"model {folder}: is an ensemble of {len(names)} models, and this takes one: name a member, as "
            f"{Path(folder) / names[0]}"
        )


def load(
    folder: str | os.PathLike[str], device: str | torch.device = "cpu", *, kind: Kind | None = None
) -> tuple[nn.Module, BundleInfo]:
    """The model of a folder on `device`, in evaluation mode, and what is known of it.

    Args:
        kind: the kind that it must have; None takes either.

    Raises:
        UserError: a file is missing or damaged, the hash of the weights is not that of `model.json`, the weights do
            not fit the model, or it is of the other kind.
    """
    info = read_info(folder)
    if kind is not None:
        require(info, kind, f"model {folder}")
    weights = read_weights(folder, info)
    model = build(info)
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{weights_path(folder)}: does not fit the model of {INFO_NAME}: {reason}") from None
    return model.to(device).eval(), info


def weights_path(folder: str | os.PathLike[str]) -> Path:
    """The file of weights of a model folder, in either of its forms."""
    own, hub = Path(folder) / WEIGHTS_NAME, Path(folder) / HUB_WEIGHTS_NAME
    return hub if hub.exists() and not own.exists() else own


def read_weights(folder: str | os.PathLike[str], info: BundleInfo) -> dict[str, Tensor]:
    """The verified weights of a model folder, on the CPU."""
    from safetensors.torch import load_file

    refuse_ensemble(folder, info)
    path = weights_path(folder)
    if not path.exists():
        raise UserError(f"{path}: no such file: the model folder is incomplete, get it again")
    if (found := sha256_file(path)) != info.weights_sha256:
        raise UserError(
            f"{path}: SHA-256 {found[:12]}... is not the {info.weights_sha256[:12]}... of {INFO_NAME}: "
            "the file is damaged or was exchanged, get it again"
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error}): get it again") from None


def build(info: BundleInfo) -> nn.Module:
    """The untrained model that `model.json` describes."""
    arguments = dict(info.model)
    name = str(arguments.pop("name", ""))
    create: Callable[..., nn.Module]
    if info.library == "timm":
        import timm

        import rwkv_unet  # noqa: F401  (registers the encoders)

        create = timm.create_model
    else:
        from rwkv_unet import create_model as create
    try:
        model = create(name, **arguments)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{INFO_NAME}: model: {' '.join(str(error).split())[:200]}") from None
    if info.volumes is not None:
        check_patch(info.volumes.patch, getattr(model, "divisor", (1, 1, 1)))
    return model


def check_patch(patch: tuple[int, ...], divisor: tuple[int, ...] | int) -> None:
    """UserError for a patch that a network over three axes does not take."""
    by = (divisor,) * 3 if isinstance(divisor, int) else divisor
    if len(by) != len(patch) or any(side < 1 or side % d for side, d in zip(patch, by, strict=True)):
        raise UserError(
            f"{INFO_NAME}: volumes.patch: {list(patch)}, and the network takes multiples of {list(by)}: get the model "
            "again"
        )
