"""What the compiled CPU kernels promise beyond its results, which test_bi_wkv.py and test_bi_wkv_nd.py check."""

from __future__ import annotations

import ctypes
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import biwkv
from biwkv import bi_wkv, bi_wkv_nd, bi_wkv_nd_reference, bi_wkv_reference, cpu, nd_scan, scan

pytestmark = pytest.mark.skipif(bool(cpu.why_not(torch.empty(1))), reason="the kernel is not built")
GUARD = 64
MARK = -123.25


def inputs(batch: int, tokens: int, channels: int, decay: float = 1.0) -> list[Tensor]:
    """w, u, k, v, gy."""
    generator = torch.Generator().manual_seed(tokens)
    w, u = torch.randn(2, channels, generator=generator)
    return [w * decay / tokens, u, *torch.randn(3, batch, tokens, channels, generator=generator)]


def forward_and_backward(args: list[Tensor]) -> list[Tensor]:
    return [cpu.forward(*args[:4]), *cpu.backward(*args)]


@pytest.fixture(autouse=True)
def _threads_and_level() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    library = cpu._library()
    assert isinstance(library, ctypes.CDLL)
    library.biwkv_limit_level(4)


@pytest.mark.parametrize("decay", [1.0, 500.0])
@pytest.mark.parametrize(("batch", "tokens", "channels"), [(8, 196, 200), (1, 1000, 300), (3, 700, 64)])
def test_same_bits_for_any_number_of_threads(batch: int, tokens: int, channels: int, decay: float) -> None:
    args = inputs(batch, tokens, channels, decay)
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(forward_and_backward(args))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("decay", [1.0, 500.0])
def test_same_bits_for_any_batch(decay: float) -> None:
    w, u, k, v, gy = inputs(4, 50, 100, decay)
    y, _, _, gk, gv = forward_and_backward([w, u, k, v, gy])
    alone = forward_and_backward([w, u, k[2:3], v[2:3], gy[2:3]])
    assert all(torch.equal(a[2:3], b) for a, b in zip((y, gk, gv), (alone[0], *alone[3:]), strict=True))


