"""The operator against its formula in float64, and against torch's own rules for operators."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from formula import NAMES, TOLERANCES, assert_all_close, assert_close, inputs, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from biwkv import bi_wkv, bi_wkv_reference, scan
from biwkv.op import BACKENDS

RUN_HERE = [name for name in ("scan", "cpu") if not BACKENDS[name].why_not(torch.empty(1))]
GOLDENS = Path(__file__).parents[1] / "goldens" / "modules.npz"


@pytest.fixture(params=["scan", "cpu"])
def op(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    """`bi_wkv` by every implementation that runs here."""
    if reason := BACKENDS[request.param].why_not(torch.empty(1)):
        pytest.skip(reason)
    return partial(bi_wkv, backend=request.param)


def with_authors_epsilon(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula with the 1e-6 of the largest weight that the authors add to the denominator; the paper does not."""
    distance = (torch.arange(k.shape[1])[:, None] - torch.arange(k.shape[1])).abs()[:, :, None]
    exponents = torch.where(distance == 0, u, -(distance - 1) * w) + k[:, None]
    weights = (exponents - exponents.amax(dim=2, keepdim=True)).exp()
    return (weights * v[:, None]).sum(dim=2) / (weights.sum(dim=2) + 1e-6)


@pytest.mark.parametrize("tokens", [16, 49, 64])
@pytest.mark.parametrize("backend", ["scan", "reference"])
def test_goldens(tokens: int, backend: str) -> None:
    rng = np.random.default_rng(100 + tokens)
    w, u = (torch.from_numpy(rng.standard_normal(8) / tokens) for _ in range(2))
    k, v, gy = (torch.from_numpy(rng.standard_normal((2, tokens, 8))) for _ in range(3))
    ours = run(lambda *args: bi_wkv(*args, backend=backend), w, u, k, v, gy)
    with np.load(GOLDENS, allow_pickle=False) as file:
        theirs = {name: torch.from_numpy(file[f"wkv{tokens}/{name}"]) for name in NAMES}
    torch.testing.assert_close(with_authors_epsilon(w, u, k, v), theirs["y"], rtol=1e-12, atol=1e-14)
    for name in NAMES:
        assert (ours[name] - theirs[name]).abs().max() <= 2e-6 * theirs[name].abs().max()
    formula = run(bi_wkv_reference, w, u, k, v, gy)
    for name in NAMES:
        torch.testing.assert_close(ours[name], formula[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tokens", [1, 2, 5, 31, 32, 33, 49, 190, 196, 256])
@pytest.mark.parametrize(("batch", "channels"), [(1, 20), (2, 1), (24, 3)])
def test_shapes(op: Callable[..., Tensor], tokens: int, batch: int, channels: int) -> None:
    args = inputs(batch, tokens, channels)
    assert_close(run(op, *args), args)


@pytest.mark.parametrize("tokens", [784])
def test_sizes_of_the_model(op: Callable[..., Tensor], tokens: int) -> None:
    args = inputs(1, tokens, 4, decay=10)
    assert_close(run(op, *args), args)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "tokens", "channels"), [(1, 4100, 1), (1, 49, 1152)])
def test_large(batch: int, tokens: int, channels: int) -> None:
    """More tokens than a model has at 512 x 512, and as many channels as the largest."""
    args = inputs(batch, tokens, channels, decay=-10)
    assert_all_close((run(partial(bi_wkv, backend=name), *args) for name in RUN_HERE), args)


@pytest.mark.parametrize("decay", [0, 1, -1, 10, -10, 40, -40, 1000])
@pytest.mark.parametrize("tokens", [2, 70])
def test_ranges(op: Callable[..., Tensor], decay: float, tokens: int) -> None:
    for k_scale, bonus, spike in itertools.product((0.1, 1, 5, 20, 80), (0, 1, -20, 20), (0, 60)):
        args = inputs(2, tokens, 3, decay=decay, bonus=bonus, k_scale=k_scale, spike=spike)
        assert_close(run(op, *args), args)


