"""What `bi_wkv` and `bi_wkv_nd` share: choice of an implementation, and registration with torch (autograd, compile,
export)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Backend(NamedTuple):
    """An implementation: `forward(w, u, k, v) -> y` and `backward(w, u, k, v, gy) -> (gw, gu, gk, gv)`.

    `why_not(k)` says why it cannot run on k here, and is empty if it can.
    """

    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    why_not: Callable[[Tensor], str] = lambda k: ""


FASTEST = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # by device, the fastest first; scan if none of them can run
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check(
    function: str, backends: dict[str, Backend], backend: str, w: Tensor, u: Tensor, k: Tensor, v: Tensor
) -> None:
    """ValueError for a dtype or device that does not fit, or an unknown backend."""
    for name, x in (("w", w), ("u", u), ("k", k), ("v", v)):
        if x.dtype not in FLOATS:
            raise ValueError(f"{function}: {name} must be float32, bfloat16, float16 or float64, not {x.dtype}")
        if x.device != k.device:
            raise ValueError(f"{function}: {name} is on {x.device} but k is on {k.device}; move them to one device")
    if backend not in (known := ["auto", *backends, "reference"]):
        raise ValueError(f"{function}: unknown backend {backend!r}; choose from {known}")


def choose(function: str, backends: dict[str, Backend], backend: str, k: Tensor) -> Backend:
    """Called when the operator runs, so that a graph compiled or exported with "auto" suits any machine."""
    if backend == "auto":
        for name in (names := [name for name in FASTEST.get(k.device.type, ()) if name in backends]):
            if not backends[name].why_not(k):
                return backends[name]
        if names:
            _warn_once(names[-1], backends[names[-1]].why_not(k))
        return backends["scan"]
    if reason := backends[backend].why_not(k):
        raise ValueError(f"{function}: backend {backend!r} cannot run: {reason}")
    return backends[backend]


def is_double(*tensors: Tensor) -> bool:
    """Whether any is float64, which the kernels leave to torch."""
    return any(x.dtype == torch.float64 for x in tensors)


@cache
def _warn_once(backend: str, reason: str) -> None:
    """Once in a process."""
    warnings.warn(
        f"biwkv: the {backend!r} kernel cannot run: {reason}. Using the torch implementation, which is about ten "
        "times slower.",
        RuntimeWarning,
        stacklevel=2,
    )


def register(function: str, backends: dict[str, Backend], forward_name: str, backward_name: str) -> None:
    """Registers torch.ops.biwkv.<forward_name>(w, u, k, v, backend) and its gradient, for the public `function`."""

    @torch.library.custom_op(f"biwkv::{forward_name}", mutates_args=())
    def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
        return choose(function, backends, backend, k).forward(w, u, k, v)

    @torch.library.custom_op(f"biwkv::{backward_name}", mutates_args=())
    def backward(
        w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor, backend: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return choose(function, backends, backend, k).backward(w, u, k, v, gy)

    def differentiate(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        return *backward(*ctx.saved_tensors, gy, ctx.backend), None

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{function}: second derivatives are not supported; use biwkv.{function}_reference for them")

    forward.register_fake(lambda w, u, k, v, backend: k.new_empty(k.shape))
    backward.register_fake(lambda w, u, k, v, gy, backend: tuple(x.new_empty(x.shape) for x in (w, u, k, v)))
    forward.register_autograd(differentiate, setup_context=_save_inputs)
    backward.register_autograd(refuse)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)
