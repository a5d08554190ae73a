"""`selective_scan`: the recurrence of Mamba (S6), a linear state space that every token steers.

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", https://arxiv.org/abs/2312.00752,
Algorithm 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from biwkv import cpu, selective_torch
from biwkv.dispatch import Backend, check, register
from biwkv.reference import selective_scan_reference

BACKENDS: dict[str, Backend] = {
    "scan": Backend(selective_torch.forward, selective_torch.backward),
    "cpu": Backend(cpu.selective_forward, cpu.selective_backward, cpu.selective_why_not),
}
INPUTS = ("x", "step", "a", "b", "c", "d")
register("selective_scan", BACKENDS, "selective_forward", "selective_backward", INPUTS, like="x")


def selective_scan(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, *, backend: str = "auto"
) -> Tensor:
    """The state of every channel, N numbers, walks once along the tokens of each of G groups, from h = 0:

    h_t = exp(step_t a) h_{t-1} + step_t b_t x_t,      y_t = c_t h_t + d x_t

    Groups share nothing; directions of an image are groups whose tokens were put in that order. Sums run in float32,
    or in float64 if any input is float64. Differentiable once. Repeated calls give the same bits.

    Args:
        x: (B, T, G, D) values in float32, bfloat16, float16 or float64, of any strides.
        step: (B, T, G, D) steps, the bias added and softplus applied.
        a: (G, D, N) rates, negative where a state fades.
        b: (B, T, G, N) what goes into the state.
        c: (B, T, G, N) what comes out of it.
        d: (G, D) weight of the value itself.
        backend: "auto" (the fastest that runs here), "cpu" (compiled; float64 goes to the scan), "scan" (torch, any
            device, in chunks; its gradient keeps all states, N times as much as x), or "reference" (float64, a token at
            a time).

    Returns:
        (B, T, G, D) in x's dtype.

    Raises:
        ValueError: for shapes, dtypes or devices that do not fit, an empty input, or a backend that is unknown or
            cannot run here.
    """
    _check_shapes(x, step, a, b, c, d)
    check("selective_scan", BACKENDS, backend, like="x", x=x, step=step, a=a, b=b, c=c, d=d)
    if backend == "reference":
        return selective_scan_reference(x, step, a, b, c, d).to(x.dtype)
    return torch.ops.biwkv.selective_forward(x, step, a, b, c, d, backend)


def _check_shapes(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> None:
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"selective_scan: x must be (B, T, G, D) and not empty, not {tuple(x.shape)}")
    batch, tokens, groups, channels = x.shape
    if a.ndim != 3 or a.shape[:2] != (groups, channels) or a.shape[2] == 0:
        raise ValueError(f"selective_scan: a must be (G, D, N) = ({groups}, {channels}, N), not {tuple(a.shape)}")
    inner, own = (batch, tokens, groups, a.shape[2]), (groups, channels)
    for name, z, names, shape in (
        ("step", step, "(B, T, G, D)", x.shape),
        ("b", b, "(B, T, G, N)", inner),
        ("c", c, "(B, T, G, N)", inner),
        ("d", d, "(G, D)", own),
    ):
        if z.shape != shape:
            raise ValueError(f"selective_scan: {name} must be {names} = {tuple(shape)}, not {tuple(z.shape)}")
