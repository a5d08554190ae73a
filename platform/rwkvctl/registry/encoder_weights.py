"""Where a network's encoder starts: weights of a run, of the registry, of a file, or those that timm publishes.

Whatever the source, they are brought to the encoder's own names once, before training, into one file that every
worker loads strictly. The run reports what matched; what does not fit is refused, never skipped. Files are read by
`registry.weights_file`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from rwkv_unet import RWKVUNet, RWKVUNetEncoder, load_official_state_dict
from rwkv_unet.baselines.samed import OF_SAM, SAMed
from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import FinetuneSpec, JobSpec
from rwkvctl.models import build as networks
from rwkvctl.models import bundle
from rwkvctl.registry import references, weights_file
from rwkvctl.registry.references import PRETRAINED, is_weights_file

FILE_NAME = "encoder.safetensors"
CLASSIFIERS = ("head.", "fc.", "classifier.", "norm.")
"""Prefixes of what a classifier has after its last feature map, and an encoder does not need."""
AUTHORS_STEM = "stage0.0."
"""In every name of the stem in the authors' own checkpoints."""
SAM_ENCODER = "image_encoder."
"""Before the encoder's names in checkpoints of SAM."""
BESIDE = "beside:"
"""Before the names of weights that a network takes from the same source for what it has behind the encoder."""
LONGEST = 299

State = Mapping[str, Tensor]


class Loaded(NamedTuple):
    """How many tensors of the encoder were found, and what else the source contained."""

    matched: int
    unused: list[str]
    beside: int = 0
    """Tensors for what stands behind the encoder."""

    def __str__(self) -> str:
        classifier = all(name.startswith(CLASSIFIERS) for name in self.unused)
        what = "classifier head" if classifier else "not part of the encoder"
        unused = f"; {len(self.unused)} tensors of the source not used ({what})" if self.unused else ""
        beside = f"; mask decoder from {self.beside}" if self.beside else ""
        return f"encoder initialised from {self.matched} tensors, none missing{beside}{unused}"


def prepare_encoder_weights(spec: FinetuneSpec, run_dir: Path) -> Loaded | None:
    """Write `run_dir/encoder.safetensors`, once; a run that is continued keeps it. None if it was there."""
    if (run_dir / FILE_NAME).exists():
        return None
    network = networks.network(spec.model, 1)
    if not isinstance(network, RWKVUNet) and networks.timm_encoder(spec.model) is None:
        raise UserError(f"model.encoder_weights: {spec.model.name} has no encoder that can be initialised from weights")
    encoder = network.get_submodule("encoder")
    reference = spec.model.encoder_weights
    assert reference is not None
    try:
        state = {} if reference == PRETRAINED else source(reference, spec)
        loaded = _fill(encoder, state, spec)
        beside = beside_encoder(network, state)
        refuse_odd_values(encoder.state_dict() | beside)
    except ValueError as error:
        raise UserError(_cut(f"model.encoder_weights {_end(reference, 80)}: {error}")) from None
    with files.atomic_path(run_dir / FILE_NAME) as temporary:
        tensors = encoder.state_dict() | {f"{BESIDE}{name}": x for name, x in beside.items()}
        tensors = {name: x.contiguous() for name, x in tensors.items()}
        save_file(tensors, temporary, metadata={"reference": reference, "sha256": source_sha256(reference, spec)})
    unused = [name for name in loaded.unused if name not in beside]
    return Loaded(loaded.matched, unused, len(beside))


def source_of(run_dir: Path) -> dict[str, str] | None:
    """What the run's encoder began with: its `reference` in the spec, and the `sha256` of those weights, which tells
    the version that an alias pointed to then. None for an encoder that began at random."""
    try:
        with safe_open(run_dir / FILE_NAME, "pt") as file:
            return file.metadata()
    except FileNotFoundError:
        return None


def source_sha256(reference: str, spec: JobSpec) -> str:
    """Of a file, or of the weights in a model folder; empty for those that timm publishes."""
    if reference == PRETRAINED:
        return ""
    if is_weights_file(reference):
        return files.sha256_file(Path(reference))
    return bundle.read_info(references.model_folder(reference, spec)).weights_sha256


def load(model: nn.Module, run_dir: Path) -> None:
    """Start `model.encoder` from the weights that `prepare_encoder_weights` wrote, for colours; to other channels the
    first convolution is adapted as timm does: its weights are repeated, and scaled by 3 / channels."""
    encoder, given = model.get_submodule("encoder"), load_file(run_dir / FILE_NAME)
    beside = {name: given.pop(name) for name in list(given) if name.startswith(BESIDE)}
    for name, own in encoder.state_dict().items():
        if given[name].ndim == own.ndim == 4 and own.shape[1] != given[name].shape[1] == 3:
            given[name] = adapt_input_conv(own.shape[1], given[name])
    encoder.load_state_dict(given)
    model.load_state_dict({name.removeprefix(BESIDE): x for name, x in beside.items()}, strict=False)


def beside_encoder(network: nn.Module, state: State) -> dict[str, Tensor]:
    """What SAMed has of SAM behind the encoder, by its own names, where `state` is a checkpoint of SAM: all but what
    belongs to the masks, which are SAM's three and not the classes."""
    if not isinstance(network, SAMed) or not any(name.startswith(SAM_ENCODER) for name in state):
        return {}
    own = {name: x.shape for name, x in network.state_dict().items() if name.startswith(OF_SAM)}
    return {name: state[name] for name, shape in own.items() if name in state and state[name].shape == shape}


