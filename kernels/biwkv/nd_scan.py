"""Bi-WKV over several axes in plain torch, for any device: scans along one axis at a time, with the gradient by hand.

The weight of one token for another is a product over the axes. So the sum over all tokens is S_A ... S_2 S_1, where
S_a sums along the lines of axis a: S_a = 1 + L_a + R_a, the token itself, those before it and those after it. In the
whole the token itself has the weight e^u and not 1, but no sum is ever subtracted from another:

    K = e^u + (L_1 + R_1) + (L_2 + R_2) S_1 + (L_3 + R_3) S_2 S_1,      y = K (e^k v) / K e^k

K is its own transpose, so the gradient is made of the same sums. With D the denominator, G = gy / D and H = G y,

    gv = e^k K G,      gk = v gv - e^k K H,      gu = sum e^{u + k} (G v - H)
    gw_a = -sum (G' + L_a G') (R_a X) + (G' + R_a G') (L_a X) - (the same of H and e^k)

where X is e^k v summed along the axes before a, and G' is G summed along those after a: of the pairs of tokens at
a distance d, each is counted d times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, pairwise

import torch
from torch import Tensor

# Up to here sums relative to the largest key of a sample and channel are safe in float32. Beyond, every sum has a
# scale of its own, in float64: several times slower, and exact for any finite input.
LARGEST_DECAY = 40.0  # |w| times size, over all axes together
LARGEST_BONUS = 20.0
NOTHING = -1e300  # the log scale of a sum over no tokens


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """y (B, *spatial, C) in k's dtype. Shapes and dtypes as in `biwkv.bi_wkv_nd`."""
    dtype = k.dtype
    (w, u, k, v), tokens = _prepare(w, u, k, v)
    total = _total(u, tokens, _lines(w, tokens, range(len(w))))
    return (total.x[0] / total.x[1]).to(dtype).contiguous()


def backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients (gw, gu, gk, gv) of (y * gy).sum(), each in the shape and dtype of its input."""
    inputs = (w, u, k, v)
    (w, u, k, v, gy), tokens = _prepare(w, u, k, v, gy)
    lines = _lines(w, tokens, range(len(w)))
    total = _total(u, tokens, lines)
    G = gy / total.x[1]
    grads = _Sums(torch.stack([G, G * (total.x[0] / total.x[1])]), None if total.scale is None else -total.scale)
    grad_lines = _lines(w, grads, range(len(w))[::-1])[::-1]
    gw = torch.stack([-_distances(line, grad_line) for line, grad_line in zip(lines, grad_lines, strict=True)])
    gu = _dot(tokens.weighted(u), grads)
    gv, rest = _total(u, grads, grad_lines).weighted(k).values()
    gk = v * gv - rest
    gw, gu, gk, gv = (g.to(x.dtype).contiguous() for g, x in zip((gw, gu, gk, gv), inputs, strict=True))
    return gw, gu, gk, gv


@dataclass
class _Sums:
    """Two sums of every token, x (2, B, *spatial, C), times e^scale (B, *spatial, C); or, without a scale, just x."""

    x: Tensor
    scale: Tensor | None

    def __add__(self, other: _Sums) -> _Sums:
        if self.scale is None or other.scale is None:
            return _Sums(self.x + other.x, None)
        scale = torch.maximum(self.scale, other.scale)
        return _Sums(self.x * (self.scale - scale).exp() + other.x * (other.scale - scale).exp(), scale)

    def weighted(self, log_weight: Tensor) -> _Sums:
        if self.scale is None:
            return _Sums(self.x * log_weight.exp(), None)
        return _Sums(self.x, self.scale + log_weight)

    def values(self) -> Tensor:
        return self.x if self.scale is None else self.x * self.scale.exp()

    def at(self, dim: int, position: int) -> _Sums:
        scale = None if self.scale is None else self.scale.select(dim, position)
        return _Sums(self.x.select(dim, position), scale)


@dataclass
class _Lines:
    """The sums along the lines of one axis: over the tokens before each one, and over those after it."""

    tokens: _Sums
    before: _Sums
    after: _Sums


def _prepare(w: Tensor, u: Tensor, k: Tensor, *others: Tensor) -> tuple[tuple[Tensor, ...], _Sums]:
    """All tensors in the dtype to compute in, k relative to its largest (y does not change), and e^k v and e^k."""
    tensors = (w, u, k, *others)
    narrow = is_narrow(w, u, k)
    double = not narrow or any(x.dtype == torch.float64 for x in tensors)
    w, u, k, *others = (x.to(torch.float64 if double else torch.float32) for x in tensors)  # type: ignore[assignment]
    k = k - k.amax(dim=tuple(range(1, k.ndim - 1)), keepdim=True)
    v = others[0]
    x = torch.stack([v, torch.ones_like(v)])
    return (w, u, k, *others), _Sums(x, None if narrow else torch.zeros_like(k)).weighted(k)


def is_narrow(w: Tensor, u: Tensor, k: Tensor) -> bool:
    """Whether one scale is enough (or of no use: NaN). Reads one number back from the device."""
    sizes = torch.tensor(k.shape[1:-1], device=w.device)
    decay, bonus = (w.double().abs() * sizes[:, None]).sum(dim=0).amax(), u.double().abs().amax()
    return not float(torch.maximum(decay / LARGEST_DECAY, bonus / LARGEST_BONUS)) > 1


def _lines(w: Tensor, tokens: _Sums, axes: range) -> list[_Lines]:
    """The sums along one axis after the other: along the second of the sums over whole lines of the first."""
    lines = []
    for axis in axes:
        dim = axis - len(w) - 1
        order = range(tokens.x.shape[dim])
        lines.append(_Lines(tokens, _walk(w[axis], tokens, dim, order), _walk(w[axis], tokens, dim, order[::-1])))
        if axis != axes[-1]:
            tokens = tokens + lines[-1].before + lines[-1].after
    return lines


def _walk(w: Tensor, tokens: _Sums, dim: int, order: range) -> _Sums:
    """For every token the sum over those that come earlier in `order` on its line, faded by w (C,) a step."""
    if tokens.scale is None:
        x = torch.empty_like(tokens.x)
        x.select(dim, order[0]).zero_()
        for (last, now), fade in zip(pairwise(order), _fades(w), strict=False):
            torch.add(x.select(dim, last), tokens.x.select(dim, last), out=x.select(dim, now)).mul_(fade)
        return _Sums(x, None)
    first = tokens.at(dim, order[0])
    sums = [_Sums(torch.zeros_like(first.x), torch.full_like(tokens.scale.select(dim, 0), NOTHING))]
    for last in order[:-1]:
        sums.append((sums[-1] + tokens.at(dim, last)).weighted(-w))
    sums = sums if order.step > 0 else sums[::-1]
    scales = [x.scale for x in sums if x.scale is not None]
    return _Sums(torch.stack([x.x for x in sums], dim), torch.stack(scales, dim))


def _fades(w: Tensor) -> Iterator[Tensor]:
    """e^-w for every step. Every 16th undoes what the rounding of the others adds up to."""
    fade = torch.exp(-w)
    exact = torch.exp(-16 * w.double())
    return cycle([fade] * 15 + [(exact / fade.double() ** 15).to(w.dtype)])


def _total(u: Tensor, tokens: _Sums, lines: list[_Lines]) -> _Sums:
    """The sum over all tokens, in which a token itself has the weight e^u."""
    total = tokens.weighted(u)
    for line in lines:
        total = total + line.before + line.after
    return total


def _distances(line: _Lines, grad_line: _Lines) -> Tensor:
    """(C,): the sum over the pairs of tokens, each times the distance of the two along the axis."""
    return _dot(grad_line.tokens + grad_line.before, line.after) + _dot(grad_line.tokens + grad_line.after, line.before)


def _dot(a: _Sums, b: _Sums) -> Tensor:
    """(C,): over all tokens, the product of their first sums without that of their second."""
    products = a.x * b.x
    if a.scale is not None and b.scale is not None:
        products *= (a.scale + b.scale).exp()
    return (products[0] - products[1]).flatten(0, -2).sum(dim=0)
