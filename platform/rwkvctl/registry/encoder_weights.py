"""Where a network's encoder starts: weights of a run, of the registry, of a file, or those that timm publishes.

Whatever the source, they are brought to the encoder's own names once, before training, into one file that every
worker loads strictly. What was matched is said; what does not fit is refused, never skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rwkv_unet import RWKVUNet, RWKVUNetEncoder, load_official_state_dict
from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.models import build as networks
from rwkvctl.models import bundle
from rwkvctl.registry import references
from rwkvctl.registry.references import PRETRAINED, WEIGHT_FILES

FILE_NAME = "encoder.safetensors"
CLASSIFIERS = ("head.", "fc.", "classifier.", "norm.")
"""Prefixes of what a classifier has after its last map, and an encoder does not need."""

State = Mapping[str, Tensor]


class Loaded(NamedTuple):
    """How many tensors of the encoder were found, and what else the source held."""

    matched: int
    unused: list[str]

    def __str__(self) -> str:
        unused = f", {len(self.unused)} of the source not used (classifier)" if self.unused else ""
        return f"encoder starts from {self.matched} tensors, none missing{unused}"


def prepare_encoder_weights(spec: FinetuneSpec, run_dir: Path) -> Loaded | None:
    """Write `run_dir/encoder.safetensors`, once; a run that is continued keeps it. None if it was there."""
    if (run_dir / FILE_NAME).exists():
        return None
    network = networks.network(spec.model, 1)
    if not isinstance(network, RWKVUNet) and networks.timm_encoder(spec.model) is None:
        raise UserError(f"model.encoder_weights: {spec.model.name} has no encoder that could be started from weights")
    encoder = network.get_submodule("encoder")
    reference = spec.model.encoder_weights
    assert reference is not None
    try:
        loaded = _fill(encoder, reference, spec)
    except ValueError as error:
        raise UserError(f"model.encoder_weights {reference}: {error}") from None
    with files.atomic_path(run_dir / FILE_NAME) as temporary:
        save_file({name: x.contiguous() for name, x in encoder.state_dict().items()}, temporary)
    return loaded


def load(model: nn.Module, run_dir: Path) -> None:
    """Start `model.encoder` from the weights that `prepare_encoder_weights` wrote."""
    model.get_submodule("encoder").load_state_dict(load_file(run_dir / FILE_NAME))


def _fill(encoder: nn.Module, reference: str, spec: FinetuneSpec) -> Loaded:
    timm_name = networks.timm_encoder(spec.model)
    if timm_name is not None:
        return _fill_timm(encoder, timm_name, None if reference == PRETRAINED else Path(reference))
    if Path(reference).suffix in WEIGHT_FILES:
        return _fill_ours(encoder, read(Path(reference)))
    source, _ = bundle.load(references.model_folder(reference, spec))
    return fill(encoder, getattr(source, "encoder", source).state_dict())


def _fill_ours(encoder: nn.Module, state: dict[str, Tensor]) -> Loaded:
    """From a file: our names or the authors', of an encoder or of a whole network."""
    state = {name.removeprefix("module."): x for name, x in state.items()}
    inner = {name.removeprefix("encoder."): x for name, x in state.items() if name.startswith("encoder.")}
    state = inner or state
    if any(name in state for name in encoder.state_dict()):
        return fill(encoder, state)
    assert isinstance(encoder, RWKVUNetEncoder)
    load_official_state_dict(encoder, state)
    return Loaded(len(encoder.state_dict()), [name for name in state if name.startswith(CLASSIFIERS)])


def _fill_timm(encoder: nn.Module, timm_name: str, file: Path | None) -> Loaded:
    """timm loads its weights into the whole classifier, before it takes the maps out: names differ afterwards."""
    try:
        if file is None:
            classifier = timm.create_model(timm_name, pretrained=True)
        else:
            classifier = timm.create_model(timm_name, pretrained=False)
            fill(classifier, read(file), optional=CLASSIFIERS)
    except ValueError:
        raise
    except Exception as error:  # the hub's client has errors of its own for every way of being offline
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"timm's weights of {timm_name} are not in the cache and cannot be fetched ({reason}); "
            "give a file: --set model.encoder_weights=FILE"
        ) from None
    state = classifier.state_dict()
    wanted = {name: _classifier_name(name, state) for name in encoder.state_dict()}
    return fill(encoder, {name: state[theirs] for name, theirs in wanted.items() if theirs in state})


def _classifier_name(name: str, state: State) -> str:
    """The name in the classifier of a tensor of an encoder: feature nets write `stages_0` for `stages.0`."""
    name = name.removeprefix("features.").removeprefix("model.")
    head, dot, rest = name.partition(".")
    apart = f"{head.replace('_', '.', 1)}{dot}{rest}"
    return name if name in state or apart not in state else apart


def fill(module: nn.Module, given: State, optional: tuple[str, ...] = ()) -> Loaded:
    """Load `given` into `module`; ValueError, and nothing loaded, unless every tensor is there in its shape.

    What a classifier has behind the encoder may be left over; `optional` prefixes may be missing.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in given and not name.startswith(optional or ("\0",))]
    unused = [name for name in given if name not in own]
    shapes = [
        f"{name} is {tuple(given[name].shape)}, not {tuple(x.shape)}"
        for name, x in own.items()
        if name in given and given[name].shape != x.shape and not name.startswith(optional or ("\0",))
    ]
    foreign = [name for name in unused if not name.startswith(CLASSIFIERS)]
    problems = {"missing": missing, "unexpected": foreign, "of another shape": shapes}
    if any(problems.values()):
        told = [f"{len(found)} {what} ({_first(found)})" for what, found in problems.items() if found]
        matched = sum(name in given for name in own)
        raise ValueError(f"does not fit this encoder: {matched} tensors match, {', '.join(told)}; nothing was loaded")
    fitting = {name: x for name, x in given.items() if name in own and x.shape == own[name].shape}
    module.load_state_dict(fitting, strict=False)
    return Loaded(len(fitting), unused)


def _first(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file; no code in it is ever run."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"cannot be read ({' '.join(str(error).split())[:160]})") from None
    except Exception as error:  # pickle's own, for what is no plain tensor
        raise ValueError(f"holds more than tensors, which is not loaded ({type(error).__name__})") from None
    for key in ("state_dict", "model", "state_dict_ema"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(x, Tensor) for x in content.values()):
        raise ValueError("is not a dictionary of tensors")
    return content
