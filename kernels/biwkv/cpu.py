"""Bi-WKV and the selective scan on the CPU: the kernels of csrc/, compiled by the package's build."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biwkv import nd_scan, scan, selective_torch
from biwkv.dispatch import is_double

LIBRARY = Path(__file__).with_name("_biwkv_cpu.so")
VERSION = 2  # of the C interface


def why_not(k: Tensor) -> str:
    """Why the kernel cannot run on k; empty if it can."""
    if k.device.type != "cpu":
        return f"k is on {k.device}"
    return "" if isinstance(_library(), ctypes.CDLL) else str(_library())


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """y (B, T, C) in k's dtype. Computes in float32; float64 is left to the scan."""
    if is_double(w, u, k, v):
        return scan.forward(w, u, k, v)
    inputs = [_plain(x) for x in (w, u, k, v)]
    y = torch.empty_like(inputs[2])
    _call("biwkv_forward", (*inputs, y), *k.shape)
    return y.to(k.dtype)


def backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients (gw, gu, gk, gv) of (y * gy).sum(), each in the shape and dtype of its input."""
    if is_double(w, u, k, v, gy):
        return scan.backward(w, u, k, v, gy)
    inputs = [_plain(x) for x in (w, u, k, v, gy)]
    gw, gu, gk, gv = (torch.empty_like(x) for x in inputs[:4])
    _call("biwkv_backward", (*inputs, gw, gu, gk, gv), *k.shape)
    return gw.to(w.dtype), gu.to(u.dtype), gk.to(k.dtype), gv.to(v.dtype)


def nd_forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """y (B, *spatial, C) in k's dtype. Leaves float64, and what needs it, to the scan."""
    if is_double(w, u, k, v) or not nd_scan.is_narrow(w, u, k):
        return nd_scan.forward(w, u, k, v)
    inputs = [_plain(x) for x in (w, u, k, v)]
    y = torch.empty_like(inputs[2])
    _call("biwkv_nd_forward", (*inputs, y), *_volume(k))
    return y.to(k.dtype)


def nd_backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients (gw, gu, gk, gv) of (y * gy).sum(), each in the shape and dtype of its input."""
    if is_double(w, u, k, v, gy) or not nd_scan.is_narrow(w, u, k):
        return nd_scan.backward(w, u, k, v, gy)
    inputs = [_plain(x) for x in (w, u, k, v, gy)]
    gw, gu, gk, gv = (torch.empty_like(x) for x in inputs[:4])
    _call("biwkv_nd_backward", (*inputs, gw, gu, gk, gv), *_volume(k))
    return gw.to(w.dtype), gu.to(u.dtype), gk.to(k.dtype), gv.to(v.dtype)


def selective_why_not(x: Tensor) -> str:
    """Why the selective scan cannot run on x; empty if it can."""
    if (reason := why_not(x)) or hasattr(_library(), "biwkv_selective_forward"):
        return reason
    return f"{LIBRARY.name} is older than the selective scan; install this package again"


def selective_forward(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """y (B, T, G, D) in x's dtype. Computes in float32; float64 is left to torch."""
    if is_double(x, step, a, b, c, d):
        return selective_torch.forward(x, step, a, b, c, d)
    inputs = [_plain(z) for z in (x, step, a, b, c, d)]
    y = torch.empty_like(inputs[0])
    _call("biwkv_selective_forward", (*inputs, y), *x.shape, ctypes.c_int(a.shape[2]))
    return y.to(x.dtype)


def selective_backward(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, gy: Tensor
) -> tuple[Tensor, ...]:
    """Gradients (gx, gstep, ga, gb, gc, gd) of (y * gy).sum(), each in the shape and dtype of its input."""
    tensors = (x, step, a, b, c, d)
    if is_double(*tensors, gy):
        return selective_torch.backward(*tensors, gy)
    inputs = [_plain(z) for z in (*tensors, gy)]
    gradients = tuple(torch.empty_like(z) for z in inputs[:6])
    _call("biwkv_selective_backward", (*inputs, *gradients), *x.shape, ctypes.c_int(a.shape[2]))
    return tuple(g.to(z.dtype) for g, z in zip(gradients, tensors, strict=True))


def _volume(k: Tensor) -> tuple[int, Any, ctypes.c_int, int]:
    """The arguments for the shape (B, *spatial, C)."""
    batch, *spatial, channels = k.shape
    return batch, (ctypes.c_int64 * len(spatial))(*spatial), ctypes.c_int(len(spatial)), channels


def _plain(x: Tensor) -> Tensor:
    return x.detach().to(torch.float32).contiguous()


def _call(name: str, tensors: tuple[Tensor, ...], *sizes: Any) -> None:
    library = _library()
    assert isinstance(library, ctypes.CDLL), library
    pointers = (ctypes.c_void_p(x.data_ptr()) for x in tensors)
    shape = (ctypes.c_int64(size) if isinstance(size, int) else size for size in sizes)
    if getattr(library, name)(*pointers, *shape, ctypes.c_int(torch.get_num_threads())):
        raise MemoryError(f"{name}: not enough memory for inputs of {max(x.numel() for x in tensors)} elements")


@cache
def _library() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    if not LIBRARY.is_file():
        return f"{LIBRARY.name} was not built; install a C++ compiler (g++ or clang++), then this package again"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        version = library.biwkv_version()
    except (OSError, AttributeError) as error:
        return f"{LIBRARY.name} cannot be loaded: {error}"
    return library if version == VERSION else f"{LIBRARY.name} is of another version: {version}, not {VERSION}"
