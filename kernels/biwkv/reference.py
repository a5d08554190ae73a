"""The operators written as their formulas, in float64: what every other implementation is tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def bi_wkv_reference(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Bidirectional WKV attention of RWKV-UNet (eq. 7 of Vision-RWKV), by the formula.

    y_t = (sum_{i != t} e^{-(|t-i|-1) w + k_i} v_i + e^{u + k_t} v_t) / (the same sum without v)

    Args:
        w: (C,) decay per token. Negative values grow instead.
        u: (C,) bonus of the token itself.
        k, v: (B, T, C) keys and values.

    Returns:
        (B, T, C) float64, differentiable by plain autograd, any number of times. Takes O(B T^2 C) time and memory.
    """
    w, u, k, v = (x.double() for x in (w, u, k, v))
    position = torch.arange(k.shape[1], device=k.device)
    distance = (position[:, None] - position[None, :]).abs()
    itself = (distance == 0)[:, :, None]
    bias = torch.where(itself, u, -(distance[:, :, None] - 1) * w)  # (T, T, C)
    return _weighted_mean(bias, k, v)


def bi_wkv_nd_reference(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Bidirectional WKV attention over several axes, by the formula of `biwkv.bi_wkv_nd`.

    Args:
        w: (A, C) decay per step along each axis.
        u: (C,) bonus of the token itself.
        k, v: (B, *spatial, C) keys and values on A axes, T tokens in all.

    Returns:
        (B, *spatial, C) float64, differentiable by plain autograd, any number of times. Takes O(B T^2 C) time and
        memory.
    """
    w, u, k, v = (x.double() for x in (w, u, k, v))
    axes = [torch.arange(size, device=k.device) for size in k.shape[1:-1]]
    positions = torch.stack([x.flatten() for x in torch.meshgrid(*axes, indexing="ij")])  # (A, T)
    distances = (positions[:, :, None] - positions[:, None, :]).abs()
    itself = (distances.sum(dim=0) == 0)[:, :, None]
    bias = torch.where(itself, u, -torch.einsum("aij,ac->ijc", distances.double(), w))  # (T, T, C)
    return _weighted_mean(bias, k.flatten(1, -2), v.flatten(1, -2)).reshape(k.shape)


def selective_scan_reference(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The recurrence of `biwkv.selective_scan` (S6 of Mamba), one token after the other.

    h_t = exp(step_t a) h_{t-1} + step_t b_t x_t,      y_t = c_t h_t + d x_t

    Args:
        x, step: (B, T, G, D) values and steps.
        a: (G, D, N) rates.
        b, c: (B, T, G, N) what goes into a state and what comes out.
        d: (G, D) shortcut.

    Returns:
        (B, T, G, D) float64, differentiable by plain autograd, any number of times.
    """
    x, step, a, b, c, d = (z.double() for z in (x, step, a, b, c, d))
    h, y = torch.zeros_like(x[:, 0, :, :, None] * a), []
    # Taken apart at once, since the gradient of x[:, t] alone is as large as x.
    for x_t, step_t, b_t, c_t in zip(*(z.unbind(dim=1) for z in (x, step, b, c)), strict=True):
        h = torch.exp(step_t[..., None] * a) * h + (step_t * x_t)[..., None] * b_t[:, :, None]
        y.append((h * c_t[:, :, None]).sum(dim=-1) + d * x_t)
    return torch.stack(y, dim=1)


def _weighted_mean(bias: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """y (B, T, C) with log weights k and a bias (T, T, C) of the second token for the first."""
    weights = torch.softmax(bias + k[:, None], dim=2)  # (B, T, T, C)
    return (weights * v[:, None]).sum(dim=2)