def _fill(encoder: nn.Module, state: State, spec: FinetuneSpec) -> Loaded:
    timm_name = networks.timm_encoder(spec.model)
    if spec.model.encoder_weights == PRETRAINED:
        assert timm_name is not None, "references.check_encoder refuses it for an encoder of ours"
        return _from_classifier(encoder, published(timm_name).state_dict())
    if timm_name is not None:
        return _fill_timm(encoder, timm_name, state)
    return _fill_ours(encoder, state)


def source(reference: str, spec: JobSpec) -> dict[str, Tensor]:
    """The tensors of a file or of a model folder, under whatever names they have there."""
    if is_weights_file(reference):
        return weights_file.read(Path(reference))
    folder = references.model_folder(reference, spec)
    return bundle.read_weights(folder, bundle.read_info(folder))


def _fill_ours(encoder: nn.Module, state: State) -> Loaded:
    """Our names or the authors', of an encoder or of a whole network, behind whatever prefix."""
    prefix = weights_file.prefix_of(state, encoder.state_dict())
    if prefix is not None:
        inner, rest = weights_file.split(state, prefix)
        loaded = fill(encoder, inner)
        return Loaded(loaded.matched, [*loaded.unused, *rest])
    if not any(AUTHORS_STEM in name for name in state):
        raise ValueError(f"none of its {len(state)} tensor names belongs to this encoder ({_first(list(state), 3)})")
    prefix = min((name.partition(AUTHORS_STEM)[0] for name in state if AUTHORS_STEM in name), key=len)
    inner, rest = weights_file.split(state, prefix)
    assert isinstance(encoder, RWKVUNetEncoder)
    load_official_state_dict(encoder, inner)
    return Loaded(len(encoder.state_dict()), [*(name for name in inner if name.startswith(CLASSIFIERS)), *rest])


def _fill_timm(encoder: nn.Module, timm_name: str, state: State) -> Loaded:
    """From a classifier of timm's names, or from a network with the same encoder, whose names differ."""
    classifier = timm.create_model(timm_name, pretrained=False)
    if any(name.startswith(SAM_ENCODER) for name in state):
        state = {name.replace(".mlp.lin", ".mlp.fc") if SAM_ENCODER in name else name: x for name, x in state.items()}
    own, theirs = encoder.state_dict(), classifier.state_dict()
    prefix = weights_file.prefix_of(state, theirs)
    matched = _matches(state, prefix, theirs)
    as_network = weights_file.prefix_of(state, own)
    if _matches(state, as_network, own) > matched:
        assert as_network is not None
        inner, rest = weights_file.split(state, as_network)
        return Loaded(fill(encoder, inner).matched, rest)
    if prefix is None:
        raise ValueError(f"none of its {len(state)} tensor names belongs to {timm_name} ({_first(list(state), 3)})")
    inner, rest = weights_file.split(state, prefix)
    fill(classifier, inner, optional=CLASSIFIERS)
    loaded = _from_classifier(encoder, classifier.state_dict())
    return Loaded(loaded.matched, [*(name for name in inner if name.startswith(CLASSIFIERS)), *rest])


def _matches(state: State, prefix: str | None, own: State) -> int:
    return 0 if prefix is None else sum(f"{prefix}{name}" in state for name in own)


def published(timm_name: str) -> nn.Module:
    """The classifier with the weights that timm publishes."""
    try:
        return timm.create_model(timm_name, pretrained=True)
    except Exception as error:  # the hub's client has errors of its own for every way of being offline
        reason = " ".join(str(error).split())[:100]
        raise ValueError(
            f"timm's weights of {timm_name} are not in the cache and cannot be fetched ({reason}); "
            "give a file: --encoder FILE"
        ) from None


def _from_classifier(encoder: nn.Module, state: State) -> Loaded:
    """timm loads weights into the full classifier before it extracts the feature maps, after which names differ."""
    own = encoder.state_dict()
    wanted = {name: _classifier_name(name, state) for name in own}
    given = {name: state[theirs] for name, theirs in wanted.items() if theirs in state}
    if "pos_embed" in given:
        given["pos_embed"] = _without_class_token(given["pos_embed"], own["pos_embed"])
    return fill(encoder, given)


def _without_class_token(theirs: Tensor, own: Tensor) -> Tensor:
    """Position embeddings (1, tokens, C) of a ViT, without that of a class token which the encoder does not have."""
    return theirs[:, 1:] if theirs.shape[1] == own.shape[1] + 1 else theirs


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
    found = {what: names for what, names in problems.items() if names}
    if found:
        shown = 3 // len(found)  # three names in all: the line stays readable
        told = [f"{len(names)} {what} ({_first(names, shown)})" for what, names in found.items()]
        matched = sum(name in given for name in own)
        raise ValueError(f"does not fit this encoder: {matched} tensors match, {', '.join(told)}; nothing was loaded")
    fitting = {name: x for name, x in given.items() if name in own and x.shape == own[name].shape}
    module.load_state_dict(fitting, strict=False)
    return Loaded(len(fitting), unused)


def refuse_odd_values(state: State) -> None:
    """ValueError where weights are not finite: a network that starts from them never trains."""
    odd = [name for name, x in state.items() if x.is_floating_point() and not torch.isfinite(x).all()]
    if odd:
        raise ValueError(
            f"{len(odd)} tensors contain NaN or infinite values ({_first(odd, 3)}); take another checkpoint"
        )


def _first(names: list[str], count: int) -> str:
    return ", ".join(_end(name, 45) for name in names[:count]) + (", ..." if len(names) > count else "")


def _end(text: str, length: int) -> str:
    """The end of a long name or path says more than its beginning."""
    return text if len(text) <= length else f"...{text[3 - length :]}"


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
