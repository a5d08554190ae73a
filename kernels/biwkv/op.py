"""`bi_wkv`: checks, choice of an implementation, and registration with torch (autograd, compile, export)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from biwkv import cpu, cuda, scan, triton
from biwkv.reference import bi_wkv_reference


class Backend(NamedTuple):
    """An implementation: `forward(w, u, k, v) -> y` and `backward(w, u, k, v, gy) -> (gw, gu, gk, gv)`.

    `why_not(k)` says why it cannot run on k here, and is empty if it can.
    """

    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    why_not: Callable[[Tensor], str] = lambda k: ""


BACKENDS: dict[str, Backend] = {
    "scan": Backend(scan.forward, scan.backward),
    "cpu": Backend(cpu.forward, cpu.backward, cpu.why_not),
    "cuda": Backend(cuda.forward, cuda.backward, cuda.why_not),
    "triton": Backend(triton.forward, triton.backward, triton.why_not),
}
FASTEST = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # by device, the fastest first; scan if none of them can run
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def bi_wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, *, backend: str = "auto") -> Tensor:
    """Bidirectional WKV attention, the token mixer of RWKV-UNet, in time linear in T.

    y_t = (sum_{i != t} e^{-(|t-i|-1) w + k_i} v_i + e^{u + k_t} v_t) / (the same sum without v)

    The model passes w = decay / T and u = first / T. Sums run in float32, or in float64 if any input is float64.
    Differentiable once. Repeated calls give the same bits.

    Args:
        w: (C,) decay per token, of any sign. float32 as a rule; autocast leaves it alone.
        u: (C,) bonus of the token itself.
        k: (B, T, C) keys in float32, bfloat16, float16 or float64, of any strides.
        v: (B, T, C) values; the dtype may differ from that of k.
        backend: "auto" (the fastest that runs here), "cpu" (compiled), "cuda" or "triton" (on CUDA devices), "scan"
            (torch, any device; all others leave float64 to it), or "reference" (float64, O(T^2)).

    Returns:
        (B, T, C) in k's dtype.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, an empty input, or a backend that is unknown or
            cannot run here.
    """
    _check(w, u, k, v)
    if backend == "reference":
        return bi_wkv_reference(w, u, k, v).to(k.dtype)
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"bi_wkv: unknown backend {backend!r}; choose from {['auto', *BACKENDS, 'reference']}")
    return torch.ops.biwkv.forward(w, u, k, v, backend)


def _check(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> None:
    if k.ndim != 3 or 0 in k.shape:
        raise ValueError(f"bi_wkv: k must be (B, T, C) and not empty, not {tuple(k.shape)}")
    if v.shape != k.shape:
        raise ValueError(f"bi_wkv: v must have the shape of k {tuple(k.shape)}, not {tuple(v.shape)}")
    for name, x in (("w", w), ("u", u)):
        if x.shape != k.shape[2:]:
            raise ValueError(f"bi_wkv: {name} must be (C,) = ({k.shape[2]},), not {tuple(x.shape)}")
    for name, x in (("w", w), ("u", u), ("k", k), ("v", v)):
        if x.dtype not in FLOATS:
            raise ValueError(f"bi_wkv: {name} must be float32, bfloat16, float16 or float64, not {x.dtype}")
        if x.device != k.device:
            raise ValueError(f"bi_wkv: {name} is on {x.device} but k is on {k.device}; move them to one device")


def _choose(backend: str, k: Tensor) -> Backend:
    """Called when the operator runs, so that a graph compiled or exported with "auto" suits any machine."""
    if backend == "auto":
        for name in (names := FASTEST.get(k.device.type, ())):
            if not BACKENDS[name].why_not(k):
                return BACKENDS[name]
        if names:
            _warn_once(names[-1], BACKENDS[names[-1]].why_not(k))
        return BACKENDS["scan"]
    if reason := BACKENDS[backend].why_not(k):
        raise ValueError(f"bi_wkv: backend {backend!r} cannot run: {reason}")
    return BACKENDS[backend]


@cache
def _warn_once(backend: str, reason: str) -> None:
    """Once in a process."""
    warnings.warn(
        f"biwkv: the {backend!r} kernel cannot run: {reason}. Using the torch implementation, which is about ten "
        "times slower.",
        RuntimeWarning,
        stacklevel=2,
    )


@torch.library.custom_op("biwkv::forward", mutates_args=())
def _forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    return _choose(backend, k).forward(w, u, k, v)


@torch.library.custom_op("biwkv::backward", mutates_args=())
def _backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _choose(backend, k).backward(w, u, k, v, gy)


@_forward.register_fake
def _(w: Tensor, u: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    return k.new_empty(k.shape)


@_backward.register_fake
def _(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return w.new_empty(w.shape), u.new_empty(u.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.biwkv.backward(*ctx.saved_tensors, gy, ctx.backend), None


def _refuse(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("bi_wkv: second derivatives are not supported; use biwkv.bi_wkv_reference for them")


_forward.register_autograd(_differentiate, setup_context=_save_inputs)
_backward.register_autograd(_refuse)
