"""Our operators in standard ONNX ones, for `torch.onnx.export(..., custom_translation_table=TRANSLATIONS)`.

Bi-WKV: with positions p centred around the middle of the T tokens, both directions are plain running sums,

    left_t  = e^{-p_t w} sum_{i <= t} e^{k_i + p_i w} v_i,    right_t = e^{p_t w} sum_{i > t} e^{k_i - p_i w} v_i,

which ONNX has as CumSum in both directions: linear in T, no loop, any batch and size at run time. Keys are taken
relative to their largest. Exponents reach |w| T / 2, so float32 holds decays (w T) up to about 80 of either sign.

The selective scan is ONNX's Scan, a token at a time.
"""

from typing import TYPE_CHECKING, Any

import onnxscript
import torch

import biwkv  # noqa: F401  registers torch.ops.biwkv

op: Any = onnxscript.opset18
if TYPE_CHECKING:
    Float = Any
else:
    Float = onnxscript.FLOAT[...]  # of any shape


def bi_wkv(w: Any, u: Any, k: Any, v: Any, backend: str) -> Any:
    """y (B, T, C) of w, u (C,) and k, v (B, T, C), all float32.

    Here a neighbour's weight is e^{-w} and not 1; as all weights may be scaled alike, that takes w off the bonus.
    """
    return bi_wkv_nd(op.Unsqueeze(w, ints(0)), op.Sub(u, w), k, v, backend)


def bi_wkv_nd(w: Any, u: Any, k: Any, v: Any, backend: str) -> Any:
    """y (B, *spatial, C) of w (A, C), u (C,) and k, v (B, *spatial, C), all float32."""
    rank = len(k.shape)
    axes = range(1, rank - 1)
    weight = op.Exp(op.Sub(k, op.ReduceMax(k, ints(*axes))))
    numerator, denominator = op.Mul(weight, v), weight
    for axis in axes:
        decay = op.Gather(w, op.Constant(value_int=axis - 1))
        numerator, denominator = (decayed_sum(x, decay, axis, rank) for x in (numerator, denominator))
    # The sums hold each token once with weight 1, and want it with e^u.
    own = op.Mul(op.Sub(op.Exp(u), op.Constant(value_float=1.0)), weight)
    return op.Div(op.Add(numerator, op.Mul(own, v)), op.Add(denominator, own))


def decayed_sum(x: Any, w: Any, axis: int, rank: int) -> Any:
    """sum_j e^{-|i - j| w} x_j along an axis of x (B, *spatial, C), the token itself included."""
    size = op.Cast(op.Squeeze(op.Shape(x, start=axis, end=axis + 1)), to=onnxscript.FLOAT.dtype)
    zero, one, half = (op.Constant(value_float=value) for value in (0.0, 1.0, 0.5))
    position = op.Sub(op.Range(zero, size, one), op.Mul(op.Sub(size, one), half))
    others = ints(*(other for other in range(rank) if other != axis))
    rise = op.Mul(op.Unsqueeze(position, others), w)
    grow, fade = op.Exp(rise), op.Exp(op.Neg(rise))
    along = op.Constant(value_int=axis)
    left = op.Mul(fade, op.CumSum(op.Mul(grow, x), along))
    right = op.Mul(grow, op.CumSum(op.Mul(fade, x), along, exclusive=1, reverse=1))
    return op.Add(left, right)


@onnxscript.script(onnxscript.values.Opset("biwkv", 1), default_opset=op)
def selective_scan(x: Float, step: Float, a: Float, b: Float, c: Float, d: Float, backend: str) -> Float:
    """y (B, T, G, D) of x, step (B, T, G, D), a (G, D, N), b, c (B, T, G, N) and d (G, D), all float32."""
    last = op.Constant(value_ints=[-1])
    one_before = op.Constant(value_ints=[-2])

    @onnxscript.graph()
    def advance(h, step_t, u_t, b_t, c_t):
        fade = op.Exp(op.Mul(op.Unsqueeze(step_t, last), a))  # (B, G, D, N)
        after = op.Add(op.Mul(fade, h), op.Mul(op.Unsqueeze(u_t, last), op.Unsqueeze(b_t, one_before)))
        y_t = op.Squeeze(op.MatMul(after, op.Unsqueeze(c_t, last)), last)
        return after, y_t

    steps = op.Transpose(step, perm=[1, 0, 2, 3])  # (T, B, G, D)
    inputs = op.Transpose(op.Mul(step, x), perm=[1, 0, 2, 3])
    first = op.Gather(steps, op.Constant(value_int=0))
    nothing = op.Expand(op.Constant(value_float=0.0), op.Shape(op.Mul(op.Unsqueeze(first, last), a)))
    _, y = op.Scan(
        nothing,
        steps,
        inputs,
        op.Transpose(b, perm=[1, 0, 2, 3]),
        op.Transpose(c, perm=[1, 0, 2, 3]),
        body=advance,
        num_scan_inputs=4,
    )
    return op.Add(op.Transpose(y, perm=[1, 0, 2, 3]), op.Mul(d, x))


def ints(*values: int) -> Any:
    """A constant vector."""
    return op.Constant(value_ints=list(values))


TRANSLATIONS: dict[Any, Any] = {
    torch.ops.biwkv.forward.default: bi_wkv,
    torch.ops.biwkv.nd_forward.default: bi_wkv_nd,
    torch.ops.biwkv.selective_forward.default: selective_scan,
}
