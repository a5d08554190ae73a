"""Every Bi-WKV implementation that runs here, beside torch's scaled_dot_product_attention at the same shapes.

    python benchmarks/bench_wkv.py [--device cuda] [--dtype bfloat16] [--shape 128,784,576] [--seconds 2]

A shape with more than one axis of tokens, as 8,28x28,576, is measured with `bi_wkv_nd`, beside `bi_wkv` on as many
tokens in a row.

Needs torch, and triton for its kernels; biwkv may be on PYTHONPATH (PYTHONPATH=kernels). All rows of a shape are
measured in turns, so that whatever else the machine does falls on all alike; times are the least of all turns. GB/s
counts the least bytes that the operator must move, and the share is of a measured copy of a tensor as large as all
that. Attention needs queries, keys and values, of which WKV has no queries: the same k serves as both.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from biwkv import bi_wkv, bi_wkv_nd, nd
from biwkv.dispatch import Backend
from biwkv.op import BACKENDS

SHAPES = {
    "cpu": ["8,784,576", "8,196,960", "2,4096,576", "8,28x28,576", "2,16x16x16,576"],
    "cuda": ["128,784,576", "128,196,960", "24,784,576", "8,4096,576", "128,28x28,576", "8,16x16x16,576"],
}
HEADS = 8
Step = Callable[[], object]
Directions = dict[str, dict[str, dict[str, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--shape", action="append", help="B,T,C or B,HxW,C or B,DxHxW,C; may be repeated")
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long to measure a shape and direction")
    parser.add_argument(
        "--no-attention", action="store_true", help="without its row, which takes minutes at 32k tokens"
    )
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args()
    kind = torch.device(args.device).type
    dtype = getattr(torch, args.dtype or ("bfloat16" if kind == "cuda" else "float32"))
    shapes = args.shape or SHAPES.get(kind, SHAPES["cuda"])
    name = torch.cuda.get_device_name() if kind == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}")
    figures: dict[str, Directions] = {}
    for shape in shapes:
        figures[shape] = measure(shape, args.device, dtype, args.seconds, not args.no_attention)
        if args.json:  # after every shape, for one that is stopped
            args.json.write_text(json.dumps(figures, indent=1))


def measure(shape: str, device: str, dtype: torch.dtype, seconds: float, attend: bool) -> Directions:
    """Prints the tables of one shape; milliseconds and the share of a copy, by direction and row."""
    batch, spatial, channels = (tuple(map(int, part.split("x"))) for part in shape.split(","))
    sizes = (*batch, math.prod(spatial), *channels)
    w, u = torch.randn(2, *channels, device=device) / sizes[1]
    k, v, gy = torch.randn(3, *sizes, device=device).to(dtype)
    leaves = [x.requires_grad_() for x in (w, u, k, v)]
    operators: dict[str, tuple[Callable[[], Tensor], list[Tensor]]] = {}
    if len(spatial) == 1:
        for name in backends(BACKENDS, k):
            operators[name] = partial(bi_wkv, *leaves, backend=name), leaves
    else:
        volume = [w.expand(len(spatial), -1), u, *(x.unflatten(1, spatial) for x in (k, v))]
        volume = [x.detach().clone().requires_grad_() for x in volume]
        for name in backends(nd.BACKENDS, k):
            operators[name] = partial(flat_nd, *volume, backend=name), volume
        operators["bi_wkv"] = partial(bi_wkv, *leaves), leaves
    if attend:
        operators["attention"] = partial(attention, k, v), [k, v]

    figures: Directions = {}
    for direction, tensors in (("forward", 3), ("forward+backward", 8)):
        train = direction != "forward"
        steps: dict[str, Step] = {
            name: partial(step, operator, inputs, gy if train else None)
            for name, (operator, inputs) in operators.items()
        }
        moved = tensors * k.numel() * k.element_size()
        source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
        steps["copy"] = partial(torch.empty_like(source).copy_, source)
        times = least_times(steps, device, seconds)
        print(f"\nB {batch[0]}  T {shape.split(',')[1]}  C {channels[0]}  {direction}")
        memory = {name: peak_memory(run, k.device) for name, run in steps.items()}
        print(f"{'':12}{'ms':>10}{'vs scan':>9}{'GB/s':>8}{'of copy':>9}{'peak MB':>10}")
        for name, t in times.items():
            ratios = f"{times['scan'] / t:8.1f}x{moved / t / 1e9:8.1f}{times['copy'] / t:9.0%}"
            print(f"{name:12}{t * 1e3:10.3f}{ratios}{memory[name]:10.0f}", flush=True)
        figures[direction] = {name: {"ms": t * 1e3, "of_copy": times["copy"] / t} for name, t in times.items()}
    return figures


def peak_memory(run: Step, device: torch.device) -> float:
    """Megabytes that a run takes beside its inputs: results, gradients and scratch; of the CPU by Linux's count, NaN
    without it."""
    if device.type != "cuda":
        try:
            ctypes.CDLL(None).malloc_trim(0)  # what is kept for reuse would hide what a run takes
            Path("/proc/self/clear_refs").write_text("5")  # the largest so far is what there is now
            before = resident("VmHWM")
            run()
            return (resident("VmHWM") - before) / 1e3
        except (OSError, AttributeError):
            return math.nan
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def resident(field: str) -> int:
    """Kilobytes of this process: VmHWM the most since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def backends(known: dict[str, Backend], k: Tensor) -> Iterator[str]:
    for name, backend in known.items():
        if reason := backend.why_not(k):
            print(f"without {name!r}: {reason}")
        else:
            yield name


def flat_nd(w: Tensor, u: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    return bi_wkv_nd(w, u, k, v, backend=backend).flatten(1, -2)


def attention(k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention over the same tokens, 8 heads of C / 8 channels: (B, T, C) -> (B, T, C)."""
    split_k, split_v = (x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in (k, v))
    return F.scaled_dot_product_attention(split_k, split_k, split_v).transpose(1, 2).flatten(2)


def step(operator: Callable[[], Tensor], inputs: list[Tensor], gy: Tensor | None) -> None:
    if gy is None:
        with torch.no_grad():
            operator()
    else:
        torch.autograd.grad(operator(), inputs, gy)


def least_times(steps: dict[str, Step], device: str, seconds: float) -> dict[str, float]:
    """Seconds of each step, the least of turns that take about `seconds` in all; at least 3 turns after a warm-up."""
    timer = cuda_time if torch.device(device).type == "cuda" else cpu_time
    for run in steps.values():
        timer(run)
    times = dict.fromkeys(steps, float("inf"))
    turns, end = 0, time.perf_counter() + seconds
    while turns < 3 or time.perf_counter() < end:
        for name, run in steps.items():
            times[name] = min(times[name], timer(run))
        turns += 1
    return times


def cpu_time(run: Step) -> float:
    """Of a single thread its own time, to which other programs add nothing; of several what the clock says."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    run()
    return clock() - start


def cuda_time(run: Step) -> float:
    """Of ten runs in a row, so that launching them is hidden as it is in a model. Without emptying the cache."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(10):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e4


if __name__ == "__main__":
    main()
