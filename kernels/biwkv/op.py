"""`bi_wkv`: Bi-WKV over a sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from biwkv import cpu, cuda, scan, triton
from biwkv.dispatch import Backend, check, register
from biwkv.reference import bi_wkv_reference

BACKENDS: dict[str, Backend] = {
    "scan": Backend(scan.forward, scan.backward),
    "cpu": Backend(cpu.forward, cpu.backward, cpu.why_not),
    "cuda": Backend(cuda.forward, cuda.backward, cuda.why_not),
    "triton": Backend(triton.forward, triton.backward, triton.why_not),
}
register("bi_wkv", BACKENDS, "forward", "backward")


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
    _check_shapes(w, u, k, v)
    check("bi_wkv", BACKENDS, backend, w=w, u=u, k=k, v=v)
    if backend == "reference":
        return bi_wkv_reference(w, u, k, v).to(k.dtype)
    return torch.ops.biwkv.forward(w, u, k, v, backend)


def _check_shapes(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> None:
    if k.ndim != 3 or 0 in k.shape:
        raise ValueError(f"bi_wkv: k must be (B, T, C) and not empty, not {tuple(k.shape)}")
    if v.shape != k.shape:
        raise ValueError(f"bi_wkv: v must have the shape of k {tuple(k.shape)}, not {tuple(v.shape)}")
    for name, x in (("w", w), ("u", u)):
        if x.shape != k.shape[2:]:
            raise ValueError(f"bi_wkv: {name} must be (C,) = ({k.shape[2]},), not {tuple(x.shape)}")
