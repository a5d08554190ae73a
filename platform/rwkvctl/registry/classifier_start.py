"""Where a classifier starts: the weights of another classifier, or of a network's encoder, without the head.

As `encoder_weights`, by whose names and files it goes: brought to the classifier's names once, before training, into
one file that every worker loads. What does not fit is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import PretrainSpec
from rwkvctl.models import build as networks
from rwkvctl.registry import encoder_weights as encoders
from rwkvctl.registry import references, weights_file
from rwkvctl.registry.references import OURS, PRETRAINED, is_weights_file

HEADS = ("head.fc.", "head.", "fc.", "classifier.")
"""Prefixes of what tells the classes apart, and always begins at random."""


def check(spec: PretrainSpec) -> None:
    """UserError where there are no such weights, as far as that is known without reading them."""
    reference = spec.model.encoder_weights
    if reference is None:
        return
    if reference == PRETRAINED:
        if spec.model.name.startswith(OURS):
            raise UserError(
                f"model.encoder_weights pretrained: means timm's weights, and {spec.model.name} is RWKV-UNet's own; "
                "give a run, models:/NAME@ALIAS, a model folder or a file"
            )
    elif is_weights_file(reference):
        if not Path(reference).is_file():
            raise UserError(f"model.encoder_weights {reference}: no such file")
    else:
        references.model_folder(reference, spec)


def prepare(spec: PretrainSpec, classes: list[str], run_dir: Path) -> encoders.Loaded | None:
    """Write `run_dir/encoder.safetensors`, once; a run that is continued keeps it. None if it was there, or is not
    asked for."""
    reference = spec.model.encoder_weights
    if reference is None or (run_dir / encoders.FILE_NAME).exists():
        return None
    model = networks.classifier(spec.model, classes)
    try:
        loaded = fill(model, source(reference, spec))
        encoders.refuse_odd_values(model.state_dict())
    except ValueError as error:
        raise UserError(f"model.encoder_weights {reference[-80:]}: {error}"[:300]) from None
    tensors = {name: x.contiguous() for name, x in model.state_dict().items() if not name.startswith(HEADS)}
    about = {"reference": reference, "sha256": encoders.source_sha256(reference, spec)}
    with files.atomic_path(run_dir / encoders.FILE_NAME) as temporary:
        save_file(tensors, temporary, metadata=about)
    return loaded


def source(reference: str, spec: PretrainSpec) -> Mapping[str, Tensor]:
    """The tensors under whatever names they have there."""
    if reference == PRETRAINED:
        return encoders.published(spec.model.name).state_dict()
    return encoders.source(reference, spec)


def fill(model: nn.Module, state: Mapping[str, Tensor]) -> encoders.Loaded:
    """Load all but the head; ValueError unless every tensor of the rest is there in its shape."""
    own = [name for name in model.state_dict() if not name.startswith(HEADS)]
    prefix = weights_file.prefix_of(state, own)
    if prefix is None:
        raise ValueError(f"none of its {len(state)} tensor names belongs to this classifier")
    inner, rest = weights_file.split(state, prefix)
    heads = [name for name in inner if name.startswith(HEADS)]
    loaded = encoders.fill(
        model, {name: x for name, x in inner.items() if name not in heads}, optional=(*HEADS, "norm.")
    )
    return encoders.Loaded(loaded.matched, [*loaded.unused, *heads, *rest])


def load(model: nn.Module, run_dir: Path) -> None:
    """Start all but the head from the weights that `prepare` wrote."""
    model.load_state_dict(load_file(run_dir / encoders.FILE_NAME), strict=False)
