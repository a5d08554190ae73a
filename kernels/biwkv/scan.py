"""Bi-WKV as two linear-time scans in plain torch, for any device, with its gradient worked out by hand.

With x a value and s its log weight, both directions of Bi-WKV are decayed sums over the other tokens,

    left_t = sum_{i < t} e^{s_i - (t-i-1) w} x_i,      right_t = sum_{i > t} e^{s_i - (i-t-1) w} x_i.

The tokens are cut into chunks of about sqrt(T). Inside a chunk the sums are linear recurrences relative to one
scale per chunk, and all chunks of the batch take a step together; between chunks the sums are carried on in log
scale. Where keys, decays or bonuses spread too far for one scale per chunk, a chunk is one token, which is slow
and exact for any finite input. Nothing is ever subtracted inside a sum.

The gradient is made of the same sums. With D_t the denominator, p = gy, q = gy * y and log weights -log D_t,

    gv_i = e^{k_i} (left + right + e^{u - log D_i} gy_i),      gk_i = v_i gv_i - e^{k_i} (the same with q)
    gu   = sum_t e^{u + k_t - log D_t} gy_t (v_t - y_t)
    gw   = -e^{-w} sum_t (P C - Q D + R A - S B)

where A, B (left), C, D (right) are the sums of v and 1 under k, and P, Q (left), R, S (right) those of p and q:
token t lies strictly between i and j in |i - j| - 1 pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Exponents inside a chunk stay within +-SPREAD of its scale: e^30 squared is far from the limits of float32.
SPREAD = 30.0


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """y (B, T, C) in k's dtype. Shapes and dtypes as in `biwkv.bi_wkv`."""
    dtype, tokens = k.dtype, k.shape[1]
    (w, u, k, v), length = _plan(w, u, k, v)
    sums = _prepare(w, u, k, (v, None), length)
    total, y = torch.empty_like(sums.values), torch.empty_like(sums.values[0])
    for j, left in sums.from_left():
        total[:, :, :, j] = torch.addcmul(left, sums.values[:, :, :, j], sums.own)
    for j, right in sums.from_right():
        numerator, denominator = total[:, :, :, j] + right
        torch.div(numerator, denominator, out=y[:, :, j])
    return _join(y, tokens).to(dtype).contiguous()


