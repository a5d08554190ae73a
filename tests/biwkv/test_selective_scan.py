"""The selective scan against its recurrence in float64, and against torch's own rules for operators."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from biwkv import cpu, selective_scan, selective_scan_reference, selective_torch
from biwkv.selective import BACKENDS

NAMES = ("y", "gx", "gstep", "ga", "gb", "gc", "gd")
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
RUN_HERE = [name for name, backend in BACKENDS.items() if not backend.why_not(torch.empty(1))]
GUARD = 64
MARK = -123.25


def inputs(
    batch: int, tokens: int, groups: int, channels: int, states: int, *, rate: float = 4.0, growing: bool = False
) -> tuple[Tensor, ...]:
    """x, step, a, b, c, d, gy with steps of up to 2 and rates of up to `rate`."""
    generator = torch.Generator().manual_seed(tokens * 1000 + channels)
    x, step, gy = torch.randn(3, batch, tokens, groups, channels, generator=generator)
    b, c = torch.randn(2, batch, tokens, groups, states, generator=generator)
    a = -rate * torch.rand(groups, channels, states, generator=generator)
    d = torch.randn(groups, channels, generator=generator)
    return x, step.abs().clamp(max=2), -a if growing else a, b, c, d, gy


def run(op: Callable[..., Tensor], *args: Tensor) -> dict[str, Tensor]:
    leaves = [z.detach().requires_grad_() for z in args[:6]]
    y = op(*leaves)
    return dict(zip(NAMES, (y.detach(), *torch.autograd.grad(y, leaves, args[6].to(y.dtype))), strict=True))


def assert_close(ours: dict[str, Tensor], args: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    """Errors relative to the largest value of each, or to 1."""
    theirs = run(selective_scan_reference, *(z.double() for z in args))
    for name in NAMES:
        error, scale = (ours[name].double() - theirs[name]).abs().max(), theirs[name].abs().max().clamp(min=1)
        assert error <= tolerance * scale, (name, float(error), float(scale))


@pytest.fixture(params=list(BACKENDS))
def op(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    """`selective_scan` by every implementation that runs here."""
    if request.param not in RUN_HERE:
        pytest.skip(BACKENDS[request.param].why_not(torch.empty(1)))
    return partial(selective_scan, backend=request.param)


@pytest.fixture
def library() -> Iterator[ctypes.CDLL]:
    if reason := cpu.selective_why_not(torch.empty(1)):
        pytest.skip(reason)
    threads, library = torch.get_num_threads(), cpu._library()
    assert isinstance(library, ctypes.CDLL)
    yield library
    torch.set_num_threads(threads)
    library.biwkv_limit_level(4)


def test_the_recurrence_by_hand() -> None:
    x, step, a, b, c, d, _ = inputs(1, 3, 1, 1, 1)
    h, y = torch.zeros(()), []
    for t in range(3):
        h = (step[0, t, 0, 0] * a[0, 0, 0]).exp() * h + step[0, t, 0, 0] * b[0, t, 0, 0] * x[0, t, 0, 0]
        y.append(c[0, t, 0, 0] * h + d[0, 0] * x[0, t, 0, 0])
    torch.testing.assert_close(selective_scan_reference(x, step, a, b, c, d)[0, :, 0, 0].float(), torch.stack(y))


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 33, 49, 190])
@pytest.mark.parametrize(
    ("batch", "groups", "channels", "states"), [(2, 1, 1, 1), (1, 4, 20, 16), (2, 2, 64, 8), (1, 3, 130, 3)]
)
def test_shapes(op: Callable[..., Tensor], tokens: int, batch: int, groups: int, channels: int, states: int) -> None:
    args = inputs(batch, tokens, groups, channels, states)
    assert_close(run(op, *args), args)


@pytest.mark.slow
def test_as_many_tokens_as_a_network_has(op: Callable[..., Tensor]) -> None:
    args = inputs(1, 3137, 4, 33, 16, rate=0.1)
    assert_close(run(op, *args), args, 3e-5)


@pytest.mark.parametrize("rate", [0.0, 1e-3, 60.0, 1e6])
def test_ranges(op: Callable[..., Tensor], rate: float) -> None:
    args = inputs(2, 40, 1, 5, 4, rate=rate)
    assert_close(run(op, *args), args)


def test_states_that_grow(op: Callable[..., Tensor]) -> None:
    args = inputs(2, 10, 1, 5, 4, growing=True)
    assert_close(run(op, *args), args, 1e-4)


@settings(max_examples=60, deadline=None)
@given(
    backend=st.sampled_from(RUN_HERE),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 3), st.integers(1, 70), st.integers(1, 17)),
    dtype=st.sampled_from(list(TOLERANCES)),
    rate=st.floats(0, 100),
)
def test_any_input(backend: str, sizes: tuple[int, int, int, int, int], dtype: torch.dtype, rate: float) -> None:
    x, step, a, b, c, d, gy = inputs(*sizes, rate=rate)
    args = (x.to(dtype), step, a, b.to(dtype), c.to(dtype), d, gy.to(dtype))
    ours = run(partial(selective_scan, backend=backend), *args)
    assert [ours[name].dtype for name in NAMES] == [dtype, dtype, *(args[i].dtype for i in range(1, 6))]
    assert_close(ours, args, TOLERANCES[dtype])


def test_strides_do_not_matter(op: Callable[..., Tensor]) -> None:
    x, step, a, b, c, d, gy = inputs(2, 30, 2, 8, 4)
    plain = run(op, x, step, a, b, c, d, torch.ones_like(gy))
    strided = [z.transpose(1, 2).contiguous().transpose(1, 2) for z in (x, step)]
    split = torch.cat([b, c], dim=3).split(4, dim=3)
    again = run(op, *strided, a, *split, d, torch.ones(()).expand_as(gy))
    assert all(torch.equal(plain[name], again[name]) for name in NAMES)


def test_nan_stays_in_its_sample_and_channel_and_comes_after(op: Callable[..., Tensor]) -> None:
    x, *others, _ = inputs(2, 40, 1, 3, 4)
    clean = op(x, *others)
    x[0, 20, 0, 1] = torch.nan
    y = op(x, *others)
    assert y[0, 20:, 0, 1].isnan().all()
    y[0, 20:, 0, 1] = clean[0, 20:, 0, 1]
    assert torch.equal(y[1], clean[1])
    torch.testing.assert_close(y, clean)


def test_same_bits_every_time_and_inputs_untouched(op: Callable[..., Tensor]) -> None:
    args = inputs(3, 50, 2, 70, 4)
    copies = [z.clone() for z in args]
    first, second = run(op, *args), run(op, *args)
    assert all(torch.equal(first[name], second[name]) for name in NAMES)
    assert all(torch.equal(z, copy) for z, copy in zip(args, copies, strict=True))


def test_same_bits_for_any_number_of_threads(library: ctypes.CDLL) -> None:
    args, results = inputs(3, 300, 4, 100, 16), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append([cpu.selective_forward(*args[:6]), *cpu.selective_backward(*args)])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("level", [1, 3])
def test_older_processors(library: ctypes.CDLL, level: int) -> None:
    args = inputs(2, 40, 2, 70, 5)
    library.biwkv_limit_level(level)
    assert_close(run(partial(selective_scan, backend="cpu"), *args), args)


@pytest.mark.parametrize("channels", [1, 3, 4, 15, 16, 17, 64, 65])
@pytest.mark.parametrize("tokens", [1, 16, 17])
@pytest.mark.parametrize("level", [1, 3, 4])
def test_writes_its_results_and_nothing_else(library: ctypes.CDLL, tokens: int, channels: int, level: int) -> None:
    args = inputs(2, tokens, 2, channels, 3)
    guarded = [_guarded(z.shape) for z in (args[0], *args[:6])]
    sizes = [*(ctypes.c_int64(size) for size in args[0].shape), 3, 2]
    library.biwkv_limit_level(level)
    y, *gradients = [view for _, view in guarded]
    assert library.biwkv_selective_forward(*_pointers(*args[:6], y), *sizes) == 0
    assert library.biwkv_selective_backward(*_pointers(*args, *gradients), *sizes) == 0
    for whole, view in guarded:
        assert (whole[:GUARD] == MARK).all()
        assert (whole[-GUARD:] == MARK).all()
        assert not (view == MARK).any()
    assert_close(dict(zip(NAMES, (y, *gradients), strict=True)), args)


def _guarded(shape: torch.Size) -> tuple[Tensor, Tensor]:
    whole = torch.full((shape.numel() + 2 * GUARD,), MARK)
    return whole, whole[GUARD:-GUARD].view(shape)


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(z.data_ptr()) for z in tensors]


def test_auto_takes_the_kernel_and_float64_goes_to_torch(library: ctypes.CDLL) -> None:
    args = inputs(2, 20, 1, 8, 4)[:6]
    double = [z.double() for z in args]
    assert torch.equal(selective_scan(*args), cpu.selective_forward(*args))
    assert torch.equal(selective_scan(*double, backend="cpu"), selective_torch.forward(*double))


def test_a_library_older_than_the_scan_is_no_kernel(monkeypatch: pytest.MonkeyPatch, library: ctypes.CDLL) -> None:
    class Older(ctypes.CDLL):
        def __getattr__(self, name: str) -> None:
            raise AttributeError(name)

    monkeypatch.setattr(cpu, "_library", lambda: Older(None))
    args = inputs(1, 5, 1, 2, 2)[:6]
    with pytest.raises(ValueError, match=r"cannot run: _biwkv_cpu.so is older than the selective scan; install this"):
        selective_scan(*args, backend="cpu")


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_gradcheck(tokens: int) -> None:
    leaves = [z.double().requires_grad_() for z in inputs(2, tokens, 2, 3, 2)[:6]]
    assert torch.autograd.gradcheck(selective_scan, leaves)


def test_second_derivatives_are_refused(op: Callable[..., Tensor]) -> None:
    leaves = [z.requires_grad_() for z in inputs(1, 5, 1, 2, 2)[:6]]
    [gradient] = torch.autograd.grad(op(*leaves).square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivatives .* use biwkv.selective_scan_reference"):
        gradient.sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck reads it of tensors that are no leaves
@pytest.mark.parametrize("backend", ["auto", "scan"])
def test_opcheck(backend: str) -> None:
    *args, gy = inputs(2, 10, 2, 3, 4)
    leaves = [z.requires_grad_() for z in args]
    torch.library.opcheck(torch.ops.biwkv.selective_forward, (*leaves, backend))
    torch.library.opcheck(torch.ops.biwkv.selective_backward, (*(z.detach() for z in leaves), gy, backend))


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic: bool) -> None:
    compiled = torch.compile(selective_scan, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for tokens in (12, 20):
        args = inputs(2, tokens, 2, 4, 3)
        ours, eager = run(compiled, *args), run(selective_scan, *args)
        assert all(torch.equal(ours[name], eager[name]) for name in NAMES)


def test_meta_tensors() -> None:
    assert selective_scan(*(z.to("meta") for z in inputs(2, 10, 2, 3, 4)[:6])).shape == (2, 10, 2, 3)


X, A, B, D = torch.zeros(2, 5, 2, 3), torch.zeros(2, 3, 4), torch.zeros(2, 5, 2, 4), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((X[0], X, A, B, B, D), r"x must be \(B, T, G, D\) and not empty, not \(5, 2, 3\)"),
        ((X[:, :0], X, A, B, B, D), r"x must be .* not empty, not \(2, 0, 2, 3\)"),
        ((X, X[:, 1:], A, B, B, D), r"step must be \(B, T, G, D\) = \(2, 5, 2, 3\), not \(2, 4, 2, 3\)"),
        ((X, X, A[:1], B, B, D), r"a must be \(G, D, N\) = \(2, 3, N\), not \(1, 3, 4\)"),
        ((X, X, A[..., :0], B, B, D), r"a must be \(G, D, N\)"),
        ((X, X, A, B[..., 1:], B, D), r"b must be \(B, T, G, N\) = \(2, 5, 2, 4\), not \(2, 5, 2, 3\)"),
        ((X, X, A, B, X, D), r"c must be \(B, T, G, N\)"),
        ((X, X, A, B, B, D[0]), r"d must be \(G, D\) = \(2, 3\), not \(3,\)"),
        ((X, X.int(), A, B, B, D), "step must be float32, bfloat16, float16 or float64, not torch.int32"),
        ((X, X, A.to("meta"), B, B, D), "a is on meta but x is on cpu"),
    ],
)
def test_wrong_inputs_are_named(args: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"selective_scan: {message}"):
        selective_scan(*args)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'gpu'; choose from \['auto', 'scan', 'cpu', 'reference'\]"):
        selective_scan(X, X, A, B, B, D, backend="gpu")
