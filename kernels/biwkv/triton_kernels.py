"""Triton kernels of Bi-WKV: a program has one sample and BLOCK channels, a thread one channel, and LENGTH tokens at a
time are in registers. No shuffles, no barriers, no atomics.

    A, B  sums of e^k v and e^k over the tokens to the left, C, D to the right
    P, Q  sums of G = gy / denominator and H = G y to the left, R, S to the right

Tokens are cut into chunks of LENGTH. A first walk from the right leaves the right sums at the chunks' ends in `ends`;
the walk from the left then has all sums of a chunk's tokens in registers, and the backward walks to the right and back.

A program takes one of two ways. If |w| T and u are small for all its channels, sums are linear recurrences relative
to the largest key ("narrow"): two exponentials a token forward, three backward. Else every sum has a scale of its own
("wide"): (x, y, key, at) are two sums under the same weights, relative to the largest weight, which is that of the
token `at` with log weight `key` before decay. Such scales are never added up step by step, so they do not drift.
"""

# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

ABSENT = tl.constexpr(float("-inf"))  # key of a token that is not there
NOTHING = tl.constexpr(-(2.0**100))  # scale of an empty sum: finite and exact, so that no difference is NaN
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _exp(x, APPROXIMATE: tl.constexpr):
    """Relative error 2e-7 for |x| < 1, as that of x grows with x. The interpreter knows no assembly."""
    if APPROXIMATE:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * LOG2_E], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp(x)


@triton.jit
def _inverse(x, APPROXIMATE: tl.constexpr):
    """1 / x to a relative error of 1e-7."""
    if APPROXIMATE:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 1.0 / x


@triton.jit
def _rows(chunk_, left, other, C: tl.constexpr, LENGTH: tl.constexpr):
    """LENGTH rows as a tuple of registers, of which only `left` are left in the tensor."""
    rows = ()
    for j in tl.static_range(LENGTH):
        rows = rows + (tl.load(chunk_ + j * C, mask=j < left, other=other).to(tl.float32),)  # noqa: RUF005
    return rows


@triton.jit
def _store(pointer, x, mask):
    tl.store(pointer, x.to(pointer.dtype.element_ty), mask=mask)


# Narrow: linear recurrences relative to e^top.


@triton.jit
def _factors(w, u, LENGTH: tl.constexpr):
    """Of one token's decay, of the bonus, and what undoes, a chunk at a time, what rounding adds up to over many."""
    decay = tl.exp(-w)
    rounding = w.to(tl.float64) + tl.log(decay.to(tl.float64))
    return decay, tl.exp(u), (1.0 - LENGTH * rounding).to(tl.float32)


