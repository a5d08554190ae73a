"""Loads checkpoints of the authors' code (https://github.com/juntaoJianggavin/RWKV-UNet), encoders and nets.

Their modules have parameters that are never used: attention and its norm in blocks without attention, a second
LayerNorm in every block, a LayerNorm in the decoder's blocks, and, inside a net, the encoder's classifier. Those are
ignored; everything else must be there, and nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from rwkv_unet.blocks import GLSP
from rwkv_unet.model import RWKVUNet
from rwkv_unet.rwkv_unet_enc import RWKVUNetEncoder

# Our module or parameter -> theirs, inside a block.
GLSP_NAMES = {
    "norm": "norm",
    "expand": "conv",
    "attention.decay": "att.spatial_decay",
    "attention.first": "att.spatial_first",
    "attention.mix_key.ratio": "att.spatial_mix_k",
    "attention.mix_value.ratio": "att.spatial_mix_v",
    "attention.mix_receptance.ratio": "att.spatial_mix_r",
    "attention.key": "att.key",
    "attention.value": "att.value",
    "attention.receptance": "att.receptance",
    "attention.norm": "att.key_norm",
    "attention.output": "att.output",
    "attention_norm": "ln1",
    "local": "conv_local",
    "squeeze_excite.reduce": "se.conv_reduce",
    "squeeze_excite.expand": "se.conv_expand",
    "project": "proj.conv",
}
CCM_NAMES = {
    "project_in": "projections",
    "channel_mix.mix_key.ratio": "channel.spatial_mix_k",
    "channel_mix.mix_receptance.ratio": "channel.spatial_mix_r",
    "channel_mix.key": "channel.key",
    "channel_mix.norm": "channel.key_norm",
    "channel_mix.receptance": "channel.receptance",
    "channel_mix.value": "channel.value",
    "norm": "ln1",
    "project_out": "final_projections",
}
UP_NAMES = {"mix": "conv", "local": "conv_local", "project": "proj"}
HEAD_NAMES = {"norm": "norm", "fc": "head"}

# Their parameters of attention: bare ones, and weights of layers (the norm has a bias too).
ATTENTION_LEAVES = ("spatial_decay", "spatial_first", "spatial_mix_k", "spatial_mix_v", "spatial_mix_r")
ATTENTION_LAYERS = ("key.weight", "value.weight", "receptance.weight", "output.weight")
DEAD_ATTENTION = [f"att.{x}" for x in (*ATTENTION_LEAVES, *ATTENTION_LAYERS, "key_norm.weight", "key_norm.bias")]
DEAD_ATTENTION += ["ln1.weight", "ln1.bias"]
DEAD_CLASSIFIER = {"head.fc": ["head.weight", "head.bias"], "head.norm": ["norm.norm.weight", "norm.norm.bias"]}


def load_official_state_dict(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load a checkpoint of the authors' code into a net or an encoder.

    Args:
        model: `RWKVUNet` or `RWKVUNetEncoder`. An encoder's checkpoint goes into a net through `model.encoder`.
        state_dict: the authors' names, with or without a "module." before them and, for an encoder, an "encoder.";
            may be wrapped as {"state_dict": ...}.

    Raises:
        ValueError: naming every key that is missing, unexpected or of another shape. The model is then unchanged.
    """
    if not isinstance(model, RWKVUNet | RWKVUNetEncoder):
        raise ValueError(f"official weights fit an RWKVUNet or an RWKVUNetEncoder, not {type(model).__name__}")
    if isinstance(model, RWKVUNet) and not isinstance(model.encoder, RWKVUNetEncoder):
        raise ValueError(f"official weights have no encoder {model.config.encoder}")
    theirs = _unwrap(state_dict)
    if isinstance(model, RWKVUNetEncoder):
        theirs = _without_prefix(theirs, "encoder.")
    ours = model.state_dict()
    names = {name: _official_name(name, isinstance(model, RWKVUNet)) for name in ours}
    problems = _problems(ours, theirs, names, ignored=set(_dead_names(model)))
    if problems:
        raise ValueError(f"not the official weights of this model: {'; '.join(problems)}")
    model.load_state_dict({name: theirs[names[name]].reshape(x.shape) for name, x in ours.items()})


def _unwrap(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    inner = state_dict.get("state_dict")
    if isinstance(inner, Mapping):
        state_dict = inner
    return _without_prefix(dict(state_dict), "module.")


def _without_prefix(state_dict: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    if state_dict and all(name.startswith(prefix) for name in state_dict):
        return {name.removeprefix(prefix): x for name, x in state_dict.items()}
    return state_dict


def _official_name(name: str, in_net: bool) -> str:
    if not in_net:
        return _official_encoder_name(name)
    part, rest = name.split(".", 1)
    if part == "encoder":
        return f"encoder.{_official_encoder_name(rest)}"
    if part == "ccm":
        return f"ccm.{_translate(rest, CCM_NAMES)}"
    if part == "decoder":
        _, index, rest = rest.split(".", 2)
        return f"decoder{int(index) + 1}.{_translate(rest, UP_NAMES)}"
    assert part == "head", name
    return f"final_conv.{rest}"


def _official_encoder_name(name: str) -> str:
    part, rest = name.split(".", 1)
    if part == "head":
        return _translate(rest, HEAD_NAMES)
    if part == "stages":
        stage, block, rest = rest.split(".", 2)
        part = f"stages.{stage}.{block}"
    return f"{_official_block(part)}.{_translate(rest, GLSP_NAMES)}"


def _official_block(name: str) -> str:
    if name == "stem":
        return "stage0.0"
    _, stage, block = name.split(".")
    return f"stage{int(stage) + 1}.{block}"


def _translate(name: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"the official weights have no {name}: the authors published no model with it")


def _dead_names(model: RWKVUNet | RWKVUNetEncoder) -> Iterable[str]:
    """The authors' parameters that this model has no use for."""
    if isinstance(model, RWKVUNet):
        assert isinstance(model.encoder, RWKVUNetEncoder)
        yield from (f"encoder.{name}" for name in _dead_names(model.encoder))
        yield from (f"decoder{i + 1}.ln1.{x}" for i in range(len(model.decoder.blocks)) for x in ("weight", "bias"))
        return
    for name, block in model.named_modules():
        if isinstance(block, GLSP):
            dead = ["ln2.weight", "ln2.bias", *(DEAD_ATTENTION if block.attention is None else [])]
            yield from (f"{_official_block(name)}.{leaf}" for leaf in dead)
    if model.head is None:
        yield from DEAD_CLASSIFIER["head.norm"]
    if not isinstance(model.get_classifier(), nn.Linear):
        yield from DEAD_CLASSIFIER["head.fc"]


def _problems(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], names: Mapping[str, str], ignored: set[str]
) -> list[str]:
    wanted = set(names.values())
    missing = sorted(wanted - theirs.keys())
    unexpected = sorted(theirs.keys() - wanted - ignored)
    shapes = [
        f"{theirs_name} is {tuple(theirs[theirs_name].shape)}, not {_official_shape(theirs_name, ours[name])}"
        for name, theirs_name in names.items()
        if theirs_name in theirs and tuple(theirs[theirs_name].shape) != _official_shape(theirs_name, ours[name])
    ]
    found = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}
    return [f"{what}: {', '.join(keys)}" for what, keys in found.items() if keys]


def _official_shape(name: str, ours: Tensor) -> tuple[int, ...]:
    return (1, 1, *ours.shape) if ".spatial_mix_" in name else tuple(ours.shape)
