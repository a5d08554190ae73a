"""The selective scan in plain torch, for any device, with its gradient worked out by hand.

The tokens are cut into chunks of about sqrt(T), which all take a step together: once to find what every chunk passes on
to the next, and once more from what it is given. The gradient p of the state is the same scan from the right,

    p_t = gy_t c_t + exp(step_{t+1} a) p_{t+1},

and with q_t = p_t exp(step_t a) h_{t-1}, the gradient of the exponent,

    gc_t = sum_D gy_t h_t,    gb_t = sum_D p_t step_t x_t,    ga = sum q_t step_t,    gd = sum gy_t x_t,
    gx_t = step_t sum_N p_t b_t + d gy_t,    gstep_t = x_t sum_N p_t b_t + sum_N q_t a.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """y (B, T, G, D) in x's dtype. Shapes and dtypes as in `biwkv.selective_scan`."""
    dtype, tokens = x.dtype, x.shape[1]
    scan, (d,) = _prepare(x, step, a, b, c, d)
    h, y = scan.entering(), torch.empty_like(scan.x)
    for j in range(scan.length):
        h = scan.advance(h, j)
        y[:, :, j] = (h @ scan.c[:, :, j, ..., None]).squeeze(-1)
    return (y + d * scan.x).flatten(1, 2)[:, :tokens].to(dtype).contiguous()


def backward(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, gy: Tensor) -> tuple[Tensor, ...]:
    """Gradients (gx, gstep, ga, gb, gc, gd) of (y * gy).sum(), each in the shape and dtype of its input."""
    inputs, tokens = (x, step, a, b, c, d), x.shape[1]
    scan, (d, gy) = _prepare(x, step, a, b, c, d, gy)
    h, states = scan.entering(), []
    for j in range(scan.length):
        states.append(h)
        h = scan.advance(h, j)
    gu, gstep, gb, gc = (torch.empty_like(z) for z in (scan.x, scan.x, scan.b, scan.c))
    ga, back = torch.zeros_like(scan.a), scan.leaving(gy)
    for j in reversed(range(scan.length)):
        factor, u, b_j = scan.factor(j), scan.u[:, :, j], scan.b[:, :, j]
        faded = factor * states.pop()
        p = back + gy[:, :, j, ..., None] * scan.c[:, :, j, ..., None, :]
        gc[:, :, j] = (gy[:, :, j, ..., None, :] @ (faded + u[..., None] * b_j[..., None, :])).squeeze(-2)
        gb[:, :, j] = (u[..., None, :] @ p).squeeze(-2)
        gu[:, :, j] = (p @ b_j[..., None]).squeeze(-1)
        q = p * faded
        gstep[:, :, j] = (q * scan.a).sum(-1)
        ga += (q * scan.step[:, :, j, ..., None]).sum((0, 1))
        back = p * factor
    gx, gstep = gu * scan.step + d * gy, gstep + gu * scan.x
    gd = (gy * scan.x).sum((0, 1, 2))
    whole = (z.flatten(1, 2)[:, :tokens] for z in (gx, gstep, gb, gc))
    gx, gstep, gb, gc = whole
    return tuple(g.to(z.dtype).contiguous() for g, z in zip((gx, gstep, ga, gb, gc, gd), inputs, strict=True))


@dataclass
class _Scan:
    """Inputs in chunks, (B, chunks, length, G, D) or (..., N), and a (G, D, N); states are (B, chunks, G, D, N)."""

    x: Tensor
    step: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    u: Tensor  # step * x
    length: int

    def factor(self, j: int) -> Tensor:
        """Of the states, at the j-th token of every chunk."""
        return torch.exp(self.step[:, :, j, ..., None] * self.a)

    def advance(self, h: Tensor, j: int) -> Tensor:
        return torch.addcmul(self.factor(j) * h, self.u[:, :, j, ..., None], self.b[:, :, j, ..., None, :])

    def entering(self) -> Tensor:
        """The state that enters every chunk from the left."""
        h = torch.zeros_like(self.u[:, :, 0, ..., None] * self.a)
        for j in range(self.length):
            h = self.advance(h, j)
        return self._passed_on(h.unbind(1), self.fade().unbind(1))

    def leaving(self, gy: Tensor) -> Tensor:
        """The gradient that comes back to the last state of every chunk from the right."""
        back = torch.zeros_like(self.u[:, :, 0, ..., None] * self.a)
        for j in reversed(range(self.length)):
            back = self.factor(j) * (back + gy[:, :, j, ..., None] * self.c[:, :, j, ..., None, :])
        return self._passed_on(back.unbind(1)[::-1], self.fade().unbind(1)[::-1]).flip(1)

    def fade(self) -> Tensor:
        """Of a state over a whole chunk."""
        return torch.exp(self.step.sum(dim=2)[..., None] * self.a)

    @staticmethod
    def _passed_on(made: tuple[Tensor, ...], fades: tuple[Tensor, ...]) -> Tensor:
        """What every chunk is given by those before it, from what each makes of nothing."""
        given = [torch.zeros_like(made[0])]
        for own, fade in zip(made[:-1], fades[:-1], strict=True):
            given.append(fade * given[-1] + own)
        return torch.stack(given, dim=1)


def _prepare(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, gy: Tensor | None = None
) -> tuple[_Scan, list[Tensor]]:
    """All in the dtype to compute in, and in chunks; d as it is, and gy."""
    tensors = (x, step, a, b, c, d, *(() if gy is None else (gy,)))
    dtype = torch.float64 if any(z.dtype == torch.float64 for z in tensors) else torch.float32
    length = math.isqrt(x.shape[1] - 1) + 1
    x, step, b, c, *more = (_chunks(z.to(dtype), length) for z in (x, step, b, c, *tensors[6:]))
    return _Scan(x, step, a.to(dtype), b, c, step * x, length), [d.to(dtype), *more]


def _chunks(x: Tensor, length: int) -> Tensor:
    """(B, T, ...) -> (B, chunks, length, ...), zeros at the end: with them a state neither fades nor grows."""
    missing = -x.shape[1] % length
    return F.pad(x, (0, 0, 0, 0, 0, missing)).unflatten(1, (-1, length))
