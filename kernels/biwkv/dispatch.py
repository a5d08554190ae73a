"""What the operators share: choice of an implementation, and registration with torch (autograd, compile, export)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Backend(NamedTuple):
    """An implementation: `forward(w, u, k, v) -> y` and `backward(w, u, k, v, gy) -> (gw, gu, gk, gv)`.

    `why_not(k)` says why it cannot run on k here, and is empty if it can. Other operators have other inputs,
    one of which the result is like.
    """

    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, ...]]
    why_not: Callable[[Tensor], str] = lambda k: ""


FASTEST = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # by device, the fastest first; scan if none of them can run
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check(function: str, backends: dict[str, Backend], backend: str, *, like: str = "k", **inputs: Tensor) -> None:
    """ValueError for a dtype or device that does not fit, or an unknown backend; all are to be where `like` is."""
    device = inputs[like].device
    for name, x in inputs.items():
        if x.dtype not in FLOATS:
            raise ValueError(f"{function}: {name} must be float32, bfloat16, float16 or float64, not {x.dtype}")
        if x.device != device:
            raise ValueError(f"{function}: {name} is on {x.device} but {like} is on {device}; move them to one device")
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


def register(
    function: str,
    backends: dict[str, Backend],
    forward_name: str,
    backward_name: str,
    inputs: tuple[str, ...] = ("w", "u", "k", "v"),
    like: str = "k",
) -> None:
    """Registers torch.ops.biwkv.<forward_name>(*inputs, backend) and its gradient, for the public `function`.

    The result has the shape and dtype of the input `like`.
    """
    given, index = ", ".join(f"Tensor {name}" for name in inputs), inputs.index(like)
    gradients = ", ".join("Tensor" for _ in inputs)

    @torch.library.custom_op(f"biwkv::{forward_name}", mutates_args=(), schema=f"({given}, str backend) -> Tensor")
    def forward(*args: Any) -> Tensor:
        *tensors, backend = args
        return choose(function, backends, backend, tensors[index]).forward(*tensors)

    @torch.library.custom_op(
        f"biwkv::{backward_name}", mutates_args=(), schema=f"({given}, Tensor gy, str backend) -> ({gradients})"
    )
    def backward(*args: Any) -> tuple[Tensor, ...]:
        *tensors, backend = args
        return choose(function, backends, backend, tensors[index]).backward(*tensors)

    def differentiate(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        return *backward(*ctx.saved_tensors, gy, ctx.backend), None

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{function}: second derivatives are not supported; use biwkv.{function}_reference for them")

    forward.register_fake(lambda *args: args[index].new_empty(args[index].shape))
    backward.register_fake(lambda *args: tuple(x.new_empty(x.shape) for x in args[: len(inputs)]))
    forward.register_autograd(differentiate, setup_context=_save_inputs)
    backward.register_autograd(refuse)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)