@pytest.mark.parametrize("decay", [1.0, 500.0])
@pytest.mark.parametrize("channels", [1, 31, 32, 33, 63, 64, 65, 130])
@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 49])
def test_writes_its_results_and_nothing_else(tokens: int, channels: int, decay: float) -> None:
    args = inputs(2, tokens, channels, decay)
    guarded = [_guarded(x.shape) for x in (args[2], *args[:4])]
    y, *gradients = [view for _, view in guarded]
    library = cpu._library()
    assert isinstance(library, ctypes.CDLL)
    sizes = [ctypes.c_int64(size) for size in args[2].shape]
    assert library.biwkv_forward(*_pointers(*args[:4], y), *sizes, 2) == 0
    assert library.biwkv_backward(*_pointers(*args, *gradients), *sizes, 2) == 0
    for whole, view in guarded:
        assert (whole[:GUARD] == MARK).all()
        assert (whole[-GUARD:] == MARK).all()
        assert not (view == MARK).any()
    leaves = [x.double().requires_grad_() for x in args[:4]]
    formula = bi_wkv_reference(*leaves)
    expected = [formula.detach(), *torch.autograd.grad(formula, leaves, args[4].double())]
    for ours, theirs in zip((y, *gradients), expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * (1 + theirs.abs().max())


@pytest.mark.parametrize("decay", [1.0, 500.0])
@pytest.mark.parametrize("level", [1, 3])
def test_older_processors(level: int, decay: float) -> None:
    args = inputs(2, 49, 100, decay)
    expected = forward_and_backward(args)
    library = cpu._library()
    assert isinstance(library, ctypes.CDLL)
    library.biwkv_limit_level(level)
    for ours, theirs in zip(forward_and_backward(args), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def nd_inputs(spatial: tuple[int, ...], channels: int) -> list[Tensor]:
    """w, u, k, v, gy for several axes."""
    generator = torch.Generator().manual_seed(channels)
    w, u = (torch.randn(*shape, channels, generator=generator) for shape in ((len(spatial),), ()))
    return [w / 10, u, *torch.randn(3, 2, *spatial, channels, generator=generator)]


def nd_forward_and_backward(args: list[Tensor]) -> list[Tensor]:
    return [cpu.nd_forward(*args[:4]), *cpu.nd_backward(*args)]


@pytest.mark.parametrize("spatial", [(28, 28), (10, 9, 8)])
def test_same_bits_of_nd_for_any_number_of_threads(spatial: tuple[int, ...]) -> None:
    args = nd_inputs(spatial, 200)
    results = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        results.append(nd_forward_and_backward(args))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("channels", [1, 31, 32, 33, 70])
@pytest.mark.parametrize("spatial", [(17,), (5, 1), (4, 5), (3, 4, 5)])
@pytest.mark.parametrize("level", [1, 3, 4])
def test_nd_writes_its_results_and_nothing_else(spatial: tuple[int, ...], channels: int, level: int) -> None:
    args = nd_inputs(spatial, channels)
    guarded = [_guarded(x.shape) for x in (args[2], *args[:4])]
    y, *gradients = [view for _, view in guarded]
    library = cpu._library()
    assert isinstance(library, ctypes.CDLL)
    shape = ctypes.c_int64(2), (ctypes.c_int64 * len(spatial))(*spatial), len(spatial), ctypes.c_int64(channels)
    library.biwkv_limit_level(level)
    assert library.biwkv_nd_forward(*_pointers(*args[:4], y), *shape, 2) == 0
    assert library.biwkv_nd_backward(*_pointers(*args, *gradients), *shape, 2) == 0
    for whole, _ in guarded:
        assert (whole[:GUARD] == MARK).all()
        assert (whole[-GUARD:] == MARK).all()
    leaves = [x.double().requires_grad_() for x in args[:4]]
    formula = bi_wkv_nd_reference(*leaves)
    expected = [formula.detach(), *torch.autograd.grad(formula, leaves, args[4].double())]
    for ours, theirs in zip((y, *gradients), expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * (1 + theirs.abs().max())


def test_nd_leaves_wide_decays_and_float64_to_the_scan() -> None:
    w, u, k, v, _ = nd_inputs((4, 5), 10)
    assert torch.equal(cpu.nd_forward(500 * w, u, k, v), nd_scan.forward(500 * w, u, k, v))
    assert torch.equal(cpu.nd_forward(w, u, k.double(), v), nd_scan.forward(w, u, k.double(), v))
    assert torch.equal(bi_wkv_nd(w, u, k, v), cpu.nd_forward(w, u, k, v))


def _guarded(shape: torch.Size) -> tuple[Tensor, Tensor]:
    whole = torch.full((shape.numel() + 2 * GUARD,), MARK)
    return whole, whole[GUARD:-GUARD].view(shape)


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(x.data_ptr()) for x in tensors]


def _in_child(args: list[Tensor], queue: Any) -> None:
    queue.put(cpu.forward(*args[:4]).numpy().tobytes())


@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_works_in_child_processes(method: Literal["fork", "forkserver"]) -> None:
    torch.set_num_threads(4)
    args = inputs(4, 784, 128)
    expected = cpu.forward(*args[:4]).numpy().tobytes()
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(args, queue), daemon=True)
    child.start()
    try:
        assert queue.get(timeout=60) == expected
    finally:
        child.kill()
        child.join()


def test_auto_takes_it_and_float64_goes_to_the_scan() -> None:
    w, u, k, v, _ = inputs(2, 40, 10)
    assert torch.equal(bi_wkv(w, u, k, v), cpu.forward(w, u, k, v))
    assert torch.equal(bi_wkv(w, u, k.double(), v), scan.forward(w, u, k.double(), v))


def test_autocast_leaves_w_and_u_alone() -> None:
    w, u, k, v, _ = inputs(2, 40, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bi_wkv(w, u, k.bfloat16(), v.bfloat16()), bi_wkv(w, u, k.bfloat16(), v.bfloat16()))
        y = bi_wkv(w, u, k, v)
    assert torch.equal(y, bi_wkv(w, u, k, v))


def test_a_tensor_elsewhere_is_refused() -> None:
    assert cpu.why_not(torch.empty(1, device="meta")) == "k is on meta"


WITHOUT_LIBRARY = """
import sys; sys.path.insert(0, sys.argv[1])
import torch, biwkv
k = torch.randn(1, 5, 3)
for _ in range(3):
    biwkv.bi_wkv(k[0, 0], k[0, 0], k, k)
print("ran")
biwkv.bi_wkv(k[0, 0], k[0, 0], k, k, backend="cpu")
"""


def test_without_the_library_the_scan_runs_and_says_so_once_and_asking_for_it_is_an_error(tmp_path: Path) -> None:
    """With a copy of the package that has no compiled kernel."""
    package = tmp_path / "biwkv"
    package.mkdir()
    for source in Path(biwkv.__file__).parent.glob("*.py"):
        (package / source.name).write_text(source.read_text())
    command = [sys.executable, "-c", WITHOUT_LIBRARY, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "ran\n"), done.stderr
    assert done.stderr.count("the 'cpu' kernel cannot run: _biwkv_cpu.so was not built; install a C++ compiler") == 1
    assert done.stderr.count("Traceback") == 1
    assert "ValueError: bi_wkv: backend 'cpu' cannot run: _biwkv_cpu.so was not built" in done.stderr
