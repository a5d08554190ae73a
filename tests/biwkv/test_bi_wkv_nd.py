"""The operator over several axes against its formula in float64, and against torch's own rules for operators."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from math import prod

import pytest
import torch
from formula import NAMES, TOLERANCES, assert_close, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from biwkv import bi_wkv, bi_wkv_nd, bi_wkv_nd_reference, nd_scan
from biwkv.nd import BACKENDS


def inputs(
    spatial: tuple[int, ...],
    batch: int = 2,
    channels: int = 3,
    *,
    decay: float = 1,
    bonus: float = 1,
    k_scale: float = 1,
    spike: float = 0,
) -> tuple[Tensor, ...]:
    """w, u, k, v, gy with decays around `decay` / size, of another sign for every other axis."""
    generator = torch.Generator().manual_seed(prod(spatial) * 1000 + channels)
    shape = (batch, *spatial, channels)
    signs = torch.tensor([(-1.0) ** axis for axis in range(len(spatial))])
    w = (decay * signs / torch.tensor(spatial))[:, None] * (
        1 + 0.1 * torch.randn(len(spatial), channels, generator=generator)
    )
    u = bonus * (1 + 0.1 * torch.randn(channels, generator=generator))
    k, v, gy = torch.randn(3, *shape, generator=generator)
    k = k * k_scale
    k.flatten(1, -2)[:, prod(spatial) // 2] += spike
    return w, u, k, v, gy


@pytest.fixture(params=list(BACKENDS))
def op(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    """`bi_wkv_nd` by every implementation that runs here."""
    if reason := BACKENDS[request.param].why_not(torch.empty(1)):
        pytest.skip(reason)
    return partial(bi_wkv_nd, backend=request.param)


def test_the_formula_term_by_term() -> None:
    w, u, k, v, _ = inputs((2, 3), batch=1, channels=1)
    points = list(itertools.product(range(2), range(3)))
    y = torch.empty(2, 3)
    for i in points:
        weight = {j: (-(abs(i[0] - j[0]) * w[0, 0] + abs(i[1] - j[1]) * w[1, 0]) + k[0, *j, 0]).exp() for j in points}
        weight[i] = (u[0] + k[0, *i, 0]).exp()
        y[i] = sum(weight[j] * v[0, *j, 0] for j in points) / sum(weight.values())
    torch.testing.assert_close(bi_wkv_nd_reference(w, u, k, v)[0, ..., 0].float(), y)


def test_one_axis_is_bi_wkv_with_another_bonus(op: Callable[..., Tensor]) -> None:
    w, u, k, v, gy = inputs((50,), decay=3)
    ours = run(op, w, u, k, v, gy)
    theirs = run(lambda w, u, k, v: bi_wkv(w[0], u + w[0], k, v), w, u, k, v, gy)
    for name in NAMES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_without_decay_the_axes_do_not_matter(op: Callable[..., Tensor]) -> None:
    w, u, k, v, _ = inputs((3, 4, 5), decay=0)
    flat = op(w[:1], u, k.flatten(1, 3), v.flatten(1, 3))
    torch.testing.assert_close(op(w, u, k, v).flatten(1, 3), flat)


@pytest.mark.parametrize(
    "spatial",
    [
        (1,),
        (2,),
        (33,),
        (1, 1),
        (1, 7),
        (7, 1),
        (2, 2),
        (5, 16),
        (17, 33),
        (1, 1, 1),
        (2, 1, 3),
        (4, 5, 6),
        (9, 2, 17),
    ],
)
@pytest.mark.parametrize(("batch", "channels"), [(1, 20), (3, 1)])
def test_shapes(op: Callable[..., Tensor], spatial: tuple[int, ...], batch: int, channels: int) -> None:
    args = inputs(spatial, batch, channels)
    assert_close(run(op, *args), args)


@pytest.mark.parametrize("decay", [0, 1, -1, 12, -12, 18, -18, 400])
@pytest.mark.parametrize("spatial", [(2,), (6, 5), (3, 1, 4)])
def test_ranges(op: Callable[..., Tensor], decay: float, spatial: tuple[int, ...]) -> None:
    for k_scale, bonus, spike in itertools.product((0.1, 1, 5, 80), (0, 1, -19, 17, -40), (0, 60)):
        args = inputs(spatial, decay=decay, bonus=bonus, k_scale=k_scale, spike=spike)
        assert_close(run(op, *args), args)


@pytest.mark.parametrize("bonus", [-1000, 1000])
@pytest.mark.parametrize("decay", [-80, 5000])
def test_beyond_float32(op: Callable[..., Tensor], bonus: float, decay: float) -> None:
    for spatial in ((1, 1), (2, 1), (8, 5)):
        args = inputs(spatial, decay=decay, bonus=bonus, k_scale=100)
        assert_close(run(op, *args), args)


def test_both_kinds_of_scale_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    args = inputs((9, 10), decay=3)
    op = partial(bi_wkv_nd, backend="scan")
    one_scale = run(op, *args)
    monkeypatch.setattr(nd_scan, "LARGEST_DECAY", 0.0)
    for name, x in run(op, *args).items():
        torch.testing.assert_close(x, one_scale[name], rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    backend=st.sampled_from([name for name in BACKENDS if not BACKENDS[name].why_not(torch.empty(1))]),
    spatial=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    batch=st.integers(1, 3),
    channels=st.integers(1, 9),
    dtype=st.sampled_from(list(TOLERANCES)),
    decay=st.floats(-60, 300),
    bonus=st.floats(-30, 30),
    k_scale=st.floats(0, 60),
)
def test_any_input(
    backend: str,
    spatial: tuple[int, ...],
    batch: int,
    channels: int,
    dtype: torch.dtype,
    decay: float,
    bonus: float,
    k_scale: float,
) -> None:
    w, u, k, v, gy = inputs(spatial, batch, channels, decay=decay, bonus=bonus, k_scale=k_scale)
    args = (w, u, *(x.to(dtype) for x in (k, v, gy)))
    assert_close(run(partial(bi_wkv_nd, backend=backend), *args), args, TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("k_dtype", "v_dtype", "coarsest"),
    [
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16, torch.float16),
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.float32, torch.float16, torch.float16),
    ],
)
def test_half_and_mixed_precision(
    op: Callable[..., Tensor], k_dtype: torch.dtype, v_dtype: torch.dtype, coarsest: torch.dtype
) -> None:
    w, u, k, v, gy = inputs((8, 9), channels=6)
    k, v, gy = k.to(k_dtype), v.to(v_dtype), gy.to(k_dtype)
    ours = run(op, w, u, k, v, gy)
    assert [ours[name].dtype for name in NAMES] == [k_dtype, torch.float32, torch.float32, k_dtype, v_dtype]
    assert_close(ours, (w, u, k, v, gy), TOLERANCES[coarsest])


def test_strides_do_not_matter(op: Callable[..., Tensor]) -> None:
    w, u, k, v, _ = inputs((4, 5), channels=8)
    plain = run(op, w, u, k, v, torch.ones(()).expand_as(k).contiguous())
    k_strided = k.transpose(1, 3).contiguous().transpose(1, 3)
    v_strided = torch.cat([v, v], dim=3)[..., :8]
    strided = run(op, w, u, k_strided, v_strided, torch.ones(()).expand_as(k))
    assert all(torch.equal(plain[name], strided[name]) for name in NAMES)
    assert all(strided[name].is_contiguous() for name in NAMES)


def test_nan_stays_in_its_sample_and_channel(op: Callable[..., Tensor]) -> None:
    w, u, k, v, _ = inputs((5, 6))
    clean = op(w, u, k, v)
    k[0, 2, 3, 1] = torch.nan
    y = op(w, u, k, v)
    assert y[0, ..., 1].isnan().all()
    y[0, ..., 1] = clean[0, ..., 1]
    assert torch.equal(y, clean)


def test_same_bits_every_time_and_inputs_untouched(op: Callable[..., Tensor]) -> None:
    args = inputs((9, 8), channels=20)
    copies = [x.clone() for x in args]
    first, second = run(op, *args), run(op, *args)
    assert all(torch.equal(first[name], second[name]) for name in NAMES)
    assert all(torch.equal(x, copy) for x, copy in zip(args, copies, strict=True))


@pytest.mark.parametrize("spatial", [(1,), (4,), (2, 3), (2, 2, 3)])
@pytest.mark.parametrize("decay", [2, 100])
def test_gradcheck(spatial: tuple[int, ...], decay: float) -> None:
    leaves = [x.double().requires_grad_() for x in inputs(spatial, channels=2, decay=decay)[:4]]
    assert torch.autograd.gradcheck(bi_wkv_nd, leaves)


def test_second_derivatives_are_refused(op: Callable[..., Tensor]) -> None:
    leaves = [x.requires_grad_() for x in inputs((3, 4))[:4]]
    [gradient] = torch.autograd.grad(op(*leaves).square().sum(), leaves[2], create_graph=True)
    with pytest.raises(RuntimeError, match=r"bi_wkv_nd: second derivatives are not supported; use biwkv\."):
        gradient.sum().backward()


def test_autocast_leaves_w_and_u_alone() -> None:
    w, u, k, v, _ = inputs((5, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = bi_wkv_nd(w, u, k, v)
    assert torch.equal(y, bi_wkv_nd(w, u, k, v))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck reads it of tensors that are no leaves
def test_opcheck() -> None:
    w, u, k, v, gy = inputs((4, 5))
    leaves = [x.requires_grad_() for x in (w, u, k, v)]
    torch.library.opcheck(torch.ops.biwkv.nd_forward, (*leaves, "auto"))
    torch.library.opcheck(torch.ops.biwkv.nd_backward, (*(x.detach() for x in leaves), gy, "auto"))


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic: bool) -> None:
    compiled = torch.compile(bi_wkv_nd, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for spatial in ((3, 4), (5, 6)):
        args = inputs(spatial)
        ours, eager = run(compiled, *args), run(bi_wkv_nd, *args)
        assert all(torch.equal(ours[name], eager[name]) for name in NAMES)


@pytest.mark.filterwarnings("ignore")
def test_exports_with_any_height_and_width() -> None:
    class Module(torch.nn.Module):
        def forward(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return bi_wkv_nd(w, u, k, v)

    sides = {1: torch.export.Dim("height", min=2), 2: torch.export.Dim("width", min=2)}
    shapes = {"w": None, "u": None, "k": sides, "v": sides}
    exported = torch.export.export(Module(), inputs((4, 5))[:4], dynamic_shapes=shapes).module()
    other = inputs((7, 3))[:4]
    assert torch.equal(exported(*other), bi_wkv_nd(*other))


def test_meta_tensors() -> None:
    args = [x.to("meta") for x in inputs((4, 5))[:4]]
    assert bi_wkv_nd(*args).shape == (2, 4, 5, 3)


W, U, K = torch.zeros(2, 3), torch.zeros(3), torch.zeros(2, 4, 5, 3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((W[0], U, K, K), r"w must be \(axes, C\) = \(2, 3\), not \(3,\)"),
        ((W, W, K, K), r"u must be \(C,\) = \(3,\), not \(2, 3\)"),
        (
            (W, U, K[0, 0], K[0, 0]),
            r"k must be \(B, \*spatial, C\) with 1 to 3 spatial axes",
        ),
        ((W, U, K[:, :0], K[:, :0]), "not empty"),
        ((W, U, K, K[:, 1:]), r"v must have the shape of k \(2, 4, 5, 3\), not \(2, 3, 5, 3\)"),
        ((W, U, K.long(), K), "k must be float32, bfloat16, float16 or float64, not torch.int64"),
        ((W, U, K, K.to("meta")), "v is on meta but k is on cpu"),
    ],
)
def test_wrong_inputs_are_named(args: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bi_wkv_nd(*args)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"bi_wkv_nd: unknown backend 'cuda'; choose from \['auto', "):
        bi_wkv_nd(W, U, K, K, backend="cuda")