@pytest.mark.parametrize("bonus", [-1000, 1000])
@pytest.mark.parametrize("decay", [-80, 5000])
def test_beyond_float32(op: Callable[..., Tensor], bonus: float, decay: float) -> None:
    for tokens in (1, 2, 40):
        args = inputs(2, tokens, 3, decay=decay, bonus=bonus, k_scale=100)
        assert_close(run(op, *args), args)


def test_both_chunk_lengths_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    args = inputs(2, 190, 5, decay=3)
    op = partial(bi_wkv, backend="scan")
    chunked = run(op, *args)
    monkeypatch.setattr(scan, "SPREAD", 0.0)
    for name, x in run(op, *args).items():
        torch.testing.assert_close(x, chunked[name], rtol=1e-4, atol=1e-5)


@settings(max_examples=80, deadline=None)
@given(
    backend=st.sampled_from(RUN_HERE),
    batch=st.integers(1, 3),
    tokens=st.integers(1, 70),
    channels=st.integers(1, 9),
    dtype=st.sampled_from(list(TOLERANCES)),
    decay=st.floats(-60, 300),
    bonus=st.floats(-30, 30),
    k_scale=st.floats(0, 60),
)
def test_any_input(
    backend: str,
    batch: int,
    tokens: int,
    channels: int,
    dtype: torch.dtype,
    decay: float,
    bonus: float,
    k_scale: float,
) -> None:
    w, u, k, v, gy = inputs(batch, tokens, channels, decay=decay, bonus=bonus, k_scale=k_scale)
    args = (w, u, *(x.to(dtype) for x in (k, v, gy)))
    assert_close(run(partial(bi_wkv, backend=backend), *args), args, TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("k_dtype", "v_dtype", "tolerance"),
    [
        (torch.bfloat16, torch.bfloat16, 1e-2),
        (torch.float16, torch.float16, 1e-3),
        (torch.bfloat16, torch.float32, 1e-2),
        (torch.float32, torch.float16, 1e-3),
    ],
)
def test_half_and_mixed_precision(
    op: Callable[..., Tensor], k_dtype: torch.dtype, v_dtype: torch.dtype, tolerance: float
) -> None:
    w, u, k, v, gy = inputs(2, 100, 6)
    k, v, gy = k.to(k_dtype), v.to(v_dtype), gy.to(k_dtype)
    ours = run(op, w, u, k, v, gy)
    assert [ours[name].dtype for name in NAMES] == [k_dtype, torch.float32, torch.float32, k_dtype, v_dtype]
    assert_close(ours, (w, u, k, v, gy), dict.fromkeys(NAMES, tolerance))


def test_strides_do_not_matter(op: Callable[..., Tensor]) -> None:
    w, u, k, v, _ = inputs(2, 36, 8)
    plain = run(op, w, u, k, v, torch.ones(()).expand_as(k).contiguous())
    k_strided = k.transpose(1, 2).contiguous().transpose(1, 2)
    v_strided = torch.cat([v, v], dim=2)[:, :, :8]
    strided = run(op, w, u, k_strided, v_strided, torch.ones(()).expand_as(k))
    assert all(torch.equal(plain[name], strided[name]) for name in NAMES)
    one = run(op, w, u, k, v[:, :1].expand_as(v), torch.ones_like(k))
    torch.testing.assert_close(one["y"], v[:, :1].expand_as(v))


def test_nan_stays_in_its_sample_and_channel(op: Callable[..., Tensor]) -> None:
    w, u, k, v, _ = inputs(2, 100, 3)
    clean = op(w, u, k, v)
    k[0, 5, 1] = torch.nan
    y = op(w, u, k, v)
    assert y[0, :, 1].isnan().all()
    y[0, :, 1] = clean[0, :, 1]
    assert torch.equal(y, clean)


