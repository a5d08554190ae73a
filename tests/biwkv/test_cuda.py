"""The single-read CUDA kernel as far as it can be tested without a GPU: its arithmetic in a C++ program that runs the
same functions a thread after the other, and compiled for a GPU."""

from __future__ import annotations

import ctypes
import itertools
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from formula import inputs
from torch import Tensor

from biwkv import bi_wkv, bi_wkv_reference, cuda, triton

Emulator = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
GUARD = 256


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Callable[[torch.dtype, torch.dtype], Emulator]:
    """Compiles the program for two dtypes. y lies between NaNs, of which none may be overwritten, as do k and v."""
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("emulator")

    def build(key: torch.dtype, value: torch.dtype) -> Emulator:
        names = cuda.TYPES[key], cuda.TYPES[value]
        library = folder / f"{'_'.join(names)}.so"
        types = [f"-DKEY={names[0]}", f"-DVALUE={names[1]}"]
        command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", *types, "-x", "c++", cuda.SOURCE, "-o", library]
        subprocess.run(command, check=True)
        return lambda *args: emulate(ctypes.CDLL(str(library)), *args)

    return build


def emulate(library: ctypes.CDLL, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v, y = guarded(k), guarded(v), guarded(torch.full_like(k, 7))
    length, margin = cuda.plan_launch(k, v).length, triton.FORWARD.length
    pointers = (ctypes.c_void_p(x.data_ptr()) for x in (w, u, k, v, y))
    library.emulate(*pointers, *(ctypes.c_int(x) for x in (*k.shape, length, margin)))
    whole = torch.empty(0, dtype=y.dtype).set_(y.untyped_storage(), 0, (y.numel() + 2 * GUARD,))
    assert whole[:GUARD].isnan().all()
    assert whole[-GUARD:].isnan().all()
    return y


def guarded(x: Tensor) -> Tensor:
    whole = torch.full((x.numel() + 2 * GUARD,), torch.nan, dtype=x.dtype)
    view = whole[GUARD:-GUARD].view(x.shape)
    view.copy_(x)
    return view


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
    ],
)
def test_emulated(
    emulator: Callable[[torch.dtype, torch.dtype], Emulator], key: torch.dtype, value: torch.dtype
) -> None:
    op = emulator(key, value)
    for (batch, tokens, channels), decay, bonus, spike in itertools.product(
        [(1, 1, 1), (2, 2, 33), (1, 9, 64), (2, 57, 3), (1, 190, 65), (1, 1700, 1)],
        (1, -20),
        (1, -15),
        (0, 60),
    ):
        w, u, k, v, _ = inputs(batch, tokens, channels, decay=decay, bonus=bonus, k_scale=3, spike=spike)
        w = w.clamp(-40 / (tokens + 16), 40 / (tokens + 16))
        u, k, v = u.clamp(-20, 20), k.to(key), v.to(value)
        formula = bi_wkv_reference(w, u, k, v)
        error = (op(w, u, k, v) - formula).abs().max()
        assert error <= max(TOLERANCES[key], TOLERANCES[value]) * formula.abs().max(), (tokens, decay, bonus, spike)


def test_groups_with_large_decays_are_left_alone(
    emulator: Callable[[torch.dtype, torch.dtype], Emulator],
) -> None:
    w, u, k, v, _ = inputs(1, 20, 130)
    w[70], u[129] = 2.0, torch.nan
    y = emulator(torch.float32, torch.float32)(w, u, k, v)
    assert (y[:, :, 64:] == 7).all()
    formula = bi_wkv_reference(w[:64], u[:64], k[:, :, :64], v[:, :, :64])
    torch.testing.assert_close(y[:, :, :64].double(), formula, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", cuda.TYPES.values())
def test_nvcc_compiles_it_without_spills(key: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("no nvcc")
    command = [nvcc, "-std=c++17", "-cubin", "-arch=sm_90", "--ptxas-options=-v", f"-DKEY={key}", f"-DVALUE={key}"]
    done = subprocess.run([*command, cuda.SOURCE, "-o", tmp_path / "x"], capture_output=True, text=True, check=True)
    assert "0 bytes spill stores, 0 bytes spill loads" in done.stderr, done.stderr
    [registers] = re.findall(r"Used (\d+) registers", done.stderr)
    assert int(registers) <= 64  # two blocks of 16 warps fit a multiprocessor


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_compiler_of_torch_compiles_it(architecture: str) -> None:
    try:
        cuda._nvrtc()
    except OSError as error:
        pytest.skip(f"this torch has none: {error}")
    assert cuda.compile_source(architecture, "BFloat16", "Float")[:4] == b"\x7fELF"
    with pytest.raises(RuntimeError, match=r"cannot be compiled for sm_90: single_read.cu\(\d+\): error"):
        cuda.compile_source("sm_90", "BFloat16", "Nothing")


def test_plan() -> None:
    k = torch.empty(1, 784, 576, dtype=torch.bfloat16)
    plan = cuda.plan_launch(k, k)
    assert (plan.length, plan.warps, plan.pieces) == (56, 14, True)
    assert 2 * (plan.shared + 1024) <= 228 * 1024  # of an H100's multiprocessor, for two blocks
    assert not cuda.plan_launch(k[:, :, :571].contiguous(), k).pieces
    for tokens in range(1, 1700):
        plan = cuda.plan_launch(torch.empty(1, tokens, 1, device="meta"), torch.empty(1, device="meta"))
        assert plan.length * (plan.warps - 1) < tokens <= plan.length * plan.warps
        assert plan.warps <= cuda.MAX_WARPS


def test_constants_are_those_of_the_source() -> None:
    source = cuda.SOURCE.read_text()
    constants = {name: int(value) for name, value in re.findall(r"constexpr int (\w+) = (\d+);", source)}
    names = ("WIDTH", "ROWS", "MAX_PARTS", "SUMMARY")
    assert constants == {**{name: getattr(cuda, name) for name in names}, "GROUP": triton.BLOCK}


def test_forced_where_it_cannot_run() -> None:
    x = torch.zeros(1, 4, 3)
    with pytest.raises(ValueError, match="backend 'cuda' cannot run: k is on cpu"):
        bi_wkv(x[0, 0], x[0, 0], x, x, backend="cuda")
