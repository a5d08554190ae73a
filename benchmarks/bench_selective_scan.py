"""The selective scan, compiled and in chunks of torch, beside two ways to write it as a loop over the tokens.

    python benchmarks/bench_selective_scan.py [--device cuda] [--shape 1,3136,4,192,16] [--seconds 2]

"sequential" computes a token's factors when it gets there. "all factors first" is the formulation of mamba_ssm's
`selective_scan_ref`: exp(step a) and step b x of all tokens, then the loop. Tokens are unbound in one go, without which
the gradient of either takes a time quadratic in T. Shapes are B,T,G,D,N: the four stages of VM-UNet at 224 pixels
and Bi-Mamba in stage III of RWKV-UNet-B. All rows of a shape are measured in turns, as in bench_wkv.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from bench_wkv import least_times
from torch import Tensor

from biwkv import selective_scan
from biwkv.selective import BACKENDS

SHAPES = ["1,3136,4,192,16", "1,784,4,384,16", "1,196,4,768,16", "1,49,4,1536,16", "1,784,2,1152,16"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", action="append", help="B,T,G,D,N; may be repeated")
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long to measure a shape and direction")
    args = parser.parse_args()
    cuda = torch.device(args.device).type == "cuda"
    name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, float32, torch {torch.__version__}")
    for shape in args.shape or SHAPES:
        measure([int(size) for size in shape.split(",")], args.device, args.seconds)


def measure(shape: list[int], device: str, seconds: float) -> None:
    """Prints the table of one shape."""
    batch, tokens, groups, channels, states = shape
    x, gy = torch.randn(2, batch, tokens, groups, channels, device=device)
    b, c = torch.randn(2, batch, tokens, groups, states, device=device)
    a = -torch.arange(1.0, states + 1, device=device).repeat(groups, channels, 1)
    inputs = [x, 0.1 * torch.rand_like(x), a, b, c, torch.ones(groups, channels, device=device)]
    leaves = [z.requires_grad_() for z in inputs]
    ways: dict[str, Callable[..., Tensor]] = {
        name: partial(selective_scan, backend=name) for name, backend in BACKENDS.items() if not backend.why_not(x)
    }
    ways |= {"sequential": sequential, "all factors first": factors_first}
    print(f"\nB {batch}  T {tokens}  G {groups}  D {channels}  N {states}")
    for direction in ("forward", "forward+backward"):
        steps = {name: partial(step, way, leaves, gy if "+" in direction else None) for name, way in ways.items()}
        times = least_times(steps, device, seconds)
        best = min(times.values())
        print(f"{direction:20}{'ms':>10}{'of the best':>13}")
        for name, t in times.items():
            print(f"{name:20}{t * 1e3:10.2f}{t / best:12.1f}x", flush=True)


def sequential(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    h, y = torch.zeros_like(x[:, 0, ..., None] * a), []
    for x_t, step_t, b_t, c_t in zip(*(z.unbind(1) for z in (x, step, b, c)), strict=True):
        h = torch.exp(step_t[..., None] * a) * h + (step_t * x_t)[..., None] * b_t[..., None, :]
        y.append((h @ c_t[..., None]).squeeze(-1))
    return torch.stack(y, 1) + d * x


def factors_first(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    factors = torch.exp(torch.einsum("btgd,gdn->btgdn", step, a))
    added = torch.einsum("btgd,btgn,btgd->btgdn", step, b, x)
    h, y = torch.zeros_like(factors[:, 0]), []
    for factor, more, c_t in zip(*(z.unbind(1) for z in (factors, added, c)), strict=True):
        h = factor * h + more
        y.append(torch.einsum("bgdn,bgn->bgd", h, c_t))
    return torch.stack(y, 1) + d * x


def step(way: Callable[..., Tensor], leaves: list[Tensor], gy: Tensor | None) -> None:
    if gy is None:
        with torch.no_grad():
            way(*leaves)
    else:
        torch.autograd.grad(way(*leaves), leaves, gy)


if __name__ == "__main__":
    main()
