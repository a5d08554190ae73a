"""The Triton kernels in Triton's interpreter, which counts every overflow and every NaN on the way as an error.

test_triton.py runs this file in a process of its own, as Triton must be told to interpret before it is imported.
"""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from formula import NAMES, assert_close, assert_each_channel_close, inputs, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from biwkv import bi_wkv, triton

op = partial(bi_wkv, backend="triton")
GUARD = 256


@pytest.mark.parametrize(
    ("batch", "tokens", "channels"),
    [(1, 1, 3), (3, 2, 1), (1, 5, 20), (1, 16, 2), (2, 31, 3), (1, 33, 65)],
)
def test_shapes(batch: int, tokens: int, channels: int) -> None:
    args = inputs(batch, tokens, channels, decay=10)
    assert_close(run(op, *args), args)


@pytest.mark.parametrize("tokens", [2, 18])
def test_ranges(tokens: int) -> None:
    """A channel each, sorted so that there are programs with linear sums and programs with log scales."""
    ranges = [(0, 1, -1, 10, -10, 40, -40, 1000), (1, -20, 20), (0.1, 5, 80), (0, 60)]
    each = [inputs(1, tokens, 1, decay=d, bonus=u, k_scale=s, spike=x) for d, u, s, x in itertools.product(*ranges)]
    args = tuple(torch.cat(same, dim=-1) for same in zip(*each, strict=True))
    assert_each_channel_close(run(op, *args), args)


@settings(max_examples=5, deadline=None, derandomize=True, database=None)
@given(
    batch=st.integers(1, 2),
    tokens=st.integers(1, 20),
    channels=st.integers(1, 20),  # test_shapes has more than a program takes
    k_dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    v_dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    decay=st.floats(-60, 300),
    bonus=st.floats(-30, 30),
)
def test_any_input(
    batch: int, tokens: int, channels: int, k_dtype: torch.dtype, v_dtype: torch.dtype, decay: float, bonus: float
) -> None:
    w, u, k, v, gy = inputs(batch, tokens, channels, decay=decay, bonus=bonus)
    args = w, u, k.to(k_dtype), v.to(v_dtype), gy.to(k_dtype)
    ours = run(op, *args)
    assert [ours[name].dtype for name in NAMES] == [k_dtype, torch.float32, torch.float32, k_dtype, v_dtype]
    epsilon = max(torch.finfo(k_dtype).eps, torch.finfo(v_dtype).eps)
    assert_close(ours, args, dict.fromkeys(NAMES, max(epsilon, 3e-5)))


@pytest.mark.parametrize("decay", [1.0, 100.0])
def test_reads_and_writes_nothing_else(decay: float) -> None:
    """All tensors lie between NaNs: read ones would spread, and overwritten ones would be gone."""
    w, u, k, v, gy = (_guarded(x) for x in inputs(2, 19, 66, decay=decay))
    y, gk, gv = (_guarded(torch.zeros_like(k)) for _ in range(3))
    gw, gu = (_guarded(torch.zeros(2, 66)) for _ in range(2))
    ends = [_guarded(triton.scratch(plan, k).fill_(torch.nan)) for plan in (triton.FORWARD, triton.BACKWARD)]
    triton.launch(triton.FORWARD, k, w, u, k, v, y, ends[0])
    triton.launch(triton.BACKWARD, k, w, u, k, v, gy, gw, gu, gk, gv, ends[1])
    for x in (w, u, k, v, gy, y, gk, gv, gw, gu, *ends):
        storage = x.untyped_storage()
        whole = torch.empty(0).set_(storage, 0, (storage.nbytes() // 4,))
        assert whole[:GUARD].isnan().all()
        assert whole[-GUARD:].isnan().all()
    ours = dict(zip(NAMES, (y, gw.sum(0), gu.sum(0), gk, gv), strict=True))
    assert_close(ours, (w, u, k, v, gy))


def _guarded(x: Tensor) -> Tensor:
    whole = torch.full((x.numel() + 2 * GUARD,), torch.nan)
    view = whole[GUARD:-GUARD].view(x.shape)
    view.copy_(x)
    return view


def test_repeats_to_the_bit_whatever_the_strides() -> None:
    w, u, k, v, gy = inputs(2, 20, 5)
    plain = run(op, w, u, k, v, gy)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v, gy)]
    for other in (run(op, w, u, k, v, gy), run(op, w, u, *strided)):
        assert all(torch.equal(plain[name], other[name]) for name in NAMES)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("decay", [1.0, 100.0])
def test_nan_stays_in_its_sample_and_channel(decay: float) -> None:
    w, u, k, v, _ = inputs(2, 20, 3, decay=decay)
    clean = op(w, u, k, v)
    k[0, 5, 1] = torch.nan
    y = op(w, u, k, v)
    assert y[0, :, 1].isnan().all()
    y[0, :, 1] = clean[0, :, 1]
    assert torch.equal(y, clean)


def test_what_the_cuda_kernel_leaves_to_it() -> None:
    w, u, k, v, _ = inputs(1, 9, 70)
    w[65] = 5.0
    y = torch.full_like(k, 7)
    triton.launch(triton.FORWARD, k, w, u, k, v, y, triton.scratch(triton.FORWARD, k), narrow=False)
    assert (y[:, :, :64] == 7).all()
    assert torch.equal(y[:, :, 64:], op(w, u, k, v)[:, :, 64:])


def test_float64_goes_to_the_scan() -> None:
    w, u, k, v, _ = inputs(1, 9, 3)
    assert torch.equal(op(w, u, k.double(), v), bi_wkv(w, u, k.double(), v, backend="scan"))