def test_same_bits_every_time_and_inputs_untouched(op: Callable[..., Tensor]) -> None:
    args = inputs(3, 100, 20)
    copies = [x.clone() for x in args]
    first, second = run(op, *args), run(op, *args)
    assert all(torch.equal(first[name], second[name]) for name in NAMES)
    assert all(torch.equal(x, copy) for x, copy in zip(args, copies, strict=True))


@pytest.mark.parametrize("tokens", [1, 2, 7, 9])
def test_gradcheck(tokens: int) -> None:
    leaves = [x.double().requires_grad_() for x in inputs(2, tokens, 3, decay=2)[:4]]
    assert torch.autograd.gradcheck(bi_wkv, leaves)


def test_second_derivatives_are_refused(op: Callable[..., Tensor]) -> None:
    leaves = [x.requires_grad_() for x in inputs(1, 5, 2)[:4]]
    [gradient] = torch.autograd.grad(op(*leaves).square().sum(), leaves[2], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not supported"):
        gradient.sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck reads it of tensors that are no leaves
@pytest.mark.parametrize("backend", ["auto", "scan"])
def test_opcheck(backend: str) -> None:
    w, u, k, v, gy = inputs(2, 10, 3)
    leaves = [x.requires_grad_() for x in (w, u, k, v)]
    torch.library.opcheck(torch.ops.biwkv.forward, (*leaves, backend))
    torch.library.opcheck(torch.ops.biwkv.backward, (*(x.detach() for x in leaves), gy, backend))


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic: bool) -> None:
    compiled = torch.compile(bi_wkv, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for tokens in (12, 20):
        args = inputs(2, tokens, 4)
        ours, eager = run(compiled, *args), run(bi_wkv, *args)
        assert all(torch.equal(ours[name], eager[name]) for name in NAMES)


@pytest.mark.filterwarnings("ignore")
def test_exports_with_any_number_of_tokens() -> None:
    class Module(torch.nn.Module):
        def forward(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return bi_wkv(w, u, k, v)

    tokens = torch.export.Dim("tokens", min=2)
    args = inputs(2, 12, 4)[:4]
    shapes = {"w": None, "u": None, "k": {1: tokens}, "v": {1: tokens}}
    exported = torch.export.export(Module(), args, dynamic_shapes=shapes).module()
    other = inputs(2, 30, 4)[:4]
    assert torch.equal(exported(*other), bi_wkv(*other))


def test_meta_tensors() -> None:
    args = [x.to("meta") for x in inputs(2, 10, 3)[:4]]
    assert bi_wkv(*args).shape == (2, 10, 3)


W, K = torch.zeros(3), torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.zeros(4), W, K, K), r"w must be \(C,\) = \(3,\), not \(4,\)"),
        ((W, torch.zeros(1, 3), K, K), r"u must be \(C,\) = \(3,\), not \(1, 3\)"),
        ((W, W, K[0], K[0]), r"k must be \(B, T, C\)"),
        ((W, W, K[:, :0], K[:, :0]), "not empty"),
        ((W, W, K, K[:, 1:]), r"v must have the shape of k \(2, 5, 3\), not \(2, 4, 3\)"),
        ((W, W, K.long(), K), "k must be float32, bfloat16, float16 or float64, not torch.int64"),
        ((W, W, K, K.to("meta")), "v is on meta but k is on cpu"),
    ],
)
def test_wrong_inputs_are_named(args: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bi_wkv(*args)


def test_unknown_backend() -> None:
    with pytest.raises(
        ValueError, match=r"unknown backend 'gpu'; choose from \['auto', 'scan', 'cpu', 'cuda', 'triton', "
    ):
        bi_wkv(W, W, K, K, backend="gpu")


def test_needs_nothing_but_torch() -> None:
    """What is loaded with it, test_imports_stay_light says in test_model.py."""
    folder = Path(scan.__file__).parent
    sources = "\n".join(path.read_text() for path in folder.glob("*.py") if path.name != "triton_kernels.py")
    for name in ("numpy", "timm", "rwkv_unet", "rwkvctl", "triton"):
        assert not re.search(rf"^\s*(import|from) {name}\b", sources, re.MULTILINE)
