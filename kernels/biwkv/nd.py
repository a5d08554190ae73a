"""`bi_wkv_nd`: Bi-WKV over an image or a volume, whose decay is apart for every axis."""

from __future__ import annotations

import torch
from torch import Tensor

from biwkv import cpu, nd_scan
from biwkv.dispatch import Backend, check, register
from biwkv.reference import bi_wkv_nd_reference

BACKENDS: dict[str, Backend] = {
    "scan": Backend(nd_scan.forward, nd_scan.backward),
    "cpu": Backend(cpu.nd_forward, cpu.nd_backward, cpu.why_not),
}
register("bi_wkv_nd", BACKENDS, "nd_forward", "nd_backward")


def bi_wkv_nd(w: Tensor, u: Tensor, k: Tensor, v: Tensor, *, backend: str = "auto") -> Tensor:
    """Bidirectional WKV attention over 1, 2 or 3 spatial axes, in time linear in the number of tokens.

    y_i = (sum_{j != i} e^{-sum_a |p_i[a] - p_j[a]| w_a + k_j} v_j + e^{u + k_i} v_i) / (the same sum without v)

    where p_i[a] is the position of token i along axis a: in 2-D, e^{-(|x_i - x_j| w_x + |y_i - y_j| w_y)}. A neighbour
    has the weight e^{-w_a}, where that of `biwkv.bi_wkv` is 1; so with one axis it is bi_wkv(w[0], u + w[0], k, v).

    A model passes w_a = decay_a / size_a and u = first / T. Sums run in float32, or in float64 if any input is
    float64, or if sum_a |w_a| size_a exceeds 40 or |u| 20, where float32 would not do: exact for any finite input, and
    many times slower there. Differentiable once. Repeated calls give the same bits.

    Args:
        w: (A, C) decay per step along each of the A axes, of any sign. float32 as a rule; autocast leaves it alone.
        u: (C,) bonus of the token itself.
        k: (B, *spatial, C) keys, as (B, H, W, C) or (B, D, H, W, C), in float32, bfloat16, float16 or float64, of any
            strides.
        v: (B, *spatial, C) values; the dtype may differ from that of k.
        backend: "auto" (the fastest that runs here), "cpu" (compiled; float64 goes to the scan), "scan" (torch, any
            device), or "reference" (float64, O(T^2)).

    Returns:
        (B, *spatial, C) in k's dtype.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, an empty input, or a backend that is unknown or
            cannot run here.
    """
    _check_shapes(w, u, k, v)
    check("bi_wkv_nd", BACKENDS, backend, w=w, u=u, k=k, v=v)
    if backend == "reference":
        return bi_wkv_nd_reference(w, u, k, v).to(k.dtype)
    return torch.ops.biwkv.nd_forward(w, u, k, v, backend)


def _check_shapes(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> None:
    if not 3 <= k.ndim <= 5 or 0 in k.shape:
        raise ValueError(
            f"bi_wkv_nd: k must be (B, *spatial, C) with 1 to 3 spatial axes and not empty, not {tuple(k.shape)}"
        )
    if v.shape != k.shape:
        raise ValueError(f"bi_wkv_nd: v must have the shape of k {tuple(k.shape)}, not {tuple(v.shape)}")
    axes, channels = k.ndim - 2, k.shape[-1]
    if w.shape != (axes, channels):
        raise ValueError(f"bi_wkv_nd: w must be (axes, C) = ({axes}, {channels}), not {tuple(w.shape)}")
    if u.shape != (channels,):
        raise ValueError(f"bi_wkv_nd: u must be (C,) = ({channels},), not {tuple(u.shape)}")
