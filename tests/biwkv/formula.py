"""Inputs of the operator, and errors against its formula in float64. Needs torch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from biwkv import bi_wkv_nd_reference, bi_wkv_reference

NAMES = ("y", "gw", "gu", "gk", "gv")
FLOAT32 = {"y": 1e-5, "gw": 1e-4, "gu": 3e-5, "gk": 3e-5, "gv": 1e-5}
TOLERANCES: dict[torch.dtype, dict[str, float]] = {
    torch.float64: FLOAT32,
    torch.float32: FLOAT32,
    torch.bfloat16: dict.fromkeys(NAMES, 1e-2),
    torch.float16: dict.fromkeys(NAMES, 1e-3),
}


def inputs(
    batch: int, tokens: int, channels: int, *, decay: float = 1, bonus: float = 1, k_scale: float = 1, spike: float = 0
) -> tuple[Tensor, ...]:
    """w, u, k, v, gy with decays around `decay` / T."""
    generator = torch.Generator().manual_seed(tokens * 1000 + channels)
    spread = 1 + 0.1 * torch.randn(2, channels, generator=generator)
    k, v, gy = torch.randn(3, batch, tokens, channels, generator=generator)
    k = k * k_scale
    k[:, tokens // 2] += spike
    return spread[0] * decay / tokens, spread[1] * bonus, k, v, gy


def run(op: Callable[..., Tensor], w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor) -> dict[str, Tensor]:
    leaves = [x.detach().requires_grad_() for x in (w, u, k, v)]
    y = op(*leaves)
    gradients = torch.autograd.grad(y, leaves, gy.to(y.dtype))
    return dict(zip(NAMES, (y.detach(), *gradients), strict=True))


def assert_close(ours: dict[str, Tensor], args: tuple[Tensor, ...], tolerances: dict[str, float] = FLOAT32) -> None:
    """Max-norm errors against the formula."""
    _assert_close(ours, _formula(args), args, tolerances)


def assert_all_close(results: Iterable[dict[str, Tensor]], args: tuple[Tensor, ...]) -> None:
    """The same for several implementations: with many tokens it is the formula that takes long."""
    theirs = _formula(args)
    for ours in results:
        _assert_close(ours, theirs, args, FLOAT32)


def assert_each_channel_close(ours: dict[str, Tensor], args: tuple[Tensor, ...]) -> None:
    """The same for one channel at a time, where channels differ in scale."""
    theirs = _formula(args)
    for c in range(args[0].shape[0]):
        one = slice(c, c + 1)
        mine, formulas = ({name: x[..., one] for name, x in results.items()} for results in (ours, theirs))
        _assert_close(mine, formulas, tuple(x[..., one] for x in args), FLOAT32)


def _formula(args: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """By w: (C,), or (axes, C) for bi_wkv_nd."""
    reference = bi_wkv_reference if args[0].ndim == 1 else bi_wkv_nd_reference
    return run(reference, *(x.double() for x in args))


def _assert_close(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], args: tuple[Tensor, ...], tolerances: dict[str, float]
) -> None:
    """Where one token has nearly all of the weight, gradients of w, u and k are nearly 0, as differences of terms that
    are not: errors are relative to those terms, or to the largest value if that is larger. For w a term has the
    factor |i - j| - 1, or for bi_wkv_nd the distance along an axis.
    """
    term = float(args[4].double().abs().max() * args[3].double().abs().max())
    terms = {"y": 0.0, "gw": term * max(args[2].shape[1:-1]), "gu": term, "gk": term, "gv": 0.0}
    for name in NAMES:
        error = (ours[name].double() - theirs[name]).abs().max()
        scale = max(float(theirs[name].abs().max()), terms[name])
        assert error <= tolerances[name] * scale, (name, float(error), scale)
