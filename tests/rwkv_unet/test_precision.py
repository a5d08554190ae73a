"""bfloat16: close to float32, and nowhere float32 where nobody asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from rwkv_unet import create_model, load_official_state_dict

BOUND = 2e-2


@pytest.mark.parametrize("name", [f"rwkv_unet_{size}" for size in "tsb"])
def test_logits_in_bfloat16(name: str, official_names, fill) -> None:
    model = create_model(name, num_classes=9).eval()
    load_official_state_dict(model, fill(official_names[name[-1]]))
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = model(image)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(image)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).norm() < BOUND * expected.norm()


class Float32Maps(TorchDispatchMode):
    """Names the operators that give a float32 tensor as large as a feature map."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.found = size, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and output.dtype == torch.float32 and output.numel() >= self.size:
            self.found.add(str(func))
        return output


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Autocast by the rules of CUDA, for tensors without data, where there is no GPU."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


def test_autocast_on_cuda_leaves_no_map_in_float32() -> None:
    model = create_model("rwkv_unet_t", num_classes=2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        state = {
            name: torch.empty_like(x, device="cuda")
            for name, x in chain(model.named_parameters(), model.named_buffers())
        }
        image = torch.empty(8, 3, 128, 128, device="cuda", dtype=torch.bfloat16)
        # The weights are float32, and smaller than the smallest map.
        with cuda_autocast(), Float32Maps(8 * 96 * 16 * 16) as seen:
            logits = torch.func.functional_call(model, state, (image,))
    assert logits.dtype == torch.bfloat16
    assert not seen.found
