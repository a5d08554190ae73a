"""Bi-WKV on CUDA devices by the Triton kernels of triton_kernels.py, which are compiled at their first use."""

from __future__ import annotations

import os
import shutil
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from biwkv import scan
from biwkv.dispatch import is_double

BLOCK = 64  # channels of a program: two warps, one channel a thread


class _Plan(NamedTuple):
    """How many tokens a kernel holds in registers, narrow and wide; as many as leave 112 registers a thread or less.

    `scratch`: numbers per channel that it keeps at every chunk's end, of the way that needs more of them in all.
    """

    kernel: str
    length: int
    wide: int
    scratch: int


FORWARD = _Plan("forward_kernel", length=16, wide=8, scratch=3)
BACKWARD = _Plan("backward_kernel", length=8, wide=4, scratch=9)


def why_not(k: Tensor) -> str:
    """Why the kernels cannot run on k; empty if they can."""
    if not _is_installed():
        return "triton is not installed"
    if _is_interpreted():
        return ""
    return _why_not_compile() if k.device.type == "cuda" else f"k is on {k.device}"


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """y (B, T, C) in k's dtype. Computes in float32; float64 is left to the scan."""
    if is_double(w, u, k, v):
        return scan.forward(w, u, k, v)
    w, u, k, v = (x.detach().contiguous() for x in (w, u, k, v))
    y = torch.empty_like(k)
    launch(FORWARD, k, w, u, k, v, y, scratch(FORWARD, k))
    return y


def backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients (gw, gu, gk, gv) of (y * gy).sum(), each in the shape and dtype of its input."""
    if is_double(w, u, k, v, gy):
        return scan.backward(w, u, k, v, gy)
    w, u, k, v, gy = (x.detach().contiguous() for x in (w, u, k, v, gy))
    gw, gu = k.new_empty(2, k.shape[0], k.shape[2], dtype=torch.float32)
    gk, gv = torch.empty_like(k), torch.empty_like(v)
    launch(BACKWARD, k, w, u, k, v, gy, gw, gu, gk, gv, scratch(BACKWARD, k))
    return gw.sum(0).to(w.dtype), gu.sum(0).to(u.dtype), gk, gv


def scratch(plan: _Plan, k: Tensor) -> Tensor:
    """Scratch memory for the sums at the chunks' ends."""
    batch, tokens, channels = k.shape
    return k.new_empty(batch, -(-tokens // plan.wide), plan.scratch, channels, dtype=torch.float32)


def launch(plan: _Plan, k: Tensor, *tensors: Tensor, narrow: bool = True) -> None:
    """On k's device and its current stream. Without `narrow`, programs that could take the narrow way do nothing."""
    batch, tokens, channels = k.shape
    with torch.cuda.device_of(k):
        _kernel(plan.kernel)[(batch * -(-channels // BLOCK),)](
            *tensors,
            tokens,
            C=channels,
            BLOCK=BLOCK,
            LENGTH=plan.length,
            WIDE=plan.wide,
            NARROW=narrow,
            FAST=not _is_interpreted() and torch.version.hip is None,
            num_warps=BLOCK // 32,
        )


@cache
def _kernel(name: str) -> Any:
    from biwkv import triton_kernels

    return getattr(triton_kernels, name)


@cache
def _is_installed() -> bool:
    return find_spec("triton") is not None


def _is_interpreted() -> bool:
    """By Triton's own interpreter, on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _why_not_compile() -> str:
    """Triton compiles a small C program to launch its kernels with."""
    compiler = os.environ.get("CC")
    if not any(shutil.which(name) for name in ([compiler] if compiler else ("gcc", "clang"))):
        return "triton needs a C compiler at run time; install gcc or clang, or set CC"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return "" if header.is_file() else f"triton needs Python's C headers at run time ({header}); install python3-dev"
