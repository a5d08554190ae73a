"""Bi-WKV on CUDA devices with every input read once: csrc/single_read.cu, which the compiler that torch brings along
(NVRTC) compiles at its first use. Needs neither nvcc nor headers.

It computes outputs, for as many tokens as shared memory holds, of channels whose sums may be linear. The Triton kernels
do the rest: other channels in a second launch, longer sequences, and gradients.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from biwkv import scan, triton
from biwkv.dispatch import is_double

SOURCE = Path(__file__).parent / "csrc" / "single_read.cu"
# As in the source: channels of a block, tokens of a part, parts of a chunk, floats of a chunk's summary.
WIDTH, ROWS, MAX_PARTS, SUMMARY = 32, 8, 7, 5
WARPS = 16  # that a block has if chunks need not be longer, so that two blocks fit a multiprocessor
MAX_WARPS = 32
TYPES = {torch.float32: "Float", torch.bfloat16: "BFloat16", torch.float16: "Half"}
SHARED_MEMORY = 97  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
DYNAMIC_SHARED_MEMORY = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


def why_not(k: Tensor) -> str:
    """Why the kernel cannot run on k; empty if it can."""
    if k.device.type != "cuda":
        return f"k is on {k.device}"
    if reason := triton.why_not(k):
        return reason
    dtype = k.dtype if k.dtype in TYPES else torch.float32
    kernel = _kernel(k.device.index, dtype, dtype)
    return kernel if isinstance(kernel, str) else ""


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """y (B, T, C) in k's dtype. Computes in float32; float64 is left to the scan."""
    if is_double(w, u, k, v):
        return scan.forward(w, u, k, v)
    kernel = _kernel(k.device.index, k.dtype, v.dtype)
    assert isinstance(kernel, _Kernel), kernel
    plan = plan_launch(k, v)
    if plan.warps > MAX_WARPS or plan.shared > kernel.shared:
        return triton.forward(w, u, k, v)
    w, u = (x.detach().to(torch.float32).contiguous() for x in (w, u))
    k, v = k.detach().contiguous(), v.detach().contiguous()
    y = torch.empty_like(k)
    tensors = (w, u, k, v, y)
    numbers = (*k.shape[1:], plan.length, triton.FORWARD.length, plan.pieces)
    with torch.cuda.device(k.device):
        stream = torch.cuda.current_stream().cuda_stream
        _launch(kernel, plan, k.shape[0] * -(-k.shape[2] // WIDTH), stream, tensors, numbers)
    triton.launch(triton.FORWARD, k, w, u, k, v, y, triton.scratch(triton.FORWARD, k), narrow=False)
    return y


backward = triton.backward


class Plan(NamedTuple):
    length: int  # tokens of a chunk
    warps: int  # one a chunk
    shared: int  # bytes
    pieces: bool  # whether tiles can be loaded 16 bytes at a time


def plan_launch(k: Tensor, v: Tensor) -> Plan:
    parts = -(-k.shape[1] // ROWS)
    chunk = min(-(-parts // WARPS), MAX_PARTS)
    warps = -(-parts // chunk)
    sizes = k.element_size(), v.element_size()
    shared = parts * ROWS * WIDTH * sum(sizes) + warps * SUMMARY * WIDTH * 4
    pieces = all(k.shape[2] * size % 16 == 0 for size in sizes) and not any(x.data_ptr() % 16 for x in (k, v))
    return Plan(chunk * ROWS, warps, shared, pieces)


class _Kernel(NamedTuple):
    function: ctypes.c_void_p
    context: ctypes.c_void_p  # the one that torch uses
    shared: int  # bytes that a block may have


def _launch(
    kernel: _Kernel, plan: Plan, blocks: int, stream: int, tensors: tuple[Tensor, ...], numbers: tuple[int, ...]
) -> None:
    values = [*(ctypes.c_void_p(x.data_ptr()) for x in tensors), *(ctypes.c_int(x) for x in numbers)]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(x) for x in values))
    grid, block = (blocks, 1, 1), (plan.warps * 32, 1, 1)
    driver, where = _driver(), ctypes.c_void_p(stream)
    _check(driver.cuCtxSetCurrent(kernel.context), "cuCtxSetCurrent")  # a new thread has none
    _check(driver.cuLaunchKernel(kernel.function, *grid, *block, plan.shared, where, pointers, None), "cuLaunchKernel")


@cache
def _kernel(device: int, key: torch.dtype, value: torch.dtype) -> _Kernel | str:
    """The kernel in the device's memory, or why there is none."""
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"compute capability {major}.{minor} is less than 8.0"
    try:
        code = compile_source(f"sm_{major}{minor}", TYPES[key], TYPES[value])
        with torch.cuda.device(device):
            return _load(code, device)
    except (OSError, AttributeError, RuntimeError) as error:
        return str(error)


def _load(code: bytes, device: int) -> _Kernel:
    driver = _driver()
    context, module, function, shared = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()
    _check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    _check(driver.cuCtxSetCurrent(context), "cuCtxSetCurrent")
    _check(driver.cuModuleLoadData(ctypes.byref(module), code), "cuModuleLoadData")
    _check(driver.cuModuleGetFunction(ctypes.byref(function), module, b"forward"), "cuModuleGetFunction")
    _check(driver.cuDeviceGetAttribute(ctypes.byref(shared), SHARED_MEMORY, device), "cuDeviceGetAttribute")
    _check(driver.cuFuncSetAttribute(function, DYNAMIC_SHARED_MEMORY, shared), "cuFuncSetAttribute")
    return _Kernel(function, context, shared.value)


def compile_source(architecture: str, key: str, value: str) -> bytes:
    """Machine code for `architecture` (sm_90) and two of TYPES. Needs no device."""
    nvrtc = _nvrtc()
    options = [f"--gpu-architecture={architecture}", "-std=c++17", f"-DKEY={key}", f"-DVALUE={value}"]
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    source = SOURCE.read_bytes()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, SOURCE.name.encode(), 0, None, None), "NVRTC")
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), encoded):
            _check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)), "NVRTC")
            log = ctypes.create_string_buffer(size.value)
            _check(nvrtc.nvrtcGetProgramLog(program, log), "NVRTC")
            first = log.value.decode().partition("\n")[0]
            raise RuntimeError(f"{SOURCE.name} cannot be compiled for {architecture}: {first}")
        _check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), "NVRTC")
        code = ctypes.create_string_buffer(size.value)
        _check(nvrtc.nvrtcGetCUBIN(program, code), "NVRTC")
        return code.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _check(status: int, call: str) -> None:
    if status:
        raise RuntimeError(f"biwkv: {call} failed with status {status}")


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


@cache
def _nvrtc() -> Any:
    """The library beside torch's own, or the system's."""
    site = Path(torch.__file__).parent
    for folder in (*site.parent.glob("nvidia/*/lib"), site / "lib"):
        files = [str(file) for file in sorted(folder.glob("libnvrtc*.so*")) if ".alt." not in file.name]
        builtins = [file for file in files if "builtins" in file]
        if compilers := [file for file in files if file not in builtins]:
            for file in builtins:
                ctypes.CDLL(file)  # which the compiler may not find by itself
            return ctypes.CDLL(compilers[0])
    return ctypes.CDLL("libnvrtc.so")
