"""Files of weights as other programs write them: wrapped in dictionaries, under names with prefixes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "network_weights", "net", "network", "model_state", "module"),
    *("weights", "params", "encoder", "backbone", "state_dict_ema", "model_ema", "ema"),
)
"""Keys under which training programs keep a model's weights, in the order in which they are preferred."""
DEEPEST = 3
"""Wrappers inside one another."""
COMPILED = "_orig_mod"
"""A part of the names that `torch.compile` adds wherever a module was compiled."""


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, without the dictionaries around them; no code in it is ever run.

    ValueError, a line without the path, where it cannot be read or contains no dictionary of tensors.
    """
    try:
        if path.name.lower().endswith(".safetensors"):
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"cannot be read ({' '.join(str(error).split())[:120]})") from None
    except Exception as error:  # pickle's own, for what is no plain tensor
        raise ValueError(
            f"contains other objects than tensors, which are not loaded ({type(error).__name__}); "
            "save the weights alone: torch.save(model.state_dict(), FILE)"
        ) from None
    return {_not_compiled(name): x for name, x in _unwrapped(content).items()}


def _unwrapped(content: Any) -> dict[str, Tensor]:
    inner = content
    for _ in range(DEEPEST):
        if (tensors := _tensors(inner)) is not None:
            return tensors
        if not isinstance(inner, Mapping):
            break
        known = [key for key in WRAPPERS if isinstance(inner.get(key), Mapping)]
        if not known:
            break
        inner = inner[known[0]]
    if not isinstance(content, Mapping):
        raise ValueError(f"is not a dictionary of tensors but a {type(content).__name__}")
    keys = [str(key)[:40] for key in content]
    more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
    raise ValueError(
        f"is not a dictionary of tensors; it has the keys {', '.join(keys[:6])}{more}: "
        "save the one with the weights under `state_dict`"
    )


def _tensors(content: Any) -> dict[str, Tensor] | None:
    """The tensors of a flat dictionary, which may also contain plain numbers and strings (an epoch, a name)."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return None
    if not all(isinstance(x, Tensor | int | float | str | None) for x in content.values()):
        return None
    return {name: x for name, x in content.items() if isinstance(x, Tensor)} or None


def _not_compiled(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != COMPILED)


def prefix_of(state: Iterable[str], own: Iterable[str]) -> str | None:
    """What stands before most of the names `own` in `state` (`model.module.encoder.`, or nothing); None if none is in.

    ValueError where two prefixes fit equally well: which of them is meant is not guessed.
    """
    own, votes = set(own), Counter[str]()
    for name in state:
        start = 0
        while True:
            if name[start:] in own:
                votes[name[:start]] += 1
            dot = name.find(".", start)
            if dot < 0:
                break
            start = dot + 1
    if not votes:
        return None
    best = votes.most_common(2)
    if len(best) == 2 and best[0][1] == best[1][1] > 1:
        names = " and ".join(sorted(f"`{prefix}`" for prefix, _ in best))
        raise ValueError(f"contains the encoder twice, under {names}: save one of them alone")
    return best[0][0]


def split(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """What stands behind a prefix, and the other names."""
    inner = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
    return inner, [name for name in state if not name.startswith(prefix)]