def backward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients (gw, gu, gk, gv) of (y * gy).sum(), each in the shape and dtype of its input."""
    inputs, tokens = (w, u, k, v), k.shape[1]
    (w, u, k, v, gy), length = _plan(w, u, k, v, gy)
    y, s, forward_sides = _forward_sides(w, u, k, v, length)
    if length > 1 and not _is_narrow(w, u, s, length):
        w, u, k, v, gy = (x.double() for x in (w, u, k, v, gy))
        length = 1
        y, s, forward_sides = _forward_sides(w, u, k, v, length)
    gu = (s + k + u).exp_().mul_(gy).mul_(v - y).sum(dim=1).sum(dim=0)
    sums = _prepare(w, u, s, (gy, gy * y), length)
    gw, gk, gv = _backward_sums(w, _split(k, length), _split(v, length), sums, forward_sides)
    gk, gv = _join(gk, tokens), _join(gv, tokens)
    gw, gu, gk, gv = (g.to(x.dtype).contiguous() for g, x in zip((gw, gu, gk, gv), inputs, strict=True))
    return gw, gu, gk, gv


@dataclass
class _Sides:
    """Left and right sums of every token, (2, B, N, L, C), times e^scale, (B, N, C)."""

    left: Tensor
    right: Tensor
    scale: Tensor


def _forward_sides(w: Tensor, u: Tensor, k: Tensor, v: Tensor, length: int) -> tuple[Tensor, Tensor, _Sides]:
    """y and -log D, both (B, T, C), and the sums that they come from."""
    sums = _prepare(w, u, k, (v, None), length)
    sides = _Sides(torch.empty_like(sums.values), torch.empty_like(sums.values), sums.scale)
    y, s = torch.empty_like(sums.values[0]), torch.empty_like(sums.values[0])
    for j, left in sums.from_left():
        sides.left[:, :, :, j] = left
    for j, right in sums.from_right():
        sides.right[:, :, :, j] = right
        numerator, denominator = (sides.left[:, :, :, j] + right).addcmul_(sums.values[:, :, :, j], sums.own)
        torch.div(numerator, denominator, out=y[:, :, j])
        torch.sub(-sums.scale, denominator.log_(), out=s[:, :, j])
    return _join(y, k.shape[1]), _join(s, k.shape[1]), sides


def _backward_sums(w: Tensor, k: Tensor, v: Tensor, sums: _Sums, fwd: _Sides) -> tuple[Tensor, Tensor, Tensor]:
    """gw (C,), and gk and gv (B, N, L, C), from k, v (B, N, L, C) and the sums of gy and gy * y."""
    total, gk, gv = torch.empty_like(sums.values), torch.empty_like(k), torch.empty_like(v)
    # The common factor of P C and its like is split over both, so that no product of two sums overflows.
    half = torch.exp((fwd.scale + sums.scale - w) / 2)
    pairs = torch.zeros_like(fwd.left[:, :, :, 0])
    for j, left in sums.from_left():
        total[:, :, :, j] = torch.addcmul(left, sums.values[:, :, :, j], sums.own)
        pairs.addcmul_(left * half, fwd.right[:, :, :, j] * half)
    for j, right in sums.from_right():
        pairs.addcmul_(right * half, fwd.left[:, :, :, j] * half)
        p, q = (total[:, :, :, j] + right) * torch.exp(k[:, :, j] + sums.scale)
        gv[:, :, j] = p
        gk[:, :, j] = p.mul_(v[:, :, j]).sub_(q)
    return (pairs[1] - pairs[0]).sum(dim=1).sum(dim=0), gk, gv


def _plan(w: Tensor, u: Tensor, k: Tensor, *others: Tensor) -> tuple[tuple[Tensor, ...], int]:
    """All tensors in the dtype to compute in, k centred around 0 (y does not change), and the length of a chunk."""
    tensors = (w, u, k, *others)
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    w, u, k, *others = (x.to(dtype) for x in tensors)  # type: ignore[assignment]
    k = k - (k.amax(dim=1, keepdim=True) + k.amin(dim=1, keepdim=True)) / 2
    length = math.isqrt(k.shape[1] - 1) + 1
    if _is_narrow(w, u, k, length):
        return (w, u, k, *others), length
    return tuple(x.double() for x in (w, u, k, *others)), 1


def _is_narrow(w: Tensor, u: Tensor, s: Tensor, length: int) -> bool:
    """Whether one scale per chunk is enough (or of no use: NaN). Reads one number back from the device."""
    spread = (s.amax(dim=1) - s.amin(dim=1)).amax() / 2 + length * w.abs().amax()
    return not float(torch.maximum(spread, u.abs().amax())) > SPREAD


def _split(x: Tensor, length: int) -> Tensor:
    """(B, T, C) -> (B, N, L, C); the last token is repeated up to the end of the last chunk."""
    batch, tokens, channels = x.shape
    missing = -tokens % length
    if missing:
        x = torch.cat([x, x[:, -1:].expand(batch, missing, channels)], dim=1)
    return x.reshape(batch, -1, length, channels)


def _join(x: Tensor, tokens: int) -> Tensor:
    """(B, N, L, C) -> (B, T, C)."""
    return x.flatten(1, 2)[:, :tokens]


@dataclass
class _Sums:
    """All that is needed to walk through the chunks from either side. States are (2, B, N, C), times e^scale."""

    decay: Tensor  # (C,), from one token to the next
    values: Tensor  # (2, B, N, L, C)
    inside: Tensor  # (B, N, C), factor of a value for the tokens after or before it
    own: Tensor  # (B, N, C), factor of a value for its own token
    left: Tensor  # the state that enters each chunk from the left
    right: Tensor  # and from the right
    scale: Tensor  # (B, N, C)

    def from_left(self) -> Iterator[tuple[int, Tensor]]:
        """(j, sums over the tokens before the j-th of each chunk), j rising."""
        return self._walk(range(self.values.shape[3]), self.left)

    def from_right(self) -> Iterator[tuple[int, Tensor]]:
        """(j, sums over the tokens after the j-th of each chunk), j falling."""
        return self._walk(range(self.values.shape[3])[::-1], self.right)

    def _walk(self, order: range, state: Tensor) -> Iterator[tuple[int, Tensor]]:
        for j in order:
            yield j, state
            if j != order[-1]:  # beyond the last token the state may overflow, and nobody needs it
                state = (state * self.decay).addcmul_(self.values[:, :, :, j], self.inside)


def _prepare(w: Tensor, u: Tensor, s: Tensor, x: tuple[Tensor, Tensor | None], length: int) -> _Sums:
    """Sums of x[0] and x[1] (None: ones) under the log weights s, all (B, T, C)."""
    middle, values = _scaled(s, x, length)
    decay = torch.exp(-w)
    carried, carried_scale = _carry(w, middle, length, *_chunk_totals(decay, values))
    # For chunks of one token the bonus is part of the scale: then no bonus, however far from 0, can underflow.
    scale = torch.maximum(middle + u if length == 1 else middle, carried_scale.amax(dim=0))
    enters = torch.exp(carried_scale - scale).to(s.dtype)
    left, right = carried * enters[:, None]
    inside, own = torch.exp(middle - scale).to(s.dtype), torch.exp(middle + u - scale).to(s.dtype)
    return _Sums(decay, values, inside, own, left, right, scale.to(s.dtype))


def _scaled(s: Tensor, x: tuple[Tensor, Tensor | None], length: int) -> tuple[Tensor, Tensor]:
    """The middle of every chunk's exponents (B, N, C), and the values (2, B, N, L, C) relative to it; 0 as padding.

    Scales are added up over many chunks, so they are float64 until they become factors.
    """
    tokens = s.shape[1]
    s = _split(s, length)
    middle = (s.amax(dim=2) + s.amin(dim=2)) / 2
    values = s.new_empty(2, *s.shape)
    weights = torch.sub(s, middle.unsqueeze(2), out=values[1]).exp_()
    weights.flatten(1, 2)[:, tokens:] = 0
    values[0] = weights * _split(x[0], length)
    if x[1] is not None:
        weights *= _split(x[1], length)
    return middle.double(), values


def _chunk_totals(decay: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What a chunk passes on to its right and to its left neighbour, each (2, B, N, C)."""
    length = values.shape[3]
    to_right, to_left = values[:, :, :, 0], values[:, :, :, -1]
    for j in range(1, length):
        to_right = torch.addcmul(values[:, :, :, j], to_right, decay)
        to_left = torch.addcmul(values[:, :, :, length - 1 - j], to_left, decay)
    return to_right, to_left


def _carry(w: Tensor, middle: Tensor, length: int, to_right: Tensor, to_left: Tensor) -> tuple[Tensor, Tensor]:
    """Sums that enter every chunk from the left and from the right.

    Returns values (2 sides, 2, B, N, C) and their log scales (2 sides, B, N, C).
    """
    totals = torch.stack([to_right, to_left.flip(2)])
    middles = torch.stack([middle, middle.flip(1)])
    values, scales = torch.empty_like(totals), torch.empty_like(middles)
    step = w.double() * length
    value, scale = torch.zeros_like(totals[:, :, :, 0]), torch.full_like(middles[:, :, 0], -torch.inf)
    for n in range(middle.shape[1]):
        values[:, :, :, n], scales[:, :, n] = value, scale
        faded = scale - step
        scale = torch.maximum(faded, middles[:, :, n])
        kept, added = torch.exp(torch.stack([faded, middles[:, :, n]]) - scale).to(value.dtype)
        value = (value * kept[:, None]).addcmul_(totals[:, :, :, n], added[:, None])
    values[1], scales[1] = values[1].flip(2), scales[1].flip(1)
    return values, scales