@triton.jit
def _narrow_right_ends(
    k_, v_, ends_, w, u, T, chunks, FLOATS: tl.constexpr, C: tl.constexpr, LENGTH: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """Leaves C, D and their scale at the right end of every chunk in `ends`. Returns the largest key."""
    decay, _, correction = _factors(w, u, LENGTH)
    x, y, top = tl.zeros_like(w), tl.zeros_like(w), tl.zeros_like(w) + NOTHING
    for back in range(chunks):
        n = tl.cast(chunks - 1 - back, tl.int64)
        end_ = ends_ + n * FLOATS * C
        tl.store(end_, x)
        tl.store(end_ + C, y)
        tl.store(end_ + 2 * C, top)
        left = T - (chunks - 1 - back) * LENGTH
        k = _rows(k_ + n * LENGTH * C, left, ABSENT, C, LENGTH)
        v = _rows(v_ + n * LENGTH * C, left, 0.0, C, LENGTH)
        old = top
        for j in tl.static_range(LENGTH):
            top = tl.maximum(top, k[j])
        fade = _exp(old - top, FAST) * correction
        x, y = x * fade, y * fade
        for j in tl.static_range(LENGTH - 1, -1, -1):
            e = _exp(k[j] - top, FAST)
            x, y = x * decay + e * v[j], y * decay + e
    return top


@triton.jit
def _narrow_right_sums(k, v, end_, decay, top, C: tl.constexpr, LENGTH: tl.constexpr, FAST: tl.constexpr):
    """Tuples of e^k, C and D for the tokens of one chunk."""
    fade = _exp(tl.load(end_ + 2 * C) - top, FAST)
    x, y = tl.load(end_) * fade, tl.load(end_ + C) * fade
    es, Cs, Ds = (), (), ()
    for j in tl.static_range(LENGTH - 1, -1, -1):
        e = _exp(k[j] - top, FAST)
        es, Cs, Ds = (e,) + es, (x,) + Cs, (y,) + Ds  # noqa: RUF005
        x, y = x * decay + e * v[j], y * decay + e
    return es, Cs, Ds


@triton.jit
def _narrow_forward(k_, v_, y_, ends_, w, u, T, C: tl.constexpr, LENGTH: tl.constexpr, FAST: tl.constexpr):
    chunks = tl.cdiv(T, LENGTH)
    top = _narrow_right_ends(k_, v_, ends_, w, u, T, chunks, 3, C, LENGTH, FAST)
    decay, bonus, correction = _factors(w, u, LENGTH)
    A, B = tl.zeros_like(w), tl.zeros_like(w)
    for chunk in range(chunks):
        n = tl.cast(chunk, tl.int64)
        left = T - chunk * LENGTH
        k = _rows(k_ + n * LENGTH * C, left, ABSENT, C, LENGTH)
        v = _rows(v_ + n * LENGTH * C, left, 0.0, C, LENGTH)
        es, Cs, Ds = _narrow_right_sums(k, v, ends_ + n * 3 * C, decay, top, C, LENGTH, FAST)
        A, B = A * correction, B * correction
        for j in tl.static_range(LENGTH):
            own = es[j] * bonus
            y = (A + Cs[j] + own * v[j]) * _inverse(B + Ds[j] + own, FAST)
            _store(y_ + n * LENGTH * C + j * C, y, j < left)
            A, B = A * decay + es[j] * v[j], B * decay + es[j]


@triton.jit
def _narrow_backward(
    k_, v_, gy_, gw_, gu_, gk_, gv_, ends_, w, u, T,
    C: tl.constexpr, LENGTH: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    chunks = tl.cdiv(T, LENGTH)
    top = _narrow_right_ends(k_, v_, ends_, w, u, T, chunks, 7, C, LENGTH, FAST)
    decay, bonus, correction = _factors(w, u, LENGTH)

    # To the right. E and F are the sums of A and B as P and Q are of G and H: with them, the pairs with j > i come
    # from their right tokens, and the walk back needs no A and B.
    zero = tl.zeros_like(w)
    A, B, E, F, P, Q, gu, pairs = zero, zero, zero, zero, zero, zero, zero, zero
    for chunk in range(chunks):
        n = tl.cast(chunk, tl.int64)
        left = T - chunk * LENGTH
        k = _rows(k_ + n * LENGTH * C, left, ABSENT, C, LENGTH)
        v = _rows(v_ + n * LENGTH * C, left, 0.0, C, LENGTH)
        gy = _rows(gy_ + n * LENGTH * C, left, 0.0, C, LENGTH)
        end_ = ends_ + n * 7 * C
        A, B, E, F, P, Q = (
            A * correction,
            B * correction,
            E * correction,
            F * correction,
            P * correction,
            Q * correction,
        )
        tl.store(end_ + 3 * C, A)
        tl.store(end_ + 4 * C, B)
        tl.store(end_ + 5 * C, P)
        tl.store(end_ + 6 * C, Q)
        es, Cs, Ds = _narrow_right_sums(k, v, end_, decay, top, C, LENGTH, FAST)
        for j in tl.static_range(LENGTH):
            e = es[j]
            own = e * bonus
            inverse = _inverse(B + Ds[j] + own, FAST)
            y = (A + Cs[j] + own * v[j]) * inverse
            G = gy[j] * inverse
            H = G * y
            gu += own * (G * v[j] - H)
            pairs += P * Cs[j] - Q * Ds[j] + G * E - H * F
            E, F = E * decay + A, F * decay + B
            A, B = A * decay + e * v[j], B * decay + e
            P, Q = P * decay + G, Q * decay + H
    tl.store(gw_, -decay * pairs)
    tl.store(gu_, gu)

    R, S = zero, zero
    for back in range(chunks):
        n = tl.cast(chunks - 1 - back, tl.int64)
        left = T - (chunks - 1 - back) * LENGTH
        k = _rows(k_ + n * LENGTH * C, left, ABSENT, C, LENGTH)
        v = _rows(v_ + n * LENGTH * C, left, 0.0, C, LENGTH)
        gy = _rows(gy_ + n * LENGTH * C, left, 0.0, C, LENGTH)
        end_ = ends_ + n * 7 * C
        es, Cs, Ds = _narrow_right_sums(k, v, end_, decay, top, C, LENGTH, FAST)
        A, B = tl.load(end_ + 3 * C), tl.load(end_ + 4 * C)
        P, Q = tl.load(end_ + 5 * C), tl.load(end_ + 6 * C)
        Gs, Hs, Ps, Qs = (), (), (), ()
        for j in tl.static_range(LENGTH):
            e = es[j]
            own = e * bonus
            inverse = _inverse(B + Ds[j] + own, FAST)
            y = (A + Cs[j] + own * v[j]) * inverse
            G = gy[j] * inverse
            H = G * y
            Gs, Hs, Ps, Qs = Gs + (G,), Hs + (H,), Ps + (P + bonus * G,), Qs + (Q + bonus * H,)  # noqa: RUF005
            A, B = A * decay + e * v[j], B * decay + e
            P, Q = P * decay + G, Q * decay + H
        R, S = R * correction, S * correction
        for j in tl.static_range(LENGTH - 1, -1, -1):
            gv = es[j] * (Ps[j] + R)
            gk = v[j] * gv - es[j] * (Qs[j] + S)
            row = n * LENGTH * C + j * C
            _store(gv_ + row, gv, j < left)
            _store(gk_ + row, gk, j < left)
            R, S = R * decay + Gs[j], S * decay + Hs[j]


# Wide: every sum has a scale of its own, in float64.


@triton.jit
def _add(x, y, top, w, s, x1, y1, FAST: tl.constexpr):
    """The sums for the next token: all weights decay, then x1 and y1 enter with log weight s."""
    faded = top - w
    top = tl.maximum(faded, s)
    keep, enter = _exp((faded - top).to(tl.float32), FAST), _exp((s - top).to(tl.float32), FAST)
    return x * keep + x1 * enter, y * keep + y1 * enter, top


@triton.jit
def _put_end(end_, x, y, top, C: tl.constexpr, FAST: tl.constexpr):
    scale = top.to(tl.float32)
    rest = _exp((top - scale).to(tl.float32), FAST)
    tl.store(end_, x * rest)
    tl.store(end_ + C, y * rest)
    tl.store(end_ + 2 * C, scale)


@triton.jit
def _get_end(end_, C: tl.constexpr):
    x, y = tl.load(end_), tl.load(end_ + C)
    return x, y, tl.load(end_ + 2 * C).to(tl.float64)


@triton.jit
def _nothing(w):
    return tl.zeros_like(w), tl.zeros_like(w), tl.zeros_like(w).to(tl.float64) + NOTHING


@triton.jit
def _combine(A, B, left, C, D, right, own, v, FAST: tl.constexpr):
    """y, 1 / denominator and the scale of both."""
    scale = tl.maximum(tl.maximum(left, right), own)
    a, c = _exp((left - scale).to(tl.float32), FAST), _exp((right - scale).to(tl.float32), FAST)
    o = _exp((own - scale).to(tl.float32), FAST)
    inverse = _inverse(B * a + D * c + o, FAST)
    return (A * a + C * c + v * o) * inverse, inverse, scale


@triton.jit
def _wide_right_ends(
    k_, v_, ends_, w, T, chunks, FLOATS: tl.constexpr, C: tl.constexpr, LENGTH: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    x, y, top = _nothing(w)
    for back in range(chunks):
        n = tl.cast(chunks - 1 - back, tl.int64)
        left = T - (chunks - 1 - back) * LENGTH
        _put_end(ends_ + n * FLOATS * C, x, y, top, C, FAST)
        k = _rows(k_ + n * LENGTH * C, left, ABSENT, C, LENGTH)
        v = _rows(v_ + n * LENGTH * C, left, 0.0, C, LENGTH)
        for j in tl.static_range(LENGTH - 1, -1, -1):
            x, y, top = _add(x, y, top, w, k[j].to(tl.float64), v[j], 1.0, FAST)


@triton.jit
def _wide_right_sums(k, v, end_, w, C: tl.constexpr, LENGTH: tl.constexpr, FAST: tl.constexpr):
    """Tuples of C, D and their scales for the tokens of one chunk."""
    x, y, top = _get_end(end_, C)
    Cs, Ds, rights = (), (), ()
    for j in tl.static_range(LENGTH - 1, -1, -1):
        Cs, Ds, rights = (x,) + Cs, (y,) + Ds, (top,) + rights  # noqa: RUF005
        x, y, top = _add(x, y, top, w, k[j].to(tl.float64), v[j], 1.0, FAST)
    return Cs, Ds, rights


@triton.jit
def _wide_forward(k_, v_, y_, ends_, w, u, T, C: tl.constexpr, LENGTH: tl.constexpr, FAST: tl.constexpr):
    chunks = tl.cdiv(T, LENGTH)
    w, u = w.to(tl.float64), u.to(tl.float64)
    _wide_right_ends(k_, v_, ends_, w, T, chunks, 3, C, LENGTH, FAST)
    A, B, top = _nothing(w.to(tl.float32))
    for chunk in range(chunks):
        n = tl.cast(chunk, tl.int64)
        left = T - chunk * LENGTH
        k = _rows(k_ + n * LENGTH * C, left, ABSENT, C, LENGTH)
        v = _rows(v_ + n * LENGTH * C, left, 0.0, C, LENGTH)
        Cs, Ds, rights = _wide_right_sums(k, v, ends_ + n * 3 * C, w, C, LENGTH, FAST)
        for j in tl.static_range(LENGTH):
            y = _combine(A, B, top, Cs[j], Ds[j], rights[j], u + k[j], v[j], FAST)
            _store(y_ + n * LENGTH * C + j * C, y[0], j < left)
            A, B, top = _add(A, B, top, w, k[j].to(tl.float64), v[j], 1.0, FAST)


@triton.jit
def _wide_backward(
    k_, v_, gy_, gw_, gu_, gk_, gv_, ends_, w, u, T,
    C: tl.constexpr, LENGTH: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    chunks = tl.cdiv(T, LENGTH)
    zero = tl.zeros_like(w)
    w, u = w.to(tl.float64), u.to(tl.float64)
    _wide_right_ends(k_, v_, ends_, w, T, chunks, 9, C, LENGTH, FAST)

    A, B, top = _nothing(zero)
    E, F, between = _nothing(zero)
    P, Q, grads = _nothing(zero)
    gu, gw = zero, zero
    for chunk in range(chunks):
        n = tl.cast(chunk, tl.int64)
        left = T - chunk * LENGTH
        end_ = ends_ + n * 9 * C
        _put_end(end_ + 3 * C, A, B, top, C, FAST)
        _put_end(end_ + 6 * C, P, Q, grads, C, FAST)
        k = _rows(k_ + n * LENGTH * C, left, ABSENT, C, LENGTH)
        v = _rows(v_ + n * LENGTH * C, left, 0.0, C, LENGTH)
        gy = _rows(gy_ + n * LENGTH * C, left, 0.0, C, LENGTH)
        Cs, Ds, rights = _wide_right_sums(k, v, end_, w, C, LENGTH, FAST)
        for j in tl.static_range(LENGTH):
            y, inverse, scale = _combine(A, B, top, Cs[j], Ds[j], rights[j], u + k[j], v[j], FAST)
            G = gy[j] * inverse
            H = G * y
            gu += _exp((u + k[j] - scale).to(tl.float32), FAST) * (G * v[j] - H)
            gw -= _exp((grads + rights[j] - w).to(tl.float32), FAST) * (P * Cs[j] - Q * Ds[j])
            gw -= _exp((between - scale - w).to(tl.float32), FAST) * (G * E - H * F)
            E, F, between = _add(E, F, between, w, top, A, B, FAST)
            A, B, top = _add(A, B, top, w, k[j].to(tl.float64), v[j], 1.0, FAST)
            P, Q, grads = _add(P, Q, grads, w, -scale, G, H, FAST)
    tl.store(gw_, gw)
    tl.store(gu_, gu)

    R, S, later = _nothing(zero)
    for back in range(chunks):
        n = tl.cast(chunks - 1 - back, tl.int64)
        left = T - (chunks - 1 - back) * LENGTH
        end_ = ends_ + n * 9 * C
        k = _rows(k_ + n * LENGTH * C, left, ABSENT, C, LENGTH)
        v = _rows(v_ + n * LENGTH * C, left, 0.0, C, LENGTH)
        gy = _rows(gy_ + n * LENGTH * C, left, 0.0, C, LENGTH)
        Cs, Ds, rights = _wide_right_sums(k, v, end_, w, C, LENGTH, FAST)
        A, B, top = _get_end(end_ + 3 * C, C)
        P, Q, grads = _get_end(end_ + 6 * C, C)
        Gs, Hs, logs, ps, qs = (), (), (), (), ()
        for j in tl.static_range(LENGTH):
            y, inverse, scale = _combine(A, B, top, Cs[j], Ds[j], rights[j], u + k[j], v[j], FAST)
            G = gy[j] * inverse
            H = G * y
            p, own = _exp((grads + k[j]).to(tl.float32), FAST), _exp((u + k[j] - scale).to(tl.float32), FAST)
            s = tl.where(j < left, -scale, NOTHING)
            Gs, Hs, logs = Gs + (G,), Hs + (H,), logs + (s,)  # noqa: RUF005
            ps, qs = ps + (p * P + own * G,), qs + (p * Q + own * H,)  # noqa: RUF005
            A, B, top = _add(A, B, top, w, k[j].to(tl.float64), v[j], 1.0, FAST)
            P, Q, grads = _add(P, Q, grads, w, -scale, G, H, FAST)
        for j in tl.static_range(LENGTH - 1, -1, -1):
            r = _exp((later + k[j]).to(tl.float32), FAST)
            gv = ps[j] + r * R
            gk = v[j] * gv - (qs[j] + r * S)
            row = n * LENGTH * C + j * C
            _store(gv_ + row, gv, j < left)
            _store(gk_ + row, gk, j < left)
            R, S, later = _add(R, S, later, w, logs[j], Gs[j], Hs[j], FAST)


@triton.jit
def _place(BLOCK: tl.constexpr, C: tl.constexpr):
    """This program's sample and channels. Threads that have no channel do the last one's work over again."""
    BLOCKS: tl.constexpr = (C + BLOCK - 1) // BLOCK
    c = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    return (tl.program_id(0) // BLOCKS).to(tl.int64), tl.minimum(c, C - 1)


@triton.jit
def _is_narrow(w, u, tokens):
    """Whether one scale is enough for so many tokens; the same answer for all channels of a program."""
    fits = (tl.abs(w) * tokens <= 40.0) & (tl.abs(u) <= 20.0)
    return tl.min(fits.to(tl.int32)) == 1


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    w_,
    u_,
    k_,
    v_,
    y_,
    ends_,
    T,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    LENGTH: tl.constexpr,
    WIDE: tl.constexpr,
    NARROW: tl.constexpr,
    FAST: tl.constexpr,
):
    sample, c = _place(BLOCK, C)
    w = tl.load(w_ + c).to(tl.float32)
    u = tl.load(u_ + c).to(tl.float32)
    first = sample * T * C + c
    k_, v_, y_, ends_ = k_ + first, v_ + first, y_ + first, ends_ + sample * tl.cdiv(T, WIDE) * 3 * C + c
    if _is_narrow(w, u, T + LENGTH):  # the last chunk may go on beyond T
        if NARROW:
            _narrow_forward(k_, v_, y_, ends_, w, u, T, C, LENGTH, FAST)
    else:
        _wide_forward(k_, v_, y_, ends_, w, u, T, C, WIDE, FAST)


@triton.jit(do_not_specialize=["T"])
def backward_kernel(
    w_,
    u_,
    k_,
    v_,
    gy_,
    gw_,
    gu_,
    gk_,
    gv_,
    ends_,
    T,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    LENGTH: tl.constexpr,
    WIDE: tl.constexpr,
    NARROW: tl.constexpr,
    FAST: tl.constexpr,
):
    sample, c = _place(BLOCK, C)
    w = tl.load(w_ + c).to(tl.float32)
    u = tl.load(u_ + c).to(tl.float32)
    first = sample * T * C + c
    k_, v_, gy_, gk_, gv_ = k_ + first, v_ + first, gy_ + first, gk_ + first, gv_ + first
    gw_, gu_, ends_ = gw_ + sample * C + c, gu_ + sample * C + c, ends_ + sample * tl.cdiv(T, WIDE) * 9 * C + c
    if _is_narrow(w, u, T + LENGTH):  # the last chunk may go on beyond T
        if NARROW:
            _narrow_backward(k_, v_, gy_, gw_, gu_, gk_, gv_, ends_, w, u, T, C, LENGTH, FAST)
    else:
        _wide_backward(k_, v_, gy_, gw_, gu_, gk_, gv_, ends_, w, u, T, C, WIDE, FAST)
