"""The Triton kernels as far as they can be tested without a GPU: interpreted, and compiled for one."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import Tensor

from biwkv import bi_wkv, dispatch, op, triton

triton_language = pytest.importorskip("triton")


@pytest.mark.slow
def test_interpreted() -> None:
    file = Path(__file__).with_name("interpreted_triton.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-m", "pytest", file], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.slow
@pytest.mark.parametrize("plan", [triton.FORWARD, triton.BACKWARD], ids=lambda plan: plan.kernel)
def test_compiles_for_an_h100_without_spills(plan: triton._Plan, tmp_path: Path) -> None:
    from triton.backends.compiler import GPUTarget

    kernel = triton._kernel(plan.kernel)
    constants = {
        "C": 576,
        "BLOCK": triton.BLOCK,
        "LENGTH": plan.length,
        "WIDE": plan.wide,
        "NARROW": True,
        "FAST": True,
    }
    halves = {"k_", "v_", "gy_", "y_", "gk_", "gv_"}
    signature = {name: "*bf16" if name in halves else "*fp32" for name in kernel.arg_names}
    signature |= {"T": "i32"} | dict.fromkeys(constants, "constexpr")
    source = triton_language.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {"num_warps": triton.BLOCK // 32}
    compiled = triton_language.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert ".local" not in compiled.asm["ptx"]
    (tmp_path / "kernel.ptx").write_text(compiled.asm["ptx"])
    ptxas = triton_language.knobs.nvidia.ptxas.path
    command = [ptxas, "-v", "-arch=sm_90a", tmp_path / "kernel.ptx", "-o", tmp_path / "kernel.cubin"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in report, report


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert triton.why_not(torch.empty(1)) == "k is on cpu"
    why_not_compile = triton._why_not_compile.__wrapped__
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "needs a C compiler at run time; install gcc or clang, or set CC" in why_not_compile()
    monkeypatch.setenv("CC", sys.executable)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    assert "needs Python's C headers at run time (/nowhere/Python.h); install python3-dev" in why_not_compile()
    monkeypatch.setattr(triton, "_is_installed", lambda: False)
    assert triton.why_not(torch.empty(1)) == "triton is not installed"


def test_forced_where_it_cannot_run() -> None:
    x = torch.zeros(1, 4, 3)
    with pytest.raises(ValueError, match="backend 'triton' cannot run: k is on cpu"):
        bi_wkv(x[0, 0], x[0, 0], x, x, backend="triton")


def test_auto_falls_back_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(k: Tensor) -> str:
        return "triton needs a C compiler at run time"

    monkeypatch.setitem(op.BACKENDS, "triton", op.BACKENDS["triton"]._replace(why_not=missing))
    monkeypatch.setitem(dispatch.FASTEST, "cpu", ("triton",))
    dispatch._warn_once.cache_clear()
    x = torch.randn(1, 4, 3)
    with pytest.warns(RuntimeWarning, match="the 'triton' kernel cannot run: triton needs a C compiler"):
        y = bi_wkv(x[0, 0], x[0, 0], x, x)
    assert torch.equal(y, bi_wkv(x[0, 0], x[0, 0], x, x, backend="scan"))
    bi_wkv(x[0, 0], x[0, 0], x, x)  # another warning would be an error
