"""The operator on a CUDA device, over all that once found a bug. Needs torch, triton and pytest."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from formula import NAMES, assert_close, assert_each_channel_close, inputs, run
from torch import Tensor

from biwkv import bi_wkv, selective_scan, selective_scan_reference, triton
from biwkv.dispatch import choose
from biwkv.op import BACKENDS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GUARD = 256


def on_gpu(*args: int, device: str = "cuda", **ranges: float) -> tuple[Tensor, ...]:
    return tuple(x.to(device) for x in inputs(*args, **ranges))


@pytest.fixture(params=["cuda", "triton", "scan"])
def wkv(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    if reason := BACKENDS[request.param].why_not(torch.empty(1, device="cuda")):
        pytest.skip(reason)
    return partial(bi_wkv, backend=request.param)


def test_auto_is_not_the_scan() -> None:
    chosen = choose("bi_wkv", BACKENDS, "auto", torch.empty(1, 9, 3, device="cuda"))
    assert chosen is not BACKENDS["scan"], triton.why_not(torch.empty(1, device="cuda"))


@pytest.mark.parametrize("tokens", [1, 2, 5, 31, 32, 33, 49, 190, 196, 256, 784, 1024])
@pytest.mark.parametrize(("batch", "channels"), [(2, 40), (24, 3), (1, 96)])
def test_shapes(wkv: Callable[..., Tensor], tokens: int, batch: int, channels: int) -> None:
    args = on_gpu(batch, tokens, channels)
    assert_close(run(wkv, *args), args)


@pytest.mark.parametrize(
    ("batch", "tokens", "channels"), [(1, 4096, 8), (2, 5000, 3), (2, 196, 960), (1, 49, 1152), (1, 784, 576)]
)
def test_large(wkv: Callable[..., Tensor], batch: int, tokens: int, channels: int) -> None:
    args = on_gpu(batch, tokens, channels, decay=-10)
    assert_close(run(wkv, *args), args)


@pytest.mark.parametrize("tokens", [2, 33, 190])
def test_ranges(wkv: Callable[..., Tensor], tokens: int) -> None:
    """A channel each, in the order of decays and bonuses, so that some programs sum linearly and others do not."""
    ranges = [(0, 1, -1, 10, -10, 40, -40, 1000, -80), (0, 1, -1, -20, 20, 1000), (0.1, 1, 5, 20, 80), (0, 60)]
    each = [on_gpu(2, tokens, 1, decay=d, bonus=u, k_scale=s, spike=x) for d, u, s, x in itertools.product(*ranges)]
    args = tuple(torch.cat(same, dim=-1) for same in zip(*each, strict=True))
    assert_each_channel_close(run(wkv, *args), args)


@pytest.mark.parametrize("decay", [1, 100])
@pytest.mark.parametrize("k_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("v_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(wkv: Callable[..., Tensor], k_dtype: torch.dtype, v_dtype: torch.dtype, decay: float) -> None:
    w, u, k, v, gy = on_gpu(2, 100, 70, decay=decay)
    args = w, u, k.to(k_dtype), v.to(v_dtype), gy.to(k_dtype)
    ours = run(wkv, *args)
    assert [ours[name].dtype for name in NAMES] == [k_dtype, torch.float32, torch.float32, k_dtype, v_dtype]
    tolerances = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}
    assert_close(ours, args, dict.fromkeys(NAMES, max(tolerances[k_dtype], tolerances[v_dtype])))


@pytest.mark.parametrize("decay", [1, 100])
def test_same_bits_every_time(wkv: Callable[..., Tensor], decay: float) -> None:
    args = on_gpu(24, 196, 200, decay=decay)
    first = run(wkv, *args)
    for _ in range(5):
        again = run(wkv, *args)
        assert all(torch.equal(first[name], again[name]) for name in NAMES)


def test_strides_do_not_matter(wkv: Callable[..., Tensor]) -> None:
    w, u, k, v, _ = on_gpu(2, 36, 72)
    plain = run(wkv, w, u, k, v, torch.ones_like(k))
    strided = run(
        wkv, w, u, k.mT.contiguous().mT, torch.cat([v, v], dim=2)[:, :, :72], torch.ones(()).to(k).expand_as(k)
    )
    assert all(torch.equal(plain[name], strided[name]) for name in NAMES)


@pytest.mark.parametrize("decay", [1, 100])
@pytest.mark.parametrize(("tokens", "channels"), [(1, 1), (17, 65), (49, 576), (195, 100)])
def test_triton_reads_and_writes_nothing_else(tokens: int, channels: int, decay: float) -> None:
    """All tensors lie between NaNs: read ones would spread, and overwritten ones would be gone."""
    if reason := triton.why_not(torch.empty(1, device="cuda")):
        pytest.skip(reason)
    w, u, k, v, gy = (_guarded(x) for x in on_gpu(2, tokens, channels, decay=decay))
    y, gk, gv = (_guarded(torch.zeros_like(k)) for _ in range(3))
    gw, gu = (_guarded(torch.zeros(2, channels, device="cuda")) for _ in range(2))
    ends = [_guarded(triton.scratch(plan, k).fill_(torch.nan)) for plan in (triton.FORWARD, triton.BACKWARD)]
    triton.launch(triton.FORWARD, k, w, u, k, v, y, ends[0])
    triton.launch(triton.BACKWARD, k, w, u, k, v, gy, gw, gu, gk, gv, ends[1])
    for x in (w, u, k, v, gy, y, gk, gv, gw, gu, *ends):
        storage = x.untyped_storage()
        whole = torch.empty(0, device="cuda").set_(storage, 0, (storage.nbytes() // 4,))
        assert whole[:GUARD].isnan().all()
        assert whole[-GUARD:].isnan().all()
    assert_close(dict(zip(NAMES, (y, gw.sum(0), gu.sum(0), gk, gv), strict=True)), (w, u, k, v, gy))


def _guarded(x: Tensor) -> Tensor:
    whole = torch.full((x.numel() + 2 * GUARD,), torch.nan, device=x.device)
    view = whole[GUARD:-GUARD].view(x.shape)
    view.copy_(x)
    return view


def test_nan_stays_in_its_sample_and_channel(wkv: Callable[..., Tensor]) -> None:
    w, u, k, v, _ = on_gpu(2, 100, 3)
    clean = wkv(w, u, k, v)
    k[0, 5, 1] = torch.nan
    y = wkv(w, u, k, v)
    assert y[0, :, 1].isnan().all()
    y[0, :, 1] = clean[0, :, 1]
    assert torch.equal(y, clean)


def test_runs_on_the_current_stream() -> None:
    """On a stream of its own the operator waits for inputs that are slow to come, and the default stream does not."""
    args = on_gpu(8, 784, 576)
    expected = run(bi_wkv, *args)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = [torch.zeros_like(x) for x in args]
        torch.cuda._sleep(100_000_000)
        for x, value in zip(late, args, strict=True):
            x.copy_(value)
        ours = run(bi_wkv, *late)
    stream.synchronize()
    assert all(torch.equal(ours[name], expected[name]) for name in NAMES)


def test_cuda_graph() -> None:
    args = on_gpu(2, 196, 96)
    leaves = [x.detach().requires_grad_() for x in args[:4]]

    def step() -> tuple[Tensor, ...]:
        y = bi_wkv(*leaves)
        return y.detach(), *torch.autograd.grad(y, leaves, args[4])

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaves[2].mul_(-1)
    graph.replay()
    expected = run(bi_wkv, *leaves, args[4])
    assert all(torch.equal(x, expected[name]) for x, name in zip(captured, NAMES, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_second_device() -> None:
    args = on_gpu(2, 100, 70, device="cuda:1")
    ours = run(bi_wkv, *args)
    assert torch.cuda.current_device() == 0
    assert_close(ours, args)


@pytest.mark.filterwarnings("ignore")
def test_opcheck() -> None:
    w, u, k, v, gy = on_gpu(2, 10, 3)
    leaves = [x.requires_grad_() for x in (w, u, k, v)]
    torch.library.opcheck(torch.ops.biwkv.forward, (*leaves, "auto"))
    torch.library.opcheck(torch.ops.biwkv.backward, (*(x.detach() for x in leaves), gy, "auto"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic: bool) -> None:
    def mixed(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return bi_wkv(w, u, k.sin(), v.cos()).tanh()

    compiled = torch.compile(mixed, fullgraph=True, dynamic=dynamic)
    for tokens in (12, 20):
        args = on_gpu(2, tokens, 40)
        ours, eager = run(compiled, *args), run(mixed, *args)
        for name in NAMES:
            torch.testing.assert_close(ours[name], eager[name], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_exports_with_any_number_of_tokens() -> None:
    class Module(torch.nn.Module):
        def forward(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return bi_wkv(w, u, k, v)

    tokens = torch.export.Dim("tokens", min=2)
    shapes = {"w": None, "u": None, "k": {1: tokens}, "v": {1: tokens}}
    exported = torch.export.export(Module(), on_gpu(2, 12, 4)[:4], dynamic_shapes=shapes).module()
    other = on_gpu(2, 30, 4)[:4]
    assert torch.equal(exported(*other), bi_wkv(*other))


def test_autocast_leaves_w_and_u_alone() -> None:
    w, u, k, v, _ = on_gpu(2, 40, 10)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = bi_wkv(w, u, k, v)
        half = bi_wkv(w, u, k.bfloat16(), v.bfloat16())
    assert torch.equal(y, bi_wkv(w, u, k, v))
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, bi_wkv(w, u, k.bfloat16(), v.bfloat16()))


def test_a_tensor_elsewhere_is_refused() -> None:
    w, u, k, v, _ = on_gpu(2, 40, 10)
    with pytest.raises(ValueError, match="v is on cpu but k is on cuda:0; move them to one device"):
        bi_wkv(w, u, k, v.cpu())
    with pytest.raises(ValueError, match="backend 'cpu' cannot run: k is on cuda:0"):
        bi_wkv(w, u, k, v, backend="cpu")


@pytest.mark.parametrize("tokens", [1, 2, 17, 190, 784])
def test_selective_scan_by_torch(tokens: int) -> None:
    x, step, gy = torch.randn(3, 2, tokens, 4, 20, device="cuda")
    b, c = torch.randn(2, 2, tokens, 4, 16, device="cuda")
    a, d = -4 * torch.rand(4, 20, 16, device="cuda"), torch.randn(4, 20, device="cuda")
    leaves = [z.requires_grad_() for z in (x, step.abs().clamp(max=2), a, b, c, d)]
    ours, theirs = selective_scan(*leaves), selective_scan_reference(*leaves)
    gradients = (torch.autograd.grad(y, leaves, gy.to(y.dtype)) for y in (ours, theirs))
    for z, expected in zip((ours, *next(gradients)), (theirs, *next(gradients)), strict=True):
        assert (z - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1)
