from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

GOLDENS = Path(__file__).parents[1] / "goldens"
Fill = Callable[..., dict[str, Tensor]]
Names = list[tuple[str, list[int]]]


def fill_value(name: str, shape: Iterable[int], gain: float) -> Tensor:
    """The fill rule of tests/goldens/RWKV_UNET.md."""
    shape = tuple(shape)
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    n, leaf = torch.from_numpy(np.asarray(noise)), name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if leaf in ("spatial_decay", "spatial_first"):
        return n
    if leaf.startswith("spatial_mix_"):
        return 0.5 + 0.1 * n
    if leaf == "running_mean":
        return 0.1 * n
    if leaf == "running_var":
        return 1 + 0.1 * n.abs()
    if len(shape) >= 2:
        return n * torch.tensor(gain / math.sqrt(math.prod(shape[1:])), dtype=torch.float32)
    assert leaf in ("weight", "bias"), name
    return 1 + 0.1 * n if leaf == "weight" else 0.1 * n


@pytest.fixture(scope="session")
def fill() -> Fill:
    """(names and shapes, gain) -> the authors' state dict, filled by rule."""

    def filled(names: Names, gain: float = 1.0) -> dict[str, Tensor]:
        return {name: fill_value(name, shape, gain) for name, shape in names}

    return filled


@pytest.fixture(scope="session")
def official_names() -> dict[str, Names]:
    """Variant -> names and shapes of the authors' net with 9 classes."""
    return json.loads((GOLDENS / "official_names.json").read_text())


def _load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / name, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="session")
def net_goldens() -> dict[str, np.ndarray]:
    return _load("rwkv_unet_t.npz")


@pytest.fixture(scope="session")
def module_goldens() -> dict[str, np.ndarray]:
    return _load("modules.npz")
